"""Devices of the Container Device Interface: a vendor's file lists what a device needs in a runtime spec.

`parse` checks one file, `resolve` finds the devices that a container asks for, `inject` edits its spec. An
unknown edit is refused, because ignoring it would leave a device that fails without an explanation. Source: the
CDI specification, versions 0.3.0 to 0.8.0 ("SPEC.md").
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, NotFound, Unsupported
from sandboxd.foreign_json import shown
from sandboxd.oci import linux
from sandboxd.oci.linux import DeviceNode, Json

ANNOTATIONS = "cdi.k8s.io/"  # prefix of the annotations that name devices, separated by commas

_QUALIFIED = re.compile(
    r"(?P<vendor>[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]|[A-Za-z])"
    r"/(?P<class>[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]|[A-Za-z])"
    r"=(?P<device>[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]|[A-Za-z0-9])\Z"
)
_VERSION = re.compile(r"(?:v)?0\.[1-8]\.\d+\Z|(?:v)?1\.0\.\d+\Z")
_HOOKS = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})

# The members that each object may have, and their types.
_FILE: Json = {"cdiVersion": str, "kind": str, "annotations": dict, "devices": list, "containerEdits": dict}
_DEVICE: Json = {"name": str, "annotations": dict, "containerEdits": dict}
_EDITS: Json = {"env": list, "deviceNodes": list, "mounts": list, "hooks": list, "additionalGids": list}
_NODE: Json = {"path": str, "hostPath": str, "type": str, "major": int, "minor": int, "fileMode": int,
               "permissions": str, "uid": int, "gid": int}  # fmt: skip
_MOUNT: Json = {"hostPath": str, "containerPath": str, "options": list, "type": str}
_HOOK: Json = {"hookName": str, "path": str, "args": list, "env": list, "timeout": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One file: a kind of device, the edits of each device by name, and the edits that all of them need."""

    source: str  # the file, for messages
    kind: str  # "vendor.com/class"
    common: Json
    devices: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """The edits for a container's devices, in the order in which to apply them."""

    devices: tuple[str, ...] = ()
    parts: tuple[Json, ...] = ()

    @property
    def host_nodes(self) -> tuple[str, ...]:
        """The paths of the host's device nodes that the edits refer to."""
        return tuple(node.get("hostPath") or node["path"] for part in self.parts for node in part["deviceNodes"])


def names(devices: Iterable[str], annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that a container asks for by field and by annotation, each once.

    Raises InvalidRequest for one that is not of the form vendor/class=device.
    """
    qualified = list(devices)
    for key, value in sorted(annotations.items()):
        if key.startswith(ANNOTATIONS):
            qualified += value.split(",")
    for name in qualified:
        if not _QUALIFIED.match(name):
            raise InvalidRequest(f"CDI device {name!r} is not of the form vendor.com/class=device")
    return tuple(dict.fromkeys(qualified))


def parse(data: bytes, source: str) -> Spec:
    """Parse a CDI file: JSON if its name ends in .json, else YAML.

    Raises InvalidRequest that names the file and the member, Unsupported for a member that is not known.
    """
    if source.endswith(".json"):
        content = foreign_json.parse(data, source, repeated=True)
    else:
        # Here and not above: most machines have no such file, and PyYAML takes its time to load.
        from sandboxd import foreign_yaml

        content = foreign_yaml.parse(data, source)
    document = _object(content, _FILE, f"{source}:", " ")
    if not _VERSION.match(document.get("cdiVersion", "")):
        raise InvalidRequest(f"{source}: cdiVersion: {shown(document.get('cdiVersion'))} is not a known version")
    kind = document.get("kind", "")
    if not _QUALIFIED.match(f"{kind}=device"):
        raise InvalidRequest(f"{source}: kind: {shown(kind)} is not of the form vendor.com/class")
    devices: dict[str, Json] = {}
    for i, item in enumerate(document.get("devices", [])):
        where = f"{source}: devices[{i}]"
        device = _object(item, _DEVICE, where)
        name = device.get("name", "")
        if not _QUALIFIED.match(f"{kind}={name}"):
            raise InvalidRequest(f"{where}.name: {shown(name)} is not the name of a device")
        if name in devices:
            raise InvalidRequest(f"{where}.name: {shown(name)} is listed twice")
        devices[name] = _edits(device.get("containerEdits", {}), f"{where}.containerEdits")
    common = _edits(document.get("containerEdits", {}), f"{source}: containerEdits")
    return Spec(source=source, kind=kind, common=common, devices=devices)


def _object(value: Any, known: Json, where: str, dot: str = ".") -> Json:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where.rstrip(':')}: must be an object")
    for key, item in value.items():
        if key not in known:
            raise Unsupported(f"{where}{dot}{key}: is not a known member")
        if not isinstance(item, known[key]) or isinstance(item, bool):
            raise InvalidRequest(f"{where}{dot}{key}: {shown(item)} is not of type {known[key].__name__}")
    return cast(Json, value)


def _edits(value: Any, where: str) -> Json:
    edits: Json = {name: [] for name in _EDITS} | _object(value, _EDITS, where)
    for name, known in (("deviceNodes", _NODE), ("mounts", _MOUNT), ("hooks", _HOOK)):
        for i, item in enumerate(edits[name]):
            _object(item, known, f"{where}.{name}[{i}]")
    for i, entry in enumerate(edits["env"]):
        if not isinstance(entry, str) or entry.find("=") < 1:
            raise InvalidRequest(f"{where}.env[{i}]: {shown(entry)} is not NAME=value")
    for i, gid in enumerate(edits["additionalGids"]):
        if not isinstance(gid, int) or isinstance(gid, bool) or gid < 0:
            raise InvalidRequest(f"{where}.additionalGids[{i}]: {shown(gid)} is not a group id")
    paths = [("deviceNodes", "path"), ("mounts", "hostPath"), ("mounts", "containerPath"), ("hooks", "path")]
    for name, key in paths:
        for i, item in enumerate(edits[name]):
            if not item.get(key, "").startswith("/"):
                raise InvalidRequest(f"{where}.{name}[{i}].{key}: {shown(item.get(key, ''))} is not an absolute path")
    for i, hook in enumerate(edits["hooks"]):
        if hook.get("hookName") not in _HOOKS:
            raise InvalidRequest(f"{where}.hooks[{i}].hookName: {shown(hook.get('hookName'))} is not a hook")
    return edits


def resolve(wanted: Sequence[str], directories: Sequence[Sequence[Spec]], problems: Sequence[str]) -> Edits:
    """The edits for the `wanted` devices, given the specs of each directory; a later directory wins.

    `problems` describe the files that could not be read, for the message. Raises NotFound for an unknown device,
    InvalidRequest for a device that two files in one directory describe.
    """
    parts: list[Json] = []
    done: set[str] = set()
    for name in wanted:
        kind, _, device = name.partition("=")
        spec = _find(kind, device, directories)
        if spec is None:
            because = f" ({'; '.join(problems)})" if problems else ""
            raise NotFound(f"CDI device {name}: no specification on this machine describes it{because}")
        if spec.source not in done:
            done.add(spec.source)
            parts.append(spec.common)
        parts.append(spec.devices[device])
    return Edits(devices=tuple(wanted), parts=tuple(parts))


def _find(kind: str, device: str, directories: Sequence[Sequence[Spec]]) -> Spec | None:
    for specs in reversed(directories):
        matches = [spec for spec in specs if spec.kind == kind and device in spec.devices]
        if len(matches) > 1:
            files = " and ".join(spec.source for spec in matches)
            raise InvalidRequest(f"CDI device {kind}={device} is described twice, in {files}")
        if matches:
            return matches[0]
    return None


def inject(spec: Json, edits: Edits, host: Mapping[str, DeviceNode]) -> None:
    """Apply the edits to a runtime spec, in place. `host` maps those of `edits.host_nodes` that exist to nodes.

    Raises InvalidRequest when a node does not exist on the host and its edit does not give its type and numbers.
    """
    for part in edits.parts:
        process = spec["process"]
        process["env"] = linux.environment([*process["env"], *part["env"]])
        for item in part["deviceNodes"]:
            _add_node(spec["linux"], item, host)
        for item in part["mounts"]:
            _add_mount(spec, item)
        for hook in part["hooks"]:
            body = {key: value for key, value in hook.items() if key != "hookName"}
            spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(body)
        user = process["user"]
        user["additionalGids"] = list(dict.fromkeys([*user["additionalGids"], *part["additionalGids"]]))


def _add_node(section: Json, item: Json, host: Mapping[str, DeviceNode]) -> None:
    path = linux.clean(item["path"])
    existing = host.get(item.get("hostPath") or item["path"])
    kind = item.get("type") or (existing.kind if existing else "")
    node: Json = {"path": path, "type": {"u": "c"}.get(kind, kind)}
    if kind != "p":
        if existing is None and not ("major" in item and "minor" in item and kind):
            raise InvalidRequest(f"CDI device node {item.get('hostPath') or item['path']} is not on this machine")
        node["major"] = item.get("major", existing.major if existing else 0)
        node["minor"] = item.get("minor", existing.minor if existing else 0)
    mode = item.get("fileMode", existing.mode if existing else None)
    node |= {"fileMode": mode} if mode is not None else {}
    for key in ("uid", "gid"):
        owner = item.get(key, getattr(existing, key) if existing else None)
        node |= {key: owner} if owner is not None else {}
    section["devices"] = [d for d in section["devices"] if d["path"] != path] + [node]
    if node["type"] in ("b", "c"):
        section["resources"]["devices"].append(
            {
                "allow": True,
                "type": node["type"],
                "major": node["major"],
                "minor": node["minor"],
                "access": item.get("permissions") or "rwm",
            }
        )


def _add_mount(spec: Json, item: Json) -> None:
    destination = linux.clean(item["containerPath"])
    mount = {
        "destination": destination,
        "type": item.get("type") or "bind",
        "source": posixpath.normpath(item["hostPath"]),
        "options": list(item.get("options") or ["rbind", "ro", "nosuid", "nodev"]),
    }
    kept = [m for m in spec["mounts"] if m["destination"] != destination]
    spec["mounts"] = sorted([*kept, mount], key=lambda m: linux.depth(m["destination"]))

"""Requests to plugins: from a pod's CRI configuration to the environment and stdin of one execution.

`plan` fixes all of ADD's input in a `model.Attachment`; every later execution, DEL included, is built from that
record alone (CNI spec 1.1, sections 2 to 4, and the conventions for `runtimeConfig`).
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sandboxd.cni.conf import SUPPORTED, NetworkConfig, config_json
from sandboxd.cni.in_process.supported import why_not
from sandboxd.errors import InvalidRequest
from sandboxd.model import Attachment
from sandboxd.pb.cri.v1 import api_pb2 as cri

INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"
IPS = "sandboxd.io/ips"
MAC = "sandboxd.io/mac"

# In bits, as the bandwidth plugin counts; it refuses bursts of 4 GB and more, and this is close enough to no limit.
UNLIMITED_BURST = 2**32 - 1

_PROTOCOLS = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?\Z"
)
_SCALES: Mapping[str, Fraction] = {
    **{suffix: Fraction(10) ** (3 * i - 9) for i, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"))},
    **{f"{suffix}i": Fraction(1024) ** (i + 1) for i, suffix in enumerate("KMGTPE")},
}


def plan(
    config: NetworkConfig,
    sandbox: cri.PodSandboxConfig,
    sandbox_id: str,
    netns_path: str,
    plugin_dirs: Sequence[str],
    *,
    ifname: str = "eth0",
    cgroup_path: str = "",
) -> Attachment:
    """The attachment of a pod to `config`, before any plugin runs (state PLANNED).

    `config` should come from `Invoker.prepare`, so that its version is one that the plugins support. Raises
    InvalidRequest when the pod's configuration or an identifier breaks a rule of the spec.
    """
    check_container_id(sandbox_id)
    check_ifname(ifname)
    for directory in plugin_dirs:
        if ":" in directory:
            raise InvalidRequest(f"plugin directory {directory!r}: CNI_PATH cannot hold a ':'")
    capabilities = capability_args(sandbox, cgroup_path=cgroup_path)
    args = cni_args(sandbox, sandbox_id)
    return Attachment(
        sandbox_id=sandbox_id,
        network=config.name,
        ifname=ifname,
        netns_path=netns_path,
        conf_file=config.source,
        config=config_json(config),
        plugin_path=":".join(plugin_dirs),
        args=args,
        capability_args=_json(capabilities),
        backends=_backends(config, capabilities, args),
    )


def _backends(config: NetworkConfig, capabilities: Mapping[str, Any], args: str) -> tuple[str, ...]:
    """The network's, but a process where the pod asks for what is not done otherwise."""
    return tuple(
        backend
        if backend and not why_not(plugin_stdin(config, plugin, capabilities, None, config.cni_version), args)
        else ""
        for plugin, backend in zip(config.plugins, config.backends, strict=False)
    )


def capability_args(sandbox: cri.PodSandboxConfig, *, cgroup_path: str = "") -> dict[str, Any]:
    """What the pod asks of its network, by capability; a plugin receives only the capabilities that it declares.

    Bandwidths are bits per second. Raises InvalidRequest naming the mapping or annotation that is wrong.
    """
    annotations = sandbox.annotations
    args: dict[str, Any] = {}
    if mappings := port_mappings(sandbox.port_mappings):
        args["portMappings"] = mappings
    if dns := _dns(sandbox.dns_config):
        args["dns"] = dns
    bandwidth: dict[str, int] = {}
    for annotation, direction in ((INGRESS, "ingress"), (EGRESS, "egress")):
        if annotation in annotations:
            bandwidth[f"{direction}Rate"] = _rate(annotation, annotations[annotation])
            bandwidth[f"{direction}Burst"] = UNLIMITED_BURST
    if bandwidth:
        args["bandwidth"] = bandwidth
    if IPS in annotations:
        args["ips"] = _addresses(annotations[IPS])
    if MAC in annotations:
        args["mac"] = _mac(annotations[MAC])
    if annotations:
        args["io.kubernetes.cri.pod-annotations"] = dict(annotations)
    if cgroup_path:
        args["cgroupPath"] = cgroup_path
    return args


def unserved(config: NetworkConfig, sandbox: cri.PodSandboxConfig) -> list[str]:
    """The capabilities that the pod asks for and no plugin of the network has; what is asked does not happen then.

    Not "dns" and those that only inform a plugin: nothing depends on a plugin for them.
    """
    declared = {name for plugin in config.plugins for name, on in (plugin.get("capabilities") or {}).items() if on}
    asked = capability_args(sandbox)
    return [name for name in ("portMappings", "bandwidth", "ips", "mac") if name in asked and name not in declared]


def cni_args(sandbox: cri.PodSandboxConfig, sandbox_id: str) -> str:
    """CNI_ARGS: the pod's identity, under the names that Kubernetes plugins read.

    IgnoreUnknown comes first because strict plugins otherwise refuse every K8S_ key. Raises InvalidRequest for a
    value that would break the format.
    """
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": sandbox.metadata.namespace,
        "K8S_POD_NAME": sandbox.metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": sandbox.metadata.uid,
    }
    for key, value in pairs.items():
        if set(value) & {";", "="} or not value.isprintable():
            raise InvalidRequest(
                f"{key} is {value!r}: CNI_ARGS cannot hold ';', '=' or unprintable characters in a value; "
                "choose another pod name, namespace or uid"
            )
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def plugin_stdin(
    config: NetworkConfig,
    plugin: Mapping[str, Any],
    capabilities: Mapping[str, Any],
    prev_result: Mapping[str, Any] | None,
    version: str,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """The execution configuration of one plugin (spec section 3): its object with the runtime's own keys.

    `runtimeConfig` holds only what the plugin declares; `capabilities` itself is not passed on. `extra` holds
    further runtime keys, such as those of GC.
    """
    declared = plugin.get("capabilities") or {}
    runtime_config = {key: value for key, value in capabilities.items() if declared.get(key)}
    document = {key: value for key, value in plugin.items() if key not in ("capabilities", "prevResult")}
    document |= {"cniVersion": version, "name": config.name}
    if runtime_config:
        document["runtimeConfig"] = runtime_config
    if prev_result is not None:
        document["prevResult"] = prev_result
    return _json(document | dict(extra or {}))


def plugin_env(command: str, attachment: Attachment, netns_path: str | None = None) -> dict[str, str]:
    """The CNI_* variables of ADD, DEL and CHECK.

    `netns_path` replaces the attachment's own: a DEL whose namespace is gone passes "" (spec, "DEL").
    """
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.sandbox_id,
        "CNI_NETNS": attachment.netns_path if netns_path is None else netns_path,
        "CNI_IFNAME": attachment.ifname,
        "CNI_ARGS": attachment.args,
        "CNI_PATH": attachment.plugin_path,
    }


def version_stdin() -> bytes:
    """The stdin of VERSION (spec section 2, "VERSION")."""
    return _json({"cniVersion": SUPPORTED[-1]})


def check_container_id(text: str) -> None:
    """Raise InvalidRequest unless `text` may be a CNI_CONTAINERID (spec section 2)."""
    if not _CONTAINER_ID.match(text):
        raise InvalidRequest(
            f"container id {text!r}: expected letters, digits, '_', '.' and '-', beginning with a letter or digit"
        )


def check_ifname(text: str) -> None:
    """Raise InvalidRequest unless `text` may be a CNI_IFNAME: a name that Linux accepts for an interface."""
    unfit = set(text) & {"/", ":", "%"} or not text.isprintable() or any(c.isspace() for c in text)
    if not 1 <= len(text.encode(errors="replace")) <= 15 or text in (".", "..") or unfit:
        raise InvalidRequest(
            f"interface name {text!r}: expected 1 to 15 bytes without '/', ':', '%' and white space, not '.' or '..'"
        )


def port_mappings(mappings: Sequence[cri.PortMapping]) -> list[dict[str, Any]]:
    """The mappings that name a host port, as plugins get them; a mapping without one publishes nothing.

    Each has "hostPort", "containerPort", "protocol", and "hostIP" if it is for one address. Raises InvalidRequest.
    """
    taken: dict[tuple[str, str, int], dict[str, Any]] = {}
    for mapping in mappings:
        if mapping.host_port == 0:
            continue
        protocol = _PROTOCOLS.get(mapping.protocol)
        shown = f"port mapping {mapping.host_port} → {mapping.container_port}"
        if protocol is None:
            raise InvalidRequest(f"{shown}: unknown protocol {mapping.protocol}; use tcp, udp or sctp")
        for side, port in (("host", mapping.host_port), ("container", mapping.container_port)):
            if not 1 <= port <= 65535:
                raise InvalidRequest(f"{shown}: the {side} port must be between 1 and 65535")
        entry: dict[str, Any] = {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": protocol,
        }
        if mapping.host_ip:
            entry["hostIP"] = str(_address(mapping.host_ip, f"{shown}: host ip"))
        # Two containers of a pod may declare the same port; the portmap plugin would install it twice.
        other = taken.setdefault((entry.get("hostIP", ""), protocol, mapping.host_port), entry)
        if other != entry:
            raise InvalidRequest(f"{shown}: the host port is already mapped to {other['containerPort']}/{protocol}")
    return list(taken.values())


def _dns(config: cri.DNSConfig) -> dict[str, list[str]]:
    dns = {
        "servers": list(config.servers),
        "searches": list(config.searches),
        "options": list(config.options),
    }
    return {key: values for key, values in dns.items() if values}


def _rate(annotation: str, text: str) -> int:
    """A Kubernetes quantity in bits per second, rounded up; the bounds are Kubernetes' own."""
    match = _QUANTITY.match(text)
    if not match:
        raise InvalidRequest(f"annotation {annotation}: {text!r} is not a quantity such as 10M")
    suffix = match["suffix"] or ""
    scale = _SCALES[suffix] if suffix in _SCALES else Fraction(10) ** int(suffix[1:])
    bits = math.ceil(Fraction(match["number"].rstrip(".")) * scale)
    if not 10**3 <= bits <= 10**15:
        raise InvalidRequest(f"annotation {annotation}: {text!r} is not between 1k and 1P bits per second")
    return bits


def _addresses(text: str) -> list[str]:
    addresses = [part.strip() for part in text.split(",")]
    for part in addresses:
        _address(part.partition("/")[0], f"annotation {IPS}")
        try:
            ipaddress.ip_interface(part)
        except ValueError as exc:
            raise InvalidRequest(f"annotation {IPS}: {part!r}: {exc}") from exc
    if len(set(addresses)) != len(addresses):
        raise InvalidRequest(f"annotation {IPS}: {text!r} names an address twice")
    return addresses


def _address(text: str, where: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        if "%" in text:
            raise ValueError("a zone has no meaning inside a pod")
        return ipaddress.ip_address(text)
    except ValueError as exc:
        raise InvalidRequest(f"{where}: {text!r} is not an IP address") from exc


def _mac(text: str) -> str:
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.match(mac):
        raise InvalidRequest(f"annotation {MAC}: {text!r} is not a MAC address such as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidRequest(f"annotation {MAC}: {text!r} cannot be an interface's own address")
    return mac


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()

"""A pod's containers → what a person would type for them, with containerd's own client ctr(8). Pure.

The commands follow from the runtime specs that containerd keeps, as the verbose statuses of pod and containers have
them: the arguments, the environment, the mounts, the namespaces. ctr 1.6 and later take them. What `ctr run` has no
option for is said above the command, rather than left out in silence.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxd.cli.shell import comment, fed, quoted

Json = Mapping[str, Any]

_DEFAULT_SOCKET = "/run/containerd/containerd.sock"
_DEFAULT_SNAPSHOTTER = "overlayfs"
_DEFAULT_RUNTIME = "io.containerd.runc.v2"
# What `ctr run` gives a container by itself.
_CAPABILITIES = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
_OF_THE_HOST = ("pid", "ipc", "uts")  # `ctr run` makes new ones unless it is told which to join


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that runs, as its verbose status has it."""

    id: str
    name: str  # for people; "" for the pause container
    pid: int
    image: str  # containerd's name for it
    spec: Json  # the runtime spec
    asked: Json  # the client's configuration
    log_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod's pause container and the containers that run beside it."""

    containerd: Json  # address, namespace, snapshotter, runtimeType, runtimeBinary
    files: Mapping[str, str]  # by path: what the containers share
    pause: Container
    containers: Sequence[Container] = ()


def pod(info: Json, containers: Sequence[tuple[str, str, Json]]) -> Pod | None:
    """The pod of a verbose status' information and of each running container's id, log and information.

    None when there is nothing to make: the pause container does not run or there is none, or the daemon is of an
    earlier version.
    """
    spec = info.get("runtimeSpec")
    if not spec or not info.get("pid") or not info.get("containerd") or not info.get("imageName"):
        return None
    pause = Container(
        id=str(spec["annotations"].get("io.kubernetes.cri.sandbox-id", "")),
        name="",
        pid=int(info["pid"]),
        image=info["imageName"],
        spec=spec,
        asked=info.get("config", {}),
    )
    return Pod(
        containerd=info["containerd"],
        files=info.get("files", {}),
        pause=pause,
        containers=[
            Container(
                id=id_,
                name=each["config"]["metadata"]["name"],
                pid=int(each["pid"]),
                image=each["imageName"],
                spec=each["runtimeSpec"],
                asked=each["config"],
                log_path=log_path,
            )
            for id_, log_path, each in containers
            if each.get("runtimeSpec") and each.get("imageName")
        ],
    )


def sysctls(made: Pod, netns_path: str) -> Iterator[str]:
    """The pod's sysctls of the network, which the runtime sets once plugins have run."""
    asked = made.pause.spec["linux"].get("sysctl") or {}
    for name, value in sorted(asked.items()):
        if name.startswith("net."):
            directory, namespace = posixpath.split(netns_path)
            named = directory == "/run/netns"
            within = f"ip netns exec {quoted(namespace)}" if named else f"nsenter --net={quoted(netns_path)}"
            yield f"{within} sysctl -w {quoted(f'{name}={value}')}"


def up(made: Pod) -> Iterator[str]:
    """The lines that make what the containers share, the pause container and then the others."""
    if _owned_by_another(made):
        yield "# The pod has a user namespace: ctr has no option to join one, so its containers are not here."
        return
    ctr = _ctr(made)
    yield "# Its containers; pid_of tells the process of one"
    yield f"pid_of() {{ {ctr} tasks ls | awk -v id=\"$1\" '$1 == id {{ print $2 }}'; }}"
    for image in dict.fromkeys(each.image for each in (made.pause, *made.containers)):
        yield from _image(ctr, image)
    yield from _shared(made)
    for each in (made.pause, *made.containers):
        yield ""
        yield f"# Container {comment(each.name)}" if each.name else "# The pause container"
        yield from (f"# ctr run cannot give it: {comment(words)}" for words in _not_given(each))
        yield from _volumes(made, each)
        yield from _run(made, each, ctr)
        if each is made.pause:
            yield from _own_namespaces(made)


def down(made: Pod) -> Iterator[str]:
    """The lines that undo `up`."""
    if _owned_by_another(made):
        return
    ctr = _ctr(made)
    for each in (*reversed(made.containers), made.pause):
        # It complains of the status that the container ends with. Had it failed, the next would.
        yield f"{ctr} tasks rm --force {each.id} 2>/dev/null || true"
        yield f"{ctr} containers rm {each.id}"
        for _, source in _volume_mounts(made, each):
            yield f"rm -r {quoted(source)}"
    if shm := _shm(made):
        yield f"umount {quoted(shm)} && rmdir {quoted(shm)}"
    for directory in sorted({posixpath.dirname(path) for path in made.files}):
        yield f"rm -r {quoted(directory)}"


def _owned_by_another(made: Pod) -> bool:
    return any(each["type"] == "user" for each in made.pause.spec["linux"]["namespaces"])


def _ctr(made: Pod) -> str:
    address = made.containerd["address"]
    at = "" if address == _DEFAULT_SOCKET else f" -a {quoted(address)}"
    return f"ctr{at} -n {quoted(made.containerd['namespace'])}"


def _image(ctr: str, image: str) -> Iterator[str]:
    there = f"{ctr} images ls -q | grep -qxF {quoted(image)}"
    if image.startswith("localhost/") or "/" not in image:
        yield f"# {comment(image)} is in no registry: bring it with `ctr images export` and `ctr images import`"
        yield there
    else:
        yield f"{there} || {ctr} images pull {quoted(image)}"


def _shared(made: Pod) -> Iterator[str]:
    """The files that the pod's containers share, and their memory."""
    yield ""
    yield "# What they share: files and memory"
    for directory in sorted({posixpath.dirname(path) for path in made.files}):
        yield f"mkdir -p {quoted(directory)}"
    for path, text in sorted(made.files.items()):
        lines = text.removesuffix("\n").split("\n") if text else []
        if all(line.isascii() and line.isprintable() for line in (each.replace("\t", "") for each in lines)):
            yield from fed(f"cat >{quoted(path)}", lines)
        else:
            yield f"printf '%s\\n' {quoted(text)} >{quoted(path)}"
    if shm := _shm(made):
        yield f"mkdir -p {quoted(shm)}"
        yield f"mount -t tmpfs -o mode=1777,size=64m,nosuid,nodev,noexec shm {quoted(shm)}"


def _binds(container: Container) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(destination, source, options) of each mount of a path of the host."""
    for mount in container.spec["mounts"]:
        if mount["type"] == "bind":
            yield mount["destination"], mount["source"], mount["options"]


def _shm(made: Pod) -> str:
    """Where the pod's /dev/shm is; "" for the host's own."""
    source = next((source for at, source, _ in _binds(made.pause) if at == "/dev/shm"), "")
    return "" if source == "/dev/shm" else source


def _volume_mounts(made: Pod, container: Container) -> Iterator[tuple[str, str]]:
    """(destination, source) of the mounts that neither the client asked for nor the pod's containers share."""
    asked = {posixpath.normpath(each["container_path"]) for each in container.asked.get("mounts", ())}
    for at, source, _ in _binds(container):
        if at not in asked and source not in made.files and at != "/dev/shm":
            yield at, source


def _volumes(made: Pod, container: Container) -> Iterator[str]:
    for at, source in _volume_mounts(made, container):
        yield f"mkdir -p {quoted(source)}  # {comment(at)}, a volume that the image declares"


def _run(made: Pod, container: Container, ctr: str) -> Iterator[str]:
    yield f"{ctr} run --detach \\"
    for option in _options(made, container):
        yield f"  {option} \\"
    args = " ".join(quoted(word) for word in container.spec["process"]["args"])
    yield f"  {quoted(container.image)} {container.id} {args}"


def _options(made: Pod, container: Container) -> Iterator[str]:
    spec, process = container.spec, container.spec["process"]
    linux = spec["linux"]
    kept = made.containerd
    yield f"--log-uri {quoted('file://' + container.log_path)}" if container.log_path else "--null-io"
    if kept["snapshotter"] != _DEFAULT_SNAPSHOTTER:
        yield f"--snapshotter {quoted(kept['snapshotter'])}"
    if (runtime := kept.get("runtimeType", _DEFAULT_RUNTIME)) != _DEFAULT_RUNTIME:
        yield f"--runtime {quoted(runtime)}"
    if kept.get("runtimeBinary"):
        yield f"--runc-binary {quoted(kept['runtimeBinary'])}"
    if cgroup := linux.get("cgroupsPath"):
        # The systemd driver's have the form slice:prefix:name.
        yield f"{'--runc-systemd-cgroup ' if ':' in cgroup else ''}--cgroup {quoted(cgroup)}"
    yield from _namespaces(made, container)
    for at, source, options in _binds(container):
        fields = ("type=bind", f"src={source}", f"dst={at}", f"options={':'.join(options)}")
        yield f"--mount {quoted(','.join(map(_field, fields)))}"
    for value in process["env"]:
        yield f"--env {quoted(value)}"
    yield f"--cwd {quoted(process['cwd'])}"
    yield from _rights(container)
    yield from _limits(linux.get("resources", {}))


def _field(text: str) -> str:
    """A field of the comma-separated values that --mount takes."""
    return '"' + text.replace('"', '""') + '"' if set(text) & {",", '"'} else text


def _namespaces(made: Pod, container: Container) -> Iterator[str]:
    pids = {f"/proc/{each.pid}/": each.id for each in (made.pause, *made.containers)}
    given = {each["type"]: each.get("path", "") for each in container.spec["linux"]["namespaces"]}
    if "network" not in given:
        yield "--net-host"
    for kind, path in given.items():
        own = next((id_ for proc, id_ in pids.items() if path.startswith(proc)), "")
        if own:
            yield f'--with-ns "{kind}:/proc/$(pid_of {own})/ns/{kind}"'
        elif path:
            yield f"--with-ns {quoted(f'{kind}:{path}')}"
    for kind in _OF_THE_HOST:
        if kind not in given:
            yield f"--with-ns {kind}:/proc/1/ns/{kind}"


def _rights(container: Container) -> Iterator[str]:
    spec, process = container.spec, container.spec["process"]
    held = set((process.get("capabilities") or {}).get("bounding") or ())
    context = container.asked.get("linux", {}).get("security_context", {})
    if spec["root"].get("readonly"):
        yield "--read-only"
    if context.get("privileged") and container.name:
        yield "--privileged"
    elif container.name:
        yield from (f"--cap-add {name}" for name in sorted(held - _CAPABILITIES))
        yield from (f"--cap-drop {name}" for name in sorted(_CAPABILITIES - held))
    yield from (f"--device {quoted(each['host_path'])}" for each in container.asked.get("devices", ()))
    if not process.get("noNewPrivileges"):
        yield "--allow-new-privs"
    if _has_default_seccomp(container):
        yield "--seccomp"
    if profile := process.get("apparmorProfile"):
        yield f"--apparmor-profile {quoted(profile)}"


def _has_default_seccomp(container: Container) -> bool:
    context = container.asked.get("linux", {}).get("security_context", {})
    other = context.get("seccomp", {}).get("profile_type") == "Localhost"
    return bool(container.spec["linux"].get("seccomp")) and not other


def _limits(resources: Json) -> Iterator[str]:
    cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
    for option, value in (
        ("--cpu-shares", cpu.get("shares")),
        ("--cpu-quota", cpu.get("quota")),
        ("--cpu-period", cpu.get("period")),
        ("--memory-limit", memory.get("limit")),
    ):
        if value and int(value) > 0:
            yield f"{option} {int(value)}"


def _own_namespaces(made: Pod) -> Iterator[str]:
    """The host name and the sysctls of the namespaces that the pause container has made."""
    spec = made.pause.spec
    enter = f'nsenter --target "$(pid_of {made.pause.id})"'
    if name := spec.get("hostname"):
        yield f"{enter} --uts hostname {quoted(name)}"
    for key, value in sorted((spec["linux"].get("sysctl") or {}).items()):
        if not key.startswith("net."):
            yield f"{enter} --ipc sysctl -w {quoted(f'{key}={value}')}"


def _not_given(container: Container) -> Iterator[str]:
    """What it has of its configuration and `ctr run` has no option for."""
    user = container.spec["process"]["user"]
    context = container.asked.get("linux", {}).get("security_context", {})
    if context.get("run_as_user") or context.get("run_as_username") or context.get("run_as_group"):
        yield f"user {user['uid']} and group {user['gid']}; it takes those of the image"
    if container.name and context.get("supplemental_groups"):
        yield f"the further groups {' '.join(map(str, user['additionalGids']))}"
    if container.spec["process"].get("terminal"):
        yield "a terminal, detached"
    if container.spec["linux"].get("seccomp") and not _has_default_seccomp(container):
        yield "the seccomp profile, which is not a file here"
    if any(each["host_path"] != each["container_path"] for each in container.asked.get("devices", ())):
        yield "a device by another path than on the host"
    if container.name and _further_limits(container):
        yield f"its {' and '.join(_further_limits(container))}"
    if container.log_path:
        yield "the CRI format of the log; the file has the bare output"
    if not container.name:
        yield "fewer capabilities than its default, one by one"


def _further_limits(container: Container) -> list[str]:
    """The limits of the client's that it has, by their names there."""
    asked = container.asked.get("linux", {}).get("resources", {})
    given = {"cpu_shares", "cpu_quota", "cpu_period", "memory_limit_in_bytes"}
    return sorted(name for name, value in asked.items() if value and name not in given)

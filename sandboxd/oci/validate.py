"""Refuses invalid and unsupported CRI configs, before anything is created.

Every refusal is one sentence that begins with the field as the request spells it ("config.mounts[1].host_path:
…"). `REFUSED_SANDBOXES` and `REFUSED_CONTAINERS` are the only list of what this version does not offer: a feature
is refused clearly or honoured, never ignored. What other runtimes take and clients send is taken, and `dubious` has a
word on it.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeVar

from google.protobuf.message import Message

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import cdi, linux, lsm, seccomp, users
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import RECORD_CHANGES

MAX_NAME_BYTES = 253  # a DNS subdomain, as Kubernetes requires of names
MAX_HOSTNAME_BYTES = 64  # __NEW_UTS_LEN, sethostname(2)

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+\Z")
_CPUS = r"\s*[0-9]+(-[0-9]+(:[0-9]+/[0-9]+)?)?\s*"
_CPUSET = re.compile(rf"{_CPUS}(,{_CPUS})*,?\s*\Z", re.ASCII)  # admin-guide/kernel-parameters.rst, "cpu lists"
_PAGE_SIZE = re.compile(r"[0-9]+[KMG]B\Z")
_PERMISSIONS = re.compile(r"[rwm]{1,3}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CNI_ARGS = re.compile(r"[;=]")

# ipc_namespaces(7): the sysctls that belong to an ipc namespace.
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)

_MAX_IDS = 2**32 - 1  # -1 is not an id

C = TypeVar("C", cri.PodSandboxConfig, cri.ContainerConfig)


def sandbox_config(config: cri.PodSandboxConfig) -> None:
    """Raise InvalidRequest or Unsupported unless a sandbox can be created from `config`."""
    _well_formed(config, "config")
    _pod_metadata(config.metadata)
    _hostname(config.hostname)
    if config.log_directory:
        _absolute(config.log_directory, "config.log_directory")
    _dns(config.dns_config)
    _port_mappings(config.port_mappings)
    context = config.linux.security_context
    _cgroup_parent(config.linux.cgroup_parent)
    _namespace_modes(context.namespace_options, pid=(cri.POD, cri.CONTAINER, cri.NODE))
    _ids(context)
    _sysctls(config)
    _resources(config.linux.resources, "config.linux.resources")
    _resources(config.linux.overhead, "config.linux.overhead")
    _security_profiles(context)
    if (asked := config.annotations.get(RECORD_CHANGES, "true")) not in ("true", "false"):
        _fail(f"config.annotations[{RECORD_CHANGES!r}]", f'must be "true" or "false", got {asked!r}')
    _offered(config, REFUSED_SANDBOXES)


def container_config(config: cri.ContainerConfig, sandbox: cri.PodSandboxConfig) -> None:
    """Raise InvalidRequest or Unsupported unless a container can be created from `config` in that sandbox."""
    _well_formed(config, "config")
    _name(config.metadata.name, "config.metadata.name")
    if not config.image.image:
        _fail("config.image.image", "is empty: name the image to run")
    if config.working_dir:
        _absolute(config.working_dir, "config.working_dir")
    _envs(config.envs)
    _log_path(config.log_path)
    _mounts(config.mounts, sandbox)
    _devices(config.devices)
    _resources(config.linux.resources, "config.linux.resources")
    context = config.linux.security_context
    _ids(context)
    _container_namespaces(context.namespace_options, sandbox)
    if context.privileged and not sandbox.linux.security_context.privileged:
        _fail("config.linux.security_context.privileged", "is set, but its sandbox is not privileged")
    requested = context.capabilities
    for name in (*requested.add_capabilities, *requested.drop_capabilities, *requested.add_ambient_capabilities):
        linux.capability_name(name)
    cdi.names((device.name for device in config.CDI_devices), config.annotations)
    for name in ("masked_paths", "readonly_paths"):
        for i, path in enumerate(getattr(context, name)):
            _absolute(path, f"config.linux.security_context.{name}[{i}]")
    _security_profiles(context)
    _offered(config, REFUSED_CONTAINERS)


# --- what this version does not offer --------------------------------------------------------------------------


REFUSED_SANDBOXES: tuple[tuple[str, Callable[[cri.PodSandboxConfig], bool]], ...] = (
    ("windows: Windows pods", lambda config: config.HasField("windows")),
)

REFUSED_CONTAINERS: tuple[tuple[str, Callable[[cri.ContainerConfig], bool]], ...] = (
    ("windows: Windows containers", lambda config: config.HasField("windows")),
)


def _offered(config: C, refused: Iterable[tuple[str, Callable[[C], bool]]]) -> None:
    for what, requested in refused:
        if requested(config):
            raise Unsupported(f"config.{what} are not offered by this version of sandboxd")


# --- whole messages --------------------------------------------------------------------------------------------


def _well_formed(message: Message, where: str) -> None:
    """Refuse a NUL in any text, since it ends a C string, and enum values that this version does not know."""
    for descriptor, value in message.ListFields():
        field = f"{where}.{descriptor.name}"
        if descriptor.enum_type is not None:
            if value not in descriptor.enum_type.values_by_number:
                _fail(field, f"{value} is not a {descriptor.enum_type.name} that this version knows")
        elif isinstance(value, Message):
            _well_formed(value, field)
        elif isinstance(value, str | bytes):
            _no_nul(value, field)
        elif hasattr(value, "items"):
            for key, text in value.items():
                _no_nul(key, field)
                _no_nul(text, f"{field}[{key!r}]")
        elif not isinstance(value, int | float):
            for i, item in enumerate(value):
                if isinstance(item, Message):
                    _well_formed(item, f"{field}[{i}]")
                elif isinstance(item, str | bytes):
                    _no_nul(item, f"{field}[{i}]")


def _no_nul(text: str | bytes, field: str) -> None:
    if "\0" in text if isinstance(text, str) else b"\0" in text:
        _fail(field, "holds a NUL character")


def _fail(field: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{field}: {why}")


# --- names and paths -------------------------------------------------------------------------------------------


def _pod_metadata(meta: cri.PodSandboxMetadata) -> None:
    for name in ("name", "namespace", "uid"):
        field, text = f"config.metadata.{name}", getattr(meta, name)
        _name(text, field)
        if _CNI_ARGS.search(text):
            # CNI_ARGS is "KEY=value;KEY=value" without any quoting, and contains all three.
            _fail(field, f"{text!r} holds ';' or '=', which cannot be passed to CNI plugins")


def _name(text: str, field: str) -> None:
    if not text:
        _fail(field, "is empty")
    if len(text.encode()) > MAX_NAME_BYTES:
        _fail(field, f"is longer than {MAX_NAME_BYTES} bytes")
    if "/" in text:
        _fail(field, f"{text!r} holds a slash")
    if _CONTROL.search(text):
        _fail(field, f"{text!r} holds a control character")


def _hostname(text: str) -> None:
    if len(text.encode()) > MAX_HOSTNAME_BYTES:
        _fail("config.hostname", f"is longer than the kernel's limit of {MAX_HOSTNAME_BYTES} bytes")
    if text and not _HOSTNAME.match(text):
        _fail("config.hostname", f"{text!r} is not made of letters, digits and, between them, '-', '.' and '_'")


def _absolute(path: str, field: str) -> None:
    if not path.startswith("/"):
        _fail(field, f"{path!r} is not an absolute path")
    _printable(path, field)


def _printable(path: str, field: str) -> None:
    if _CONTROL.search(path):
        _fail(field, f"{path!r} holds a control character")


def _log_path(path: str) -> None:
    """A container's log must be inside its pod's log directory. It has none where the pod has no such directory."""
    if not path:
        return
    inside = posixpath.normpath(linux.relative(path))
    if inside in (".", "..") or inside.startswith("../"):
        _fail("config.log_path", f"{path!r} is not a file inside the sandbox's log_directory")
    if _CONTROL.search(path):
        _fail("config.log_path", f"{path!r} holds a control character")


def _cgroup_parent(parent: str) -> None:
    """An absolute path, or a bare slice as the systemd driver's clients write it."""
    field = "config.linux.cgroup_parent"
    if not parent or (parent.endswith(".slice") and "/" not in parent):
        return
    _absolute(parent, field)
    if ".." in parent.split("/"):
        _fail(field, f"{parent!r} holds '..'")


# --- network ---------------------------------------------------------------------------------------------------


def _dns(dns: cri.DNSConfig) -> None:
    for name in ("servers", "searches", "options"):
        for i, entry in enumerate(getattr(dns, name)):
            if not entry or entry.split() != [entry] or _CONTROL.search(entry):
                _fail(f"config.dns_config.{name}[{i}]", f"{entry!r} is not one word")
    for i, server in enumerate(dns.servers):
        _ip_address(server, f"config.dns_config.servers[{i}]")


def _ip_address(text: str, field: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as exc:
        raise InvalidRequest(f"{field}: {text!r} is not an IP address") from exc


def _port_mappings(mappings: Sequence[cri.PortMapping]) -> None:
    seen: dict[tuple[int, str, int], int] = {}
    for i, mapping in enumerate(mappings):
        field = f"config.port_mappings[{i}]"
        if mapping.host_ip:
            _ip_address(mapping.host_ip, f"{field}.host_ip")
        for name in ("container_port", "host_port"):
            port = getattr(mapping, name)
            if not 0 <= port <= 65535:
                _fail(f"{field}.{name}", f"{port} is not between 0 and 65535")
        if not mapping.host_port:
            continue  # nothing to map: clients list all of a container's ports
        if not mapping.container_port:
            _fail(f"{field}.container_port", f"is not set, so host port {mapping.host_port} leads nowhere")
        # Two containers of a pod may declare the same one; clients list what each of them declares.
        host_ip = str(ipaddress.ip_address(mapping.host_ip)) if mapping.host_ip else ""
        key = (mapping.protocol, host_ip, mapping.host_port)
        other = seen.setdefault(key, mapping.container_port)
        if other != mapping.container_port:
            protocol = cri.Protocol.Name(mapping.protocol)
            _fail(
                f"{field}.host_port",
                f"{protocol} port {mapping.host_port} is mapped twice, to ports {other} and {mapping.container_port}",
            )


# --- namespaces and sysctls ------------------------------------------------------------------------------------

_MODES = "config.linux.security_context.namespace_options"


def _namespace_modes(modes: cri.NamespaceOption, *, pid: Sequence[int]) -> None:
    for name in ("network", "ipc"):
        if getattr(modes, name) not in (cri.POD, cri.NODE):
            _fail(f"{_MODES}.{name}", f"{_mode(getattr(modes, name))} is not possible: use POD or NODE")
    if modes.pid not in pid:
        _fail(f"{_MODES}.pid", f"{_mode(modes.pid)} is not possible for a sandbox: use POD, CONTAINER or NODE")
    if modes.pid == cri.TARGET and not modes.target_id:
        _fail(f"{_MODES}.target_id", "is empty, but pid is TARGET: name the container whose processes to share")
    if modes.target_id and modes.pid != cri.TARGET:
        _fail(f"{_MODES}.target_id", f"is set, but pid is {_mode(modes.pid)}: it is only valid with TARGET")
    if modes.HasField("userns_options"):
        _user_namespace_modes(modes)


def _user_namespace_modes(modes: cri.NamespaceOption) -> None:
    userns, field = modes.userns_options, f"{_MODES}.userns_options"
    if userns.mode not in (cri.POD, cri.NODE):
        _fail(f"{field}.mode", f"{_mode(userns.mode)} is not possible: use POD or NODE")
    for name in ("uids", "gids"):
        mappings = getattr(userns, name)
        if userns.mode == cri.NODE and mappings:
            _fail(f"{field}.{name}", "is set, but mode NODE means no user namespace")
        if userns.mode == cri.POD and (len(mappings) != 1 or mappings[0].container_id != 0 or not mappings[0].length):
            _fail(f"{field}.{name}", "must be exactly one mapping, from container id 0, of at least one id")
        if mappings and mappings[0].host_id + mappings[0].length > _MAX_IDS:
            _fail(f"{field}.{name}", f"the mapping exceeds the highest id, {_MAX_IDS - 1}")
    for name in ("pid", "ipc"):
        if userns.mode == cri.POD and getattr(modes, name) == cri.NODE:
            # Not even root in a user namespace may mount /proc or /dev/mqueue of namespaces that it does not own.
            _fail(f"{_MODES}.{name}", "is NODE, which a pod with a user namespace cannot have")


def _container_namespaces(modes: cri.NamespaceOption, sandbox: cri.PodSandboxConfig) -> None:
    """POD always means the sandbox's namespace; NODE requires that the sandbox's mode is NODE, since it is shared."""
    _namespace_modes(modes, pid=(cri.POD, cri.CONTAINER, cri.NODE, cri.TARGET))
    pod = sandbox.linux.security_context.namespace_options
    for name in ("network", "pid", "ipc"):
        if getattr(modes, name) == cri.NODE and getattr(pod, name) != cri.NODE:
            _fail(f"{_MODES}.{name}", f"is NODE, but the sandbox's is {_mode(getattr(pod, name))}")
    # Unset means the sandbox's, as for the others.
    if modes.HasField("userns_options") and _ids_of(modes.userns_options) != _ids_of(pod.userns_options):
        _fail(f"{_MODES}.userns_options", "differs from the sandbox's: a pod's containers share its user namespace")


def _ids_of(userns: cri.UserNamespace) -> tuple[list[cri.IDMapping], list[cri.IDMapping]]:
    return list(userns.uids), list(userns.gids)


def _mode(number: int) -> str:
    return cri.NamespaceMode.Name(cri.NamespaceMode.ValueType(number))


def _sysctls(config: cri.PodSandboxConfig) -> None:
    """Only sysctls of the pod's own namespaces are allowed: any other would change the whole machine."""
    modes = config.linux.security_context.namespace_options
    for name in sorted(config.linux.sysctls):
        field = f"config.linux.sysctls[{name!r}]"
        if not _SYSCTL.match(name):
            _fail(field, "is not a sysctl name")
        dotted = name.replace("/", ".")
        if dotted.startswith("net."):
            if modes.network == cri.NODE:
                _fail(field, "would change the machine, since the pod is in the host's network")
        elif dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
            if modes.ipc == cri.NODE:
                _fail(field, "would change the machine, since the pod is in the host's ipc namespace")
        elif dotted == "kernel.domainname":
            if modes.network == cri.NODE:
                _fail(field, "would change the machine, since a pod in the host's network is in its uts namespace")
        elif dotted == "kernel.hostname":
            _fail(field, "is what config.hostname sets: use that")
        else:
            _fail(field, "does not belong to a namespace that a pod has of its own, so it would change the machine")


# --- process and resources -------------------------------------------------------------------------------------


def _envs(envs: Sequence[cri.KeyValue]) -> None:
    for i, env in enumerate(envs):
        field = f"config.envs[{i}]"
        if not env.key or "=" in env.key:
            # What follows the "=" may be a secret value, even in this field.
            shown = env.key.partition("=")[0] + ("=…" if env.key else "")
            _fail(f"{field}.key", f"{shown!r} is not the name of an environment variable")
        try:
            env.value.decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"{field}.value: the value of {env.key} is not UTF-8") from exc


def _ids(context: cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext) -> None:
    where = "config.linux.security_context"
    username = context.run_as_username if isinstance(context, cri.LinuxContainerSecurityContext) else ""
    if context.HasField("run_as_user") and username:
        _fail(f"{where}.run_as_username", "is set together with run_as_user: set only one of them")
    if context.HasField("run_as_group") and not username and not context.HasField("run_as_user"):
        _fail(f"{where}.run_as_group", "is set without run_as_user or run_as_username")
    named = {
        "run_as_user": context.run_as_user.value,
        "run_as_group": context.run_as_group.value,
        **{f"supplemental_groups[{i}]": gid for i, gid in enumerate(context.supplemental_groups)},
    }
    for name, value in named.items():
        if not 0 <= value <= users.MAX_ID:
            _fail(f"{where}.{name}", f"{value} is not between 0 and {users.MAX_ID}")


def _security_profiles(context: cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext) -> None:
    seccomp.requested(context)
    lsm.apparmor_requested(context)
    lsm.check_options(context.selinux_options)
    for name in ("seccomp", "apparmor"):
        profile = getattr(context, name)
        if profile.profile_type == cri.SecurityProfile.Localhost and not profile.localhost_ref:
            _fail(f"config.linux.security_context.{name}.localhost_ref", "is empty, but the profile is Localhost")


def _resources(resources: cri.LinuxContainerResources, where: str) -> None:
    ranges = {
        # Documentation/scheduler/sched-bwc.rst: periods are 1 ms to 1 s, a quota is 1 ms or more.
        "cpu_period": (1_000, 1_000_000, "microseconds"),
        "cpu_quota": (1_000, 2**63 - 1, "microseconds, or -1 for no limit"),
        "cpu_shares": (1, 2**63 - 1, "shares"),
        "memory_limit_in_bytes": (1, 2**63 - 1, "bytes, or -1 for no limit"),
        "memory_swap_limit_in_bytes": (1, 2**63 - 1, "bytes, or -1 for no limit"),
        "oom_score_adj": (-1_000, 1_000, "points"),
    }
    for name, (lowest, highest, unit) in ranges.items():
        value = getattr(resources, name)
        if value == 0 or (value == -1 and "-1" in unit) or (value < 0 and name == "cpu_quota"):
            continue
        if not lowest <= value <= highest:
            _fail(f"{where}.{name}", f"{value} is not within {lowest} to {highest} {unit}")
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    if 0 < swap < limit:
        _fail(
            f"{where}.memory_swap_limit_in_bytes",
            f"{swap} is less than the memory limit {limit}: it counts memory and swap together",
        )
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(resources, name)
        if value and not _CPUSET.match(value):
            _fail(f"{where}.{name}", f"{value!r} is not a list like 0-3,8")
    for i, item in enumerate(resources.hugepage_limits):
        if not _PAGE_SIZE.match(item.page_size):
            _fail(f"{where}.hugepage_limits[{i}].page_size", f"{item.page_size!r} is not a size like 2MB")
    for name in sorted(resources.unified):
        if not name or "/" in name or name in (".", ".."):
            _fail(f"{where}.unified", f"{name!r} is not the name of a cgroup v2 file")


# --- mounts and devices ----------------------------------------------------------------------------------------


def _mounts(mounts: Sequence[cri.Mount], sandbox: cri.PodSandboxConfig) -> None:
    for i, mount in enumerate(mounts):
        field = f"config.mounts[{i}]"
        if not mount.container_path:
            _fail(f"{field}.container_path", "is empty")
        _printable(mount.container_path, f"{field}.container_path")
        if linux.clean(mount.container_path) == "/":
            _fail(f"{field}.container_path", "is the root, which the image provides")
        if linux.shows_image(mount):
            _image_mount(mount, field)
        elif not mount.host_path:
            _fail(f"{field}.host_path", "is empty")
        else:
            _absolute(mount.host_path, f"{field}.host_path")
            if mount.image_sub_path:
                _fail(f"{field}.image_sub_path", "is set, but image is not")
        if mount.recursive_read_only:
            if not mount.readonly:
                _fail(f"{field}.recursive_read_only", "is set, but readonly is not")
            if mount.propagation != cri.PROPAGATION_PRIVATE:
                # A mount that propagates in later would be writable.
                _fail(f"{field}.recursive_read_only", "is set, but propagation is not PRIVATE")
        ids = sandbox.linux.security_context.namespace_options.userns_options
        if (mount.uidMappings or mount.gidMappings) and (
            ids.mode != cri.POD or (list(mount.uidMappings), list(mount.gidMappings)) != _ids_of(ids)
        ):
            _fail(f"{field}.uidMappings", "and gidMappings must be those of the sandbox's user namespace")


def _image_mount(mount: cri.Mount, field: str) -> None:
    if mount.host_path:
        _fail(f"{field}.host_path", "is set together with image: set only one of them")
    if not mount.readonly:
        _fail(f"{field}.readonly", "is not set, but an image can only be mounted read-only")
    if mount.propagation != cri.PROPAGATION_PRIVATE:
        _fail(f"{field}.propagation", "is not PRIVATE, but nothing is ever mounted into an image")
    if mount.image_sub_path:
        inside = posixpath.normpath(mount.image_sub_path)
        if inside == ".." or inside.startswith(("/", "../")):
            _fail(f"{field}.image_sub_path", f"{mount.image_sub_path!r} is not a relative path inside the image")


def _devices(devices: Sequence[cri.Device]) -> None:
    for i, device in enumerate(devices):
        field = f"config.devices[{i}]"
        if device.container_path:
            _printable(device.container_path, f"{field}.container_path")
        _absolute(device.host_path, f"{field}.host_path")
        if not _PERMISSIONS.match(device.permissions):
            _fail(f"{field}.permissions", f"{device.permissions!r} is not made of r, w and m")

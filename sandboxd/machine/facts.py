"""Facts about this machine that OCI specs depend on; gathered at start, or for the container that asks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from sandboxd import mountinfo, mounts, trees
from sandboxd.config import Config, Runtime
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.oci import cdi, lsm, seccomp
from sandboxd.oci.linux import ALL_CAPABILITIES, DeviceNode, HostFacts, MountSource, SelinuxContexts
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.trees import Event

log = structlog.get_logger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CGROUPS = Path("/sys/fs/cgroup")
APPARMOR_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
APPARMOR_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
SELINUX_ENFORCE = Path("/sys/fs/selinux/enforce")
SELINUX = Path("/etc/selinux")
_MOST_PROFILE_BYTES = 1 << 20
# Labels of these are the system's own; a container's label on them would lock everybody else out.
_SYSTEM_TREES = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")
_SYSTEM_TOPS = ("/", "/home", "/root", "/run", "/var")  # what is below them can be anybody's
_SYS_RESOURCE = ALL_CAPABILITIES.index("CAP_SYS_RESOURCE")
_DEVICES_LEFT_OUT = frozenset({"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console"})


def facts(config: Config) -> HostFacts:
    """What holds for the daemon's whole life."""
    effective = _effective_capabilities()
    unified = (CGROUPS / "cgroup.controllers").exists()
    return HostFacts(
        hostname=os.uname().nodename,
        machine=os.uname().machine,
        capabilities=frozenset(name for number, name in enumerate(ALL_CAPABILITIES) if effective & (1 << number)),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")),
        can_lower_oom_score_adj=bool(effective & (1 << _SYS_RESOURCE)),
        cgroup_v2=unified,
        cgroup2_options=_cgroup2_options() if unified else (),
        swap_controller=_swap_controller(unified),
        hugetlb_controller=_hugetlb_controller(unified),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=_text(APPARMOR_ENABLED).startswith("Y"),
        apparmor_default=config.runtime.apparmor_default,
        selinux_runs=SELINUX_ENFORCE.exists(),
        selinux=_selinux_contexts(),
    )


def boot_id() -> str:
    """What the kernel calls this boot of the machine (random(4)); "" where it does not say."""
    return _text(BOOT_ID).strip()


def for_pod(known: HostFacts, config: cri.PodSandboxConfig, settings: Runtime) -> HostFacts:
    """`known` and the profiles that this pod asks for. Blocks on the file system: run it in a thread.

    Raises InvalidRequest for a seccomp profile that cannot be read or used.
    """
    return _with_profiles(known, config.linux.security_context, settings)


def for_container(known: HostFacts, config: cri.ContainerConfig, settings: Runtime) -> HostFacts:
    """`known` and what this container's devices, mounts and profiles are. Blocks: run it in a thread.

    Raises InvalidRequest for a device or a profile that is not there, and a mount's source that cannot be made.
    """
    privileged = config.linux.security_context.privileged
    return replace(
        _with_profiles(known, config.linux.security_context, settings),
        devices={device.host_path: tuple(_device_nodes(device.host_path)) for device in config.devices},
        mount_sources=_mount_sources(config),
        host_devices=tuple(_below(Path("/dev"), _DEVICES_LEFT_OUT)) if privileged else (),
    )


def cdi_edits(config: cri.ContainerConfig, directories: Sequence[str]) -> tuple[cdi.Edits, dict[str, DeviceNode]]:
    """What the container's CDI devices need, and their nodes on this machine. Blocks: run it in a thread.

    Raises NotFound for a device that nothing describes, InvalidRequest for one that is described badly.
    """
    wanted = cdi.names((device.name for device in config.CDI_devices), config.annotations)
    if not wanted:
        return cdi.Edits(), {}
    problems: list[str] = []
    specs = [list(_cdi_specs(Path(directory), problems)) for directory in directories]
    edits = cdi.resolve(wanted, specs, problems)
    nodes = {path: _node(Path(os.path.realpath(path))) for path in edits.host_nodes}
    return edits, {path: node for path, node in nodes.items() if node is not None}


def _cdi_specs(directory: Path, problems: list[str]) -> Iterator[cdi.Spec]:
    """The specs of a directory; an invalid file affects only requests for its devices."""
    try:
        files = sorted(directory.iterdir())
    except OSError:
        return
    for file in files:
        if file.suffix in (".json", ".yaml", ".yml"):
            try:
                yield cdi.parse(file.read_bytes(), str(file))
            except (InvalidRequest, OSError) as exc:
                problems.append(str(exc))


def relabel(path: str, label: str) -> Generator[None, None, None]:
    """Give `path` and all below it an SELinux label, a piece at a time; a no-op on file systems without labels.

    A link at `path` is followed, those below it are labelled themselves. Raises InvalidRequest for the system's own
    directories, NotReady when the kernel refuses.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # Use what was opened: the path may change.
            real = os.readlink(f"/proc/self/fd/{fd}")
            if real in _SYSTEM_TOPS or any(_holds(tree, real) for tree in _SYSTEM_TREES):
                raise InvalidRequest(f"{path} cannot be relabelled: it belongs to the system")
            _set_label(f"/proc/self/fd/{fd}", label, follow=True)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                yield from _relabel_below(fd, label)
        finally:
            os.close(fd)
    except OSError as exc:
        raise NotReady(f"{path} cannot be given the SELinux label {label}: {_words(exc)}") from exc


def _relabel_below(fd: int, label: str) -> Generator[None, None, None]:
    at = trees.Descent(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        for number, (event, name) in enumerate(trees.walk(at), start=1):
            if event is Event.FILE:
                _set_label(f"/proc/self/fd/{at.fd}/{name}", label)
            elif event is Event.ENTERED:
                _set_label(f"/proc/self/fd/{at.fd}", label, follow=True)
            if not number % trees.PIECE_ENTRIES:
                yield
    finally:
        at.close()


def _set_label(path: str, label: str, *, follow: bool = False) -> None:
    try:
        os.setxattr(path, "security.selinux", label.encode() + b"\0", follow_symlinks=follow)
    except OSError as exc:
        if exc.errno not in (errno.ENOTSUP, errno.ENOENT):
            raise


def _with_profiles(
    known: HostFacts,
    context: cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext,
    settings: Runtime,
) -> HostFacts:
    profile = None
    if file := seccomp.localhost_file(context, settings.seccomp_dir):
        try:
            with open(trees.open_file(os.path.realpath(file)), "rb") as data:
                content = data.read(_MOST_PROFILE_BYTES + 1)
        except OSError as exc:
            raise InvalidRequest(
                f"config.linux.security_context.seccomp: the profile {file} cannot be read: {exc.strerror}"
            ) from exc
        if len(content) > _MOST_PROFILE_BYTES:
            raise InvalidRequest(f"seccomp profile {file} is larger than {_MOST_PROFILE_BYTES} bytes")
        profile = seccomp.parse_profile(content, file)
    loaded = frozenset[str]()
    if known.apparmor and (lsm.apparmor_requested(context) is not None or known.apparmor_default):
        # "name (mode)" on each line; names may hold spaces.
        loaded = frozenset(line.rpartition(" (")[0] for line in _text(APPARMOR_PROFILES).splitlines())
    if lsm.is_asked(context.selinux_options) and not known.selinux_runs:
        log.info("SELinux options ignored: this machine's kernel does not run SELinux")
    return replace(known, seccomp_profile=profile, apparmor_loaded=loaded)


def _selinux_contexts() -> SelinuxContexts | None:
    """What the policy in force gives containers (lxc_contexts(5)); None without SELinux or such a policy."""
    if not SELINUX_ENFORCE.exists():
        return None
    policy = _setting(_text(SELINUX / "config"), "SELINUXTYPE") or "targeted"
    contexts = _text(SELINUX / policy / "contexts" / "lxc_contexts")
    process, file = _setting(contexts, "process"), _setting(contexts, "file")
    if process.count(":") < 3 or file.count(":") < 3:
        return None
    return SelinuxContexts(process=process, file=file)


def _setting(text: str, name: str) -> str:
    """The value of `name = "value"` in a file of such lines."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == name:
            return value.strip().strip('"')
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _cgroup2_options() -> tuple[str, ...]:
    mount = mountinfo.visible(mounts.listed(), str(CGROUPS))
    if mount is None or mount.fstype != "cgroup2":
        return ()
    return tuple(option for option in mount.super_options if option in ("nsdelegate", "memory_recursiveprot"))


def _swap_controller(unified: bool) -> bool:
    if unified:
        # The root cgroup has no limits of its own; any child has them if the kernel accounts swap.
        return any(CGROUPS.glob("*/memory.swap.max"))
    return (CGROUPS / "memory" / "memory.memsw.limit_in_bytes").exists()


def _hugetlb_controller(unified: bool) -> bool:
    if unified:
        return "hugetlb" in (CGROUPS / "cgroup.controllers").read_text(encoding="ascii").split()
    return (CGROUPS / "hugetlb").is_dir()


def _mount_sources(config: cri.ContainerConfig) -> dict[str, MountSource]:
    """Where each mount's source really is, and how the mount below it propagates.

    A missing source is made an empty directory, as by other runtimes: pods with a hostPath of no type rely on it.
    """
    wanted = [mount for mount in config.mounts if mount.host_path]
    if not wanted:
        return {}
    listed = mounts.listed()
    found = {}
    for mount in wanted:
        try:
            path = _source(mount.host_path)
        except (OSError, RuntimeError) as exc:
            raise InvalidRequest(
                f"mount of {mount.container_path}: the source {mount.host_path} cannot be used: {_words(exc)}"
            ) from exc
        holding = mountinfo.holding(listed, path)
        found[mount.host_path] = MountSource(
            path=path,
            shared=holding is not None and holding.shared,
            slave=holding is not None and holding.slave,
        )
    return found


def _source(path: str) -> str:
    """The file or directory at `path`, links followed; a directory is made where not even a link is."""
    try:
        return str(Path(path).resolve(strict=True))
    except FileNotFoundError:
        if os.path.islink(path):
            raise FileNotFoundError(
                errno.ENOENT, f"it is a link to {os.readlink(path)!r}, where nothing is"
            ) from None
        os.makedirs(path, mode=0o755, exist_ok=True)
        log.warning("a mount's source was missing: an empty directory was made", source=path)
        return str(Path(path).resolve(strict=True))


def _words(exc: Exception) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)


def _holds(point: str, path: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _device_nodes(path: str) -> Iterator[DeviceNode]:
    """The device at `path`, or those below it when it is a directory."""
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise InvalidRequest(f"device {path} cannot be used: {_words(exc)}") from exc
    if real.is_dir():
        for below in _below(real, frozenset()):
            yield replace(below, below=os.path.relpath(below.path, real))
        return
    node = _node(real)
    if node is None:
        raise InvalidRequest(f"{path} is not a device")
    yield node


def _below(directory: Path, left_out: frozenset[str]) -> Iterator[DeviceNode]:
    todo = [directory]
    while todo:
        for entry in sorted(todo.pop().iterdir()):
            if str(entry) in left_out or entry.is_symlink():
                continue
            if entry.is_dir():
                todo.append(entry)
            elif (node := _node(entry)) is not None:
                yield node


def _node(path: Path) -> DeviceNode | None:
    try:
        info = path.lstat()
    except OSError:
        return None  # unplugged between listing and looking
    if stat.S_ISCHR(info.st_mode):
        kind = "c"
    elif stat.S_ISBLK(info.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        path=str(path),
        kind=kind,
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
    )

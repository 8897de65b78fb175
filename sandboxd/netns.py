"""Named network namespaces, and a pod's others: create, recognise, remove, and open sockets inside.

A namespace is an nsfs mount at a path that the sandbox id gives, so `ip netns` sees it and anyone who knows the id
can clean it up. Rules:

1. Namespace calls happen in a thread of their own that ends afterwards: unshare(2) and setns(2) change the
   calling thread only, and such a thread must never serve anything else again. The daemon never forks.
2. `create` leaves nothing when it fails; `remove` treats "already gone" as done. What others did to the path,
   `restore` repairs while a process is in the namespace.
3. pyroute2 opens its socket in such a thread; its own `netns=` forks the process (0.9.7).
4. A user namespace cannot be made by a thread (unshare(2): EINVAL), so unshare(1) makes it, together with the
   network namespace that it is to own, and lives until both are pinned.

Sources: namespaces(7), network_namespaces(7), ipc_namespaces(7), uts_namespaces(7), user_namespaces(7),
mount(2), umount(2), netdevice(7), proc_sys(5).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sandboxd import links, mounts, private, syscalls
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.jobs import in_own_thread
from sandboxd.links import Link, View

T = TypeVar("T")

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_RT_TABLE_MAIN = 254
_MAX_STACKED = 64  # mounts that somebody put on one of ours
_preparing = threading.Lock()  # a second mount of the directory would hide what was pinned below the first
_FLAGS = {"ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}
UNSHARE_SECONDS = 20.0  # for unshare(1) to be there; it does nothing but two system calls


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def prepare_directory(directory: str) -> None:
    """Make `directory` a shared mount of its own, as `ip netns add` does. Idempotent; raises OSError.

    Were it not, the first `ip netns add` on this machine would copy our mounts to a mount above them, and the
    originals could no longer be unmounted by path.
    """
    with _preparing:
        Path(directory).mkdir(mode=0o755, parents=True, exist_ok=True)
        # The kernel says what is visible at the path; a list of mounts also holds those that a later one hides.
        try:
            syscalls.mount("none", directory, syscalls.MS_SHARED)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            syscalls.mount(directory, directory, syscalls.MS_BIND)
            syscalls.mount("none", directory, syscalls.MS_SHARED)


async def create(path: str) -> int:
    """Make a new network namespace with its loopback up, pinned at `path`; return its inode.

    The directory is prepared first. Raises NotReady when the kernel refuses; nothing is left then.
    """

    def make() -> int:
        # Somebody may have removed or unmounted it since the daemon started.
        prepare_directory(os.path.dirname(path))
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            _loopback_up()
            syscalls.mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", path, syscalls.MS_BIND)
        except BaseException:
            os.unlink(path)
            raise
        return os.stat(path).st_ino

    try:
        return await in_own_thread(make)
    except OSError as exc:
        raise NotReady(f"network namespace {path} cannot be created: {exc}") from exc


async def create_user_namespace(path: str, *, uid_map: str, gid_map: str, netns_path: str = "") -> None:
    """Make a user namespace with these maps (user_namespaces(7), "uid_map"), pinned at `path`.

    With `netns_path` a network namespace that it owns is made too, with its loopback up, and pinned there. Raises
    NotReady when the kernel refuses; nothing is left then.
    """
    command = ["unshare", "--user", *(["--net"] if netns_path else []), "--", "cat"]
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as exc:
        raise NotReady(f"unshare(1), which makes user namespaces, cannot be executed: {exc}") from exc
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(UNSHARE_SECONDS):
            # cat answers once unshare has become it, which is once the namespaces are there.
            process.stdin.write(b".")
            if not await process.stdout.read(1):
                words = (await process.stderr.read()).decode("utf-8", "replace").strip()
                raise NotReady(f"a user namespace cannot be created: {words}")
        await in_own_thread(lambda: _pin_user_namespace(process.pid, path, uid_map, gid_map, netns_path))
    except TimeoutError as exc:
        raise NotReady(f"a user namespace cannot be created: no answer in {UNSHARE_SECONDS:g} s") from exc
    except (OSError, ConnectionError) as exc:
        raise NotReady(f"user namespace {path} cannot be created: {exc}") from exc
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _pin_user_namespace(pid: int, path: str, uid_map: str, gid_map: str, netns_path: str) -> None:
    """Runs in a thread that ends, for it enters the network namespace."""
    Path(f"/proc/{pid}/uid_map").write_text(uid_map, encoding="ascii")
    Path(f"/proc/{pid}/gid_map").write_text(gid_map, encoding="ascii")
    if netns_path:
        prepare_directory(os.path.dirname(netns_path))
    with _pinned(f"/proc/{pid}/ns", {"user": path, **({"net": netns_path} if netns_path else {})}):
        if netns_path:
            _enter(netns_path)
            _loopback_up()


async def create_others(pins: Mapping[str, str], hostname: str = "") -> None:
    """Make new namespaces of these kinds, "ipc" and "uts", pinned at these paths.

    The uts namespace gets the host name, or keeps the machine's. Raises NotReady when the kernel refuses; nothing is
    left then.
    """

    def make() -> None:
        syscalls.unshare(sum(_FLAGS[kind] for kind in pins))
        if hostname and "uts" in pins:
            socket.sethostname(hostname)
        with _pinned(f"/proc/self/task/{threading.get_native_id()}/ns", pins):
            pass

    try:
        await in_own_thread(make)
    except OSError as exc:
        raise NotReady(f"namespaces {' '.join(pins.values())} cannot be created: {exc}") from exc


@contextmanager
def _pinned(processes: str, pins: Mapping[str, str]) -> Iterator[None]:
    """Pin namespaces, by kind and path, of the process whose ns directory is given; not if the block fails."""
    done: list[str] = []
    try:
        for kind, target in pins.items():
            os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
            done.append(target)
            syscalls.mount(f"{processes}/{kind}", target, syscalls.MS_BIND)
        yield
    except BaseException:
        for target in reversed(done):
            mounts.unmount(target)
            os.unlink(target)
        raise


async def set_sysctls(paths: Sequence[str], values: Mapping[str, str]) -> None:
    """Set sysctls in the namespaces at these paths. Raises NotReady naming the one that the kernel refuses."""

    def write() -> None:
        for path in paths:
            _enter(path)
        for name, value in values.items():
            # /proc/sys shows a thread the sysctls of its own namespaces. Beside slashes dots are part of a name.
            file = Path("/proc/sys", name if "/" in name else name.replace(".", "/"))
            try:
                file.write_text(value, encoding="utf-8")
            except OSError as exc:
                raise NotReady(f"sysctl {name} cannot be set to {value!r}: {exc.strerror}") from exc

    try:
        await in_own_thread(write)
    except OSError as exc:
        raise NotReady(f"namespaces {' '.join(paths)} cannot be entered: {exc}") from exc


def exists(path: str) -> bool:
    """Whether a live namespace is pinned at `path` (a leftover plain file is not one)."""
    try:
        # All namespace files share the one nsfs superblock, so its device number identifies them.
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def inode(path: str) -> int:
    """The namespace's inode, as `ls -i /proc/PID/ns/net` shows it; 0 when there is none."""
    return os.stat(path).st_ino if exists(path) else 0


async def restore(path: str, wanted: int, pids: Sequence[int], kind: str = "net") -> bool:
    """Pin the namespace with the inode `wanted` at `path` again; whether it is pinned there.

    What was mounted over it is unmounted. If that does not show it, it is taken from one of the processes `pids`,
    which must be known to be the pod's: an inode that was freed is used again. `wanted` 0 accepts what the process
    has. When the answer is False, no namespace is at `path`. `kind` is that of /proc/PID/ns. Raises NotReady when the
    kernel refuses.
    """

    def undo_what_others_did() -> bool:
        if wanted and _uncover(path, wanted):
            return True
        for pid in pids:
            with _namespace_of(pid, kind, wanted) as fd:
                if fd >= 0:
                    if kind == "net":
                        prepare_directory(os.path.dirname(path))
                    else:
                        private.make(os.path.dirname(path), private.CLOSED)
                    _pin(fd, path)
                    return True
        return False

    if wanted and inode(path) == wanted and not os.path.islink(path):
        return True
    try:
        return await asyncio.to_thread(undo_what_others_did)
    except OSError as exc:
        raise NotReady(f"namespace {path} cannot be pinned again: {exc}") from exc


def _uncover(path: str, wanted: int) -> bool:
    """Unmount what is above the namespace; afterwards nothing is mounted at `path`, or the namespace is."""
    if os.path.islink(path):
        os.unlink(path)
    for _ in range(_MAX_STACKED):
        if inode(path) == wanted:
            return True
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):  # not a mount, not there
                return False
            raise
    return inode(path) == wanted


@contextmanager
def _namespace_of(pid: int, kind: str, wanted: int) -> Iterator[int]:
    """A descriptor of the process's namespace, -1 unless it is the one that is wanted, and never the daemon's own."""
    try:
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it has ended
        yield -1
        return
    try:
        found = os.fstat(fd).st_ino
        own = os.stat(f"/proc/self/ns/{kind}").st_ino
        yield fd if found != own and wanted in (0, found) else -1
    finally:
        os.close(fd)


def _pin(fd: int, path: str) -> None:
    """Mount the namespace `fd` at `path`, in place of what is left there."""
    mounts.unmount(path)
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    else:
        Path(path).unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    syscalls.mount(f"/proc/self/fd/{fd}", path, syscalls.MS_BIND)


async def set_hostname(pid: int, name: str, netns_inode: int) -> None:
    """Give the pod of a process another hostname: that of the process's uts namespace (uts_namespaces(7)).

    `netns_inode` is that of the pod's network namespace, by which the process is known to be the pod's. Raises
    NotReady when it is not, has ended, or is in the daemon's own uts namespace.
    """

    def change() -> None:
        # What is opened below it is this process's, whoever gets its pid afterwards.
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            uts = os.open("ns/uts", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
            try:
                own = os.stat("/proc/self/ns/uts").st_ino
                if os.stat("ns/net", dir_fd=process).st_ino != netns_inode or os.fstat(uts).st_ino == own:
                    raise ProcessLookupError(errno.ESRCH, "it is not the pod's")
                syscalls.setns(uts, syscalls.CLONE_NEWUTS)
            finally:
                os.close(uts)
        finally:
            os.close(process)
        socket.sethostname(name)

    try:
        await in_own_thread(change)
    except OSError as exc:
        raise NotReady(f"the hostname of process {pid} cannot be set: {exc}") from exc


async def remove(path: str) -> None:
    """Unpin the namespace; it is freed when its last process ends. Idempotent.

    Links beside it that lead to it go first: plugins make them, and not all remove theirs. Raises CleanupIncomplete
    when something holds the path.
    """

    def undo() -> None:
        for link in _links_to(path):
            link.unlink(missing_ok=True)
        mounts.unmount(path)
        Path(path).unlink(missing_ok=True)

    try:
        await asyncio.to_thread(undo)
    except OSError as exc:
        raise CleanupIncomplete(f"network namespace {path} cannot be removed: {exc}") from exc


def _links_to(path: str) -> list[Path]:
    """The links in the directory of `path` that lead to it, however they spell the directory."""
    directory, name = os.path.split(path)
    try:
        with os.scandir(directory) as entries:
            links = [entry.path for entry in entries if entry.is_symlink()]
        targets = {link: os.path.join(directory, os.readlink(link)) for link in links}
        return [
            Path(link)
            for link, target in targets.items()
            if os.path.basename(target) == name and os.path.samefile(os.path.dirname(target), directory)
        ]
    except FileNotFoundError:
        return []  # the directory is gone, or a link was removed meanwhile


async def inside(path: str, call: Callable[[], T]) -> T:
    """What `call` returns in the namespace at `path`; it runs in a thread that ends with it, and may block.

    Raises NotReady when the namespace cannot be entered, and for an OSError of the call.
    """

    def entered() -> T:
        _enter(path)
        return call()

    try:
        return await in_own_thread(entered)
    except OSError as exc:
        raise NotReady(f"network namespace {path} cannot be entered: {exc}") from exc


async def open_socket(path: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in the namespace at `path`, however many namespaces its user visits later."""
    return await inside(path, lambda: socket.socket(family, kind, protocol))


def _enter(path: str) -> None:
    """Move this thread into the namespace, of whatever kind (rule 1)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        syscalls.setns(fd, 0)
    finally:
        os.close(fd)


async def interfaces(path: str) -> list[Link]:
    """The interfaces inside a namespace, in the kernel's order. Raises NotReady when it cannot be read."""
    return await _read(path, _links)


async def view(path: str) -> View:
    """The same, and the routes."""

    async def read(ipr: Any) -> View:
        found = await _links(ipr)
        routes = [route async for route in await ipr.get_routes(table=_RT_TABLE_MAIN)]
        return View(links=tuple(found), routes=tuple(links.route(route) for route in routes if route["type"] == 1))

    return await _read(path, read)


async def _links(ipr: Any) -> list[Link]:
    found = [link async for link in await ipr.get_links()]
    addresses = [address async for address in await ipr.get_addr()]
    return [links.link(each, addresses) for each in found]


async def own_links(indexes: Sequence[int]) -> list[Link]:
    """Those of the daemon's own namespace's interfaces that have these indexes. Raises NotReady."""

    async def read(ipr: Any) -> list[Link]:
        pyroute2 = _pyroute2()
        found: list[Any] = []
        for index in indexes:
            try:
                found += await ipr.link("get", index=index)
            except pyroute2.NetlinkError as exc:
                if exc.code != errno.ENODEV:
                    raise
        addresses = [address async for address in await ipr.get_addr()]
        return [links.link(each, addresses) for each in found]

    return await _read("", read)


async def own_route(address: str) -> int:
    """The index of the interface through which the daemon's own namespace sends to an address; 0 without a route.

    Raises NotReady when that cannot be asked.
    """

    async def read(ipr: Any) -> int:
        pyroute2 = _pyroute2()
        try:
            (route,) = await ipr.route("get", dst=address)
        except pyroute2.NetlinkError as exc:
            if exc.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return 0
            raise
        return route.get_attr("RTA_OIF") or 0

    return await _read("", read)


def _pyroute2() -> Any:
    """The library. The first call takes a tenth of a second."""
    # Here and not above: all of its protocols come with it, which is a tenth of what starting the daemon takes.
    import pyroute2

    return pyroute2


async def _read(path: str, ask: Callable[[Any], Awaitable[T]]) -> T:
    """What `ask` reads in the namespace; "" is the daemon's own. A machine's many links do not hold up the daemon."""

    pyroute2 = await asyncio.to_thread(_pyroute2)

    async def asked() -> T:
        async with pyroute2.AsyncIPRoute() as ipr:
            return await ask(ipr)

    def run() -> T:
        return asyncio.run(asked())

    try:
        return await (inside(path, run) if path else in_own_thread(run))
    except (pyroute2.NetlinkError, OSError) as exc:
        raise NotReady(f"network namespace {path or 'of the machine'} cannot be read: {exc}") from exc

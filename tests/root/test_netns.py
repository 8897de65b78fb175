"""Network namespaces of the real kernel.

Each test is run by a child in new network and mount namespaces (`unshare`), so that whatever it pins is gone when
the child ends, and the machine's own network is not involved.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandboxd import netns, syscalls
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.jobs import OWN_THREAD

pytestmark = pytest.mark.root

_SIOCGSKNS = 0x894C  # socket(7) knows it not; include/uapi/linux/sockios.h: a descriptor of a socket's namespace


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def inside(path: str, *by: str) -> subprocess.Popen[str]:
    """A process, started by `by`, that is in the namespace when this returns, and ends when its stdin does."""
    command = ("nsenter", f"--net={path}", *by, "sh", "-c", "echo ready; exec cat")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def own_namespaces() -> set[str]:
    """The network namespaces of all threads of this process."""
    return {os.readlink(task / "ns" / "net") for task in Path("/proc/self/task").iterdir()}


def descriptors() -> set[str]:
    return {f"{fd.name} {os.readlink(fd)}" for fd in Path("/proc/self/fd").iterdir() if os.path.lexists(fd)}


def threads_ended() -> bool:
    """Whether every namespace thread ends; one that has given its result has only to return."""
    for thread in threading.enumerate():
        if thread.name == OWN_THREAD:
            thread.join(10)
    return all(thread.name != OWN_THREAD for thread in threading.enumerate())


def mounts_on(path: str) -> int:
    return [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()].count(path)


def refused(error: type[Exception], words: str, call: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, None]:
    async def check() -> None:
        try:
            await call
        except error as exc:
            assert words in str(exc), str(exc)
        else:
            raise AssertionError(f"not refused: {words}")

    return check()


async def the_hostname_of_a_pod_is_set_in_its_own_namespace(directory: str) -> None:
    """Nobody else's changes: not the machine's, and not that of a process that has the pid of one that ended."""
    path, own = f"{directory}/a", os.uname().nodename
    inode = await netns.create(path)
    pod = inside(path, "unshare", "--uts")
    other = inside(path)  # in the pod's network, and in the machine's uts namespace

    await netns.set_hostname(pod.pid, "web-1", inode)

    assert output("nsenter", f"--uts=/proc/{pod.pid}/ns/uts", "hostname") == "web-1"
    await refused(NotReady, "not the pod's", netns.set_hostname(pod.pid, "web-2", inode + 1))
    await refused(NotReady, "not the pod's", netns.set_hostname(other.pid, "web-2", inode))
    pod.communicate(), other.communicate()
    await refused(NotReady, f"process {pod.pid}", netns.set_hostname(pod.pid, "web-2", inode))
    assert os.uname().nodename == own
    assert threads_ended()
    await netns.remove(path)


async def from_birth_to_death(directory: str) -> None:
    """A namespace is there from create to remove, and removing twice is removing."""
    path = f"{directory}/a"
    assert (netns.exists(path), netns.inode(path)) == (False, 0)
    await netns.remove(path)

    inode = await netns.create(path)

    assert netns.exists(path)
    assert netns.inode(path) == inode == os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino
    assert output("nsenter", f"--net={path}", "readlink", "/proc/self/ns/net") == f"net:[{inode}]"
    for _ in range(2):
        await netns.remove(path)
        assert (netns.exists(path), netns.inode(path), os.listdir(directory)) == (False, 0, [])
    assert mounts_on(path) == 0


async def loopback(directory: str) -> None:
    """A new namespace holds the loopback, up and with its addresses, and nothing that is up beside it."""
    path = f"{directory}/a"
    await netns.create(path)

    first, *others = await netns.interfaces(path)

    assert (first.name, first.index, first.up, first.mac) == ("lo", 1, True, "00:00:00:00:00:00")
    assert "127.0.0.1/8" in first.addresses
    assert first.mtu == 65536
    assert not [other for other in others if other.up]  # a kernel may give tunnels of its own
    await netns.remove(path)


async def a_view(directory: str) -> None:
    """Of a namespace the view has what is connected to what, and where packets go."""
    path = f"{directory}/a"
    await netns.create(path)
    for command in (
        "ip link add br0 type bridge",
        "ip link add name eth0 mtu 1400 address 02:00:00:00:00:07 type veth peer name eth1",
        "ip link set eth1 master br0",
        "ip link set eth1 type bridge_slave hairpin on",
        "ip link set eth0 up",
        "ip address add 10.9.8.7/24 dev eth0",
        "ip route add default via 10.9.8.1",
    ):
        output("nsenter", f"--net={path}", *command.split())

    view = await netns.view(path)

    links = {link.name: link for link in view.links}
    eth0, eth1, br0 = (links[name] for name in ("eth0", "eth1", "br0"))
    assert (eth0.kind, eth0.mac, eth0.mtu, eth0.up) == ("veth", "02:00:00:00:00:07", 1400, True)
    assert (eth0.peer, eth1.peer, eth1.master, br0.kind) == (eth1.index, eth0.index, br0.index, "bridge")
    assert (eth0.hairpin, eth1.hairpin, eth1.up) == (False, True, False)
    assert eth0.addresses[0] == "10.9.8.7/24"
    assert (links["lo"].loopback, eth0.loopback) == (True, False)
    there = {(route.destination, route.gateway, route.link) for route in view.routes}
    assert {("0.0.0.0/0", "10.9.8.1", eth0.index), ("10.9.8.0/24", "", eth0.index)} <= there
    await netns.remove(path)
    await refused(NotReady, f"{path} cannot be entered", netns.view(path))


async def the_machines_own(directory: str) -> None:
    """Of the daemon's own namespace only what is asked for is read, and what is not there is left out."""
    lo = int(Path("/sys/class/net/lo/ifindex").read_text())
    assert await netns.own_route("127.0.0.1") == 0
    output("ip", "link", "set", "lo", "up")

    (link,) = await netns.own_links([lo, 1 << 20])

    assert (link.name, link.loopback) == ("lo", True)
    assert await netns.own_route("127.0.0.1") == lo


async def all_interfaces(directory: str) -> None:
    """Addresses belong to their interface, and what is down says so."""
    path = f"{directory}/a"
    await netns.create(path)
    for command in (
        "ip link add name eth0 mtu 1400 address 02:00:00:00:00:07 type veth peer name eth1",
        "ip address add 10.9.8.7/24 dev eth0",
        "ip address add 10.9.8.8/24 dev eth0",
        "ip -6 address add fd00:9::7/64 dev eth0 nodad",
    ):
        output("nsenter", f"--net={path}", *command.split())

    found = {interface.name: interface for interface in await netns.interfaces(path)}

    eth0 = found["eth0"]
    assert (eth0.mac, eth0.mtu, eth0.up) == ("02:00:00:00:00:07", 1400, False)
    assert {"10.9.8.7/24", "10.9.8.8/24"} <= set(eth0.addresses) <= {"10.9.8.7/24", "10.9.8.8/24", "fd00:9::7/64"}
    assert found["eth1"].addresses == ()
    await netns.remove(path)


async def leftover_file(directory: str) -> None:
    """A plain file at the path is no namespace; it is not written over, and removed like one."""
    path = f"{directory}/a"
    Path(path).write_text("left by somebody")
    assert (netns.exists(path), netns.inode(path)) == (False, 0)

    await refused(NotReady, f"{path} cannot be created", netns.create(path))
    assert Path(path).read_text() == "left by somebody"
    await refused(NotReady, f"{path} cannot be entered", netns.open_socket(path, socket.AF_INET, socket.SOCK_STREAM))
    await refused(NotReady, f"{path} cannot be entered", netns.interfaces(path))

    await netns.remove(path)
    assert os.listdir(directory) == []


async def taken(directory: str) -> None:
    """A path that holds a namespace is refused, and the namespace stays."""
    path = f"{directory}/a"
    inode = await netns.create(path)

    await refused(NotReady, "cannot be created", netns.create(path))

    assert netns.inode(path) == inode
    await netns.remove(path)


async def failures_leave_nothing(directory: str) -> None:
    """When the kernel refuses at any step, nothing is left at the path."""
    path = f"{directory}/a"

    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((syscalls, "unshare"), (netns, "_loopback_up"), (syscalls, "mount")):
        real = getattr(module, name)
        setattr(module, name, refuse)
        try:
            await refused(NotReady, "No space left on device", netns.create(path))
        finally:
            setattr(module, name, real)
        assert os.listdir(directory) == []
        assert threads_ended()
    await netns.create(path)
    await netns.remove(path)


async def cannot_be_removed(directory: str) -> None:
    """What cannot be unpinned is reported with its path."""
    path = f"{directory}/a"
    os.mkdir(path)

    await refused(CleanupIncomplete, f"{path} cannot be removed", netns.remove(path))


async def socket_inside(directory: str) -> None:
    """A socket belongs to the namespace that it was opened in, and to no other."""
    inodes, owners = [], []
    for name in "ab":
        path = f"{directory}/{name}"
        inodes.append(await netns.create(path))
        with await netns.open_socket(path, socket.AF_INET, socket.SOCK_STREAM) as sock:
            fd = fcntl.ioctl(sock, _SIOCGSKNS)
            owners.append(os.fstat(fd).st_ino)
            os.close(fd)
            sock.bind(("127.0.0.1", 4711))
            sock.listen()
            with socket.socket() as outside:
                assert outside.connect_ex(("127.0.0.1", 4711)) != 0
            with await netns.open_socket(path, socket.AF_INET, socket.SOCK_STREAM) as inside:
                assert inside.connect_ex(("127.0.0.1", 4711)) == 0

    assert owners == inodes
    for name in "ab":
        await netns.remove(f"{directory}/{name}")


async def own_namespace(directory: str) -> None:
    """Whatever is done, the process's own threads stay where they were, threads end, descriptors are closed."""
    path = f"{directory}/a"
    await asyncio.to_thread(lambda: None)
    before, opened = own_namespaces(), descriptors()
    assert len(before) == 1

    for _ in range(10):
        await netns.create(path)
        await netns.interfaces(path)
        (await netns.open_socket(path, socket.AF_INET, socket.SOCK_DGRAM)).close()
        await netns.remove(path)
        await refused(NotReady, "", netns.open_socket(path, socket.AF_INET, socket.SOCK_DGRAM))

    assert threads_ended()
    assert own_namespaces() == before
    assert descriptors() == opened


async def many_at_once(directory: str) -> None:
    """Namespaces that are made at the same time are as many as were asked for."""
    paths = [f"{directory}/{i}" for i in range(30)]

    inodes = await asyncio.gather(*(netns.create(path) for path in paths))

    assert len(set(inodes)) == len(paths)
    assert [netns.inode(path) for path in paths] == inodes
    await asyncio.gather(*(netns.remove(path) for path in paths))
    assert os.listdir(directory) == []


async def mounted_over(directory: str) -> None:
    """Mounts that somebody stacked on ours do not keep it."""
    path = f"{directory}/a"
    await netns.create(path)
    for _ in range(3):
        syscalls.mount(path, path, syscalls.MS_BIND)
    assert mounts_on(path) >= 4  # each is copied to its peers

    await netns.remove(path)

    assert (mounts_on(path), os.listdir(directory)) == (0, [])


async def in_use(directory: str) -> None:
    """A process inside, and one that has the path open, do not keep it from being unpinned."""
    path = f"{directory}/a"
    await netns.create(path)
    with open(path, "rb"), inside(path) as process:
        await netns.remove(path)
        assert (mounts_on(path), os.listdir(directory)) == (0, [])
        assert process.poll() is None
        assert os.readlink(f"/proc/{process.pid}/ns/net") not in own_namespaces()
        process.communicate("")
        assert process.returncode == 0


async def pinned_again(directory: str) -> None:
    """Whatever was done to the path, a process inside is enough to have the namespace there again."""
    path, other = f"{directory}/a", f"{directory}/other"
    await netns.create(other)
    inode = await netns.create(path)

    def unmounted() -> None:
        syscalls.umount2(path, syscalls.MNT_DETACH)

    def deleted() -> None:
        unmounted()
        os.unlink(path)

    def a_link() -> None:
        deleted()
        os.symlink("other", path)

    def a_directory() -> None:
        deleted()
        os.mkdir(path)

    def hidden() -> None:
        syscalls.mount(other, path, syscalls.MS_BIND)

    def replaced() -> None:
        unmounted()
        hidden()

    with inside(path) as process:
        for take_away in (unmounted, deleted, a_link, a_directory, hidden, replaced):
            take_away()
            assert await netns.restore(path, inode, [process.pid]), take_away
            assert (netns.inode(path), mounts_on(path)) == (inode, 1), take_away
            assert await netns.restore(path, inode, [])
        process.communicate("")
    for each in (path, other):
        await netns.remove(each)
    assert os.listdir(directory) == []


async def pinned_from_nobody_else(directory: str) -> None:
    """Not from a process in another namespace, in the daemon's own, or from one that has ended."""
    path, other = f"{directory}/a", f"{directory}/other"
    inode = await netns.create(path)
    await netns.create(other)
    await netns.remove(path)
    with inside(other) as process:
        assert not await netns.restore(path, inode, [os.getpid(), process.pid])
        assert not await netns.restore(path, 0, [os.getpid()])
        assert await netns.restore(path, 0, [process.pid]), "whose namespace it is, the caller says"
        process.communicate("")
    assert not await netns.restore(path, inode, [process.pid])
    assert not netns.exists(path)
    for each in (path, other):
        await netns.remove(each)


async def cancelled(directory: str) -> None:
    """A create whose caller has left is finished, so that teardown finds a namespace or nothing."""
    path = f"{directory}/a"
    task = asyncio.create_task(netns.create(path))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()

    assert threads_ended()

    assert netns.exists(path)
    await netns.remove(path)
    assert os.listdir(directory) == []


# What a machine's /run and /run/netns can be when the daemon starts; each begins with a /run of the test's own.
_NETNS_IS_A_MOUNT = "mkdir /run/netns; mount --bind /run/netns /run/netns"
STATES = {
    "nothing": "",
    "a_directory": "mkdir /run/netns",
    "a_shared_mount": f"{_NETNS_IS_A_MOUNT}; mount --make-shared /run/netns",
    "a_private_mount": f"{_NETNS_IS_A_MOUNT}; mount --make-private /run/netns",
    "a_slave_mount": f"mount --make-shared /run; {_NETNS_IS_A_MOUNT}; mount --make-slave /run/netns",
    "two_mounts_the_upper_shared": (
        f"{_NETNS_IS_A_MOUNT}; mount --bind /run/netns /run/netns; mount --make-shared /run/netns"
    ),
    "two_mounts_the_lower_shared": (
        f"{_NETNS_IS_A_MOUNT}; mount --make-shared /run/netns; mount --bind /run/netns /run/netns;"
        " mount --make-private /run/netns"
    ),
    "a_mount_hidden_by_one_of_run": (
        f"{_NETNS_IS_A_MOUNT}; mount --make-shared /run/netns; mount -t tmpfs later /run; mount --make-private /run"
    ),
    "run_is_shared": "mount --make-shared /run",
    "run_is_shared_and_netns_is_a_mount": f"mount --make-shared /run; {_NETNS_IS_A_MOUNT}",
    "ip_netns_was_used": "ip netns add before; ip netns delete before",
    "run_is_shared_and_ip_netns_was_used": "mount --make-shared /run; ip netns add before; ip netns delete before",
}


def mount_at(path: str) -> str:
    """The line of mountinfo for the mount that `path` leads into; which one it is, the kernel says."""
    fd = os.open(path, os.O_PATH)
    try:
        (number,) = re.findall(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    finally:
        os.close(fd)
    (line,) = re.findall(rf"^{number} .*$", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
    return str(line)


async def beside_ip_netns(state: str) -> None:
    """The directory becomes a shared mount once, so that ip-netns(8) sees ours and does not mount above them."""
    syscalls.mount("tmpfs", "/run", 0, "tmpfs")
    output("sh", "-euc", STATES[state])
    netns.prepare_directory("/run/netns")
    prepared = mount_at("/run/netns")
    assert prepared.split(" ")[4] == "/run/netns"
    assert " shared:" in prepared

    for _ in range(2):
        netns.prepare_directory("/run/netns")
        assert mount_at("/run/netns") == prepared
    await netns.create("/run/netns/ours")
    output("ip", "netns", "add", "theirs")

    assert mount_at("/run/netns") == prepared
    assert {line.split()[0] for line in output("ip", "netns", "list").splitlines()} == {"ours", "theirs"}
    assert output("ip", "netns", "exec", "ours", "readlink", "/proc/self/ns/net").endswith(
        f"[{netns.inode('/run/netns/ours')}]"
    )
    await netns.remove("/run/netns/ours")
    assert os.listdir("/run/netns") == ["theirs"]
    assert mounts_on("/run/netns/ours") == 0


SCENARIOS: Sequence[Callable[[str], Coroutine[Any, Any, None]]] = (
    from_birth_to_death,
    the_hostname_of_a_pod_is_set_in_its_own_namespace,
    loopback,
    all_interfaces,
    a_view,
    the_machines_own,
    leftover_file,
    taken,
    failures_leave_nothing,
    cannot_be_removed,
    socket_inside,
    own_namespace,
    many_at_once,
    mounted_over,
    in_use,
    pinned_again,
    pinned_from_nobody_else,
    cancelled,
)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_netns(name: str, tmp_path: Path) -> None:
    """Each scenario's docstring states its rule."""
    in_namespaces(name, str(tmp_path))


@pytest.mark.parametrize("state", STATES)
def test_the_directory_is_shared_with_ip_netns_whatever_it_was_before(state: str) -> None:
    """See beside_ip_netns."""
    in_namespaces(beside_ip_netns.__name__, state)


def in_namespaces(name: str, argument: str) -> None:
    """Run a scenario in a network and a mount namespace of its own."""
    command = ("unshare", "--net", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.test_netns", name)
    done = subprocess.run(
        (*command, argument),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


if __name__ == "__main__":
    scenarios = (*SCENARIOS, beside_ip_netns)
    asyncio.run(next(scenario for scenario in scenarios if scenario.__name__ == sys.argv[1])(sys.argv[2]))

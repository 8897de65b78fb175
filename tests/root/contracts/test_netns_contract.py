"""What operations rely on of pinned namespaces: the same with the kernel and with the fake of it.

The kernel is tried by a child in new network and mount namespaces, so that whatever it pins is gone when the child
ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from sandboxd import netns as real
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.node import Netns
from tests.fakes import netns as fake
from tests.fakes.points import Points

MAP = "0 65536 65536\n"
Rule = Callable[[Netns, str], Awaitable[None]]


async def refused(error: type[Exception], call: Awaitable[object]) -> None:
    try:
        await call
    except error:
        return
    raise AssertionError(f"did not raise {error.__name__}")


async def from_birth_to_death(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    assert (netns.exists(path), netns.inode(path)) == (False, 0)
    await netns.remove(path)
    inode = await netns.create(path)
    assert inode > 0
    assert (netns.exists(path), netns.inode(path), os.listdir(directory)) == (True, inode, ["a"])
    for _ in range(2):
        await netns.remove(path)
        assert (netns.exists(path), netns.inode(path), os.listdir(directory)) == (False, 0, [])


async def each_is_its_own(netns: Netns, directory: str) -> None:
    inodes = [await netns.create(f"{directory}/{i}") for i in range(3)]
    assert len(set(inodes)) == 3
    await netns.remove(f"{directory}/1")
    assert [netns.exists(f"{directory}/{i}") for i in range(3)] == [True, False, True]
    for i in (0, 2):
        await netns.remove(f"{directory}/{i}")


async def a_path_that_is_taken_is_refused(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    inode = await netns.create(path)
    await refused(NotReady, netns.create(path))
    await refused(NotReady, netns.create_user_namespace(path, uid_map=MAP, gid_map=MAP))
    assert netns.inode(path) == inode
    await netns.remove(path)


async def a_directory_that_was_removed_is_made_again(netns: Netns, directory: str) -> None:
    path = f"{directory}/missing/a"
    inode = await netns.create(path)
    assert netns.inode(path) == inode
    await netns.remove(path)


async def a_directory_that_is_missing_is_refused(netns: Netns, directory: str) -> None:
    await refused(NotReady, netns.create_user_namespace(f"{directory}/missing/a", uid_map=MAP, gid_map=MAP))
    assert os.listdir(directory) == []


async def what_is_inside_can_be_read(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    await netns.create(path)
    (lo,) = await netns.interfaces(path)
    assert (lo.name, lo.index, lo.up, "127.0.0.1/8" in lo.addresses) == ("lo", 1, True, True)
    await netns.remove(path)
    await refused(NotReady, netns.interfaces(path))


async def a_plain_file_is_no_namespace(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    Path(path).write_text("left by somebody")
    assert (netns.exists(path), netns.inode(path)) == (False, 0)
    await refused(NotReady, netns.create(path))
    assert Path(path).read_text() == "left by somebody"
    await netns.remove(path)
    assert os.listdir(directory) == []


async def links_that_lead_to_it_go_with_it(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    await netns.create(path)
    await netns.create(f"{directory}/other")
    os.symlink(path, f"{directory}/absolute")
    os.symlink("a", f"{directory}/relative")
    os.symlink("other", f"{directory}/not_to_it")
    await netns.remove(path)
    assert sorted(os.listdir(directory)) == ["not_to_it", "other"]
    await netns.remove(f"{directory}/other")
    assert os.listdir(directory) == []


async def what_cannot_be_removed_is_reported(netns: Netns, directory: str) -> None:
    os.mkdir(f"{directory}/a")
    await refused(CleanupIncomplete, netns.remove(f"{directory}/a"))


async def what_is_there_need_not_be_restored(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    inode = await netns.create(path)
    assert await netns.restore(path, inode, [])
    assert netns.inode(path) == inode
    await netns.remove(path)


async def nobody_in_it_nothing_to_restore_it_from(netns: Netns, directory: str) -> None:
    path = f"{directory}/a"
    inode = await netns.create(path)
    await netns.remove(path)
    assert not await netns.restore(path, inode, [])
    await netns.create(path)
    assert not await netns.restore(path, inode + 1_000_000, []), "another is there"
    assert not netns.exists(path), "which is nobody's to join"
    await netns.remove(path)


async def a_user_namespace_alone(netns: Netns, directory: str) -> None:
    path = f"{directory}/user"
    await netns.create_user_namespace(path, uid_map=MAP, gid_map=MAP)
    assert (netns.exists(path), netns.inode(path) > 0, os.listdir(directory)) == (True, True, ["user"])
    await netns.remove(path)
    assert os.listdir(directory) == []


async def a_user_namespace_with_its_network(netns: Netns, directory: str) -> None:
    user, net = f"{directory}/user", f"{directory}/net"
    await netns.create_user_namespace(user, uid_map=MAP, gid_map=MAP, netns_path=net)
    assert netns.exists(user) and netns.exists(net)
    assert netns.inode(user) != netns.inode(net)
    for path in (user, net):
        await netns.remove(path)
    assert os.listdir(directory) == []


async def when_one_of_two_cannot_be_pinned_neither_is(netns: Netns, directory: str) -> None:
    user, net = f"{directory}/user", f"{directory}/net"
    inode = await netns.create(net)
    await refused(NotReady, netns.create_user_namespace(user, uid_map=MAP, gid_map=MAP, netns_path=net))
    assert (os.listdir(directory), netns.inode(net)) == (["net"], inode)
    await netns.remove(net)


async def others_are_made_together(netns: Netns, directory: str) -> None:
    pins = {"ipc": f"{directory}/ipc", "uts": f"{directory}/uts"}
    await netns.create_others(pins, "web")
    assert len({netns.inode(path) for path in pins.values()} - {0}) == 2
    assert sorted(os.listdir(directory)) == ["ipc", "uts"]
    for path in pins.values():
        await netns.remove(path)
    assert os.listdir(directory) == []


async def when_one_of_the_others_cannot_be_pinned_none_is(netns: Netns, directory: str) -> None:
    pins = {"ipc": f"{directory}/ipc", "uts": f"{directory}/uts"}
    Path(pins["uts"]).write_text("left by somebody")
    await refused(NotReady, netns.create_others(pins))
    assert os.listdir(directory) == ["uts"]


async def sysctls_are_set_in_namespaces_that_are_there(netns: Netns, directory: str) -> None:
    pins = {"ipc": f"{directory}/ipc", "uts": f"{directory}/uts"}
    net = f"{directory}/net"
    await netns.create(net)
    await netns.create_others(pins)
    inside = [net, *pins.values()]
    await netns.set_sysctls(inside, {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1000", "fs/mqueue/msg_max": "20"})
    await refused(NotReady, netns.set_sysctls(inside, {"net.ipv4.ip_forward": "yes"}))
    for path in inside:
        await netns.remove(path)
    await refused(NotReady, netns.set_sysctls(inside, {"kernel.shmmax": "1000"}))


async def who_is_not_in_it_keeps_its_hostname(netns: Netns, directory: str) -> None:
    path, name = f"{directory}/a", os.uname().nodename
    inode = await netns.create(path)
    assert inode != 1
    await refused(NotReady, netns.set_hostname(os.getpid(), "web", 1))
    await netns.remove(path)
    assert os.uname().nodename == name


RULES: Sequence[Rule] = (
    from_birth_to_death,
    each_is_its_own,
    a_path_that_is_taken_is_refused,
    a_directory_that_was_removed_is_made_again,
    a_directory_that_is_missing_is_refused,
    what_is_inside_can_be_read,
    a_plain_file_is_no_namespace,
    links_that_lead_to_it_go_with_it,
    what_cannot_be_removed_is_reported,
    what_is_there_need_not_be_restored,
    nobody_in_it_nothing_to_restore_it_from,
    a_user_namespace_alone,
    a_user_namespace_with_its_network,
    when_one_of_two_cannot_be_pinned_neither_is,
    others_are_made_together,
    when_one_of_the_others_cannot_be_pinned_none_is,
    sysctls_are_set_in_namespaces_that_are_there,
    who_is_not_in_it_keeps_its_hostname,
)
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@by_rule
async def test_the_fake_keeps_the_rule(rule: Rule, tmp_path: Path) -> None:
    await rule(fake.Netns(Points()), str(tmp_path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By rule, how the kernel broke it, or ""."""
    command = ("unshare", "--net", "--mount", sys.executable, "-m", "tests.root.contracts.test_netns_contract")
    base = str(tmp_path_factory.mktemp("netns"))
    cwd = Path(__file__).parents[3]
    done = subprocess.run((*command, base), cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.root
@by_rule
def test_the_kernel_keeps_the_rule(rule: Rule, kept: dict[str, str]) -> None:
    assert kept[rule.__name__] == ""


def main(base: str) -> None:
    """Try all rules on the kernel and print what `kept` is to be."""
    kept = {}
    for rule in RULES:
        os.mkdir(directory := f"{base}/{rule.__name__}")
        try:
            asyncio.run(rule(real, directory))  # type: ignore[arg-type]
            kept[rule.__name__] = ""
        except Exception:
            kept[rule.__name__] = traceback.format_exc()
    print(json.dumps(kept))


if __name__ == "__main__":
    main(sys.argv[1])

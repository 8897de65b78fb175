"""User namespaces of the real kernel, and files seen through their ids.

Each test is run by a child in new network and mount namespaces (`unshare`), so that whatever it pins or mounts is
gone when the child ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd import netns
from sandboxd.config import Config, Daemon
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.machine import userns
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci.userns import IdMap, Range
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places
from sandboxd.remembered import Remembered

pytestmark = pytest.mark.root

MAP = "0 100000 1000\n"
IDS = IdMap(uids=Range(host=100000, length=1000), gids=Range(host=100000, length=1000))
MAPPING = cri.IDMapping(host_id=100000, length=1000)
SANDBOX = SandboxRecord(
    id="5a" * 32,
    config=cri.PodSandboxConfig(
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(
                    userns_options=cri.UserNamespace(mode=cri.POD, uids=[MAPPING], gids=[MAPPING])
                )
            )
        )
    ),
    runtime_handler="",
    netns_path="",
    created_at=1,
)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def mounts_below(directory: str) -> list[str]:
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{directory}/")]


def processes() -> set[str]:
    """Our children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def node(directory: str) -> Node:
    config = Config(daemon=Daemon(root=directory, state=f"{directory}/state"))
    places = Places.of(config)
    Path(places.sandbox(SANDBOX.id)).mkdir(parents=True)
    return cast(
        Node,
        SimpleNamespace(config=config, places=places, netns=netns, machine=SimpleNamespace(remembered=Remembered())),
    )


async def owns_its_network(directory: str) -> None:
    """The network namespace that comes with a user namespace belongs to it, and its loopback is up."""
    user, net = f"{directory}/user", f"{directory}/net"

    await netns.create_user_namespace(user, uid_map=MAP, gid_map="0 200000 5\n", netns_path=net)

    enter = ("nsenter", f"--user={user}", f"--net={net}", "--setuid=0", "--setgid=0")
    script = "cat /proc/self/uid_map /proc/self/gid_map; ip link set lo mtu 1234; ip -o link show lo"
    told = output(*enter, "sh", "-c", script).splitlines()
    assert told[0].split() == ["0", "100000", "1000"]
    assert told[1].split() == ["0", "200000", "5"]
    assert "mtu 1234" in told[2] and "LOOPBACK,UP" in told[2]
    assert not processes()
    for path in (net, user):
        await netns.remove(path)
    assert os.listdir(directory) == []
    assert mounts_below(directory) == []


async def alone(directory: str) -> None:
    """Without a path for it there is no network namespace."""
    await netns.create_user_namespace(f"{directory}/user", uid_map=MAP, gid_map=MAP)

    assert os.listdir(directory) == ["user"]
    assert netns.inode(f"{directory}/user") != os.stat("/proc/self/ns/user").st_ino
    await netns.remove(f"{directory}/user")


async def failures_leave_nothing(directory: str) -> None:
    """A map that the kernel refuses, a path that is taken or not there: nothing stays, no process either."""
    user, net = f"{directory}/user", f"{directory}/net"
    for maps, paths in (
        (("0 0 0\n", MAP), (user, net)),
        ((MAP, "nonsense\n"), (user, net)),
        ((MAP, MAP), (f"{directory}/no/user", net)),
    ):
        with pytest.raises(NotReady, match="cannot be created"):
            await netns.create_user_namespace(paths[0], uid_map=maps[0], gid_map=maps[1], netns_path=paths[1])
        assert os.listdir(directory) == []
        assert mounts_below(directory) == []
        assert not processes()
    Path(net).write_text("somebody's")
    with pytest.raises(NotReady, match="File exists"):
        await netns.create_user_namespace(user, uid_map=MAP, gid_map=MAP, netns_path=net)
    assert os.listdir(directory) == ["net"]
    os.unlink(net)


async def no_unshare(directory: str) -> None:
    """A machine without unshare(1) says so."""
    os.environ["PATH"] = directory
    with pytest.raises(NotReady, match=r"unshare\(1\), which makes user namespaces, cannot be executed"):
        await netns.create_user_namespace(f"{directory}/user", uid_map=MAP, gid_map=MAP)
    assert os.listdir(directory) == []


async def staged_and_gone(directory: str) -> None:
    """While a container is created its layers and mounts show the pod's ids; then nothing is left but the files."""
    machine = node(directory)
    await userns.create(machine, SANDBOX, IDS)
    lower, upper, work, theirs = (f"{directory}/{name}" for name in ("lower", "upper", "work", "theirs"))
    for path in (lower, upper, work, theirs, f"{theirs}/below"):
        os.mkdir(path)
    Path(lower, "of-root").write_text("x")
    os.mkdir(f"{lower}/owned")
    os.chown(f"{lower}/owned", 7, 8)
    file = Path(theirs, "file")
    file.write_text("theirs")
    output("mount", "-t", "tmpfs", "below", f"{theirs}/below")
    config = cri.ContainerConfig(
        mounts=[
            cri.Mount(host_path=theirs, uidMappings=[MAPPING], gidMappings=[MAPPING]),
            cri.Mount(host_path=str(file), uidMappings=[MAPPING], gidMappings=[MAPPING]),
            cri.Mount(host_path=lower),
        ]
    )
    sources = userns.mapped_mounts(machine, "c0" * 32, config)
    assert list(sources) == [0, 1]
    rootfs = [Mount(type="overlay", source="overlay", options=("index=off", f"lowerdir={lower}:{theirs}",
                                                               f"upperdir={upper}", f"workdir={work}"))]  # fmt: skip

    async with userns.staged(machine, SANDBOX, "c0" * 32, rootfs, config) as (mapped,):
        options = dict(option.split("=") for option in mapped.options)
        first, second = options["lowerdir"].split(":")
        assert os.stat(f"{first}/of-root").st_uid == 100000
        assert (os.stat(f"{first}/owned").st_uid, os.stat(f"{first}/owned").st_gid) == (100007, 100008)
        assert os.stat(f"{second}/file").st_uid == 100000
        assert os.stat(sources[0]).st_uid == os.stat(f"{sources[0]}/below").st_uid == 100000
        assert Path(sources[1]).read_text() == "theirs"
        os.mkdir(f"{directory}/merged")
        output("mount", "-t", "overlay", "-o", ",".join(mapped.options), "overlay", f"{directory}/merged")

    assert not os.path.exists(machine.places.stage("c0" * 32))
    assert file.read_text() == "theirs"
    assert os.stat(upper).st_uid == 100000
    # The overlay has copies of the layers' mounts, which the end of the staging did not touch.
    assert os.stat(f"{directory}/merged/of-root").st_uid == 100000
    output("umount", f"{directory}/merged", f"{theirs}/below")
    await userns.remove(machine, SANDBOX.id)
    await userns.remove(machine, SANDBOX.id)
    assert mounts_below(directory) == []


async def unstaging_never_deletes(directory: str) -> None:
    """What a dead daemon left staged is unmounted; the files that were mounted stay, whatever is there."""
    machine = node(directory)
    theirs = Path(directory, "theirs")
    theirs.mkdir()
    (theirs / "file").write_text("precious")
    stage = Path(machine.places.stage("c0" * 32))
    for i in range(3):
        userns.map_mount(str(theirs), f"{stage}/mount-{i}")
    userns.map_mount(str(theirs / "file"), f"{stage}/file")
    userns.map_mount(str(theirs), f"{stage}/mount-0")  # twice
    os.symlink(theirs, stage / "link")

    userns.unstage(machine, "c0" * 32)
    userns.unstage(machine, "c0" * 32)

    assert not stage.exists()
    assert (theirs / "file").read_text() == "precious"
    assert mounts_below(directory) == []


async def probed(directory: str) -> None:
    """This machine's answer is found once; a file system that cannot do it is named."""
    machine = node(directory)
    assert await asyncio.gather(*(userns.probe(machine) for _ in range(3))) == [""] * 3
    assert os.listdir(machine.config.daemon.state) == ["sandboxes"]
    other = node(f"{directory}/other")
    output("mount", "-t", "proc", "proc", f"{directory}/other/state")
    bad = cast(Any, SimpleNamespace(netns=netns, machine=SimpleNamespace(remembered=Remembered())))
    bad.config = Config(daemon=Daemon(root=other.config.daemon.state, state=f"{directory}/state"))
    bad.places = Places.of(bad.config)
    assert "does not support idmapped mounts" in await userns.probe(bad)


async def without_a_namespace(directory: str) -> None:
    """A pod without a user namespace gets its root file system as it is."""
    rootfs = [Mount(type="bind", source=directory)]
    plain = SandboxRecord(id="5a", config=cri.PodSandboxConfig(), runtime_handler="", netns_path="", created_at=1)
    async with userns.staged(cast(Node, None), plain, "c0", rootfs) as same:
        assert same is rootfs


SCENARIOS: Sequence[Callable[[str], Coroutine[Any, Any, None]]] = (
    owns_its_network,
    alone,
    failures_leave_nothing,
    no_unshare,
    staged_and_gone,
    unstaging_never_deletes,
    probed,
    without_a_namespace,
)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_user_namespaces(name: str, tmp_path: Path) -> None:
    """Each scenario's docstring states its rule."""
    command = ("unshare", "--net", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.test_user_namespaces")
    done = subprocess.run(
        (*command, name, str(tmp_path)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


if __name__ == "__main__":
    asyncio.run(next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])(sys.argv[2]))

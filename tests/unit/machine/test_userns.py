"""User namespaces of pods, and mounts with their ids: staged for a moment, and never removed with what is in them.

What the kernel makes of it is in tests/root/test_user_namespaces.py.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandboxd import syscalls
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.machine import userns
from sandboxd.model import SandboxRecord
from sandboxd.oci.userns import IdMap, Range
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle, container_config, pod_config
from tests.fakes.points import Point

POD, CONTAINER = "1" * 64, "2" * 64
IDS = IdMap(uids=Range(host=100_000, length=65536), gids=Range(host=200_000, length=65536))
UIDS = cri.IDMapping(host_id=IDS.uids.host, container_id=0, length=IDS.uids.length)
GIDS = cri.IDMapping(host_id=IDS.gids.host, container_id=0, length=IDS.gids.length)


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Which owners were set: only root may."""
    owners: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: owners.update({str(path): (uid, gid)}))
    return owners


def sandbox(*, mapped: bool = True, netns_path: str = "") -> SandboxRecord:
    config = pod_config()
    if mapped:
        options = cri.UserNamespace(mode=cri.POD, uids=[UIDS], gids=[GIDS])
        config.linux.security_context.namespace_options.userns_options.CopyFrom(options)
    return SandboxRecord(id=POD, config=config, runtime_handler="", netns_path=netns_path, created_at=1)


@pytest.fixture
async def pod(fakes: Bundle, owners: dict[str, tuple[int, int]]) -> SandboxRecord:
    """A pod whose user namespace is there."""
    await userns.create(fakes.node, sandbox(), IDS)
    return sandbox()


@pytest.fixture
def rootfs(fakes: Bundle) -> tuple[Mount, ...]:
    """An overlay of two layers."""
    for name in ("lower", "lowest", "upper", "work"):
        (fakes.directory / name).mkdir()
    at = fakes.directory
    options = (f"workdir={at}/work", f"upperdir={at}/upper", f"lowerdir={at}/lower:{at}/lowest", "index=off")
    return (Mount(type="overlay", source="overlay", options=options),)


def mapping(*sources: Path) -> cri.ContainerConfig:
    """A container with these directories mapped, between mounts that are not."""
    config = container_config()
    config.mounts.add(host_path="/plain", container_path="/plain")
    for source in sources:
        config.mounts.add(host_path=str(source), container_path="/m", uidMappings=[UIDS], gidMappings=[GIDS])
    config.mounts.add(container_path="/image", image=cri.ImageSpec(image="app"), uidMappings=[UIDS])
    return config


# The namespace.


async def test_a_pods_user_namespace_owns_its_network_and_is_pinned_where_only_root_gets(fakes: Bundle) -> None:
    netns = fakes.places.network_namespace(POD)
    await userns.create(fakes.node, sandbox(netns_path=netns), IDS)

    assert set(fakes.netns.pinned) == {fakes.places.user_namespace(POD), netns}
    assert stat.S_IMODE(os.stat(fakes.places.sandbox(POD)).st_mode) == 0o700


async def test_the_kernel_is_given_the_pods_own_ranges(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, str]] = []

    async def create(path: str, *, uid_map: str, gid_map: str, netns_path: str = "") -> None:
        given.append((uid_map, gid_map))

    monkeypatch.setattr(fakes.netns, "create_user_namespace", create)
    await userns.create(fakes.node, sandbox(), IDS)
    assert given == [("0 100000 65536\n", "0 200000 65536\n")]


async def test_removing_a_user_namespace_removes_what_was_staged_and_is_idempotent(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    os.makedirs(f"{fakes.places.stage(POD)}/0-0")
    for _ in range(2):
        await userns.remove(fakes.node, POD)

    assert not fakes.netns.pinned
    assert not os.path.exists(fakes.places.stage(POD))


# Staging.


def test_the_mounts_that_are_mapped_have_a_place_each_by_their_index(fakes: Bundle) -> None:
    stage = fakes.places.stage(CONTAINER)
    found = userns.mapped_mounts(fakes.node, CONTAINER, mapping(Path("/a"), Path("/b")))

    assert found == {1: f"{stage}/mount-1", 2: f"{stage}/mount-2"}


async def test_a_pod_without_a_user_namespace_sees_the_files_as_they_are(
    fakes: Bundle, rootfs: Sequence[Mount]
) -> None:
    async with userns.staged(fakes.node, sandbox(mapped=False), CONTAINER, rootfs) as seen:
        assert seen == rootfs
        assert not fakes.kernel.mounts


async def test_what_is_staged_is_there_inside_the_block_and_nothing_of_it_afterwards(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount]
) -> None:
    (directory := fakes.directory / "directory").mkdir()
    (file := fakes.directory / "file").write_text("")
    stage = fakes.places.stage(CONTAINER)

    async with userns.staged(fakes.node, pod, CONTAINER, rootfs, mapping(directory, file)) as (overlay,):
        staged = ("mount-1", "mount-2", "0-0", "0-1")
        assert set(fakes.kernel.mounts) == {f"{stage}/{name}" for name in staged}
        assert os.path.isdir(f"{stage}/mount-1") and os.path.isfile(f"{stage}/mount-2")
        assert f"lowerdir={stage}/0-0:{stage}/0-1" in overlay.options
        assert stat.S_IMODE(os.stat(stage).st_mode) == 0o700

    assert not fakes.kernel.mounts
    assert not os.path.exists(stage)
    assert directory.is_dir() and file.is_file()


async def test_nothing_stays_staged_when_the_block_fails(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount]
) -> None:
    with pytest.raises(NotReady, match="the runtime"):
        async with userns.staged(fakes.node, pod, CONTAINER, rootfs):
            raise NotReady("the runtime refuses")

    assert not fakes.kernel.mounts
    assert not os.path.exists(fakes.places.stage(CONTAINER))


async def test_nothing_stays_staged_when_the_request_is_cancelled(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount]
) -> None:
    inside = asyncio.Event()

    async def request() -> None:
        async with userns.staged(fakes.node, pod, CONTAINER, rootfs):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not fakes.kernel.mounts
    assert not os.path.exists(fakes.places.stage(CONTAINER))


async def test_what_a_daemon_that_died_has_staged_is_replaced(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount]
) -> None:
    os.makedirs(left := f"{fakes.places.stage(CONTAINER)}/mount-9")
    fakes.kernel.mounts[left] = "tree"

    async with userns.staged(fakes.node, pod, CONTAINER, rootfs):
        assert left not in fakes.kernel.mounts


@pytest.mark.parametrize("call", ["open_tree", "mount_setattr", "move_mount"])
async def test_a_kernel_that_refuses_is_quoted_and_nothing_stays(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount], call: str
) -> None:
    fakes.points.fail(Point(f"kernel.{call}", 1), OSError(22, "Invalid argument"))

    with pytest.raises(NotReady, match=f"files of {CONTAINER} .*Invalid argument.*has to support idmapped mounts"):
        async with userns.staged(fakes.node, pod, CONTAINER, rootfs):
            pytest.fail("it is staged")
    assert not fakes.kernel.mounts
    assert not os.path.exists(fakes.places.stage(CONTAINER))


async def test_a_pod_whose_namespace_is_gone_gets_no_mounts(fakes: Bundle, rootfs: Sequence[Mount]) -> None:
    with pytest.raises(NotReady, match="No such file"):
        async with userns.staged(fakes.node, sandbox(), CONTAINER, rootfs):
            pytest.fail("it is staged")


async def test_a_source_that_is_a_link_is_what_it_points_at(
    fakes: Bundle, pod: SandboxRecord, rootfs: Sequence[Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    (target := fakes.directory / "target").mkdir()
    (link := fakes.directory / "link").symlink_to(target)
    opened: list[str] = []
    open_tree = syscalls.open_tree

    def noted(path: str, *, recursive: bool = False) -> int:
        opened.append(path)
        return open_tree(path, recursive=recursive)

    monkeypatch.setattr(syscalls, "open_tree", noted)
    async with userns.staged(fakes.node, pod, CONTAINER, rootfs, mapping(link)):
        assert opened[0] == str(target)


# Root file systems.


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The attributes of each mount that was made."""
    found: list[int] = []
    monkeypatch.setattr(syscalls, "mount_setattr", lambda fd, attributes, **_: found.append(attributes))
    return found


def test_an_overlays_layers_are_mapped_read_only_and_its_upper_directory_becomes_the_pods_roots(
    fakes: Bundle,
    rootfs: Sequence[Mount],
    owners: dict[str, tuple[int, int]],
    attributes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (overlay,) = rootfs
    upper = f"{fakes.directory}/upper"
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **options: os.stat_result((0,) * 10) if path == upper else real(path, **options)
    )
    prefix = f"{fakes.directory}/copy"
    found = userns.map_rootfs(overlay, prefix, 5, IDS)

    kept = [option for option in overlay.options if not option.startswith("lowerdir=")]
    assert [option for option in found.options if not option.startswith("lowerdir=")] == kept
    assert f"lowerdir={prefix}-0:{prefix}-1" in found.options
    assert attributes == [syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_IDMAP] * 2
    assert owners == {upper: (IDS.uids.host, IDS.gids.host)}


def test_an_upper_directory_that_is_not_the_machines_roots_keeps_its_owner(
    fakes: Bundle, rootfs: Sequence[Mount], owners: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been given to the pod before."""
    upper = f"{fakes.directory}/upper"
    real = os.stat
    given = os.stat_result((0, 0, 0, 0, IDS.uids.host, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda path, **options: given if path == upper else real(path, **options))
    userns.map_rootfs(rootfs[0], f"{fakes.directory}/copy", 5, IDS)

    assert owners == {}


@pytest.mark.parametrize(
    ("options", "read_only"), [(("ro", "rbind"), syscalls.MOUNT_ATTR_RDONLY), (("rw", "rbind"), 0)]
)
def test_a_root_file_system_of_one_directory_stays_as_writable_as_it_was(
    fakes: Bundle, attributes: list[int], options: tuple[str, ...], read_only: int
) -> None:
    source = str(fakes.directory / "images")
    os.makedirs(source, exist_ok=True)
    found = userns.map_rootfs(Mount(type="bind", source=source, options=options), f"{fakes.directory}/copy", 5, IDS)

    assert found == Mount(type="bind", source=f"{fakes.directory}/copy-0", options=options)
    assert attributes == [read_only | syscalls.MOUNT_ATTR_IDMAP]


def test_without_a_namespace_ids_are_not_mapped(fakes: Bundle, attributes: list[int]) -> None:
    (source := fakes.directory / "source").mkdir()
    userns.map_mount(str(source), f"{fakes.directory}/copy", attributes=syscalls.MOUNT_ATTR_RDONLY)

    assert attributes == [syscalls.MOUNT_ATTR_RDONLY]


@pytest.mark.parametrize("call", ["mount_setattr", "move_mount"])
def test_a_mount_that_fails_leaves_no_descriptor(fakes: Bundle, call: str) -> None:
    (source := fakes.directory / "source").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    fakes.points.fail(Point(f"kernel.{call}", 0), OSError(22, "Invalid argument"))

    with pytest.raises(OSError, match="Invalid argument"):
        userns.map_mount(str(source), f"{fakes.directory}/copy", userns_fd=5)
    assert len(os.listdir("/proc/self/fd")) == before


# Taking away.


async def test_what_was_never_staged_is_dropped(fakes: Bundle) -> None:
    await userns.drop(fakes.node, CONTAINER)
    userns.unstage(fakes.node, CONTAINER)


def test_what_is_still_in_a_staged_directory_belongs_to_others_and_stays(fakes: Bundle) -> None:
    stage = Path(fakes.places.stage(CONTAINER))
    (stage / "mount-0").mkdir(parents=True)
    (stage / "mount-0" / "precious").write_text("theirs")

    with pytest.raises(CleanupIncomplete, match=f"{stage} cannot be removed: .*not empty"):
        userns.unstage(fakes.node, CONTAINER)
    assert (stage / "mount-0" / "precious").read_text() == "theirs"


def test_a_mount_that_cannot_be_taken_away_stays_to_be_tried_again(fakes: Bundle) -> None:
    os.makedirs(target := f"{fakes.places.stage(CONTAINER)}/mount-0")
    fakes.kernel.mounts[target] = "tree"
    fakes.points.fail(Point("kernel.umount2", 0), OSError(16, "Device or resource busy"))
    with pytest.raises(CleanupIncomplete, match="busy"):
        userns.unstage(fakes.node, CONTAINER)
    assert target in fakes.kernel.mounts

    userns.unstage(fakes.node, CONTAINER)
    assert not fakes.kernel.mounts
    assert not os.path.exists(fakes.places.stage(CONTAINER))


def test_a_link_among_what_is_staged_goes_and_its_target_stays(fakes: Bundle) -> None:
    os.makedirs(stage := fakes.places.stage(CONTAINER))
    (target := fakes.directory / "target").mkdir()
    os.symlink(target, f"{stage}/0")
    userns.unstage(fakes.node, CONTAINER)

    assert target.is_dir()
    assert not os.path.exists(stage)


# Support on this machine.


async def test_a_kernel_that_maps_ids_is_asked_once(fakes: Bundle) -> None:
    assert [await userns.probe(fakes.node) for _ in range(2)] == ["", ""]

    assert fakes.points.count("netns.create_user_namespace") == 1
    assert not fakes.netns.pinned


@pytest.mark.parametrize("call", ["open_tree", "mount_setattr"])
async def test_a_file_system_that_does_not_map_ids_is_named_with_the_kernels_words(fakes: Bundle, call: str) -> None:
    fakes.points.fail(Point(f"kernel.{call}", 0), OSError(22, "Invalid argument"))
    root = fakes.config.daemon.root
    words = f"the file system of {root} does not support idmapped mounts: [Errno 22] Invalid argument"

    assert [await userns.probe(fakes.node) for _ in range(2)] == [words, words]
    assert not fakes.netns.pinned


async def test_a_kernel_that_makes_no_user_namespaces_is_quoted(fakes: Bundle) -> None:
    fakes.points.fail(Point("netns.create_user_namespace", 0), NotReady("user namespaces are turned off"))

    assert await userns.probe(fakes.node) == "user namespaces are turned off"


async def test_what_a_probe_that_died_has_left_is_in_nobodys_way(fakes: Bundle) -> None:
    await fakes.netns.create(fakes.places.sandbox("userns-probe"))

    assert await userns.probe(fakes.node) == ""
    assert not fakes.netns.pinned

"""Images on a real containerd: loading, listing, unpacking, removing; failures leave nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import itertools
import json
import os
import stat
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.containerd import rootfs
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content
from sandboxd.containerd.images import Image
from sandboxd.containerd.snapshots import Kind, Snapshot, Snapshots, Usage
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, NotReady, SandboxdError, Unavailable
from sandboxd.images import load
from sandboxd.images.store import ImageStore
from sandboxd.model import Progress
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor
from sandboxd.steps import StepRecord
from tests.root.conftest import Private
from tests.root.holdings import NOTHING, held, pack, save

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

ROOT = Path(__file__).resolve().parents[2]
PAUSE_BINARY = "/usr/bin/catatonit"


@pytest.fixture
async def store(client: Containerd) -> ImageStore:
    """A store that has seen containerd once."""
    made = ImageStore(client, "overlayfs")
    await made.refresh()
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """nginx and busybox, built from this machine's packages."""
    script = ROOT / "deploy" / "images" / "build.py"
    spec = importlib.util.spec_from_file_location("image_build_root", script)
    assert spec is not None and spec.loader is not None
    build: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build
    spec.loader.exec_module(build)
    out = tmp_path_factory.mktemp("images")
    return {name: build.build(name, out) for name in ("nginx", "busybox")}


async def test_a_loaded_image_is_listed_unpacked_and_usable(
    private: Private, store: ImageStore, archives: dict[str, Path]
) -> None:
    """Names, size, ids; what is in it can be read from a root file system made of it."""
    told: list[Progress] = []
    recorded: list[StepRecord] = []
    stop = steps.subscribe(recorded.append)
    try:
        (loaded,) = await load.load(store, archives["busybox"], told.append)
    finally:
        stop()
    assert loaded.names == ("docker.io/library/busybox:latest",)
    (record,) = store.list()
    assert (record.id, record.digest, record.size) == (loaded.image_id, loaded.digest, loaded.size)
    assert record.repo_tags == loaded.names
    assert record.repo_digests == (f"docker.io/library/busybox@{loaded.digest}",)
    assert store.resolve("busybox") is record
    assert store.list("busybox:latest") == (record,)
    assert store.list("nginx") == ()
    assert [step.name for step in recorded] == ["image.read", "image.store", "image.unpack", "image.name"]
    stages = [(stage, list(group)) for stage, group in itertools.groupby(told, lambda progress: progress.stage)]
    assert [stage for stage, _ in stages] == ["verify", "store", "unpack"]
    for stage, (*_, last) in stages:
        assert last.done == last.total, f"{stage} did not reach its end"
    listing = private.run_ctr(store.client.namespace, "images", "ls")
    assert loaded.names[0] in listing and loaded.digest in listing
    check = private.run_ctr(store.client.namespace, "images", "check")
    assert "complete" in check and check.rstrip().endswith("true")

    mounts = await store.prepare_rootfs("one", record)
    passwd = rootfs.read(mounts, "etc/passwd")
    assert passwd is not None and passwd.startswith(b"root:x:0:0")
    assert rootfs.read(mounts, "bin/busybox") == Path("/bin/busybox").read_bytes()
    assert await store.prepare_rootfs("one", record) == mounts
    assert await store.rootfs("one") == mounts
    assert {snapshot.name for snapshot in await store.snapshots.list() if snapshot.kind is Kind.ACTIVE} == {"one"}
    await store.remove_rootfs("one")
    await store.remove_rootfs("one")
    with pytest.raises(NotFound):
        await store.rootfs("one")


async def test_loading_again_changes_nothing_and_answers_the_same(
    private: Private, store: ImageStore, archives: dict[str, Path]
) -> None:
    """Also when several loads of the same archive run at once."""
    first, *others = await asyncio.gather(*(load.load(store, archives["nginx"]) for _ in range(4)))
    assert others == [first] * 3
    before = await held(private, store)
    assert await load.load(store, archives["nginx"]) == first
    assert await held(private, store) == before
    assert before.leases == frozenset()
    (record,) = store.list()
    assert before.snapshots == {record.chain_id}
    assert record.config["StopSignal"] == "SIGQUIT"


async def test_removing_an_image_frees_everything(
    private: Private, store: ImageStore, archives: dict[str, Path]
) -> None:
    """All its names at once; unknown is done."""
    (loaded,) = await load.load(store, archives["busybox"])
    record = store.resolve("busybox")
    await store.images.put(Image(name="r.test/other:1", target=(await store.images.get(loaded.names[0])).target))
    await store.refresh()
    assert store.resolve("r.test/other:1").id == record.id
    assert store.fs_info().bytes > 0 and store.fs_info().inodes > 0
    assert store.fs_info().directory.endswith("overlayfs")
    await store.remove(record.id)
    assert store.list() == ()
    assert await held(private, store) == NOTHING
    await store.remove(record.id)
    await store.remove("busybox")
    assert store.fs_info().bytes == 0


async def test_a_root_file_system_outlives_its_image(
    private: Private, store: ImageStore, archives: dict[str, Path]
) -> None:
    """What a container needs stays until the container goes, and goes then."""
    await load.load(store, archives["busybox"])
    record = store.resolve("busybox")
    mounts = await store.prepare_rootfs("kept", record)
    await store.remove("busybox")
    left = await held(private, store)
    assert left.snapshots == {"kept", record.chain_id}
    assert left.content == frozenset()
    assert rootfs.read(mounts, "etc/group") is not None
    await store.remove_rootfs("kept")
    assert await held(private, store) == NOTHING
    with pytest.raises(NotFound, match="removed"):
        await store.prepare_rootfs("new", record)


async def test_an_image_whose_snapshots_are_gone_is_unpacked_again(
    store: ImageStore, archives: dict[str, Path]
) -> None:
    """Preparing a root file system does it by itself."""
    await load.load(store, archives["busybox"])
    record = store.resolve("busybox")
    await store.snapshots.remove(record.chain_id)
    assert not await store.snapshots.exists(record.chain_id)
    mounts = await store.prepare_rootfs("again", record)
    assert rootfs.read(mounts, "etc/passwd") is not None
    await store.remove_rootfs("again")


async def test_several_images_with_shared_layers_and_one_untagged(
    private: Private, store: ImageStore, tmp_path: Path
) -> None:
    """docker save archives; whiteouts and replacements in upper layers hold."""
    base = pack({"etc/a": b"a", "etc/b": b"b"})
    upper = pack({"etc/.wh.a": b"", "etc/b": b"B"})
    path = save(tmp_path / "two.tar", ("x:1", [base, upper]), (None, [base]))
    two, one = await load.load(store, path)
    assert (two.names, one.names) == (("docker.io/library/x:1",), ())
    assert len(store.list()) == 2
    untagged = store.resolve(one.image_id)
    assert untagged.names == () and untagged.uid == 7
    assert store.resolve(one.image_id[7:20]) is untagged
    mounts = await store.prepare_rootfs("x", store.resolve("x:1"))
    assert (rootfs.read(mounts, "etc/a"), rootfs.read(mounts, "etc/b")) == (None, b"B")
    await store.remove_rootfs("x")
    await store.remove("x:1")
    left = await held(private, store)
    assert left.snapshots == {untagged.chain_id}
    assert left.images == {untagged.id}
    await store.remove(untagged.id)
    assert await held(private, store) == NOTHING


def with_blob_changed(archive: Path, path: Path) -> Path:
    """The archive with one bit of its layer flipped."""
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("what", ["wrong digest", "layer deletes its root", "entry escapes"])
async def test_a_bad_archive_is_refused_and_leaves_nothing(
    private: Private, store: ImageStore, archives: dict[str, Path], tmp_path: Path, what: str
) -> None:
    """Nothing reaches containerd before the whole archive was verified."""
    bad = tmp_path / "bad.tar"
    evil = pack({".wh..": b""})
    match what:
        case "wrong digest":
            with_blob_changed(archives["busybox"], bad)
        case "layer deletes its root":
            save(bad, ("x:1", [evil]))
        case _:
            bad.write_bytes(pack({"../x": b"", "manifest.json": b"[]"}))
    with pytest.raises(InvalidRequest, match=r"expected sha256:|delete a directory|outside the archive"):
        await load.load(store, bad)
    assert await held(private, store) == NOTHING


async def test_a_bad_image_of_an_archive_spoils_only_itself(
    private: Private, store: ImageStore, tmp_path: Path
) -> None:
    good, evil = pack({"a": b"a"}), pack({".wh..": b""})
    loaded = await load.load(store, save(tmp_path / "two.tar", ("x:1", [good]), ("x:2", [good, evil])))
    assert [image.names for image in loaded] == [("docker.io/library/x:1",)]
    with pytest.raises(NotFound):
        await store.images.get("docker.io/library/x:2")


async def test_a_failed_unpack_leaves_nothing(
    private: Private, client: Containerd, archives: dict[str, Path]
) -> None:
    """Blobs were written by then; the lease's end takes them."""
    broken = ImageStore(client, "no-such-snapshotter")
    with pytest.raises(SandboxdError, match="no-such-snapshotter"):
        await load.load(broken, archives["busybox"])
    assert await held(private, ImageStore(client, "overlayfs")) == NOTHING


async def test_a_failure_among_the_names_puts_the_others_back(
    private: Private, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that moved points where it did before; a new one is gone."""
    await load.load(store, save(tmp_path / "old.tar", ("x:1", [pack({"a": b"old"})])))
    before = await held(private, store)
    target = (await store.images.get("docker.io/library/x:1")).target
    put = store.images.put

    async def fails_on_the_third(image: Image) -> Image | None:
        if image.name.endswith("x:3"):
            await held(private, store)  # a collection just now, when nothing has the old image's name
            raise Unavailable("containerd went away")
        return await put(image)

    monkeypatch.setattr(store.images, "put", fails_on_the_third)
    layers = [pack({"a": b"new"})]
    path = save(tmp_path / "new.tar", ("x:1", layers), ("x:2", [*layers, layers[0]]), ("x:3", layers * 3))
    with pytest.raises(Unavailable):
        await load.load(store, path)
    assert (await store.images.get("docker.io/library/x:1")).target == target
    assert await held(private, store) == before


async def test_a_name_moves_to_the_image_that_was_loaded_last(
    private: Private, store: ImageStore, tmp_path: Path
) -> None:
    """The image that lost its only name is collected."""
    await load.load(store, save(tmp_path / "old.tar", ("x:1", [pack({"a": b"old"})])))
    (loaded,) = await load.load(store, save(tmp_path / "new.tar", ("x:1", [pack({"a": b"new"})])))
    (record,) = store.list()
    assert record.id == loaded.image_id
    assert (await held(private, store)).snapshots == {record.chain_id}


async def test_the_pause_image_is_made_once(private: Private, store: ImageStore, tmp_path: Path) -> None:
    """Pinned; made again only when it is gone or the program changed."""
    record = await load.ensure_pause(store, PAUSE_BINARY)
    assert record.pinned
    assert record.repo_tags == (load.PAUSE_NAME,)
    assert record.config["Entrypoint"] == ["/catatonit", "-P"]
    before = await held(private, store)
    recorded: list[StepRecord] = []
    stop = steps.subscribe(recorded.append)
    try:
        assert await load.ensure_pause(store, PAUSE_BINARY) == record
    finally:
        stop()
    assert [step.name for step in recorded] == ["image.pause"]
    assert await held(private, store) == before
    mounts = await store.prepare_rootfs("pause", record)
    assert rootfs.read(mounts, "catatonit") == Path(PAUSE_BINARY).read_bytes()
    await store.remove_rootfs("pause")
    await store.remove(load.PAUSE_NAME)
    assert (await load.ensure_pause(store, PAUSE_BINARY)).id == record.id
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    unusable = ((str(tmp_path / "none"), "install catatonit"), (str(script), "static ELF"))
    for path, _ in unusable:
        assert (await load.ensure_pause(store, path)).id == record.id  # the one that was made before
    await store.remove(load.PAUSE_NAME)
    for path, reason in unusable:
        with pytest.raises(NotReady, match=reason):
            await load.ensure_pause(store, path)


async def test_what_other_tools_do_is_seen_after_a_refresh(
    private: Private, store: ImageStore, archives: dict[str, Path]
) -> None:
    """Images that ctr imported, tagged and removed."""
    namespace = store.client.namespace
    private.run_ctr(namespace, "images", "import", "--snapshotter", "overlayfs", str(archives["busybox"]))
    assert store.list() == ()
    await store.refresh()
    (record,) = store.list()
    assert "docker.io/library/busybox:latest" in record.repo_tags
    private.run_ctr(namespace, "images", "tag", "docker.io/library/busybox:latest", "r.test/b:2")
    await store.refresh()
    assert store.resolve("r.test/b:2").id == record.id
    private.run_ctr(namespace, "images", "rm", "--sync", "docker.io/library/busybox:latest", "r.test/b:2")
    await store.refresh()
    assert not store.list("busybox")


async def test_an_index_and_an_unfinished_image_are_read_as_far_as_they_are_there(
    client: Containerd, store: ImageStore, tmp_path: Path
) -> None:
    """An index leads to this platform's manifest; an image without content is left out."""
    (loaded,) = await load.load(store, save(tmp_path / "x.tar", ("x:1", [pack({"a": b"a"})])))
    manifest = (await store.images.get(loaded.names[0])).target
    platform = {"os": "linux", "architecture": store.platform.architecture}
    absent = {"os": "linux", "architecture": "s390x"}

    def entry(digest: str, where: dict[str, str]) -> dict[str, Any]:
        return {"mediaType": manifest.media_type, "digest": digest, "size": manifest.size, "platform": where}

    entries = [entry("sha256:" + "a" * 64, absent), entry(manifest.digest, platform)]
    document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
    data = json.dumps(document).encode()
    index = Descriptor(media_type=oci.OCI_INDEX, digest=oci.digest(data), size=len(data))
    labels = {"containerd.io/gc.ref.content.m.0": manifest.digest}
    async with store.leases.held("test", seconds=60) as lease:
        await Content(client, lease).write(index, io.BytesIO(data), labels)
        await store.images.put(Image(name="r.test/many:1", target=index))
        only_other = json.dumps({**document, "manifests": entries[:1]}).encode()
        other = Descriptor(media_type=oci.OCI_INDEX, digest=oci.digest(only_other), size=len(only_other))
        await Content(client, lease).write(other, io.BytesIO(only_other))
        await store.images.put(Image(name="r.test/elsewhere:1", target=other))
    await store.refresh()
    many = store.resolve("r.test/many:1")
    assert many.id == loaded.image_id
    assert many.digest == manifest.digest
    assert f"r.test/many@{index.digest}" in many.repo_digests
    assert not store.list("r.test/elsewhere:1")


async def test_containerd_verifies_what_is_written(private: Private, client: Containerd, store: ImageStore) -> None:
    """Wrong bytes or a wrong size are refused, and no transfer is left; what is there is not sent again."""
    data = os.urandom(3 << 20)
    descriptor = Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(data), size=len(data))
    async with store.leases.held("test", seconds=60) as lease:
        content = Content(client, lease)
        for wrong in (bytes(len(data)), data[:-1], data + b"x"):
            with pytest.raises(InvalidRequest):
                await content.write(descriptor, io.BytesIO(wrong))
        counted: list[int] = []
        assert await content.write(descriptor, io.BytesIO(data), {"a": "1"}, counted.append)
        assert sum(counted) == len(data)
        assert not await content.write(descriptor, io.BytesIO(b""), {"b": "2"})
        info = await content.info(descriptor.digest)
        assert (info.size, info.labels["a"], info.labels["b"]) == (len(data), "1", "2")
        assert await content.read(descriptor.digest, len(data)) == data
        with pytest.raises(InvalidRequest, match="more than"):
            await content.read(descriptor.digest, len(data) - 1)
        empty = Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(b""), size=0)
        assert await content.write(empty, io.BytesIO(b""))
        await content.delete(empty.digest)
        await content.delete(empty.digest)
    assert await held(private, store) == NOTHING


async def test_snapshots_answer_as_their_docstrings_say(
    client: Containerd, store: ImageStore, tmp_path: Path
) -> None:
    """Errors by meaning; a view is read-only."""
    await load.load(store, save(tmp_path / "x.tar", ("x:1", [pack({"a": b"a"})])))
    record = store.resolve("x:1")
    layer = (await store._parse((await store.images.get("docker.io/library/x:1")).target)).manifest.layers[0]
    async with store.leases.held("test", seconds=60) as lease:
        snapshots = Snapshots(client, "overlayfs", lease)
        with pytest.raises(NotFound):
            await snapshots.prepare("k", "no-such-parent")
        await snapshots.prepare("k", record.chain_id)
        with pytest.raises(AlreadyExists):
            await snapshots.prepare("k", record.chain_id)
        with pytest.raises(NotReady):
            await snapshots.remove(record.chain_id)
        (mount,) = await snapshots.view("v", record.chain_id)
        assert "ro" in mount.options or mount.type == "overlay"
        assert (await snapshots.stat("k")).parent == record.chain_id
        assert (await snapshots.usage("k")).inodes >= 0
        await snapshots.remove("k")
        await snapshots.remove("v")
        with pytest.raises(InvalidRequest, match="wrong digest"):
            await snapshots.unpack([layer], ["sha256:" + "0" * 64])
        assert {snapshot.name for snapshot in await snapshots.list()} == {record.chain_id}


async def test_what_a_root_file_system_changed_comes_as_a_layer_and_nothing_stays(
    private: Private, client: Containerd, store: ImageStore, tmp_path: Path
) -> None:
    """Also when it was cut off: by an error, or by a daemon that died over it."""
    await load.load(store, save(tmp_path / "x.tar", ("x:1", [pack({"kept": b"1", "gone": b"2"})])))
    (mount,) = await store.prepare_rootfs("c", store.resolve("x:1"))
    upper = Path(next(o.removeprefix("upperdir=") for o in mount.options if o.startswith("upperdir=")))
    (upper / "made").write_bytes(b"x" * 3_000_000)
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))  # how overlayfs deletes
    before = await held(private, store)
    for _ in range(2):
        with (tmp_path / "changes").open("w+b") as file:
            await store.rootfs_changes("c", file)
        with tarfile.open(tmp_path / "changes", mode="r:") as changes:
            assert sorted(changes.getnames()) == [".wh.gone", "made"]
        assert await held(private, store) == before

    with (tmp_path / "unwritable").open("w+b") as file:
        file.close()
        with pytest.raises(ValueError, match="closed file"):
            await store.rootfs_changes("c", file)
    assert await held(private, store) == before
    with (tmp_path / "none").open("wb") as file, pytest.raises(NotFound):
        await store.rootfs_changes("none", file)
    assert await held(private, store) == before

    await store.leases.create("sandboxd-changes-c", seconds=60)
    leased = Snapshots(client, "overlayfs", "sandboxd-changes-c")
    await leased.diff("c", oci.OCI_LAYER)
    await leased.view("cut-off", store.resolve("x:1").chain_id)
    left = await held(private, store)
    assert left.content - before.content and left.snapshots - before.snapshots == {"cut-off"}
    await store.forget_changes("c")
    await store.forget_changes("c")
    assert await held(private, store) == before


async def test_usage_is_asked_for_once_and_never_by_a_question(
    store: ImageStore, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each committed snapshot is measured when it is new; what clients ask is answered from memory."""
    usage_of, lists = [], 0
    usage, list_ = store.snapshots.usage, store.snapshots.list

    async def counted_usage(key: str) -> Usage:
        usage_of.append(key)
        return await usage(key)

    async def counted_list() -> list[Snapshot]:
        nonlocal lists
        lists += 1
        return await list_()

    monkeypatch.setattr(store.snapshots, "usage", counted_usage)
    monkeypatch.setattr(store.snapshots, "list", counted_list)
    await load.load(store, archives["busybox"])
    busybox = store.resolve("busybox").chain_id
    assert usage_of == [busybox]

    asked = lists
    for _ in range(100):
        assert store.fs_info().bytes > 0
    assert (usage_of, lists) == ([busybox], asked)
    await store.measure()
    assert lists == asked, "nothing has changed"

    await load.load(store, archives["nginx"])
    await store.refresh()
    assert usage_of == [busybox, store.resolve("nginx").chain_id]
    before = store.fs_info().bytes
    await store.remove("busybox")
    assert len(usage_of) == 2
    assert store.fs_info().bytes < before


async def test_changes_during_a_measurement_are_measured_too(
    store: ImageStore, archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once do not measure the same, and nothing is missed."""
    await load.load(store, archives["busybox"])
    began, go_on = asyncio.Event(), asyncio.Event()
    list_ = store.snapshots.list

    async def slow_list() -> list[Snapshot]:
        found = await list_()
        began.set()
        await go_on.wait()
        return found

    await store.look()
    monkeypatch.setattr(store.snapshots, "list", slow_list)
    measuring = asyncio.ensure_future(store.measure())
    await began.wait()
    monkeypatch.setattr(store.snapshots, "list", list_)
    loading = asyncio.ensure_future(load.load(store, archives["nginx"]))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(measuring, loading)

    usages = [await store.snapshots.usage(store.resolve(name).chain_id) for name in ("busybox", "nginx")]
    assert store.fs_info().bytes == sum(item.bytes for item in usages)

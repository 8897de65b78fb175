"""The daemon is killed while it brings an image: the next one finds what is left, and the same request works."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.leases import Leases
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.processes import until
from tests.pulling import Site, blob_requests
from tests.root.holdings import pack, save

pytestmark = [pytest.mark.e2e, pytest.mark.images]

SOCKET = "/run/sandboxd/containerd/containerd.sock"
UPLOADS = "/var/lib/sandboxd/uploads"
LEASE = "sandboxd-pull-0123456789abcdef-ffffffff-0"  # of an attempt that had a day left


def uploads(site: Site) -> list[Path]:
    return sorted(site.bed.path(UPLOADS).iterdir())


def transient(site: Site) -> list[str]:
    """What containerd has for work under way only."""
    stored = site.stored()
    drafts = [key for key in stored["snapshots"] if key.startswith("sandboxd-")]
    return [*stored["leases"], *stored["transfers"], *drafts]


def lease_of(name: str) -> str:
    """What a pull of this name calls its lease; another name in the code breaks this test."""
    return f"sandboxd-pull-{hashlib.sha256(name.encode()).hexdigest()[:16]}-ffffffff-0"


def large_archive(site: Site) -> Path:
    """An archive that takes a while to be stored."""
    return save(site.bed.base / "large.tar", ("large:1", [pack({"large": os.urandom(120_000_000)})]))


def with_leases(site: Site, do: Callable[[Leases], Awaitable[None]]) -> None:
    """Change leases as a daemon would that has the namespace."""

    async def connected() -> None:
        client = Containerd(str(site.bed.path(SOCKET)), "sandboxd")
        try:
            await client.wait_until_serving(30)
            await do(Leases(client))
        finally:
            await client.close()

    asyncio.run(connected())


def test_an_archive_that_was_being_sent_when_the_daemon_was_killed_is_removed_and_can_be_sent_again(
    site: Site,
) -> None:
    archive = site.bed.build_image("busybox")
    never = threading.Event()

    def half() -> Iterator[host.LoadImageRequest]:
        yield host.LoadImageRequest(chunk=archive.read_bytes()[: 1 << 18])
        never.wait()

    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(list, site.bed.host.LoadImage(half()))
        until(lambda: any(path.stat().st_size for path in uploads(site)), what="a part is stored")
        site.bed.kill_daemon()
        never.set()
        assert isinstance(doomed.exception(timeout=60), grpc.RpcError)
    assert uploads(site)

    site.bed.relaunch_daemon()
    until(lambda: not uploads(site), what="the archive is gone")
    assert [loaded.names for loaded in site.bed.load_archive(archive)] == [["docker.io/library/busybox:latest"]]
    assert not uploads(site)


def test_a_load_that_was_killed_leaves_nothing_and_can_be_repeated(site: Site) -> None:
    archive = large_archive(site)
    before = site.stored()
    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(site.bed.load_archive, archive)
        until(lambda: any("-import-" in lease for lease in site.ctr("leases", "ls", "-q")), what="it is stored")
        site.bed.kill_daemon()
        assert isinstance(doomed.exception(timeout=60), grpc.RpcError)
    assert transient(site) and uploads(site)

    site.bed.relaunch_daemon()
    until(lambda: not transient(site) and not uploads(site), what="what was left is gone")
    until(lambda: site.stored() == before, what="so is what it held")
    (loaded,) = site.bed.load_archive(archive)
    assert loaded.names and not transient(site)
    site.remove(loaded.image_id)


def test_a_pull_that_was_killed_goes_on_and_leaves_nothing_but_the_image(site: Site) -> None:
    image = site.synthetic("killed/pull", layer_bytes=3_000_000)
    name = f"{site.proxy.host}/killed/pull:v1"
    site.proxy.rules({"path": image.layers[0], "do": "stall", "after": 2_000_000, "times": 1})
    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(site.pull, name)
        until(lambda: any("MB" in line for line in site.ctr("content", "active")), what="a part is stored")
        site.bed.kill_daemon()
        assert isinstance(doomed.exception(timeout=60), grpc.RpcError)

    site.bed.relaunch_daemon()
    until(lambda: not any("sandboxd-unpack-" in each for each in transient(site)), what="the draft is gone")
    assert [lease[:14] for lease in site.stored()["leases"]] == ["sandboxd-pull-"], "the next attempt goes on"
    site.pull(name)
    _, second = blob_requests(site.proxy, image.layers[0])
    assert second["range"].startswith("bytes=")
    assert not transient(site)


def test_a_pull_that_was_killed_after_it_had_named_the_image_leaves_nothing_but_the_image(site: Site) -> None:
    image = site.synthetic("killed/named")
    name = f"{site.proxy.host}/killed/named:v1"
    assert site.pull(name) == image.config
    site.bed.kill_daemon()

    async def leave(leases: Leases) -> None:
        await leases.create(LEASE, seconds=86400)
        await leases.add_content(LEASE, image.manifest_digest)
        await leases.create("somebody's", seconds=86400)

    with_leases(site, leave)
    before = site.stored()
    site.bed.relaunch_daemon()

    until(lambda: transient(site) == ["somebody's"], what="the lease is gone, and no other")
    assert site.stored() == {**before, "leases": ["somebody's"]}
    assert site.pull(name) == image.config
    with_leases(site, lambda leases: leases.delete("somebody's"))


def test_a_repeat_does_not_wait_for_that(site: Site) -> None:
    """The image is here and has not changed: what an earlier attempt at the same name holds is given up at once."""
    image = site.synthetic("killed/repeated")
    name = f"{site.proxy.host}/killed/repeated:v1"
    site.proxy.rules()
    assert site.pull(name) == image.config

    async def leave(leases: Leases) -> None:
        await leases.create(lease_of(name), seconds=86400)

    with_leases(site, leave)
    assert site.pull(name) == image.config
    assert not transient(site)

"""What work on images that was cut off has left is removed; what others have, and what is needed, is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from sandboxd.containerd.images import Image
from sandboxd.errors import Unavailable
from sandboxd.images.leftovers import clear, remove_image
from sandboxd.images.load import load
from sandboxd.images.pull import LEASES_KEY
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.oci.image import OCI_MANIFEST, Descriptor
from tests.fakes.containerd import Containerd
from tests.fakes.points import Point
from tests.unit.images.parts import archive, image, layer
from tests.unit.pods.requests import turns

PULL = "sandboxd-pull-0123456789abcdef-69000000-0"
OF_NO_USE = [
    "sandboxd-import-0123456789abcdef",
    "sandboxd-unpack-0123456789abcdef",
    "sandboxd-save-0123456789abcdef",
    "sandboxd-collect-0123456789abcdef",
    f"sandboxd-changes-{'0' * 64}",
]
OTHERS = ["ctr-1", "sandboxd-import-mine", "sandboxd-import-0123456789abcdef-copy", "sandboxd", "k8s.io-import-00"]


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def pulled(containerd: Containerd) -> str:
    """A pull was cut off when it had brought the image's manifest; its digest."""
    containerd.leases[PULL] = set()
    return containerd.add(b"{}", lease=PULL)


def name(containerd: Containerd, digest: str) -> None:
    target = Descriptor(media_type=OCI_MANIFEST, digest=digest, size=2)
    containerd.names["r.example/x:1"] = Image(name="r.example/x:1", target=target)


@pytest.mark.parametrize("lease", OF_NO_USE)
async def test_a_lease_that_no_repeat_goes_on_from_goes_with_what_it_held(
    containerd: Containerd, store: ImageStore, jobs: Jobs, lease: str
) -> None:
    containerd.leases[lease] = set()
    containerd.add(b"half an image", lease=lease)

    await clear(store, jobs)

    assert not containerd.leases and not containerd.blobs


@pytest.mark.parametrize("lease", OTHERS)
async def test_leases_of_others_stay(containerd: Containerd, store: ImageStore, jobs: Jobs, lease: str) -> None:
    containerd.leases[lease] = set()
    containerd.add(b"theirs", lease=lease)

    await clear(store, jobs)

    assert list(containerd.leases) == [lease] and containerd.blobs


async def test_what_another_daemon_in_the_same_namespace_works_on_stays(
    containerd: Containerd, store: ImageStore, jobs: Jobs
) -> None:
    containerd.leases[OF_NO_USE[0]] = set()
    containerd.drafts.add("sandboxd-unpack-00-sha256:theirs")
    containerd.strange |= {OF_NO_USE[0], *containerd.drafts}

    await clear(store, jobs)

    assert containerd.leases and containerd.drafts


async def test_what_work_under_way_needs_stays(containerd: Containerd, store: ImageStore, jobs: Jobs) -> None:
    for lease in (*OF_NO_USE, PULL):
        containerd.leases[lease] = set()
    containerd.drafts.add("sandboxd-unpack-00-sha256:mine")
    containerd.in_use |= {*containerd.leases, *containerd.drafts}

    await clear(store, jobs)

    assert len(containerd.leases) == len(OF_NO_USE) + 1 and containerd.drafts
    assert not containerd.points.count("leases.collect"), "there is nothing to collect"


async def test_a_pull_that_was_cut_off_leaves_what_the_next_attempt_goes_on_from(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str
) -> None:
    name(containerd, containerd.add(b"another image"))

    await clear(store, jobs)

    assert containerd.leases == {PULL: {pulled}}


async def test_a_pull_that_was_cut_off_after_it_gave_the_names_leaves_nothing_but_the_image(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str
) -> None:
    name(containerd, pulled)

    await clear(store, jobs)

    assert not containerd.leases
    assert list(containerd.blobs) == [pulled]


async def test_a_lease_that_a_pull_could_not_give_up_goes_although_its_image_was_removed_meanwhile(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str
) -> None:
    store.given_up.add(PULL)

    await clear(store, jobs)

    assert not containerd.leases and not containerd.blobs and not store.given_up


async def have(store: ImageStore, tmp_path: Path) -> None:
    """An image, plain.test/x:1."""
    path = tmp_path / "image.tar"
    path.write_bytes(archive(("plain.test/x:1", image(layer("files")))))
    await load(store, path)


async def test_an_image_that_is_removed_before_anything_was_cleared_leaves_nothing(
    containerd: Containerd, store: ImageStore, jobs: Jobs, tmp_path: Path
) -> None:
    """The daemon died after naming it, and this is the first request to the next one."""
    await have(store, tmp_path)
    containerd.leases[PULL] = set(containerd.blobs)

    await remove_image(store, jobs, "plain.test/x:1")

    assert not containerd.names and not containerd.leases and not containerd.blobs


async def test_what_a_pull_of_another_image_goes_on_from_stays_when_one_is_removed(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str, tmp_path: Path
) -> None:
    await have(store, tmp_path)

    await remove_image(store, jobs, "plain.test/x:1")

    assert not containerd.names
    assert containerd.leases == {PULL: {pulled}}


async def test_a_draft_goes_also_where_its_lease_stays(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str
) -> None:
    """Nothing goes on from half a layer's files."""
    containerd.drafts.add("sandboxd-unpack-00-sha256:layer")

    await clear(store, jobs)

    assert not containerd.drafts and containerd.leases == {PULL: {pulled}}


async def test_a_lease_that_a_pull_takes_up_meanwhile_stays(
    containerd: Containerd, store: ImageStore, jobs: Jobs, pulled: str
) -> None:
    name(containerd, pulled)
    async with jobs.exclusive(LEASES_KEY):
        clearing = jobs.spawn("clear", lambda: clear(store, jobs))
        await turns()
        containerd.in_use.add(PULL)  # as a pull does while it holds the key

    await clearing

    assert PULL in containerd.leases


async def test_one_that_cannot_be_removed_keeps_no_other_and_goes_the_next_time(
    containerd: Containerd, store: ImageStore, jobs: Jobs
) -> None:
    for lease in OF_NO_USE[:3]:
        containerd.leases[lease] = set()
    containerd.drafts |= {"sandboxd-unpack-00-sha256:a", "sandboxd-unpack-00-sha256:b"}
    containerd.points.fail(Point("leases.delete", 0), Unavailable("containerd is away"))
    containerd.points.fail(Point("snapshots.remove", 0), Unavailable("containerd is away"))

    with structlog.testing.capture_logs() as logged:
        await clear(store, jobs)

    assert len(containerd.leases) == 1 and len(containerd.drafts) == 1
    assert [line["log_level"] for line in logged] == ["warning", "warning", "info"]

    await clear(store, jobs)
    assert not containerd.leases and not containerd.drafts

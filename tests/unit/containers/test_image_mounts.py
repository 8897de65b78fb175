"""Which directory of a mounted image is shown; the mounting itself is in tests/e2e/test_security.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd.containers import image_mounts
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle
from tests.fakes.images import record


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "file").write_text("")
    for name, target in {
        "lib": "usr/lib",
        "absolute": "/usr/lib",
        "up": "../../../usr",
        "usr/around": "../lib",
        "out": str(tmp_path),
        "loop": "loop",
        "broken": "nowhere",
        "to-file": "file",
    }.items():
        os.symlink(target, root / name)
    return root


@pytest.mark.parametrize(
    ("sub_path", "shown"),
    [
        ("", ""),
        (".", ""),
        ("usr/lib", "usr/lib"),
        ("usr//lib/", "usr/lib"),
        ("./usr/../usr", "usr"),
        ("lib", "usr/lib"),
        ("absolute", "usr/lib"),
        ("up/lib", "usr/lib"),
        ("usr/around", "usr/lib"),
    ],
)
def test_a_sub_path_follows_links_inside_the_image(image: Path, sub_path: str, shown: str) -> None:
    assert image_mounts._inside(str(image), sub_path) == str(image / shown if shown else image)


@pytest.mark.parametrize(
    ("sub_path", "words"),
    [
        ("no/such", "is not in the image"),
        ("out", "is not in the image"),
        ("broken", "is not in the image"),
        ("file", "is not a directory in the image"),
        ("to-file", "is not a directory in the image"),
        ("file/x", "is not a directory in the image"),
        ("loop", "leads through too many links"),
    ],
)
def test_a_sub_path_that_is_no_directory_of_the_image_is_refused(image: Path, sub_path: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        image_mounts._inside(str(image), sub_path)


def test_the_options_of_many_layers_fit_into_a_page(tmp_path: Path) -> None:
    layers = [
        f"/var/lib/sandboxd/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{i}/fs" for i in range(90)
    ]
    short = image_mounts._short(f"lowerdir={':'.join(layers)}", str(tmp_path))
    assert [os.readlink(link) for link in short.removeprefix("lowerdir=").split(":")] == layers
    assert len(short.replace(str(tmp_path), f"/run/sandboxd/idmapped/{'0' * 16}")) < 4096
    assert image_mounts._short("index=off", str(tmp_path)) == "index=off"


def test_an_image_is_pinned_by_its_id_in_the_record(fakes: Bundle) -> None:
    models = fakes.images.add(record("models", digit="b"))
    asked = cri.ContainerConfig(mounts=[cri.Mount(host_path="/a"), cri.Mount(image=cri.ImageSpec(image="models"))])
    found = image_mounts.resolved(fakes.node, asked)
    assert found.mounts[1].image == cri.ImageSpec(image="models", image_ref=models.id)
    assert not asked.mounts[1].image.image_ref
    with pytest.raises(NotFound):
        image_mounts.resolved(fakes.node, cri.ContainerConfig(mounts=[cri.Mount(image=cri.ImageSpec(image="x"))]))
    plain = cri.ContainerConfig(mounts=[cri.Mount(host_path="/a", image=cri.ImageSpec())])
    assert image_mounts.resolved(fakes.node, plain) is plain

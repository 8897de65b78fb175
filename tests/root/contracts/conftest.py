"""What the real things need for their contracts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.containerd.client import Containerd
from sandboxd.images import load
from sandboxd.images.store import ImageStore
from tests.root.conftest import Private

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def busybox() -> Path:
    """build/images/busybox.tar; deploy/images/build.py makes it where it is missing."""
    archive = ROOT / "build" / "images" / "busybox.tar"
    if not archive.is_file():
        subprocess.run([sys.executable, str(ROOT / "deploy/images/build.py"), "busybox"], check=True, timeout=120)
    return archive


@pytest.fixture
async def client(private: Private) -> AsyncIterator[Containerd]:
    """A connection in one namespace for all: the image is loaded once."""
    connected = Containerd(private.socket, "contract", "contract")
    try:
        await connected.wait_until_serving(30)
        yield connected
    finally:
        await connected.close()


@pytest.fixture
async def store(client: Containerd, busybox: Path) -> ImageStore:
    """A store with the image busybox in it."""
    made = ImageStore(client, "overlayfs")
    await made.refresh()
    if not made.list("busybox"):
        await load.load(made, busybox)
    return made

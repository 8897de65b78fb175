"""A containerd of the tests' own, without the rest of a bed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.containerd import managed
from sandboxd.containerd.client import Containerd
from sandboxd.environment import child_environment

UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")
NAMESPACES = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """A containerd of the test's own."""

    socket: str
    ctr: str

    def run_ctr(self, namespace: str, *argv: str) -> str:
        """Ask containerd's own client."""
        done = subprocess.run(
            [self.ctr, "--address", self.socket, "--namespace", namespace, *argv],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def private(containerd_bin: Path | None) -> Iterator[Private]:
    """A containerd in mount and network namespaces of its own, ended with the module."""
    path = f"{containerd_bin}:{os.environ['PATH']}" if containerd_bin else os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="sbx-img-") as base:
        places = managed.ManagedPaths(root=f"{base}/root", state=f"{base}/state", socket=f"{base}/containerd.sock")
        Path(places.state).mkdir()
        Path(places.config_file).write_text(managed.configuration(places))
        with open(f"{base}/log", "wb") as log:
            process = subprocess.Popen(
                [*UNSHARE, "containerd", "--config", places.config_file],
                stdout=log,
                stderr=log,
                env={**child_environment(), "PATH": path},
            )
        try:
            ctr = f"{containerd_bin}/ctr" if containerd_bin else "ctr"
            yield Private(socket=places.socket, ctr=ctr)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=60)
    assert not os.path.exists(base)


@pytest.fixture
async def client(private: Private) -> AsyncIterator[Containerd]:
    """A connection in a namespace of the test's own."""
    connected = Containerd(private.socket, f"test-{next(NAMESPACES)}")
    try:
        await connected.wait_until_serving(30)
        yield connected
    finally:
        await connected.close()

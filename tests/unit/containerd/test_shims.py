"""What dead shims leave, and what live ones keep."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandboxd.containerd import shims
from sandboxd.containerd.shims import end_left, remove_dead_socket, socket_path
from sandboxd.errors import CleanupIncomplete


def test_the_name_is_the_one_that_containerd_gives() -> None:
    digest = "4fd5f9ee2fbe6d7e6fa6e4fa8b3d2a91"
    path = socket_path("/run/c.sock", "ns", digest)
    assert path.startswith("/run/containerd/s/")
    assert len(Path(path).name) == 64
    assert path != socket_path("/run/c.sock", "other", digest)


def test_a_socket_that_nobody_listens_on_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(str(path))
    assert not remove_dead_socket(str(path))
    assert not path.exists()
    remove_dead_socket(str(path))  # gone is done


def test_a_socket_that_somebody_listens_on_stays(tmp_path: Path) -> None:
    path = tmp_path / "live"
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(str(path))
        shim.listen()
        assert remove_dead_socket(str(path))
        assert path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("somebody's")
    remove_dead_socket(str(path))
    assert path.exists()


def test_a_socket_that_cannot_be_looked_at_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CleanupIncomplete, match="cannot be examined"):
        remove_dead_socket(str(tmp_path / "file" / "below"))


@contextmanager
def shim(group: str, *, namespace: str = "ns") -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a shim and has nothing to do."""
    options = ("-namespace", namespace, "-id", group, "-address", "/run/c.sock")
    code = "print(flush=True); import time; time.sleep(1000)"
    argv = (sys.executable, "-S", "-c", code, *options)
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_shim_that_was_left_is_ended_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shims, "LEAVING_SECONDS", 0.0)
    monkeypatch.setattr(shims, "PROGRAM", sys.executable.encode())
    monkeypatch.setattr(shims, "DIRECTORY", str(tmp_path))
    left, other, elsewhere = "a" * 64, "b" * 64, "other"
    with shim(left) as ours, shim(other) as theirs, shim(left, namespace=elsewhere) as also_theirs:
        end_left("/run/c.sock", "ns", left)
        assert ours.wait(30) == -signal.SIGKILL
        assert theirs.poll() is None and also_theirs.poll() is None
    end_left("/run/c.sock", "ns", left)  # idempotent

"""What dead shims leave, and what live ones keep."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sandboxd.containerd.shims import remove_dead_socket, socket_path
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
    remove_dead_socket(str(path))
    assert not path.exists()
    remove_dead_socket(str(path))  # gone is done


def test_a_socket_that_somebody_listens_on_stays(tmp_path: Path) -> None:
    path = tmp_path / "live"
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(str(path))
        shim.listen()
        remove_dead_socket(str(path))
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

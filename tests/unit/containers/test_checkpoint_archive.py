"""The archive of a checkpoint: whole or not there, and readable by what others read archives with."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containers import checkpoint_archive as archive
from sandboxd.errors import TimedOut
from sandboxd.model import ContainerRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.deep import DEEP, deep_path, nest

__all__ = ["deep_path"]  # a fixture

LATER = float("inf")


def write(directory: Path, files: dict[str, Path], documents: dict[str, Any], deadline: float = LATER) -> Path:
    target = directory / "whole.tar"
    archive.write(target, directory / "unfinished", files=files, documents=documents, deadline=deadline)
    return target


def test_files_directories_links_and_documents_are_in_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "file").write_bytes(b"\0" * 100_000)
    (source / "link").symlink_to("/etc/passwd")
    target = write(tmp_path, {"checkpoint": source}, {"config.dump": {"id": "c"}})
    with tarfile.open(target) as tar:
        assert sorted(tar.getnames()) == [
            "checkpoint",
            "checkpoint/below",
            "checkpoint/below/file",
            "checkpoint/link",
            "config.dump",
        ]
        assert tar.getmember("checkpoint/below/file").size == 100_000
        assert tar.getmember("checkpoint/link").linkname == "/etc/passwd", "it is kept, and not followed"
        assert json.load(tar.extractfile("config.dump")) == {"id": "c"}  # type: ignore[arg-type]
        assert {(member.uid, member.uname) for member in tar} == {(0, "")}
    assert target.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "unfinished").exists()


def test_a_file_that_grows_meanwhile_is_cut_at_its_size_of_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"line\n")
    add = tarfile.TarFile.addfile

    def grow(self: tarfile.TarFile, info: tarfile.TarInfo, file: Any = None) -> None:
        if info.name == "container.log":
            with log.open("ab") as end:
                end.write(b"another\n")
        add(self, info, file)

    monkeypatch.setattr(tarfile.TarFile, "addfile", grow)
    with tarfile.open(write(tmp_path, {"container.log": log}, {"spec.dump": {}})) as tar:
        assert tar.extractfile("container.log").read() == b"line\n"  # type: ignore[union-attr]
        assert tar.getnames() == ["container.log", "spec.dump"]


def test_a_log_that_is_no_file_is_not_packed(tmp_path: Path) -> None:
    log, secret = tmp_path / "log", tmp_path / "secret"
    assert not archive.has_file(log)
    secret.write_bytes(b"secret")
    assert archive.has_file(secret)
    log.symlink_to(secret)
    assert not archive.has_file(log)

    # It became one after that look: the link is packed, and not what it leads to.
    with tarfile.open(write(tmp_path, {"container.log": log}, {})) as tar:
        assert [(each.name, each.issym(), each.size) for each in tar] == [("container.log", True, 0)]
    log.unlink()
    os.mkfifo(log)
    with tarfile.open(write(tmp_path, {"container.log": log}, {})) as tar:
        assert tar.getnames() == []


def test_out_of_time_there_is_no_archive_and_what_was_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "whole.tar"
    target.write_text("an earlier one")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(TimedOut, match=r"packing rootfs-diff\.tar"):
        write(tmp_path, {"rootfs-diff.tar": source}, {}, deadline=time.monotonic() - 1)
    assert target.read_text() == "an earlier one"
    assert not (tmp_path / "unfinished").exists()


def test_cut_off_there_is_no_archive_and_the_thread_ends(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(TimedOut, match=r"packing container\.log"):
        archive.write(
            tmp_path / "whole.tar",
            tmp_path / "unfinished",
            files={"container.log": source},
            documents={},
            deadline=LATER,
            cut_off=lambda: True,
        )
    assert os.listdir(tmp_path) == ["source"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        write(tmp_path, {"rootfs-diff.tar": tmp_path / "none"}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
def test_an_unfinished_one_of_before_is_replaced_and_what_others_put_there_is_neither_opened_nor_cut(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "unfinished").write_bytes(b"x" * 100_000)
    assert tarfile.is_tarfile(write(tmp_path, {}, {"config.dump": {}}))
    precious = tmp_path / "precious"
    precious.write_text("kept")
    if kind == "link":
        (tmp_path / "unfinished").symlink_to(precious)
    elif kind == "hard link":
        (tmp_path / "unfinished").hardlink_to(precious)
    else:
        os.mkfifo(tmp_path / "unfinished")
    assert tarfile.is_tarfile(write(tmp_path, {}, {"config.dump": {}}))
    assert precious.read_text() == "kept"


def test_a_tree_deeper_than_any_stack_is_packed_and_only_what_has_content(deep_path: Path, tmp_path: Path) -> None:
    source = deep_path / "source"
    source.mkdir()
    nest(source, name="d")
    os.mkfifo(source / "fifo")
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    with tarfile.open(write(tmp_path, {"checkpoint": source, "container.log": source / "fifo"}, {})) as tar:
        names = tar.getnames()
    assert len(names) == DEEP + 1
    assert names[-1] == "checkpoint" + "/d" * DEEP


def test_the_config_says_what_checkpointctl_asks_for() -> None:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="web"),
        image=cri.ImageSpec(image="sha256:1", user_specified_image="nginx:latest"),
    )
    record = ContainerRecord(
        id="c", sandbox_id="s", config=config, sandbox_name="", image_ref="nginx@sha256:2", image_id="sha256:1",
        log_path="", created_at=1_700_000_000_000_000_005,
    )  # fmt: skip
    assert archive.config_dump(record, "io.containerd.runc.v2", 1_700_000_001_500_000_000) == {
        "id": "c",
        "name": "web",
        "rootfsImage": "sha256:1",
        "rootfsImageRef": "nginx@sha256:2",
        "rootfsImageName": "nginx:latest",
        "runtime": "io.containerd.runc.v2",
        "createdTime": "2023-11-14T22:13:20.000000005Z",
        "checkpointedTime": "2023-11-14T22:13:21.500000000Z",
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": False,
    }

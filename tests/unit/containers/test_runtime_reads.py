"""What the OCI runtime opens in a container's root is a regular file there, or the container is refused."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.containerd.snapshots import Mount
from sandboxd.containers import runtime_reads
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.oci.linux import MountSource
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import HOST

Make = Callable[[Path], object]


def check(root: Path, mounts: Mapping[str, str] | None = None) -> None:
    runtime_reads.check([Mount(type="bind", source=str(root), options=())], mounts or {})


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def huge(path: Path) -> None:
    """A sparse file."""
    path.touch()
    os.truncate(path, 10**11)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with an /etc; beside it a directory that is not in it, with a file."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "passwd").touch()
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a FIFO"),
        (Path.mkdir, "is a directory"),
        (lambda path: os.mknod(path, 0o140600), "is a socket"),
        (huge, "is larger than 8 MiB"),
        (link("/proc/self/fd/0"), "is a link to '/proc/self/fd/0', a file of the running system"),
        (link("../proc/kmsg"), "is a link to '/proc/kmsg'"),
        (link("/dev/stdin"), "is a link to '/dev/stdin'"),
        (link("/dev"), "is a link to '/dev'"),
        (link("/sys/../dev/tty"), "is a link to '/dev/tty'"),
        (link("/" + "a/../" * 200), "leads through more than 128 names"),
    ],
)
def test_what_is_no_regular_file_is_refused(root: Path, name: str, make: Make, words: str) -> None:
    make(root / "etc" / name)
    with pytest.raises(InvalidRequest, match=f"/etc/{name} of the container") as raised:
        check(root)
    assert words in str(raised.value)


def test_a_link_to_a_fifo_elsewhere_in_the_image_is_refused(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "hop").symlink_to("pipe")
    (root / "etc" / "passwd").symlink_to("../hop")
    with pytest.raises(InvalidRequest, match="a link to '/pipe', a FIFO"):
        check(root)


@pytest.mark.parametrize(
    "make",
    [
        Path.touch,
        lambda path: None,
        link("passwd"),
        link("/nowhere"),
        link("/etc/hosts"),
        link("/dev/null"),
        link("../../../../../outside/passwd"),
        lambda path: os.mknod(path, 0o20644, os.makedev(1, 3)),
    ],
)
def test_what_can_be_read_or_is_not_there_is_accepted(root: Path, make: Make) -> None:
    (root / "etc" / "hosts").touch()
    make(root / "etc" / "passwd")
    check(root)


def test_a_link_that_leads_out_stays_in_the_root(root: Path) -> None:
    """Outside there is a FIFO, inside there is nothing."""
    os.mkfifo(root.parent / "pipe")
    (root / "etc" / "passwd").symlink_to("../../pipe")
    check(root)


def test_what_is_mounted_over_the_image_counts(root: Path) -> None:
    outside = root.parent / "outside"
    os.mkfifo(root / "etc" / "passwd")
    check(root, {"/etc/passwd": str(outside / "passwd")})
    check(root, {"/etc": str(outside)})
    check(root, {"/etc": str(root.parent / "outside" / "passwd" / "none")})
    os.mkfifo(outside / "group")
    for mounts in (
        {"/etc": str(outside)},
        {"/etc/passwd": str(outside / "passwd"), "/etc/group": str(outside / "group")},
    ):
        with pytest.raises(InvalidRequest, match="/etc/group of the container is a FIFO"):
            check(root, mounts)


def test_the_null_device_may_be_mounted_there_and_no_other(root: Path) -> None:
    check(root, {"/etc/passwd": "/dev/null"})
    with pytest.raises(InvalidRequest, match="/etc/group of the container is a device"):
        check(root, {"/etc/passwd": "/dev/null", "/etc/group": "/dev/zero"})


def test_the_mounts_of_a_spec_are_those_of_the_host() -> None:
    """Parents first, and the last one at a place counts."""
    spec = {
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/passwd", "type": "bind", "source": "/a"},
            {"destination": "/etc", "type": "bind", "source": "/b"},
            {"destination": "/etc/", "type": "bind", "source": "/c"},
        ]
    }
    assert list(runtime_reads.mounted(spec).items()) == [("/etc", "/c"), ("/etc/passwd", "/a")]
    assert runtime_reads.mounted({}) == {}


def test_links_lead_into_mounts_and_mounts_follow_links(root: Path) -> None:
    outside = root.parent / "outside"
    os.mkfifo(outside / "pipe")
    (root / "data").symlink_to("srv")
    (root / "srv").mkdir()
    (root / "etc" / "passwd").symlink_to("/srv/pipe")
    check(root)
    with pytest.raises(InvalidRequest, match="a link to '/srv/pipe', a FIFO"):
        check(root, {"/data": str(outside)})


def test_a_mount_over_what_the_runtime_mounts_is_looked_into(root: Path) -> None:
    (root / "etc" / "passwd").symlink_to("/dev/passwd")
    with pytest.raises(InvalidRequest):
        check(root)
    check(root, {"/dev": str(root.parent / "outside")})


def test_sources_are_the_requests_and_the_images_volumes() -> None:
    config = cri.ContainerConfig(
        mounts=[
            cri.Mount(container_path="/a/b", host_path="/link"),
            cri.Mount(container_path="rel", host_path="/x"),
            cri.Mount(container_path="/i", image=cri.ImageSpec(image="i")),
        ]
    )
    known = {"/link": MountSource(path="/real")}
    host = replace(HOST, mount_sources=known, image_volumes={2: "/images/i"})
    found = runtime_reads.sources(config, host, {"/a": "/volumes/0"})
    assert list(found.items()) == [("/a", "/volumes/0"), ("/rel", "/x"), ("/i", "/images/i"), ("/a/b", "/real")]


# In a running container


@pytest.fixture
def running(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The pid of a process that has `root` as its root."""
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "root").symlink_to(root)
    monkeypatch.setattr(runtime_reads, "_PROC", tmp_path / "proc")
    return 7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (huge, "is now larger"),
        (os.mkfifo, "is now a FIFO"),
        (Path.mkdir, "is now a directory"),
        (link("/pipe"), "is now a FIFO"),
    ],
)
def test_a_file_that_a_container_has_replaced_is_not_opened(root: Path, running: int, make: Make, words: str) -> None:
    os.mkfifo(root / "pipe")
    make(root / "etc" / "group")
    with pytest.raises(NotReady, match="/etc/group of the container") as raised:
        runtime_reads.check_running(running)
    assert words in str(raised.value)


@pytest.mark.parametrize("system", ["proc", "sys"])
def test_a_link_to_a_file_of_the_running_system_is_not_followed(
    root: Path, running: int, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /proc/kmsg, which waits and takes the messages from who should read them."""
    look = runtime_reads._info_in

    def mounted(fd: int, path: str) -> os.stat_result | None:
        info = look(fd, path)
        return os.stat_result((*info[:2], info.st_dev + 1, *info[3:])) if info and path != "/etc/group" else info

    (root / system).mkdir()
    (root / system / "kmsg").touch()
    (root / "etc" / "passwd").symlink_to(f"/{system}/kmsg")
    runtime_reads.check_running(running)  # an image may have such a directory
    monkeypatch.setattr(runtime_reads, "_info_in", mounted)
    with pytest.raises(NotReady, match="/etc/passwd of the container is now a file of the running system"):
        runtime_reads.check_running(running)


@pytest.mark.parametrize("make", [Path.touch, link("passwd"), link("/nowhere"), link("../../outside/pipe")])
def test_a_file_that_can_be_opened_is_no_reason_to_refuse(root: Path, running: int, make: Make) -> None:
    os.mkfifo(root.parent / "outside" / "pipe")
    make(root / "etc" / "passwd")
    runtime_reads.check_running(running)
    runtime_reads.check_running(running + 1)  # has ended


def test_a_runtime_that_waits_is_found_with_all_that_it_has_forked() -> None:
    exec_id, other = secrets.token_hex(16), secrets.token_hex(16)
    waits = "import subprocess; child = subprocess.Popen(['sleep', '1000']); print(child.pid, flush=True)"

    def start(name: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", f"{waits}; child.wait()", "--pid-file", f"/bundle/{name}.pid"]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    with start(exec_id) as runtime, start(other) as untouched:
        assert runtime.stdout is not None and untouched.stdout is not None
        children = [int(each.stdout.readline()) for each in (runtime, untouched) if each.stdout]
        try:
            assert runtime_reads.starting(exec_id) == [runtime.pid, children[0]]
        finally:
            for pid in (runtime.pid, untouched.pid, *children):
                os.kill(pid, signal.SIGKILL)
    assert runtime_reads.starting(exec_id) == []


def test_what_was_executed_in_a_container_are_its_shims_children_in_its_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_reads, "_PROC", tmp_path)
    cgroups = {2: "one", 3: "one", 4: "two", 5: "one"}
    for pid, cgroup in cgroups.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) S 1 {pid} {pid}")
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/pods/{cgroup}\n")
    (tmp_path / "1/task/1").mkdir(parents=True)
    (tmp_path / "1/task/1/children").write_text("2 3 4 6 ")  # 6 has ended, 5 is another's child

    assert runtime_reads.executed("one", 2) == [3]
    assert runtime_reads.executed("one", 9) == []

"""What is read from the machine for a container; the rest is in tests/e2e/test_security.py."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd import mountinfo, mounts, private
from sandboxd.config import Runtime
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.machine import facts as machine
from sandboxd.oci.linux import SelinuxContexts
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.deep import DEEP, deep_path, nest
from tests.unit.oci.golden.cases import HOST, in_context, pod_context

__all__ = ["deep_path"]  # a fixture

LOCALHOST = cri.SecurityProfile.Localhost
PROFILE = {"defaultAction": "SCMP_ACT_LOG", "syscalls": []}


def seccomp(ref: str) -> cri.SecurityProfile:
    return cri.SecurityProfile(profile_type=LOCALHOST, localhost_ref=ref)


def test_a_profile_is_read_where_it_is(tmp_path: Path) -> None:
    settings = Runtime(seccomp_dir=str(tmp_path))
    (tmp_path / "p.json").write_text(json.dumps(PROFILE))
    for ref in ("p.json", str(tmp_path / "p.json")):
        config = in_context(seccomp=seccomp(ref))
        assert machine.for_container(HOST, config, settings).seccomp_profile == PROFILE
        pod = pod_context(seccomp=seccomp(ref))
        assert machine.for_pod(HOST, pod, settings).seccomp_profile == PROFILE
    assert machine.for_container(HOST, in_context(), settings).seccomp_profile is None


def test_a_profile_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    settings = Runtime(seccomp_dir=str(tmp_path))
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "bad.json").write_text("{}")
    for ref, words in (
        ("none.json", "none.json cannot be read: No such file"),
        (".hidden/", "cannot be read"),
        ("large.json", "is larger than"),
        ("bad.json", "defaultAction"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            machine.for_container(HOST, in_context(seccomp=seccomp(ref)), settings)


def test_loaded_profiles_are_read_when_one_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = tmp_path / "profiles"
    profiles.write_text("web (enforce)\n/usr/bin/man (complain)\na b (unconfined)\n")
    monkeypatch.setattr(machine, "APPARMOR_PROFILES", profiles)
    armed = replace(HOST, apparmor=True)
    asked = in_context(apparmor=cri.SecurityProfile(profile_type=LOCALHOST, localhost_ref="web"))
    everything = {"web", "/usr/bin/man", "a b"}
    assert machine.for_container(armed, asked, Runtime()).apparmor_loaded == everything
    assert machine.for_container(HOST, asked, Runtime()).apparmor_loaded == frozenset()
    assert machine.for_container(armed, in_context(), Runtime()).apparmor_loaded == frozenset()
    with_default = replace(armed, apparmor_default="web")
    assert machine.for_container(with_default, in_context(), Runtime()).apparmor_loaded == everything


@pytest.mark.parametrize(
    ("config", "contexts", "expected"),
    [
        (
            "SELINUX=enforcing\nSELINUXTYPE=mine\n",
            'process = "u:r:p_t:s0"\n# file\nfile = "u:o:f_t:s0"\n',
            SelinuxContexts(process="u:r:p_t:s0", file="u:o:f_t:s0"),
        ),
        ("SELINUXTYPE=mine\n", 'process = "u:r:p_t:s0"\n', None),
        ("SELINUXTYPE=other\n", 'process = "u:r:p_t:s0"\nfile = "u:o:f_t:s0"\n', None),
    ],
)
def test_labels_for_containers_are_the_policys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, contexts: str, expected: SelinuxContexts | None
) -> None:
    monkeypatch.setattr(machine, "SELINUX", tmp_path)
    monkeypatch.setattr(machine, "SELINUX_ENFORCE", tmp_path / "enforce")
    (tmp_path / "config").write_text(config)
    (tmp_path / "mine" / "contexts").mkdir(parents=True)
    (tmp_path / "mine" / "contexts" / "lxc_contexts").write_text(contexts)
    assert machine._selinux_contexts() is None
    (tmp_path / "enforce").write_text("0")
    assert machine._selinux_contexts() == expected


class Labels:
    """setxattr(2) for a machine without SELinux."""

    def __init__(self, code: int = 0) -> None:
        self.set: dict[str, bytes] = {}
        self.code = code

    def __call__(self, path: str, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        assert name == "security.selinux"
        assert follow_symlinks == (Path(path).parent == Path("/proc/self/fd")), "only what is open already"
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        self.set[
            os.path.realpath(path) if follow_symlinks else f"{Path(path).parent.resolve()}/{Path(path).name}"
        ] = value


def relabel(path: str | Path, label: str) -> None:
    for _ in machine.relabel(str(path), label):
        pass


def test_relabelling_reaches_everything_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels()
    monkeypatch.setattr(os, "setxattr", labels)
    (tmp_path / "top" / "below").mkdir(parents=True)
    (tmp_path / "top" / "below" / "file").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other").write_text("")
    os.symlink(tmp_path / "elsewhere", tmp_path / "top" / "link")
    relabel(tmp_path / "top", "u:o:f_t:s0")
    names = {str(Path(path).relative_to(tmp_path)) for path in labels.set}
    assert names == {"top", "top/below", "top/below/file", "top/link"}
    assert set(labels.set.values()) == {b"u:o:f_t:s0\0"}


def test_a_file_system_without_labels_is_done_and_a_refusal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "setxattr", Labels(errno.ENOTSUP))
    relabel(tmp_path, "l")
    monkeypatch.setattr(os, "setxattr", Labels(errno.EACCES))
    with pytest.raises(NotReady, match="cannot be given the SELinux label l"):
        relabel(tmp_path, "l")


def test_relabelling_goes_deeper_than_any_path_and_any_stack(
    deep_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda path, *_, **__: labelled.append(path))
    nest(deep_path)
    relabel(deep_path, "l")
    assert len(labelled) == DEEP + 1


def test_what_is_relabelled_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that shares the parent exchanges the directory for a link when it has been opened."""
    (tmp_path / "asked" / "below").mkdir(parents=True)
    labels = Labels()
    monkeypatch.setattr(os, "setxattr", labels)
    real = os.readlink

    def exchanged(path: str) -> str:
        monkeypatch.setattr(os, "readlink", real)
        found = real(path)
        os.rename(tmp_path / "asked", tmp_path / "moved")
        os.symlink("/etc", tmp_path / "asked")
        return found

    monkeypatch.setattr(os, "readlink", exchanged)
    relabel(tmp_path / "asked", "l")
    assert {os.path.relpath(path, tmp_path) for path in labels.set} == {"moved", "moved/below"}


@pytest.mark.parametrize("path", ["/", "/usr", "/etc", "/home/../var", "/bin"])
def test_the_systems_own_directories_are_never_relabelled(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    labels = Labels()
    monkeypatch.setattr(os, "setxattr", labels)
    with pytest.raises(InvalidRequest, match="belongs to the system"):
        relabel(path, "l")
    assert not labels.set


def cdi_file(directory: Path, name: str, **device: Any) -> None:
    spec = {"cdiVersion": "0.6.0", "kind": "v.example/gpu", "devices": [{"name": "0", "containerEdits": device}]}
    (directory / name).write_text(json.dumps(spec))


def test_cdi_devices_are_found_in_the_directories(tmp_path: Path) -> None:
    config = in_context()
    assert machine.cdi_edits(config, [str(tmp_path)])[0].parts == ()
    config.CDI_devices.add(name="v.example/gpu=0")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    with pytest.raises(NotFound, match=r"bad\.json: not valid JSON"):
        machine.cdi_edits(config, [str(tmp_path), "/no/such"])
    cdi_file(tmp_path, "a.json", deviceNodes=[{"path": "/dev/null"}, {"path": "/dev/no-such"}])
    edits, nodes = machine.cdi_edits(config, [str(tmp_path), "/no/such"])
    assert edits.host_nodes == ("/dev/null", "/dev/no-such")
    assert list(nodes) == ["/dev/null"]
    assert (nodes["/dev/null"].major, nodes["/dev/null"].minor) == (1, 3)


MOUNTS = """\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 0:2 / {0}/a rw shared:2 - tmpfs none rw
3 2 0:3 / {0}/a/b rw master:7 - tmpfs none rw
4 1 0:4 / {0}/a rw - tmpfs none rw
5 4 0:5 / {0}/a/c\\040d rw shared:5 master:6 - tmpfs none rw
6 5 0:6 / {0}/a/c\\040d rw shared:6 - tmpfs none rw
"""


@pytest.fixture
def umask_of_the_daemon() -> Iterator[None]:
    before = os.umask(private.UMASK)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_of_the_daemon")
def test_a_missing_source_is_made_a_directory(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b"
    config = cri.ContainerConfig(mounts=[cri.Mount(container_path="/x", host_path=str(missing))])
    assert machine.for_container(HOST, config, Runtime()).mount_sources[str(missing)].path == str(missing)
    assert missing.is_dir()
    assert missing.stat().st_mode & 0o777 == 0o755


def test_a_link_to_nothing_is_not_a_missing_source(tmp_path: Path) -> None:
    """A directory for it would be made where the link leads."""
    (tmp_path / "link").symlink_to(tmp_path / "none")
    (tmp_path / "file").touch()
    for name in ("link", "file/below", "\xff" * 200 + "/" + "n" * 300):
        config = cri.ContainerConfig(mounts=[cri.Mount(container_path="/x", host_path=f"{tmp_path}/{name}")])
        with pytest.raises(InvalidRequest, match=r"the source .* cannot be used"):
            machine.for_container(HOST, config, Runtime())
    assert not (tmp_path / "none").exists()


def test_a_profile_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(InvalidRequest, match=r"fifo\.json cannot be read"):
        machine.for_container(HOST, in_context(seccomp=seccomp("fifo.json")), Runtime(seccomp_dir=str(tmp_path)))


def test_a_source_propagates_as_the_mount_does_that_can_be_seen_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the mount of /a/b lies another of /a, and of the two at "/a/c d" the second is on top."""
    listed = mountinfo.parse(MOUNTS.format(tmp_path).encode())
    monkeypatch.setattr(mounts, "listed", lambda: listed)
    expected = {"": (True, False), "a": (False, False), "a/b": (False, False), "a/c d": (True, False)}
    for name in expected:
        (tmp_path / name).mkdir(exist_ok=True)
    config = cri.ContainerConfig(
        mounts=[cri.Mount(host_path=str(tmp_path / name), container_path=f"/m/{name}") for name in expected]
    )

    found = machine.for_container(HOST, config, Runtime()).mount_sources

    sources = {name: found[str(tmp_path / name)] for name in expected}
    assert {name: (source.shared, source.slave) for name, source in sources.items()} == expected


def test_the_boot_is_what_the_kernel_calls_it_and_not_known_where_it_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip() != ""
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "nothing")
    assert machine.boot_id() == ""

"""What a pod's containers share: made before they are, the same when made again, and gone after `unmount`."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd import syscalls
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.machine import pod_files as files
from sandboxd.model import SandboxRecord
from sandboxd.oci.files import hosts_file
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.requests import with_user_namespace

MOUNT, UNMOUNT = Point("kernel.mount", 0), Point("kernel.umount2", 0)
HOST_HOSTS, HOST_RESOLV_CONF = b"127.0.0.1\tmachine\n", b"nameserver 192.0.2.53\n"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own files."""
    for name, content in (("HOST_HOSTS", HOST_HOSTS), ("HOST_RESOLV_CONF", HOST_RESOLV_CONF)):
        path = tmp_path / name
        path.write_bytes(content)
        monkeypatch.setattr(files, name, str(path))
    monkeypatch.setattr(files, "UPSTREAM_RESOLV_CONFS", (str(tmp_path / "systemd"), str(tmp_path / "nm")))


@pytest.fixture
def chowned(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Whom files were given to; only root can give them away."""
    found: dict[str, tuple[int, int]] = {}

    def chown(path: str, uid: int, gid: int) -> None:
        found[path] = (uid, gid)

    monkeypatch.setattr(os, "chown", chown)
    return found


def sandbox(
    id_: str = "pod",
    *,
    netns_path: str = "/run/netns/pod",
    ips: tuple[str, ...] = (),
    config: cri.PodSandboxConfig | None = None,
    started_at: int = 0,
) -> SandboxRecord:
    return SandboxRecord(
        id=id_,
        config=config or pod_config(id_),
        runtime_handler="",
        netns_path=netns_path,
        created_at=1,
        ips=ips,
        started_at=started_at,
    )


def read(fakes: Bundle, name: str, sandbox_id: str = "pod") -> bytes:
    return Path(fakes.places.pod_files(sandbox_id), name).read_bytes()


# hostname


def test_a_pod_sees_itself_by_the_name_in_its_configuration_or_by_the_machines() -> None:
    assert files.hostname(cri.PodSandboxConfig(hostname="web-0")) == "web-0"
    assert files.hostname(cri.PodSandboxConfig()) == os.uname().nodename


# prepare


def test_a_pod_has_its_three_files_and_its_shared_memory(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox(ips=("10.88.0.2",)))

    assert fakes.kernel.mounts == {fakes.places.shm("pod"): "tmpfs", fakes.places.pod_files("pod"): "tmpfs"}
    assert sorted(os.listdir(fakes.places.pod_files("pod"))) == ["hostname", "hosts", "resolv.conf"]
    assert read(fakes, "hosts") == hosts_file(os.uname().nodename, ("10.88.0.2",))


def test_the_paths_are_those_of_what_was_made(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())

    paths = files.paths(fakes.node, "pod")
    assert [os.path.basename(path) for path in paths] == ["hosts", "hostname", "resolv.conf", "shm"]
    assert all(os.path.exists(path) for path in paths)


def test_made_again_they_are_the_same(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())
    Path(fakes.places.shm("pod"), "kept").touch()
    mounts = dict(fakes.kernel.mounts)

    files.prepare(fakes.node, sandbox())

    assert fakes.kernel.mounts == mounts
    assert fakes.points.count("kernel.mount") == 2
    assert Path(fakes.places.shm("pod"), "kept").exists()


def test_what_was_cut_off_is_completed_when_made_again(fakes: Bundle) -> None:
    fakes.points.fail(Point("kernel.mount", 1), OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(NotReady):
        files.prepare(fakes.node, sandbox())

    files.prepare(fakes.node, sandbox())

    assert len(fakes.kernel.mounts) == 2


def test_they_belong_to_the_root_of_the_pods_user_namespace(
    fakes: Bundle, chowned: dict[str, tuple[int, int]]
) -> None:
    files.prepare(fakes.node, sandbox(config=with_user_namespace()))

    assert chowned == dict.fromkeys(files.paths(fakes.node, "pod"), (100_000, 200_000))


def test_without_a_user_namespace_they_are_the_machines_roots(
    fakes: Bundle, chowned: dict[str, tuple[int, int]]
) -> None:
    files.prepare(fakes.node, sandbox())

    assert not chowned


# mount


def test_neither_file_system_runs_programs_or_has_devices_and_each_has_a_limit(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = syscalls.mount

    def mount(source: str, target: str, flags: int, fstype: str = "", data: str = "") -> None:
        asked.append((target, flags, fstype, data))
        real(source, target, flags, fstype, data)

    monkeypatch.setattr(syscalls, "mount", mount)

    files.mount(fakes.node, "pod")

    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    room = files.ROOM_BYTES + len(HOST_HOSTS) + len(HOST_RESOLV_CONF)  # a host's own files may be large
    assert asked == [
        (fakes.places.shm("pod"), flags, "tmpfs", f"mode=1777,size={files.SHM_BYTES}"),
        (fakes.places.pod_files("pod"), flags, "tmpfs", f"mode=700,size={room}"),
    ]


def test_a_machine_without_files_of_its_own_gives_room_all_the_same(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOST_HOSTS", "HOST_RESOLV_CONF"):
        monkeypatch.setattr(files, name, str(tmp_path / "missing"))

    files.mount(fakes.node, "pod")

    assert len(fakes.kernel.mounts) == 2


def test_the_directories_are_closed_to_other_users_before_anything_is_mounted(fakes: Bundle) -> None:
    fakes.points.fail_always("kernel.mount", OSError(errno.EPERM, "Operation not permitted"))
    with pytest.raises(NotReady):
        files.mount(fakes.node, "pod")

    assert stat.S_IMODE(os.stat(fakes.places.shm("pod")).st_mode) == 0o700


def test_a_mount_that_the_machine_refuses_is_reported_with_the_pod(fakes: Bundle) -> None:
    fakes.points.fail(MOUNT, OSError(errno.EPERM, "Operation not permitted"))

    with pytest.raises(
        NotReady, match=r"^the file systems of pod pod cannot be mounted: .*Operation not permitted"
    ) as caught:
        files.mount(fakes.node, "pod")

    assert isinstance(caught.value.__cause__, OSError)
    assert not fakes.kernel.mounts


# write


def write(fakes: Bundle, record: SandboxRecord, ips: tuple[str, ...] = ()) -> None:
    files.mount(fakes.node, record.id)
    files.write(fakes.node, record, ips)


def test_hosts_has_the_pods_addresses_as_they_are_given(fakes: Bundle) -> None:
    """Not those of the record, which has none before the pod has started."""
    write(fakes, sandbox(config=cri.PodSandboxConfig(hostname="web-0")), ("10.88.0.2", "fd00::2"))

    assert read(fakes, "hosts") == hosts_file("web-0", ("10.88.0.2", "fd00::2"))
    assert read(fakes, "hostname") == b"web-0\n"


def test_what_is_written_again_replaces_what_there_was(fakes: Bundle) -> None:
    write(fakes, sandbox(), ("10.88.0.2", "10.88.0.3"))
    write(fakes, sandbox(), ())

    assert read(fakes, "hosts") == hosts_file(os.uname().nodename, ())


def test_a_pod_in_the_hosts_network_has_the_hosts_hosts(fakes: Bundle) -> None:
    write(fakes, sandbox(netns_path=""))

    assert read(fakes, "hosts") == HOST_HOSTS


def test_where_the_host_has_none_it_has_one_all_the_same(fakes: Bundle) -> None:
    os.unlink(files.HOST_HOSTS)

    write(fakes, sandbox(netns_path=""))

    assert read(fakes, "hosts") == hosts_file(os.uname().nodename, ())


def test_names_are_looked_up_as_the_pod_says_or_else_as_the_host_does(fakes: Bundle) -> None:
    write(fakes, sandbox("host-dns"))
    write(fakes, sandbox("own-dns", config=cri.PodSandboxConfig(dns_config=cri.DNSConfig(servers=["192.0.2.1"]))))

    assert read(fakes, "resolv.conf", "host-dns") == HOST_RESOLV_CONF
    assert read(fakes, "resolv.conf", "own-dns") == b"nameserver 192.0.2.1\n"


def test_where_the_host_looks_nothing_up_the_file_is_there_and_empty(fakes: Bundle) -> None:
    os.unlink(files.HOST_RESOLV_CONF)

    write(fakes, sandbox())

    assert read(fakes, "resolv.conf") == b""


def test_files_that_cannot_be_written_are_reported_with_the_pod(fakes: Bundle) -> None:
    with pytest.raises(NotReady, match=r"^the files of pod pod cannot be written: .*No such file") as caught:
        files.write(fakes.node, sandbox(), ())

    assert isinstance(caught.value.__cause__, FileNotFoundError)


# unmount


def test_nothing_is_mounted_afterwards_and_what_was_in_it_is_gone(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())
    Path(fakes.places.shm("pod"), "secret").touch()

    files.unmount(fakes.node, "pod")

    assert not fakes.kernel.mounts
    assert not os.listdir(fakes.places.pod_files("pod")) and not os.listdir(fakes.places.shm("pod"))


def test_unmounting_again_or_what_was_never_mounted_is_no_error(fakes: Bundle) -> None:
    files.unmount(fakes.node, "pod")
    files.prepare(fakes.node, sandbox())
    files.unmount(fakes.node, "pod")

    files.unmount(fakes.node, "pod")


def test_one_pods_files_are_not_anothers(fakes: Bundle) -> None:
    for name in ("one", "other"):
        files.prepare(fakes.node, sandbox(name))

    files.unmount(fakes.node, "one")

    assert set(fakes.kernel.mounts) == {fakes.places.shm("other"), fakes.places.pod_files("other")}


def test_a_mount_that_is_in_use_is_reported_and_a_retry_ends_it(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())
    fakes.points.fail(UNMOUNT, OSError(errno.EBUSY, "Device or resource busy"))

    path = re.escape(fakes.places.shm("pod"))
    with pytest.raises(CleanupIncomplete, match=f"^{path} cannot be unmounted: .*busy") as caught:
        files.unmount(fakes.node, "pod")
    assert isinstance(caught.value.__cause__, OSError)

    files.unmount(fakes.node, "pod")
    assert not fakes.kernel.mounts


# the machine's name servers


STUB = b"# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"


def host_resolv_conf(content: bytes) -> None:
    Path(files.HOST_RESOLV_CONF).write_bytes(content)


@pytest.mark.parametrize("which", [0, 1])
def test_where_the_machine_asks_a_cache_of_its_own_pods_ask_whom_that_asks(fakes: Bundle, which: int) -> None:
    host_resolv_conf(STUB)
    Path(files.UPSTREAM_RESOLV_CONFS[which]).write_bytes(b"nameserver 192.0.2.7\nsearch lan\n")

    write(fakes, sandbox())
    write(fakes, sandbox("searching", config=cri.PodSandboxConfig(dns_config=cri.DNSConfig(searches=["a.local"]))))
    write(fakes, sandbox("on-host", netns_path=""))

    assert read(fakes, "resolv.conf") == b"nameserver 192.0.2.7\nsearch lan\n"
    assert read(fakes, "resolv.conf", "searching") == b"search a.local\nnameserver 192.0.2.7\n"
    assert read(fakes, "resolv.conf", "on-host") == STUB, "there the cache answers"


def test_where_nobody_says_whom_that_asks_the_pod_has_no_server_and_somebody_is_told(fakes: Bundle) -> None:
    host_resolv_conf(STUB)
    files.mount(fakes.node, "pod")

    warning = files.write(fakes.node, sandbox(), ())

    assert "127.0.0.53" in warning and "dns_config" in warning
    assert read(fakes, "resolv.conf") == STUB.replace(b"nameserver 127.0.0.53\n", b"")


def test_one_server_that_answers_is_enough(fakes: Bundle) -> None:
    host_resolv_conf(b"nameserver 127.0.0.1\nnameserver 192.0.2.1\n")
    files.mount(fakes.node, "pod")

    assert files.write(fakes.node, sandbox(), ()) == ""
    assert read(fakes, "resolv.conf") == b"nameserver 192.0.2.1\n"


def test_a_dns_config_with_servers_is_not_asked_about_the_machines(fakes: Bundle) -> None:
    host_resolv_conf(STUB)
    files.mount(fakes.node, "pod")
    config = cri.PodSandboxConfig(dns_config=cri.DNSConfig(servers=["127.0.0.1"]))

    assert files.write(fakes.node, sandbox(config=config), ()) == "", "a container of the pod may listen there"
    assert read(fakes, "resolv.conf") == b"nameserver 127.0.0.1\n"


@pytest.mark.parametrize("kind", ["missing", "a dangling link", "a directory", "a pipe", "empty"])
def test_a_machine_whose_file_says_nothing_still_has_the_caches(fakes: Bundle, kind: str) -> None:
    path = Path(files.HOST_RESOLV_CONF)
    path.unlink()
    if kind == "a dangling link":
        path.symlink_to("nowhere")
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    write(fakes, sandbox("first"))
    Path(files.UPSTREAM_RESOLV_CONFS[0]).write_bytes(b"nameserver 192.0.2.7\n")
    write(fakes, sandbox())

    assert read(fakes, "resolv.conf", "first") == b""
    assert read(fakes, "resolv.conf") == b"nameserver 192.0.2.7\n"


def test_of_a_huge_file_of_the_machine_there_is_a_beginning(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_HOST_FILE", 100)
    Path(files.HOST_HOSTS).write_bytes(b"192.0.2.1 a\n" * 100)

    write(fakes, sandbox(netns_path=""))

    assert len(read(fakes, "hosts")) == 100


# mend


async def test_what_was_removed_is_written_again_and_the_rest_is_left(fakes: Bundle) -> None:
    record = sandbox(ips=("10.88.0.2",))
    files.prepare(fakes.node, record)
    directory = Path(fakes.places.pod_files("pod"))
    (directory / "hosts").write_bytes(b"a container's own\n")
    (directory / "resolv.conf").unlink()
    (directory / "hostname").unlink()
    (directory / "hostname").symlink_to(files.HOST_HOSTS)

    await files.mend(fakes.node, record)

    assert read(fakes, "hosts") == b"a container's own\n"
    assert read(fakes, "resolv.conf") == HOST_RESOLV_CONF
    assert not (directory / "hostname").is_symlink()
    assert Path(files.HOST_HOSTS).read_bytes() == HOST_HOSTS


async def test_where_both_file_systems_are_gone_everything_is_made_again(fakes: Bundle) -> None:
    record = sandbox(ips=("10.88.0.2",))
    files.prepare(fakes.node, record)
    files.unmount(fakes.node, "pod")
    os.rmdir(fakes.places.pod_files("pod"))

    await files.mend(fakes.node, record)

    assert read(fakes, "hosts") == hosts_file(os.uname().nodename, ("10.88.0.2",))
    assert len(fakes.kernel.mounts) == 2


async def test_with_a_user_namespace_they_are_its_roots_again(
    fakes: Bundle, chowned: dict[str, tuple[int, int]]
) -> None:
    record = sandbox(config=with_user_namespace())
    files.prepare(fakes.node, record)
    chowned.clear()
    path = f"{fakes.places.pod_files('pod')}/hosts"
    os.unlink(path)

    await files.mend(fakes.node, record)

    assert chowned == {path: (100_000, 200_000)}


async def test_nothing_is_touched_while_everything_is_there(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())
    before = fakes.points.count("kernel.mount")

    await files.mend(fakes.node, sandbox())

    assert fakes.points.count("kernel.mount") == before


@pytest.mark.parametrize("instead", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/shadow", path)])
async def test_what_is_in_a_files_place_gives_way_to_it(fakes: Bundle, instead: Callable[[Path], None]) -> None:
    files.prepare(fakes.node, sandbox())
    path = Path(fakes.places.pod_files("pod"), "hosts")
    path.unlink()
    instead(path)

    await files.mend(fakes.node, sandbox())

    assert read(fakes, "hosts") == hosts_file(os.uname().nodename, ())
    assert path.is_file() and not path.is_symlink()


async def test_a_directory_in_a_files_place_that_holds_something_is_reported(fakes: Bundle) -> None:
    files.prepare(fakes.node, sandbox())
    path = Path(fakes.places.pod_files("pod"), "hosts")
    path.unlink()
    path.mkdir()
    (path / "something").touch()

    with pytest.raises(NotReady, match="cannot be written again"):
        await files.mend(fakes.node, sandbox())

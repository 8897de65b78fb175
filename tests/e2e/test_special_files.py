"""Images with FIFOs, devices, directories and links where the OCI runtime looks for files: each ends at once, one way
or the other, and holds up nothing of its pod."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.e2e.test_handlers import CRUN
from tests.images import with_volumes
from tests.pods import (
    container_config,
    container_status,
    create_container,
    exited,
    log_lines,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

FIFO, LINK, DIRECTORY, DEVICE, FILE = (
    tarfile.FIFOTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.REGTYPE,
)
RUNTIMES = ("runc", "crun")
Entries = Sequence[tuple[str, bytes, str]]  # name, kind, link target or content
ETC = ("etc", DIRECTORY, "")

REFUSED: dict[str, Entries] = {
    f"{name}-{what}": entries
    for name in ("passwd", "group")
    for what, entries in {
        "fifo": (ETC, (f"etc/{name}", FIFO, "")),
        "device": (ETC, (f"etc/{name}", DEVICE, "")),
        "directory": (ETC, (f"etc/{name}", DIRECTORY, "")),
        "link-to-fifo": (ETC, ("pipe", FIFO, ""), (f"etc/{name}", LINK, "../pipe")),
        "link-to-stdin": (ETC, (f"etc/{name}", LINK, "/dev/stdin")),
    }.items()
}
# What runtimes cope with, and what they refuse by themselves: never a reason to wait.
TRIED: dict[str, tuple[Entries, dict[str, Any]]] = {
    **{
        f"{name}-{what}": ((ETC, (f"etc/{name}", kind, target)), {})
        for name in ("passwd", "group", "hosts", "resolv.conf", "hostname")
        for what, kind, target in (
            ("circle", LINK, name),
            ("leads-out", LINK, "../../../../../../etc/shadow"),
            ("leads-nowhere", LINK, "/nowhere"),
            *((("fifo", FIFO, ""), ("directory", DIRECTORY, "")) if name not in ("passwd", "group") else ()),
        )
    },
    **{
        f"{name}-{what}": (((name, kind, target),), {})
        for name in ("dev", "proc", "sys", "etc")
        for what, kind, target in (("file", FILE, ""), ("fifo", FIFO, ""), ("link", LINK, "../../../tmp"))
    },
    "shm-fifo": ((("dev", DIRECTORY, ""), ("dev/shm", FIFO, "")), {}),
    "cwd-file": ((("x", FILE, ""),), {"working_dir": "/x"}),
    "cwd-fifo": ((("x", FIFO, ""),), {"working_dir": "/x"}),
    "program-fifo": ((("x", FIFO, ""),), {"command": ["/x"]}),
    "program-directory": ((("x", DIRECTORY, ""),), {"command": ["/x"]}),
    "program-device": ((("x", DEVICE, ""),), {"command": ["/x"]}),
    "program-circle": ((("x", LINK, "x"),), {"command": ["/x"]}),
    "interpreter-fifo": ((("y", FIFO, ""), ("x", FILE, "#!/y\n")), {"command": ["/x"]}),
}
VOLUME: Entries = (
    ("vol", DIRECTORY, ""),
    ("vol/pipe", FIFO, ""),
    ("vol/null", DEVICE, ""),
    ("vol/out", LINK, "../../../../etc/shadow"),
    ("vol/circle", LINK, "circle"),
)


def layer(entries: Entries) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, kind, text in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.devmajor, entry.devminor = kind, 0o755, 1, 5
            content = text.encode() if kind == FILE else b""
            entry.size, entry.linkname = len(content), text if kind == LINK else ""
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def image(name: str) -> str:
    return f"docker.io/test/{name.replace('.', '-')}:1"


def load(bed: Testbed, directory: Path, name: str, entries: Entries, volumes: Sequence[str] = ()) -> None:
    base = bed.build_image("busybox")
    bed.load_archive(with_volumes(base, directory / "image.tar", volumes, layer(entries), image(name)))


@pytest.fixture(scope="module")
def two(containerd_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A bed with the handlers runc and crun and all the images, after a first pod."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/var/lib/crun-here", CRUN, mode=0o755)
        handlers = {"crun": {"binary": "/var/lib/crun-here", "root": "/run/crun"}}
        bed.start_daemon(runtime={"handlers": handlers, "cgroup_parent": bed.cgroup_parent})
        bed.load_image("busybox")
        directory = tmp_path_factory.mktemp("images")
        for name, entries in {**REFUSED, **{name: entries for name, (entries, _) in TRIED.items()}}.items():
            load(bed, directory, name, entries)
        load(bed, directory, "volume-special", VOLUME, ["/vol"])
        bed.run(["mkdir", "-p", "/var/lib/shared"])
        bed.run(["mkfifo", "/var/lib/shared/passwd"])
        bed.write("/var/lib/users", "web:x:12:13::/srv:/bin/sh\n")
        for handler in RUNTIMES:
            pod_id = run_pod(bed, handler=handler)
            run_container(bed, pod_id, shell("true"))
            remove_pod(bed, pod_id)
        yield bed


@pytest.fixture(params=RUNTIMES)
def pod(two: Testbed, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pod of either runtime; when the test is over all of it must be gone."""
    before = observe(two)
    pod_id = run_pod(two, handler=request.param)
    yield pod_id
    remove_pod(two, pod_id)
    assert_no_leaks(two, before)


def test_what_the_runtime_would_open_is_refused_unless_it_is_a_file(two: Testbed, pod: str) -> None:
    for name in REFUSED:
        with pytest.raises(grpc.RpcError) as error:
            create_container(two, pod, container_config(name, image(name), ["true"]))
        code, words = refused(error.value)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, words
        assert words.startswith(f"/etc/{name.partition('-')[0]} of the container is "), words
    assert not two.runtime.ListContainers(cri.ListContainersRequest()).containers


def test_a_fifo_that_is_mounted_where_the_users_are_is_refused(two: Testbed, pod: str) -> None:
    for mount in (
        cri.Mount(container_path="/etc", host_path="/var/lib/shared"),
        cri.Mount(container_path="/etc/passwd", host_path="/var/lib/shared/passwd"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            create_container(two, pod, shell("true", mounts=[mount]))
        assert refused(error.value)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_was_made_a_fifo_since_the_creation_is_not_opened_at_the_start(two: Testbed, pod: str) -> None:
    """Another container of the pod may do that in a directory that both have."""
    place = "/var/lib/changing"
    two.write(f"{place}/passwd", "root:x:0:0::/:/bin/sh\n")
    config = shell("true", mounts=[cri.Mount(container_path="/etc", host_path=place)])
    container_id = create_container(two, pod, config)
    two.run(["sh", "-c", f"rm {place}/passwd && mkfifo {place}/passwd"])
    with pytest.raises(grpc.RpcError) as error:
        start_container(two, container_id)
    assert "/etc/passwd of the container is a FIFO" in refused(error.value)[1]
    assert container_status(two, container_id).reason == "StartError"
    two.run(["rm", "-r", place])


def test_a_file_mounted_over_an_images_fifo_is_the_one_that_counts(two: Testbed, pod: str) -> None:
    mount = cri.Mount(container_path="/etc/passwd", host_path="/var/lib/users")
    container_id = run_container(
        two, pod, container_config("c", image("passwd-fifo"), ["cat", "/etc/passwd"], mounts=[mount])
    )
    until(lambda: log_lines(two, container_id) == ["web:x:12:13::/srv:/bin/sh"], what="it has read it")


def test_whatever_else_is_special_in_an_image_holds_up_nothing(two: Testbed, pod: str) -> None:
    """The call ends, with a container or with the runtime's own refusal, and the pod takes the next."""
    for name, (_, changes) in TRIED.items():
        config = container_config(name, image(name), **{"command": ["true"], **changes})
        container_id = create_container(two, pod, config)
        try:
            start_container(two, container_id)
        except grpc.RpcError as exc:
            assert refused(exc)[0] is grpc.StatusCode.FAILED_PRECONDITION, (name, refused(exc))
            assert container_status(two, container_id).reason == "StartError"
        until(lambda each=container_id: exited(two, each), what=f"{name} has ended")  # type: ignore[misc]
        two.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)
    assert "Traceback" not in two.log_tail(2000)


def test_special_files_at_an_images_volume_are_copied_as_what_they_are(two: Testbed, pod: str) -> None:
    script = "cd /vol && test -p pipe && test -c null && readlink out && readlink circle && echo all"
    container_id = run_container(two, pod, container_config("c", image("volume-special"), ["sh", "-c", script]))
    until(lambda: exited(two, container_id), what="it has looked")
    assert log_lines(two, container_id) == ["../../../../etc/shadow", "circle", "all"]


# Processes in a container that replaces these files


def execute(bed: Testbed, container_id: str, timeout: int) -> tuple[grpc.StatusCode | None, str]:
    """(code, words) of ExecSync, its code None when it succeeds."""
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=timeout)
    try:
        bed.runtime.ExecSync(request, timeout=100)
    except grpc.RpcError as exc:
        return refused(exc)
    return None, ""


def waiting(bed: Testbed) -> list[str]:
    """The processes of an OCI runtime on the machine."""
    found = []
    for entry in bed.proc.iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] in (b"runc", b"crun") or words[:2] == [b"runc", b"init"]:
            found.append(b" ".join(words).decode())
    return found


def test_exec_is_refused_while_the_container_has_a_fifo_where_the_users_are(two: Testbed, pod: str) -> None:
    swap = "rm -f /etc/passwd; mkfifo /etc/passwd; echo ready; trap 'rm /etc/passwd; echo gone' USR1"
    container_id = run_container(two, pod, shell(f"{swap}; while :; do sleep 0.05; done", stop_signal=cri.SIGUSR1))
    until(lambda: log_lines(two, container_id) == ["ready"], what="there is a FIFO")
    code, words = execute(two, container_id, 60)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "/etc/passwd of the container is now a FIFO" in words
    assert waiting(two) == []


def test_exec_is_refused_while_the_containers_users_are_a_file_of_the_running_system(two: Testbed, pod: str) -> None:
    """To read this one waits, and takes messages from who should have them."""
    script = "rm -f /etc/group; ln -s /proc/kmsg /etc/group; echo ready; while :; do sleep 0.05; done"
    container_id = run_container(two, pod, shell(script))
    until(lambda: log_lines(two, container_id) == ["ready"], what="there is a link")
    code, words = execute(two, container_id, 60)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "/etc/group of the container is now a file of the running system" in words


def test_an_exec_that_the_runtime_does_not_start_in_time_ends_and_leaves_nothing(two: Testbed, pod: str) -> None:
    """The container exchanges file and FIFO all the time, so that some of these get past every look at it."""
    swap = (
        "mkfifo /pipe; : > /file; while :; do ln -sf /pipe /n; mv /n /etc/passwd; ln -sf /file /n; mv /n /etc/passwd"
    )
    container_id = run_container(two, pod, shell(f"echo ready; {swap}; done"))
    until(lambda: log_lines(two, container_id) == ["ready"], what="it has begun")
    answers = [execute(two, container_id, 1) for _ in range(8)]
    possible = (None, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert {code for code, _ in answers} <= set(possible), answers
    until(lambda: waiting(two) == [], what="no runtime waits")
    two.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=0), timeout=60)
    assert exited(two, container_id)

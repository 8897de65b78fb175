"""CreateContainer: the record comes first, and a request that fails leaves nothing.

That holds wherever it fails: tests/unit/matrix. Here is what a container is made of, and what is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containers.create import create_container
from sandboxd.containers.start import start_container
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, NotReady, SandboxdError, Unavailable
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes import images
from tests.fakes.bundle import APP, APP_FILES, Bundle, container_config
from tests.fakes.points import Point

Change = Callable[[cri.ContainerConfig], object]


async def created(fakes: Bundle, pod: SandboxRecord, config: cri.ContainerConfig | None = None) -> ContainerRecord:
    container_id = await create_container(fakes.node, pod.id, config or container_config())
    return fakes.node.ledger.containers[container_id]


def record_of(fakes: Bundle) -> ContainerRecord:
    (record,) = fakes.node.ledger.containers.values()
    return record


def spec(fakes: Bundle, record: ContainerRecord) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(fakes.runtime.containers[record.id].spec)
    return parsed


def with_image(fakes: Bundle, config: dict[str, Any]) -> cri.ContainerConfig:
    """A container from an image with this configuration."""
    fakes.images.add(images.record("other", {"Cmd": ["/bin/app"], **config}, digit="b"), APP_FILES)
    wanted = container_config()
    wanted.image.image = "other"
    return wanted


async def with_user_namespace(fakes: Bundle, pod: SandboxRecord) -> cri.ContainerConfig:
    """A container with an id-mapped mount, and a user namespace for its pod."""
    ids = cri.IDMapping(host_id=100_000, container_id=0, length=65536)
    options = cri.UserNamespace(mode=cri.POD, uids=[ids], gids=[ids])
    modes = pod.config.linux.security_context.namespace_options
    modes.network = cri.POD
    modes.userns_options.CopyFrom(options)
    os.mkdir(fakes.places.sandbox(pod.id))
    await fakes.netns.create_user_namespace(fakes.places.user_namespace(pod.id), uid_map="", gid_map="")
    (shared := fakes.directory / "shared").mkdir()
    config = container_config()
    config.mounts.append(
        cri.Mount(host_path=str(shared), container_path="/shared", uidMappings=[ids], gidMappings=[ids])
    )
    return config


async def test_a_container_is_a_record_a_root_file_system_and_no_process(fakes: Bundle, pod: SandboxRecord) -> None:
    config = container_config()
    config.log_path = "app/0.log"
    record = await created(fakes, pod, config)

    assert record.state is ContainerState.CREATED
    assert (record.sandbox_id, record.name) == (pod.id, f"{pod.name}/app/0")
    assert (record.image_id, record.image_ref) == (APP.id, APP.repo_digests[0])
    assert record.user == (7, 7, 7), "the image's user, as its own files have it"
    assert record.log_path == f"{pod.config.log_directory}/app/0.log"
    container = fakes.runtime.containers[record.id]
    assert container.snapshot_key == record.id
    assert container.labels["io.kubernetes.container.name"] == "app"
    assert container.labels["sandboxd.io/sandbox"] == pod.id
    assert spec(fakes, record)["process"]["args"] == ["/bin/app"]
    assert fakes.left() == [f"container {record.id}", f"snapshot {record.id}"]


@pytest.mark.parametrize("path", ["/app/0.log", "//app/./0.log/", "x/../app/0.log"])
async def test_a_log_path_is_below_the_pods_directory_however_it_is_written(
    fakes: Bundle, pod: SandboxRecord, path: str
) -> None:
    config = container_config()
    config.log_path = path

    assert (await created(fakes, pod, config)).log_path == f"{pod.config.log_directory}/app/0.log"


@pytest.mark.parametrize("directory", ["/logs", ""])
async def test_a_container_that_does_not_say_where_it_logs_does_not_log(
    fakes: Bundle, pod: SandboxRecord, directory: str
) -> None:
    pod.config.log_directory = directory

    assert (await created(fakes, pod)).log_path == ""


async def test_the_record_is_there_before_anything_else_is(fakes: Bundle, pod: SandboxRecord) -> None:
    fakes.points.hang(Point("images.prepare_rootfs", 0))
    request = asyncio.create_task(created(fakes, pod))
    await fakes.points.hangs.wait()

    assert record_of(fakes).state is ContainerState.CREATING
    assert fakes.left() == []
    fakes.points.release()
    await request


async def test_a_container_is_created_once_containerd_knows_it_and_not_before(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    fakes.points.hang(Point("runtime.create_container", 0), after=True)
    request = asyncio.create_task(created(fakes, pod))
    await fakes.points.hangs.wait()

    assert record_of(fakes).id in fakes.runtime.containers
    assert record_of(fakes).state is ContainerState.CREATING
    fakes.points.release()
    assert (await request).state is ContainerState.CREATED


async def test_the_same_request_again_gives_the_same_container(fakes: Bundle, pod: SandboxRecord) -> None:
    first = await created(fakes, pod)
    left = fakes.left()

    assert await created(fakes, pod) == first
    assert fakes.left() == left


async def test_the_same_request_at_the_same_time_makes_one_container(fakes: Bundle, pod: SandboxRecord) -> None:
    first, second = await asyncio.gather(created(fakes, pod), created(fakes, pod))

    assert first == second
    assert list(fakes.runtime.containers) == [first.id]


async def test_the_same_request_at_the_same_time_is_one_attempt_whose_failure_is_everybodys(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    fakes.points.fail(Point("runtime.create_container", 0), Unavailable("containerd is away"))
    answers = await asyncio.gather(created(fakes, pod), created(fakes, pod), return_exceptions=True)

    assert [str(answer) for answer in answers] == ["containerd is away"] * 2
    assert fakes.left() == []


async def test_another_container_of_the_name_is_refused_and_the_first_one_stays(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    first = await created(fakes, pod)
    left = fakes.left()
    other = container_config()
    other.command.append("/bin/other")

    with pytest.raises(AlreadyExists, match=f"{first.name} exists as {first.id}; remove it first"):
        await created(fakes, pod, other)
    assert record_of(fakes) == first
    assert fakes.left() == left


async def test_the_name_of_a_container_that_has_ended_is_taken_until_it_is_removed(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    """Returning its id would answer a request for a new container with one that will never run."""
    first = await created(fakes, pod)
    fakes.node.ledger.update_container(first.id, started_at=2, finished_at=3)

    with pytest.raises(AlreadyExists, match="remove it first"):
        await created(fakes, pod)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda config: config.metadata.ClearField("name"), InvalidRequest, r"config\.metadata\.name"),
        (lambda config: setattr(config.image, "image", "gone"), NotFound, "'gone' is not on this machine"),
        (lambda config: setattr(config, "stop_signal", 999), InvalidRequest, r"config\.stop_signal: 999 is not"),
        (
            lambda config: config.mounts.add(container_path="/m", image=cri.ImageSpec(image="gone"), readonly=True),
            NotFound,
            "'gone' is not on this machine",
        ),
        (
            lambda config: setattr(config.linux.security_context, "run_as_username", "nobody-here"),
            InvalidRequest,
            "nobody-here",
        ),
    ],
    ids=["invalid", "no-image", "no-signal", "no-mounted-image", "no-user"],
)
async def test_a_request_that_is_refused_leaves_nothing(
    fakes: Bundle, pod: SandboxRecord, change: Change, error: type[SandboxdError], words: str
) -> None:
    change(config := container_config())

    with pytest.raises(error, match=words):
        await created(fakes, pod, config)
    assert not fakes.node.ledger.containers
    assert fakes.left() == []


async def test_a_pod_that_does_not_exist_or_run_takes_no_container(fakes: Bundle, pod: SandboxRecord) -> None:
    with pytest.raises(NotFound, match="pod nowhere does not exist"):
        await create_container(fakes.node, "nowhere", container_config())
    fakes.node.ledger.update_sandbox(pod.id, exited_at=2)
    with pytest.raises(NotReady, match=pod.id):
        await created(fakes, pod)

    assert not fakes.node.ledger.containers
    assert fakes.left() == []


async def test_what_a_failed_attempt_could_not_undo_keeps_its_record_and_the_next_one_clears_it(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    fakes.points.fail_always("images.remove_rootfs", Unavailable("containerd is away"))
    wrong = container_config()
    wrong.linux.security_context.run_as_username = "nobody-here"
    with pytest.raises(InvalidRequest, match="nobody-here") as caught:
        await created(fakes, pod, wrong)
    assert caught.value.__notes__ == ["cleaning up: containerd is away"]
    left = record_of(fakes)
    assert left.state is ContainerState.CREATING
    assert fakes.left() == [f"snapshot {left.id}"]

    fakes.points.reset()
    second = await created(fakes, pod)
    assert record_of(fakes) == second
    assert fakes.left() == [f"container {second.id}", f"snapshot {second.id}"]


@pytest.mark.parametrize(
    ("asked", "of_image", "signal"),
    [
        (cri.RUNTIME_DEFAULT, "", ""),
        (cri.RUNTIME_DEFAULT, "SIGQUIT", "SIGQUIT"),
        (cri.RUNTIME_DEFAULT, "SIGNOPE", "SIGTERM"),
        (cri.SIGUSR1, "SIGQUIT", "SIGUSR1"),
        (cri.SIGRTMINPLUS3, "", "SIGRTMIN+3"),
        (cri.SIGRTMAXMINUS1, "", "SIGRTMAX-1"),
    ],
)
async def test_the_stop_signal_is_the_requests_or_the_images_and_one_that_nobody_knows_is_sigterm(
    fakes: Bundle, pod: SandboxRecord, asked: cri.Signal.ValueType, of_image: str, signal: str
) -> None:
    config = with_image(fakes, {"StopSignal": of_image} if of_image else {})
    config.stop_signal = asked

    assert (await created(fakes, pod, config)).stop_signal == signal


async def test_a_volume_that_the_image_declares_has_what_the_image_has_there(
    fakes: Bundle, pod: SandboxRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: None)  # only root may
    record = await created(fakes, pod, with_image(fakes, {"Volumes": {"/data": {}}}))

    (source,) = [mount["source"] for mount in spec(fakes, record)["mounts"] if mount["destination"] == "/data"]
    assert source.startswith(fakes.places.volumes(record.id))
    assert Path(source, "file").read_text() == APP_FILES["data/file"]


async def test_a_pid_namespace_is_that_of_a_running_container_of_the_same_pod(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    target = await created(fakes, pod)
    config = container_config("debugger")
    options = config.linux.security_context.namespace_options
    options.pid, options.target_id = cri.TARGET, "nowhere"
    with pytest.raises(NotFound, match="target container nowhere does not exist in this pod"):
        await created(fakes, pod, config)
    options.target_id = target.id
    with pytest.raises(NotReady, match=f"target container {target.id} is created, not running"):
        await created(fakes, pod, config)

    await start_container(fakes.node, target.id)
    await fakes.settled()
    pid = fakes.node.ledger.containers[target.id].pid
    debugger = await created(fakes, pod, config)
    assert {"type": "pid", "path": f"/proc/{pid}/ns/pid"} in spec(fakes, debugger)["linux"]["namespaces"]
    await fakes.runtime.kill(target.id, 9)


async def test_a_container_of_another_pod_is_not_a_target(fakes: Bundle, pod: SandboxRecord) -> None:
    target = await created(fakes, pod)
    fakes.node.ledger.add_container(
        ContainerRecord(
            id="stranger",
            sandbox_id="another",
            config=container_config("stranger"),
            sandbox_name="another",
            image_ref="",
            image_id="",
            log_path="",
            created_at=1,
            started_at=2,
            pid=3,
        )
    )
    config = container_config("debugger")
    options = config.linux.security_context.namespace_options
    options.pid, options.target_id = cri.TARGET, "stranger"

    with pytest.raises(NotFound, match="stranger does not exist in this pod"):
        await created(fakes, pod, config)
    assert set(fakes.node.ledger.containers) == {target.id, "stranger"}


async def test_a_file_system_that_cannot_map_ids_fails_the_creation_and_not_the_start(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    config = await with_user_namespace(fakes, pod)
    before = fakes.left()
    fakes.points.fail(Point("kernel.mount_setattr", 0), OSError(22, "Invalid argument"))

    with pytest.raises(NotReady, match="has to support idmapped mounts"):
        await created(fakes, pod, config)
    assert not fakes.node.ledger.containers
    assert fakes.left() == before


async def test_what_is_mapped_at_the_creation_is_not_left_mounted(
    fakes: Bundle, pod: SandboxRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: None)  # only root may
    config = await with_user_namespace(fakes, pod)
    record = await created(fakes, pod, config)

    (source,) = [mount["source"] for mount in spec(fakes, record)["mounts"] if mount["destination"] == "/shared"]
    assert source == f"{fakes.places.stage(record.id)}/mount-0"
    assert fakes.points.count("kernel.move_mount") > 0
    assert not fakes.kernel.mounts
    assert not os.path.exists(fakes.places.stage(record.id))

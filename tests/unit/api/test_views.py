"""Records become exactly the messages that CRI and the host API promise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.api import views
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, ImageRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.steps import Act, PluginExecution, StepRecord

POD = cri.PodSandboxMetadata(name="web", namespace="shop", uid="u1", attempt=2)
NAMESPACES = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.NODE)
SANDBOX = SandboxRecord(
    id="a" * 64,
    config=cri.PodSandboxConfig(
        metadata=POD,
        labels={"app": "web"},
        annotations={"note": "x"},
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(namespace_options=NAMESPACES)
        ),
    ),
    runtime_handler="crun",
    netns_path="/n",
    created_at=11,
    started_at=12,
    ips=("10.0.0.2", "fd00::2", "10.1.0.2"),
)
CONTAINER = ContainerRecord(
    id="b" * 64,
    sandbox_id=SANDBOX.id,
    config=cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="nginx", attempt=3),
        image=cri.ImageSpec(image="nginx:1", user_specified_image="nginx"),
        labels={"tier": "front"},
        annotations={"note": "y"},
        mounts=[cri.Mount(container_path="/c", host_path="/h", readonly=True)],
    ),
    sandbox_name=SANDBOX.name,
    image_ref="nginx@sha256:1",
    image_id="sha256:2",
    log_path="/var/log/0.log",
    created_at=21,
)
EXECUTION = PluginExecution(
    command="ADD",
    binary="/opt/cni/bin/bridge",
    env={"CNI_COMMAND": "ADD"},
    stdin=b"\xff{}",
    stdout=b"\x00",
    stderr=b"no",
    exit_code=-9,
    duration=3,
    timed_out=True,
    ended_by="sandboxd",
)
STEP = StepRecord(
    operation="RunPodSandbox",
    name="cni.add",
    sandbox_id=SANDBOX.id,
    container_id="c",
    started_at=5,
    duration=6,
    error="bridge: no",
    detail={"path": "/n"},
)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, cri.SANDBOX_READY),
        ({"started_at": 0}, cri.SANDBOX_NOTREADY),
        ({"exited_at": 13}, cri.SANDBOX_NOTREADY),
        ({"stopped_at": 13}, cri.SANDBOX_NOTREADY),
        ({"failure": "no"}, cri.SANDBOX_NOTREADY),
    ],
)
def test_a_sandbox_is_ready_or_it_is_not(changes: dict[str, Any], state: int) -> None:
    record = replace(SANDBOX, **changes)

    assert views.sandbox(record).state == views.sandbox_status(record).state == state


def test_a_sandbox_in_the_list() -> None:
    assert views.sandbox(SANDBOX) == cri.PodSandbox(
        id=SANDBOX.id,
        metadata=POD,
        state=cri.SANDBOX_READY,
        created_at=11,
        labels={"app": "web"},
        annotations={"note": "x"},
        runtime_handler="crun",
    )


def test_a_sandboxs_status() -> None:
    assert views.sandbox_status(SANDBOX) == cri.PodSandboxStatus(
        id=SANDBOX.id,
        metadata=POD,
        state=cri.SANDBOX_READY,
        created_at=11,
        network=cri.PodSandboxNetworkStatus(
            ip="10.0.0.2", additional_ips=[cri.PodIP(ip="fd00::2"), cri.PodIP(ip="10.1.0.2")]
        ),
        linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=NAMESPACES)),
        labels={"app": "web"},
        annotations={"note": "x"},
        runtime_handler="crun",
    )


@pytest.mark.parametrize("changes", [{"ips": ()}, {"stopped_at": 13}])
def test_a_sandbox_without_a_network_has_no_address_but_the_field_is_set(changes: dict[str, Any]) -> None:
    status = views.sandbox_status(replace(SANDBOX, **changes))

    assert status.HasField("network")
    assert status.network == cri.PodSandboxNetworkStatus()


def test_a_sandbox_whose_pause_container_ended_still_shows_the_address_that_it_holds() -> None:
    assert views.sandbox_status(replace(SANDBOX, exited_at=13)).network.ip == "10.0.0.2"


def test_a_container_in_the_list() -> None:
    assert views.container(CONTAINER) == cri.Container(
        id=CONTAINER.id,
        pod_sandbox_id=SANDBOX.id,
        metadata=CONTAINER.config.metadata,
        image=CONTAINER.config.image,
        image_ref="nginx@sha256:1",
        image_id="sha256:2",
        state=cri.CONTAINER_CREATED,
        created_at=21,
        labels={"tier": "front"},
        annotations={"note": "y"},
    )


ENDED: dict[str, Any] = {
    "started_at": 22,
    "finished_at": 23,
    "exit_code": 137,
    "reason": "OOMKilled",
    "message": "too large",
}


def test_a_containers_status_once_it_has_ended() -> None:
    assert views.container_status(replace(CONTAINER, **ENDED)) == cri.ContainerStatus(
        id=CONTAINER.id,
        metadata=CONTAINER.config.metadata,
        state=cri.CONTAINER_EXITED,
        created_at=21,
        started_at=22,
        finished_at=23,
        exit_code=137,
        image=CONTAINER.config.image,
        image_ref="nginx@sha256:1",
        image_id="sha256:2",
        reason="OOMKilled",
        message="too large",
        labels={"tier": "front"},
        annotations={"note": "y"},
        mounts=CONTAINER.config.mounts,
        log_path="/var/log/0.log",
    )


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        ("", cri.RUNTIME_DEFAULT),
        ("SIGQUIT", cri.SIGQUIT),
        ("quit", cri.SIGQUIT),
        ("3", cri.SIGQUIT),
        ("SIGCLD", cri.SIGCLD),
        ("17", cri.SIGCHLD),
        ("rtmin+3", cri.SIGRTMINPLUS3),
        ("SIGRTMAX-14", cri.SIGRTMAXMINUS14),
        ("64", cri.SIGRTMAX),
        ("32", cri.RUNTIME_DEFAULT),
        ("SIGNOPE", cri.RUNTIME_DEFAULT),
        ("RUNTIME_DEFAULT", cri.RUNTIME_DEFAULT),
    ],
)
def test_a_containers_status_has_its_stop_signal(text: str, signal: int) -> None:
    assert views.container_status(replace(CONTAINER, stop_signal=text)).stop_signal == signal


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, cri.CONTAINER_CREATED),
        ({"started_at": 22}, cri.CONTAINER_RUNNING),
        (ENDED, cri.CONTAINER_EXITED),
        ({"finished_at": 23}, cri.CONTAINER_EXITED),
    ],
)
def test_a_containers_state_is_the_same_in_the_list_and_in_its_status(changes: dict[str, Any], state: int) -> None:
    record = replace(CONTAINER, **changes)

    assert views.container(record).state == views.container_status(record).state == state


def test_a_container_that_has_not_ended_gives_no_reason() -> None:
    assert views.container_status(replace(CONTAINER, started_at=22, reason="OOMKilled")).reason == ""


IMAGE = ImageRecord(
    id="sha256:2",
    names=("docker.io/library/nginx:1",),
    repo_tags=("docker.io/library/nginx:1",),
    repo_digests=("docker.io/library/nginx@sha256:1",),
    size=123,
    username="",
    uid=None,
    pinned=True,
    chain_id="sha256:3",
    config={},
    digest="sha256:1",
)


@pytest.mark.parametrize(
    ("changes", "uid", "username"),
    [
        ({}, None, ""),
        ({"uid": 0}, cri.Int64Value(value=0), ""),
        ({"uid": 101}, cri.Int64Value(value=101), ""),
        ({"username": "www"}, None, "www"),
    ],
)
def test_an_image_names_its_user_by_number_or_by_name(
    changes: dict[str, Any], uid: cri.Int64Value | None, username: str
) -> None:
    """User 0 is a user: leaving the field out would say that there is none."""
    image = views.image(replace(IMAGE, **changes))

    assert image == cri.Image(
        id="sha256:2",
        repo_tags=IMAGE.repo_tags,
        repo_digests=IMAGE.repo_digests,
        size=123,
        uid=uid,
        username=username,
        spec=cri.ImageSpec(image="sha256:2"),
        pinned=True,
    )
    assert image.HasField("uid") is (uid is not None)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({}, {"a": "1"}, True),
        ({"a": "1"}, {"a": "1", "b": "2"}, True),
        ({"a": "1", "b": "2"}, {"a": "1"}, False),
        ({"a": "1"}, {"a": "2"}, False),
        ({"a": ""}, {}, False),
        ({"a": ""}, {"a": ""}, True),
    ],
)
def test_every_pair_of_a_selector_must_be_there_exactly(
    selector: dict[str, str], labels: dict[str, str], expected: bool
) -> None:
    assert views.labels_match(selector, labels) is expected


def test_verbose_info_is_one_json_text_without_what_is_not_known() -> None:
    info = views.info(pid=7, nothing=None, empty="", nested={"a": [1]})

    assert list(info) == ["info"]
    assert json.loads(info["info"]) == {"pid": 7, "empty": "", "nested": {"a": [1]}}


def test_a_message_as_data_keeps_the_contracts_names() -> None:
    data = views.message_dict(views.sandbox(SANDBOX))

    assert data["created_at"] == "11"
    assert data["runtime_handler"] == "crun"
    json.dumps(data)


def test_the_timeline_in_a_verbose_status_leaves_out_what_is_empty() -> None:
    plain = replace(STEP, error="", detail={})

    assert views.timeline([STEP, plain]) == [
        {
            "operation": "RunPodSandbox",
            "step": "cni.add",
            "startedAt": 5,
            "durationNs": 6,
            "error": "bridge: no",
            "detail": {"path": "/n"},
        },
        {"operation": "RunPodSandbox", "step": "cni.add", "startedAt": 5, "durationNs": 6},
    ]


def test_the_timeline_in_a_verbose_status_has_the_executions_of_plugins() -> None:
    (told,) = views.timeline([replace(STEP, plugin=EXECUTION)])
    assert told["plugin"] == {
        "command": "ADD",
        "binary": "/opt/cni/bin/bridge",
        "exitCode": -9,
        "durationNs": 3,
        "timedOut": True,
        "endedBy": "sandboxd",
        "env": {"CNI_COMMAND": "ADD"},
        "stdin": "\ufffd{}",
        "stdout": "\x00",
        "stderr": "no",
    }
    json.dumps(told)


def test_however_much_plugins_print_a_verbose_status_has_room_for_the_newest() -> None:
    loud = replace(STEP, plugin=replace(EXECUTION, stdout=b"x" * 400_000))
    told = [step["plugin"] for step in views.timeline([loud] * 400)]
    assert len(told) == 400 and len(json.dumps(told)) < 2 << 20
    assert [each.get("cut", False) for each in told[-3:]] == [True, False, False]
    assert told[0]["command"] == "ADD" and "stdout" not in told[0]


ACTS = (Act("Snapshots.Prepare", "k", 5, 6, "ALREADY_EXISTS"), Act("file", "/hosts", 7, size=0))


def test_both_apis_tell_what_a_step_changed() -> None:
    (told,) = views.timeline([replace(STEP, acts=ACTS)])
    assert told["acts"] == [
        {"what": "Snapshots.Prepare", "about": "k", "startedAt": 5, "durationNs": 6, "outcome": "ALREADY_EXISTS"},
        {"what": "file", "about": "/hosts", "startedAt": 7, "durationNs": 0, "bytes": 0},
    ]
    prepared, written = views.step(replace(STEP, acts=ACTS)).acts
    assert (prepared.what, prepared.about, prepared.outcome) == ("Snapshots.Prepare", "k", "ALREADY_EXISTS")
    assert not prepared.HasField("size") and written.HasField("size")


def test_however_much_was_done_a_verbose_status_has_room_for_the_newest() -> None:
    busy = replace(STEP, acts=ACTS * 100)
    told = [step["acts"] for step in views.timeline([busy] * 400)]
    assert len(json.dumps(told)) < 2 << 20
    assert told[0] == 200 and len(told[-1]) == 200


def test_a_step_of_the_host_api_shows_the_plugins_execution_whole() -> None:
    assert views.step(replace(STEP, plugin=EXECUTION)) == host_pb2.Step(
        operation="RunPodSandbox",
        name="cni.add",
        container_id="c",
        started_at=5,
        duration=6,
        error="bridge: no",
        detail={"path": "/n"},
        plugin=host_pb2.PluginExecution(
            command="ADD",
            binary="/opt/cni/bin/bridge",
            env={"CNI_COMMAND": "ADD"},
            stdin=b"\xff{}",
            stdout=b"\x00",
            stderr=b"no",
            exit_code=-9,
            duration=3,
            timed_out=True,
            ended_by="sandboxd",
        ),
    )


def test_a_step_without_a_plugin_has_none() -> None:
    assert not views.step(STEP).HasField("plugin")


@pytest.mark.parametrize("state", list(AttachmentState))
def test_an_attachment_of_the_host_api(state: AttachmentState) -> None:
    record = Attachment(
        sandbox_id=SANDBOX.id,
        network="net",
        ifname="eth0",
        netns_path="/n",
        state=state,
        conf_file="/etc/cni/net.d/x",
        config=b"{}",
        plugin_path="/a",
        args="",
        capability_args=b"",
        result=b"\xff",
        error="no",
        attempts=2,
    )

    assert views.attachment(record) == host_pb2.Attachment(
        network="net",
        ifname="eth0",
        state=state.value,
        conf_file="/etc/cni/net.d/x",
        config=b"{}",
        result=b"\xff",
        error="no",
        attempts=2,
    )

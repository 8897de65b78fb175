"""What is private in a request is found wherever it is, and so is what is private in what a request names."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sandboxd.api import withheld
from sandboxd.model import ContainerRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2

_CONTAINER = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="name"),
    envs=[cri.KeyValue(key="A", value=b"hunter1"), cri.KeyValue(key="B", value=b"\xffhunter2")],
    command=["mysql", "-phunter3"],
    args=["hunter4"],
    labels={"label": "public"},
    annotations={"annotation": "public"},
)
_AUTH = cri.AuthConfig(
    username="name",
    password="hunter1",
    auth=base64.b64encode(b"name:hunter2").decode(),
    server_address="public",
    identity_token="hunter3",
    registry_token="hunter4",
)


def record(container: str, pod: str, env: bytes) -> ContainerRecord:
    return ContainerRecord(
        id=container,
        sandbox_id=pod,
        sandbox_name="pod",
        config=cri.ContainerConfig(envs=[cri.KeyValue(key="A", value=env)]),
        image_ref="",
        image_id="",
        log_path="",
    )


@pytest.mark.parametrize(
    "request_",
    [
        cri.CreateContainerRequest(config=_CONTAINER),
        cri.PullImageRequest(image=cri.ImageSpec(image="public"), auth=_AUTH),
        host_pb2.PullImageRequest(image="public", auth=_AUTH),
        cri.ExecSyncRequest(cmd=["hunter1", "hunter2", "hunter3", "hunter4"]),
        cri.ExecRequest(cmd=["hunter1", "hunter2", "hunter3", "hunter4"]),
    ],
    ids=lambda value: value.DESCRIPTOR.full_name,
)
def test_values_of_variables_credentials_and_commands_are_private(request_: Any) -> None:
    found = " ".join(withheld.private(lambda: ())(request_))

    assert all(f"hunter{number}" in found for number in (1, 2, 3, 4))
    assert "public" not in found
    assert "name " not in f"{found} "


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        (cri.StartContainerRequest(container_id="c1"), {"hunter1"}),
        (cri.StartContainerRequest(container_id="c"), {"hunter1", "hunter2", "hunter3"}),
        (cri.StopPodSandboxRequest(pod_sandbox_id="p2"), {"hunter3"}),
        (cri.ListContainersRequest(), {"hunter1", "hunter2", "hunter3"}),
        (iter(()), set()),
    ],
)
def test_so_is_what_the_containers_that_a_request_names_were_given(request_: Any, found: set[str]) -> None:
    containers = [record("c1", "p1", b"hunter1"), record("c2", "p1", b"hunter2"), record("c3", "p2", b"hunter3")]

    assert set(withheld.private(lambda: containers)(request_)) == found

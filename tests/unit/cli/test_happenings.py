"""An event is told with names, also of what has gone by then; the past is what records tell."""

from __future__ import annotations

from sandboxd.cli import happenings
from sandboxd.pb.cri.v1 import api_pb2 as cri

POD, NGINX = "a" * 64, "b" * 64
META = cri.PodSandboxMetadata(name="web", namespace="shop")
NETWORK = cri.PodSandboxNetworkStatus(ip="10.0.0.2")
STATUS = cri.PodSandboxStatus(id=POD, metadata=META, created_at=10**9, network=NETWORK)
ENDED = cri.ContainerStatus(
    id=NGINX,
    metadata=cri.ContainerMetadata(name="nginx"),
    created_at=2 * 10**9,
    started_at=3 * 10**9,
    finished_at=4 * 10**9,
    exit_code=3,
    reason="Error",
)


def event(
    kind: cri.ContainerEventType.ValueType, id_: str, *containers: cri.ContainerStatus
) -> cri.ContainerEventResponse:
    return cri.ContainerEventResponse(
        container_id=id_,
        container_event_type=kind,
        created_at=1_012_000_000,
        pod_sandbox_status=STATUS,
        containers_statuses=containers,
    )


def test_an_event_of_a_pod_has_its_name_and_address() -> None:
    told = happenings.Names().happening(event(cri.CONTAINER_STARTED_EVENT, POD))
    assert told.line() == f"1970-01-01 00:00:01.012  started  pod        shop/web  {POD[:12]}  10.0.0.2"
    assert told.as_dict() == {
        "time": 1_012_000_000,
        "event": "started",
        "kind": "pod",
        "id": POD,
        "name": "shop/web",
        "detail": "10.0.0.2",
    }


def test_an_end_has_its_exit_code_and_what_is_deleted_keeps_its_name() -> None:
    names = happenings.Names()
    stopped = names.happening(event(cri.CONTAINER_STOPPED_EVENT, NGINX, ENDED))
    assert (stopped.name, stopped.detail) == ("shop/web/nginx", "exit code 3 (Error)")
    deleted = names.happening(event(cri.CONTAINER_DELETED_EVENT, NGINX))
    assert (deleted.kind, deleted.what, deleted.name) == ("container", "deleted", "shop/web/nginx")


def test_names_are_known_from_what_is_listed_and_else_said_to_be_unknown() -> None:
    pod = cri.PodSandbox(id=POD, metadata=META)
    container = cri.Container(id=NGINX, pod_sandbox_id=POD, metadata=cri.ContainerMetadata(name="nginx"))
    gone = event(cri.CONTAINER_DELETED_EVENT, NGINX)
    assert happenings.Names([pod], [container]).happening(gone).name == "shop/web/nginx"
    assert "(unknown)" in happenings.Names().happening(gone).line()


def test_the_past_is_what_the_records_tell_in_order() -> None:
    told = happenings.past([STATUS], [ENDED], {NGINX: "shop/web/nginx"})
    assert [(each.what, each.kind, each.detail) for each in told] == [
        ("created", "pod", "10.0.0.2"),
        ("created", "container", ""),
        ("started", "container", ""),
        ("stopped", "container", "exit code 3 (Error)"),
    ]
    assert {each.name for each in told} == {"shop/web", "shop/web/nginx"}

"""What is under way is told with the step that it is in; pods that come, change and go are news once."""

from __future__ import annotations

import io

from rich.console import Console

from sandboxd.cli.present import Present
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

NOW = 100 * 10**9


def pod(name: str, *, ready: bool = True) -> cri.PodSandbox:
    state = cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY
    return cri.PodSandbox(id=name * 4, metadata=cri.PodSandboxMetadata(name=name, namespace="default"), state=state)


def shown(present: Present) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(present.shown())
    return out.getvalue()


RUNNING = host.Operation(
    operation="RunPodSandbox",
    subject="default/web",
    started_at=NOW - 5 * 10**9,
    open=[
        host.Step(name="pod.network.attach", started_at=NOW - 4 * 10**9),
        host.Step(name="cni.add", started_at=NOW - 3 * 10**9, detail={"plugin": "bridge"}),
    ],
)


def test_a_request_says_what_it_waits_for_and_for_how_long() -> None:
    present = Present()
    present.look([RUNNING], [], NOW)
    row = next(line for line in shown(present).splitlines() if "RunPodSandbox" in line)
    assert " ".join(row.split()) == "RunPodSandbox default/web 5 s ADD bridge 3 s cni.add"
    (told,) = present.as_dict()["running"]
    assert (told["step"], told["waitsFor"], told["stepStartedAt"]) == ("cni.add", "ADD bridge", NOW - 3 * 10**9)


def test_one_in_no_step_waits_for_another() -> None:
    present = Present()
    present.look([host.Operation(operation="StopPodSandbox", pod_sandbox_id="ab" * 32, started_at=NOW)], [], NOW)
    assert "waits for another request" in shown(present) and "abababababab" in shown(present)


def test_pods_are_news_when_they_come_change_and_go_and_not_at_the_first_look() -> None:
    present = Present()
    present.look([], [pod("old"), pod("ends")], NOW)
    assert not present.news
    present.look([], [pod("ends", ready=False), pod("new")], NOW)
    assert [(what, each.metadata.name) for what, each in present.news] == [
        ("went", "old"),
        ("not ready", "ends"),
        ("appeared", "new"),
    ]
    assert present.as_dict()["news"][0] == {"what": "went", "id": "old" * 4, "pod": "default/old"}
    present.look([], [pod("ends", ready=False), pod("new")], NOW)
    assert not present.news and "went" in shown(present), "it is told for a while"
    assert "0 under way; 1 pods ready, 1 not ready" in shown(present)

"""A node whose resources do nothing but count, and fail when a test says so; its ledger, jobs and files are real."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sandboxd.config import Config, Daemon, Logs, Runtime
from sandboxd.containerd.tasks import Exit, Task
from sandboxd.errors import NotFound
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places
from sandboxd.remembered import Remembered

POD, CONTAINER = "pod", "container"


class Faults:
    """Which calls fail, and how; counts all of them by name ("runtime.kill")."""

    def __init__(self) -> None:
        self.raised: dict[str, BaseException] = {}
        self.calls: Counter[str] = Counter()

    def check(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.raised:
            raise self.raised[name]


class Resource:
    """Every method is a call that succeeds with the answer it was given, None without one, or fails."""

    def __init__(self, faults: Faults, name: str, **answers: Any) -> None:
        self._faults, self._name, self._answers = faults, name, answers

    def __getattr__(self, method: str) -> Any:
        async def call(*_: Any, **__: Any) -> Any:
            self._faults.check(f"{self._name}.{method}")
            answer = self._answers.get(method)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


def _runtime(faults: Faults, tasks: dict[str, Task] | None) -> Resource:
    runtime = Resource(faults, "runtime", get=NotFound("no task"), wait=Exit(code=0, at=1), list=tasks or {})
    cast(Any, runtime).processes = Resource(faults, "processes")
    return runtime


def fake_node(directory: Path, faults: Faults, tasks: dict[str, Task] | None = None) -> Node:
    """A node with its files below `directory`; containerd knows `tasks` and nothing else."""
    daemon = Daemon(root=str(directory / "root"), state=str(directory / "state"))
    config = Config(daemon=daemon, logs=Logs(), runtime=Runtime(cgroup_parent="/pods"))
    return cast(
        "Node",
        SimpleNamespace(
            config=config,
            jobs=Jobs(),
            ledger=Ledger(":memory:"),
            netns=Resource(faults, "netns"),
            network=SimpleNamespace(cni=Resource(faults, "cni")),
            runtime=_runtime(faults, tasks),
            images=Resource(faults, "images"),
            logs=Resource(faults, "logs"),
            places=Places.of(config),
            machine=SimpleNamespace(
                remembered=Remembered(), facts=None, cgroups=SimpleNamespace(oom_kills=lambda path: None)
            ),
        ),
    )


def with_pod(node: Node, *, started: bool = True) -> None:
    """Give the node a pod with a container, a network attachment and a directory for each."""
    node.ledger.add_sandbox(
        SandboxRecord(
            id=POD,
            config=cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="p", namespace="n", uid="u")),
            runtime_handler="",
            netns_path="/run/netns/pod",
            created_at=1,
            started_at=2 if started else 0,
        )
    )
    node.ledger.add_container(
        ContainerRecord(
            id=CONTAINER,
            sandbox_id=POD,
            config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c")),
            sandbox_name="",
            image_ref="",
            image_id="",
            log_path="",
            created_at=3,
        )
    )
    node.ledger.put_attachment(
        Attachment(
            sandbox_id=POD,
            network="net",
            ifname="eth0",
            netns_path="/run/netns/pod",
            state=AttachmentState.ADDED,
            conf_file="",
            config=b"{}",
            plugin_path="",
            args="",
            capability_args=b"{}",
        )
    )
    for path in (node.places.sandbox(POD), node.places.pod_files(POD), node.places.container(CONTAINER)):
        Path(path, "below").mkdir(parents=True)

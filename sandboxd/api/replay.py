"""Our own RPC that runs a recorded execution of a plugin again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandboxd import steps
from sandboxd.api import views
from sandboxd.api.lookup import Lookup
from sandboxd.errors import NotFound
from sandboxd.insight.explain import about
from sandboxd.model import subject_of
from sandboxd.node import Node
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.pods import replay
from sandboxd.steps import StepRecord


class Replay:
    """See host.proto for what the RPC promises."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lookup = Lookup(node.ledger)

    async def Replay(self, request: host_pb2.ReplayRequest, context: Any) -> host_pb2.ReplayResponse:
        for pod, source in self._sources(request):
            for step in source:
                if (step.name, step.started_at) == (request.name, request.started_at) and step.plugin is not None:
                    outcome = await replay.replay(
                        self._node, source, step, pod, in_place=request.in_place, keep=request.keep
                    )
                    return _view(step, outcome)
        reference = request.pod_sandbox_id or request.reference
        raise NotFound(
            f"no execution of a plugin is known of {reference!r} as step {request.name!r} that began at"
            f" {request.started_at}; Explain has those that are"
        )

    def _sources(self, request: host_pb2.ReplayRequest) -> Iterator[tuple[str, list[StepRecord]]]:
        """The steps of the pod, and those of each operation that a name means, with whose they are."""
        record = self._lookup.explained(request.pod_sandbox_id, request.reference)
        names = [request.pod_sandbox_id or request.reference]
        if record is not None:
            names = [record.id, subject_of(record.config.metadata)]
            yield names[-1], self._node.ledger.timeline(record.id)
        for story in about(self._node.ledger.stories(), *names):
            yield story.subject, list(story.steps)
        for running in about(steps.running(), *names):
            yield running.subject, list(running.ended)


def _view(recorded: StepRecord, outcome: replay.Replayed) -> host_pb2.ReplayResponse:
    return host_pb2.ReplayResponse(
        recorded=views.step(recorded),
        replayed=views.step(outcome.replayed) if outcome.replayed is not None else None,
        error=outcome.error,
        before=[views.step(each) for each in outcome.before],
        after=[views.step(each) for each in outcome.after],
        changed=outcome.changed,
        scratch_id=outcome.scratch_id,
        netns_path=outcome.netns_path,
        kept=outcome.kept,
        left=outcome.left,
    )

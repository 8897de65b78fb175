"""`make bench` works end to end: two pods of each party, everything measured, nothing judged by its time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1.host_pb2 import ExplainRequest
from tests.bench import goals, life, per_pod, report
from tests.bench.__main__ import SECTIONS, Plan, measure_these
from tests.bench.ground import FLAVOURS
from tests.bench.modes import REAL, UNRECORDED, detect
from tests.bench.parties import PLUGIN, Party, gathered

pytestmark = pytest.mark.e2e

LITTLE = Plan(
    rounds=1,
    crowds=((2, 2, 1),),
    sizes=(0, 2),
    idle_at=2,
    idle_seconds=0.1,
    counts=(2,),
    execs=1,
    flood_seconds=0.1,
    starts=1,
    window=1,
    calls=1,
    recorded=1,
    seconds=1.0,
)
RECORDED_KEY = {"insight": {"timeline": True}}


@pytest.fixture(scope="module")
def parties() -> Iterator[dict[str, Party]]:
    with gathered(FLAVOURS[0], detect(RECORDED_KEY), again=False, daemon=per_pod.COUNTED) as made:
        yield made


def test_everything_is_measured_and_told(parties: dict[str, Party]) -> None:
    assert set(parties) == {REAL, UNRECORDED, PLUGIN}

    found = measure_these(FLAVOURS[0], parties, REAL, LITTLE, SECTIONS)

    verdicts = goals.judge("debian", report.measured(found, frozenset({REAL})))
    figures = {v.goal.figure: v.outcome for v in verdicts}
    # Neither that many objects and pods, nor so many clients.
    not_measured = {name for name, outcome in figures.items() if outcome == goals.NOT_MEASURED}
    assert not_measured == {name for name in figures if name.endswith(("_1000", "_500", "_100"))}
    written = json.loads(json.dumps(report.document(found, verdicts)))
    assert set(written["turns"]) == {REAL, PLUGIN, "processor_seconds_a_pod"}
    assert set(written["recording"]) == {REAL, UNRECORDED, "processor_seconds_a_pod"}
    table = report.table("debian", found, verdicts)
    assert all(title in table for title in life.TITLES.values())
    drawn = report.drawn("debian", found, verdicts)
    assert all(ElementTree.fromstring(text) is not None for text in drawn.values())
    for party in parties.values():
        assert not party.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items, "a pod is left"
        assert party.account.spent().all > 0


def test_calls_to_containerd_and_commits_are_counted_by_the_rpc_that_made_them(parties: dict[str, Party]) -> None:
    party = parties[REAL]
    per_pod.counted(party)
    life.whole(party, {})

    counts = per_pod.per_pod(per_pod.counted(party)[0], 1)

    assert counts["containerd", "Tasks.Create", "RunPodSandbox"] == 1
    assert counts["process", "bridge", "RunPodSandbox"] >= 1
    for kind in ("commit", "log"):
        assert sum(number for (of, _, _), number in counts.items() if of == kind) > 0
    assert ("Tasks.Create", "2", "1", "1") in [
        (row[0], row[1], *filter(None, row[2:])) for row in per_pod.rows("containerd", counts)
    ]


def test_steps_of_a_pod_are_kept_or_not_as_configured(parties: dict[str, Party]) -> None:
    steps = {}
    for name in (REAL, UNRECORDED):
        pod, _ = life.up(parties[name])
        steps[name] = parties[name].bed.host.Explain(ExplainRequest(pod_sandbox_id=pod)).steps
        life.down(parties[name], pod)

    assert steps[REAL] and not steps[UNRECORDED]

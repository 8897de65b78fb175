"""What the suite reported is counted, explained and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import build, report, run
from tests.conformance.report import DIGEST_REASON, DIGEST_SPEC, Outcome, Run, Spec


def entry(leaf: str, state: str, message: str = "", **more: Any) -> dict[str, Any]:
    failure = {"Message": message, "Location": {"FileName": "/src/pod.go", "LineNumber": 7}} if message else {}
    given = {"ContainerHierarchyTexts": ["[k8s.io] PodSandbox", "basics"], "LeafNodeText": leaf, "LeafNodeType": "It"}
    return given | {"State": state, "RunTime": 1_500_000_000, "Failure": failure} | more


def written(directory: Path, *entries: dict[str, Any]) -> Path:
    file = directory / "report.json"
    file.write_text(json.dumps([{"SuiteConfig": {"RandomSeed": 42}, "SpecReports": entries}]), encoding="utf-8")
    return file


def run_of(*outcomes: Outcome, **more: Any) -> Run:
    specs = tuple(Spec(name=f"spec {i}", outcome=outcome, seconds=0.1) for i, outcome in enumerate(outcomes))
    return Run(title="a run", specs=specs, **more)


def test_outcomes_come_with_the_suites_own_reasons(tmp_path: Path) -> None:
    """Passed, failed where, skipped why; the framework's prefix is dropped."""
    file = written(
        tmp_path,
        entry("one", "passed"),
        entry("two", "failed", "no such pod"),
        entry("three", "skipped", "not supported"),
        entry("four", "timedout", "too slow"),
    )
    seed, specs = report.read(file)
    assert seed == 42
    assert [(spec.name, spec.outcome.value, spec.why) for spec in specs] == [
        ("PodSandbox basics one", "passed", ""),
        ("PodSandbox basics two", "failed", "failed at pod.go:7: no such pod"),
        ("PodSandbox basics three", "skipped", "not supported"),
        ("PodSandbox basics four", "failed", "timedout at pod.go:7: too slow"),
    ]
    assert specs[0].seconds == 1.5


def test_what_was_not_meant_to_run_is_not_counted(tmp_path: Path) -> None:
    """Specs out of focus, benchmarks and set-up nodes are left out; the excluded spec is said to be excluded."""
    file = written(
        tmp_path,
        entry("out of focus", "skipped"),
        entry("benchmark about pods", "skipped", "number is 0"),
        entry("", "passed", LeafNodeType="SynchronizedBeforeSuite", ContainerHierarchyTexts=None),
        entry(f"{DIGEST_SPEC} [Conformance]", "skipped"),
    )
    assert [spec.why for spec in report.read(file)[1]] == [DIGEST_REASON]


def test_a_set_up_that_failed_is_a_failure(tmp_path: Path) -> None:
    """Nothing passes silently because nothing ran."""
    node = entry("", "failed", "no socket", LeafNodeType="SynchronizedBeforeSuite", ContainerHierarchyTexts=None)
    assert [spec.outcome for spec in report.read(written(tmp_path, node))[1]] == [Outcome.FAILED]


def test_the_table_names_what_did_not_pass_everywhere() -> None:
    """A spec that one run does not have at all is no difference."""
    passed, failed = Outcome.PASSED, Outcome.FAILED
    text = report.table([run_of(passed, failed), run_of(passed, passed), run_of(passed)])
    assert "spec 0" not in text
    assert [line.split() for line in text.splitlines() if line.startswith("spec 1")] == [
        ["spec", "1", "failed", "passed", "-"]
    ]
    assert report.closing_line([run_of(passed, failed), run_of(Outcome.SKIPPED)]) == "1 passed, 1 failed, 1 skipped"


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("sandboxd-current", run_of(*[Outcome.PASSED] * 107), ""),
        ("sandboxd-current", run_of(*[Outcome.PASSED] * 106), "at least 107"),
        ("sandboxd-debian", run_of(*[Outcome.PASSED] * 101), ""),
        ("sandboxd-debian", run_of(*[Outcome.PASSED] * 101, Outcome.FAILED), "1 failed"),
        ("sandboxd-debian", run_of(*[Outcome.PASSED] * 101, left=("+ netns x",)), "left behind"),
        ("sandboxd-debian", run_of(*[Outcome.PASSED] * 101, trouble="no report"), "no report"),
        ("sandboxd-debian+websocket", run_of(*[Outcome.PASSED] * 5), ""),
        ("sandboxd-debian+websocket", run_of(*[Outcome.PASSED] * 4), "4 of 5"),
    ],
)
def test_a_run_is_good_only_when_nothing_failed_and_enough_passed(name: str, given: Run, problem: str) -> None:
    """Skips cannot hide behind the absence of failures, nor leaks behind passes."""
    found = run.shortfall(name, given, True)
    assert problem in found
    assert bool(found) == bool(problem)


def test_without_a_toolchain_the_suite_is_skipped_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Go is needed to build the suite, so a machine without it runs none of it."""
    monkeypatch.setattr(build, "toolchain", lambda: None)
    assert run.main([]) == 0
    assert "conformance: skipped: no Go toolchain" in capsys.readouterr().out
    monkeypatch.setattr(build, "toolchain", lambda: (1, 19, 8))
    assert "1.19.8 found" in run.lacks_toolchain()

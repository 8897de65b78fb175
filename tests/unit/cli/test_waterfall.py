"""Steps as rows with bars."""

from __future__ import annotations

import pytest

from sandboxd.cli import nesting
from sandboxd.cli.waterfall import Scale, legend, waterfall
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli import told
from tests.unit.cli.told import BEGIN, MS, Elements


def rows(steps: list[host.Step], took: int = 100, going: tuple[host.Step, ...] = ()) -> Elements:
    return Elements(waterfall(nesting.tree(steps), Scale(BEGIN, BEGIN + took * MS), going))


def bars(found: Elements) -> list[tuple[str | None, str | None]]:
    return [(each["x"], each["width"]) for each in found.all("rect")]


def test_a_bar_begins_and_ends_where_its_step_does() -> None:
    found = rows([told.step("pod.run", 0, 100), told.step("pod.pause.start", 25, 50)])
    assert bars(found) == [("0.000%", "100.000%"), ("25.000%", "50.000%")]


def test_a_very_short_step_at_the_end_is_seen_and_within_the_scale() -> None:
    ((left, width),) = bars(rows([told.step("pod.pause.start", 100, 0)]))
    assert (left, width) == ("99.600%", "0.400%")


def test_parts_are_lists_within_their_whole_and_steps_at_the_same_time_are_marked() -> None:
    found = rows(list(told.running_pod().steps))
    assert [each["data-step"] for each in found.all("li")] == [
        "pod.run", "pod.netns.create", "pod.network.attach", "cni.add", "cni.add", "pod.files.mount",
    ]  # fmt: skip
    assert [each["class"] for each in found.all("span", class_="what") if each["class"] != "what"] == [
        "what d0", "what d1", "what d1", "what d2", "what d2", "what d1"
    ]  # fmt: skip
    assert len(found.all("ol")) == 3 and len(found.all("span", class_="beside")) == 1
    assert len(found.all("rect", class_="whole")) == 2 and len(found.all("rect", class_="network")) == 3


def test_a_failed_step_is_marked_with_its_cause_and_what_comes_next() -> None:
    (failure,) = told.failed_pod().operations
    found = rows(list(failure.steps))
    assert [each["data-step"] for each in found.all("li", class_="failed")] == [
        "pod.run",
        "pod.network.attach",
        "cni.add",
    ]
    assert len(found.all("rect", class_="failed")) == 3 and len(found.all("b", aria_label="failed")) == 3
    assert len(found.all("p", class_="note said")) == 1  # where it began
    for text in ("bridge failed on ADD: no address", "every address is given out", "free some"):
        assert text in found.text


def test_an_execution_unfolds_to_all_that_was_given_and_said() -> None:
    found = rows([told.bridge_add(stderr=b"a warning"), told.portmap_add(exit_code=-11)])
    assert len(found.all("details", class_="raw")) == 2  # of portmap, which was given a result
    for text in (
        "/usr/lib/cni/bridge", "exit status 0, after 1 ms", "CNI_IFNAME=eth0", '"isGateway": true', '"10.0.0.2/24"',
        "a warning", "killed with SIGSEGV", "all of portmap's stdin", '"prevResult"',
    ):  # fmt: skip
        assert text in found.text, text
    assert len(found.all("summary")) == 4


def test_a_step_unfolds_to_its_calls_to_containerd_and_its_files_in_order() -> None:
    acts = [
        host.Act(what="file", about="/a/hosts", started_at=2, size=179),
        host.Act(what="Snapshots.Prepare", about="key", started_at=1, duration=MS, outcome="NOT_FOUND"),
    ]
    text = rows([told.step("pod.files.write", 0, 9, acts=acts)]).text
    assert "Snapshots.Prepare  key  1 ms  NOT_FOUND\nfile  /a/hosts  179 bytes" in text


def test_a_step_that_has_not_ended_says_so() -> None:
    waiting = told.step("cni.add", 20, 80, detail={"plugin": "odd"})
    found = rows([told.step("pod.netns.create", 0, 9), waiting], going=(waiting,))
    (row,) = found.all("li", class_="running")
    assert row["data-step"] == "cni.add" and "so far" in found.text and found.all("b", aria_label="under way")
    assert found.all("rect", class_="running")


@pytest.mark.parametrize("took", [0, 1, 7, 999, 10**6, 3 * 10**8, 86400 * 10**9, 2**63 - 1])
def test_the_scale_has_a_few_round_marks_whatever_the_time(took: int) -> None:
    ticks = Scale(0, took).ticks()
    assert 2 <= len(ticks) <= 6 and ticks[0] == 0 and ticks[-1] <= max(1, took)
    assert {str(each).rstrip("0") for each in ticks[1:2]} <= {"1", "2", "5"}


def test_the_legend_names_each_colour_and_mark() -> None:
    found = Elements(legend())
    for word in ("network", "containers", "files and images", "failed", "beside"):
        assert word in found.text

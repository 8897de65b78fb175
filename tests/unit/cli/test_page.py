"""The page that `explain --html` writes."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re

import pytest

from sandboxd.cli.page import page
from sandboxd.cli.stylesheet import STYLESHEET
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.architecture.source import words
from tests.unit.cli import told
from tests.unit.cli.told import HOSTILE, MS, NOW, Elements

ELEMENTS = words(
    """
    html head meta title style body main header section footer h1 h2 h3 h4 p b small span div dl dt dd ol ul li pre
    details summary figure figcaption svg desc rect line text
    """
)


def made(answer: host.ExplainResponse, title: str = "default/web") -> Elements:
    return Elements(page(answer, title, NOW))


@pytest.mark.parametrize(
    "answer",
    [told.running_pod(), told.failed_pod(), told.pod_under_way(), told.hostile_pod(), host.ExplainResponse()],
    ids=["running", "failed", "under way", "hostile", "empty"],
)
def test_it_stands_alone_whatever_it_tells(answer: host.ExplainResponse) -> None:
    found = made(answer, HOSTILE)
    assert {name for name, _ in found.elements} <= ELEMENTS
    attributes = {key for _, each in found.elements for key in each}
    assert not {key for key in attributes if key.startswith("on")} | (attributes & {"href", "src", "style", "action"})


def test_every_hostile_text_is_there_to_be_read_with_its_control_characters_written_out() -> None:
    text = made(told.hostile_pod(), HOSTILE).text
    assert text.count("<script>alert(1)</script>") > 50
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b" in text


def test_its_policy_allows_its_own_stylesheet_and_nothing_else() -> None:
    (policy,) = made(told.running_pod()).all("meta", http_equiv="Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(STYLESHEET.encode()).digest()).decode()
    assert policy["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert f"<style>{STYLESHEET}</style>" in page(told.running_pod(), "w", NOW)


def test_headings_go_down_one_level_at_a_time() -> None:
    for answer in (told.running_pod(), told.failed_pod(), told.pod_under_way()):
        levels = [int(name[1]) for name, _ in made(answer).elements if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_pod_has_its_id_its_namespace_and_its_story() -> None:
    text = made(told.running_pod()).text
    for part in ("a" * 64, told.NETNS, "inode 77", "pid 42", "running", "RunPodSandbox", "took 100 ms", "in words"):
        assert part in text


def test_a_failure_comes_first_with_its_cause_and_the_next_step() -> None:
    found = made(told.failed_pod(), "full")
    assert found.text.index("3 times in a row") < found.text.index("every address is given out")
    assert found.text.index("every address is given out") < found.text.index("Network")
    assert "; cause: " not in found.text  # they have lines of their own
    assert "As far as it got" in found.text


def test_what_is_under_way_is_told_once_up_to_now() -> None:
    found = made(told.pod_under_way())
    assert "under way for 5 s" in found.text and "ADD portmap is under way" in found.text
    assert [each["data-step"] for each in found.all("li", class_="running")] == [
        "pod.run",
        "pod.network.attach",
        "cni.add",
    ]
    assert len([each for each in found.all("li") if each.get("data-step") == "pod.netns.create"]) == 1


def test_earlier_failures_are_folded() -> None:
    answer = told.failed_pod()
    for _ in range(2):
        answer.operations.add().CopyFrom(answer.operations[0])
    found = made(answer)
    assert found.all("details", class_="earlier") and "2 earlier failures" in found.text


def test_a_failure_without_steps_and_an_open_step_without_a_start_are_told_too() -> None:
    answer = host.ExplainResponse(
        operations=[
            host.Operation(
                operation="PullImage", subject="a", started_at=NOW - 2000 * MS, open=[host.Step(name="pod.run")]
            ),
            host.Operation(operation="PullImage", subject="b", started_at=NOW, duration=1, error="no such host"),
        ]
    )
    found = made(answer)
    assert "no such host" in found.text and "under way for 2 s" in found.text and "Network" not in found.text


def test_a_debt_is_named() -> None:
    answer = told.running_pod()
    answer.attachments.add(network="net", ifname="eth0", state="owed", error="busy", attempts=4)
    assert "Networks in trouble" in made(answer).text and "busy (DEL tried 4 times)" in made(answer).text

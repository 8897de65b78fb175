"""What each plugin changes is recorded for the pods that ask for it, and looking never fails one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from sandboxd import network_state, steps
from sandboxd.cni.invoker import unobserved
from sandboxd.config import Insight
from sandboxd.errors import PluginFailed
from sandboxd.machine import network_look
from sandboxd.machine.network_look import Subject
from sandboxd.model import Attachment, SandboxRecord
from sandboxd.network_state import HOST, POD, State, Thing
from sandboxd.places import RECORD_CHANGES
from sandboxd.pods import recording
from sandboxd.steps import StepRecord
from tests.fakes.bundle import Bundle, pod_config

ID = "e" * 64
ATTACHMENT = Attachment(
    sandbox_id=ID, network="pods", ifname="eth0", netns_path="/run/netns/x", conf_file="/c",
    config=b'{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "sbx0"}]}',
    plugin_path="/p", args="", capability_args=b"{}",
)  # fmt: skip


@pytest.fixture
def looks() -> Iterator[list[StepRecord]]:
    """The looks that are recorded."""
    seen: list[StepRecord] = []
    stop = steps.subscribe(lambda record: seen.append(record) if record.name == "cni.look" else None)
    yield seen
    stop()


def state(*names: str, place: str = HOST) -> State:
    return network_state.state([Thing(place=place, kind="link", name=name) for name in names])


def around(
    fakes: Bundle, states: list[Any], *, annotation: str = "true", verb: str = "ADD", configured: bool = False
) -> Any:
    """What plugins are run within; each look gives the next state, or raises it."""
    config = pod_config()
    if annotation:
        config.annotations[RECORD_CHANGES] = annotation
    if ID not in fakes.node.ledger.sandboxes:
        record = SandboxRecord(id=ID, config=config, runtime_handler="", netns_path="/run/netns/x", created_at=1)
        fakes.node.ledger.add_sandbox(record)

    async def look(subject: Subject) -> State:
        assert subject == Subject.of(ATTACHMENT)
        given = states.pop(0)
        if isinstance(given, Exception):
            raise given
        assert isinstance(given, State)
        return given

    node = replace(fakes.node, config=replace(fakes.config, insight=Insight(record_changes=configured)))
    return recording.around(node, ATTACHMENT, verb, look)


async def test_a_look_before_the_first_plugin_and_one_after_each(fakes: Bundle, looks: list[StepRecord]) -> None:
    within = around(fakes, [state(), state("sbx0"), state("sbx0", "other")])

    for plugin in ("bridge", "portmap"):
        async with within(plugin):
            pass

    assert [dict(each.detail) for each in looks] == [
        {"before": "bridge", "verb": "ADD"},
        {"after": "bridge", "verb": "ADD", "changes": "1"},
        {"after": "portmap", "verb": "ADD", "changes": "1"},
    ]
    assert [[(one.name, one.belongs_to) for one in each.changes] for each in looks] == [
        [],
        [("sbx0", "network")],
        [("other", "")],
    ]


async def test_what_a_plugin_that_failed_has_changed_is_recorded_and_its_error_stays(
    fakes: Bundle, looks: list[StepRecord]
) -> None:
    within, refused = (
        around(fakes, [state(), state("sbx0")]),
        PluginFailed(plugin="b", command="ADD", code=1, msg="no"),
    )

    with pytest.raises(PluginFailed) as raised:
        async with within("bridge"):
            raise refused

    assert raised.value is refused
    assert [one.name for one in looks[-1].changes] == ["sbx0"]


async def test_looking_never_fails_a_pod(fakes: Bundle, looks: list[StepRecord]) -> None:
    within = around(fakes, [state(), OSError("no netlink"), state("sbx0"), state("sbx0"), state("sbx0", "x")])

    with structlog.testing.capture_logs():
        for plugin in ("bridge", "portmap", "tuning"):
            async with within(plugin):
                pass

    assert [each.detail.get("unseen", "") for each in looks] == ["", "OSError('no netlink')", "", "", ""]
    # What bridge made is not taken for portmap's: the next plugin has a look of its own before it.
    assert [[one.name for one in each.changes] for each in looks] == [[], [], [], [], ["x"]]
    assert not any(each.error for each in looks)


async def test_what_could_not_be_read_is_noted(fakes: Bundle, looks: list[StepRecord]) -> None:
    blind = network_state.state([], {(HOST, "rule"): "iptables-save: busy", (HOST, "chain"): "iptables-save: busy"})
    async with around(fakes, [state(), blind])("bridge"):
        pass
    assert looks[-1].detail["unseen"] == "iptables-save: busy"


async def test_the_record_is_bounded_and_says_what_it_left_out(fakes: Bundle, looks: list[StepRecord]) -> None:
    many = [f"{number:03}" for number in range(recording.MOST_CHANGES + 5)]
    long = Thing(place=POD, kind="rule", name="x" * 5000, fields={"content": "y" * 5000})
    after = network_state.state([long, *state(*many).things.values()])

    async with around(fakes, [state(), after])("bridge"):
        pass

    assert len(looks[-1].changes) == recording.MOST_CHANGES and looks[-1].detail["left_out"] == "6"
    first = looks[-1].changes[0]
    assert first.after is not None
    assert len(first.name) == len(first.after["content"]) == recording.MOST_CHARACTERS + 1


async def test_a_del_is_told_by_what_the_pod_was_known_by_before(fakes: Bundle, looks: list[StepRecord]) -> None:
    ends = [
        Thing(place=POD, kind="link", name="eth0", fields={"kind": "veth"}, index=2, peer=7),
        Thing(place=HOST, kind="link", name="vethx", fields={"kind": "veth"}, index=7, peer=2),
        Thing(place=HOST, kind="qdisc", name="tbf dev vethx"),
    ]
    within = around(fakes, [network_state.state(ends), network_state.state(ends[2:]), state()], verb="DEL")

    for plugin in ("bridge", "bandwidth"):
        async with within(plugin):
            pass

    assert [(one.name, one.belongs_to) for one in looks[-1].changes] == [("tbf dev vethx", "pod")]


@pytest.mark.parametrize(
    ("annotation", "configured", "recorded"),
    [("", False, False), ("", True, True), ("true", False, True), ("false", True, False)],
)
async def test_the_pods_annotation_decides_and_without_it_the_configuration(
    fakes: Bundle, annotation: str, configured: bool, recorded: bool
) -> None:
    assert (around(fakes, [], annotation=annotation, configured=configured) is not unobserved) == recorded


async def test_a_pod_that_is_gone_has_no_record(fakes: Bundle) -> None:
    assert recording.around(fakes.node, ATTACHMENT, "DEL", network_look.look) is unobserved

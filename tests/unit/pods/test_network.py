"""An attachment is in the ledger from before its ADD until after its DEL; a DEL that fails is owed, and only that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd import steps
from sandboxd.cni.invoker import Around
from sandboxd.errors import CleanupIncomplete, InvalidRequest, NotReady, PluginFailed, TimedOut
from sandboxd.model import Attachment, AttachmentState, Owed, SandboxRecord
from sandboxd.operations import Held, hold
from sandboxd.pods import network
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines

POD = "d" * 64
ADD, DEL = Point("cni.add", 0), Point("cni.delete", 0)
REFUSED = PluginFailed(plugin="bridge", command="DEL", code=11, msg="try again later")


@pytest.fixture
async def held(fakes: Bundle) -> AsyncIterator[Held]:
    """The lock on a pod whose namespace is there."""
    path = fakes.places.network_namespace(POD)
    await fakes.netns.create(path)
    fakes.node.ledger.add_sandbox(
        SandboxRecord(id=POD, config=pod_config(), runtime_handler="", netns_path=path, created_at=1)
    )
    async with hold(fakes.node, POD) as made:
        yield made


async def attached(held: Held) -> tuple[str, ...]:
    return await network.attach(held, held.sandbox(), await network.choose(held.node))


def only(fakes: Bundle) -> Attachment:
    (attachment,) = fakes.node.ledger.attachments
    return attachment


def conf_file(fakes: Bundle) -> Path:
    return Path(fakes.config.network.conf_dir, "10-pods.conflist")


# choose


async def test_a_new_pod_gets_the_configured_network_in_a_version_that_its_plugins_speak(fakes: Bundle) -> None:
    conf_file(fakes).write_text(
        '{"cniVersions": ["0.4.0", "1.0.0"], "cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'
    )
    fakes.cni.plugins["bridge"] = frozenset({"0.4.0"})

    chosen = await network.choose(fakes.node)

    assert (chosen.name, chosen.cni_version, chosen.source) == ("pods", "0.4.0", str(conf_file(fakes)))
    assert not fakes.records() and not fakes.left()


async def test_without_a_configuration_it_says_where_one_was_looked_for(fakes: Bundle) -> None:
    conf_file(fakes).unlink()

    with pytest.raises(NotReady) as caught:
        await network.choose(fakes.node)

    directory = fakes.config.network.conf_dir
    assert str(caught.value).startswith(f"no usable network configuration in {directory}")
    assert "contains no .conf, .conflist or .json file" in str(caught.value)


async def test_a_broken_configuration_is_named_with_what_is_wrong(fakes: Bundle) -> None:
    conf_file(fakes).write_text("{")

    with pytest.raises(NotReady, match=rf"^no usable network configuration in .* \({conf_file(fakes)}: ."):
        await network.choose(fakes.node)


@pytest.mark.parametrize(
    ("plugins", "error"), [({}, NotReady), ({"bridge": frozenset({"0.1.0"})}, InvalidRequest)], ids=["missing", "old"]
)
async def test_a_network_whose_plugins_cannot_serve_it_is_not_chosen(
    fakes: Bundle, plugins: dict[str, frozenset[str]], error: type[Exception]
) -> None:
    fakes.cni.plugins = plugins

    with pytest.raises(error, match='CNI plugin "bridge"'):
        await network.choose(fakes.node)

    assert not fakes.records() and not fakes.left()


# attach


async def test_the_addresses_are_what_the_plugins_gave(fakes: Bundle, held: Held) -> None:
    assert await attached(held) == ("10.88.0.2",)

    added = only(fakes)
    assert (added.state, added.sandbox_id, added.network, added.ifname, added.error) == (
        AttachmentState.ADDED,
        POD,
        "pods",
        network.IFNAME,
        "",
    )
    assert added.pod == "default/web", "who it was must be known when the pod's record is gone"
    assert b"10.88.0.2/16" in added.result


async def test_the_step_says_which_file_was_chosen_and_why_the_others_were_not(fakes: Bundle, held: Held) -> None:
    other, broken = (conf_file(fakes).with_name(name) for name in ("20-other.conflist", "30-broken.conflist"))
    other.write_text(conf_file(fakes).read_text())
    broken.write_text("{")
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)

    await attached(held)
    stop()

    (detail,) = (each.detail for each in records if each.name == "pod.network.attach")
    assert detail["conf"] == str(conf_file(fakes))
    assert (
        f"{other}: network 'pods' comes after {conf_file(fakes)}; {broken}: not valid JSON" in detail["passed_over"]
    )


async def test_the_attachment_is_recorded_before_the_first_plugin_runs(fakes: Bundle, held: Held) -> None:
    fakes.points.hang(ADD)
    attaching = asyncio.ensure_future(attached(held))
    await fakes.points.hangs.wait()

    assert only(fakes).state is AttachmentState.ADDING
    assert not fakes.cni.attached

    fakes.points.release()
    await attaching


async def test_the_record_is_exactly_what_the_plugins_were_given(fakes: Bundle, held: Held) -> None:
    config = pod_config()
    config.port_mappings.add(container_port=80, host_port=8080)
    fakes.node.ledger.update_sandbox(POD, config=config)

    await attached(held)

    (given,) = fakes.cni.attached.values()
    assert replace(only(fakes), state=given.state, result=given.result) == given
    assert given.netns_path == held.sandbox().netns_path
    assert given.plugin_path == ":".join(fakes.config.network.plugin_dirs)
    assert b'"portMappings"' in given.capability_args
    assert held.node.places.requested_parent(held.sandbox()).encode() in given.capability_args


async def test_a_failed_add_keeps_the_last_result_that_a_plugin_was_given(fakes: Bundle, held: Held) -> None:
    """Without it, the DEL of some plugins finds nothing of what they made."""
    plugins = '[{"type": "bridge"}, {"type": "firewall"}]'
    conf_file(fakes).write_text(f'{{"cniVersion": "1.0.0", "name": "pods", "plugins": {plugins}}}')
    fakes.cni.plugins["firewall"] = fakes.cni.plugins["bridge"]
    fakes.points.fail(ADD, TimedOut("CNI plugin firewall: ADD took longer than 60 s"), after=True)

    with pytest.raises(TimedOut):
        await attached(held)

    assert only(fakes).state is AttachmentState.ADDING
    assert b"10.88.0.2/16" in only(fakes).result


@pytest.mark.parametrize("after", [False, True], ids=["before its effect", "after its effect"])
async def test_a_failed_add_stays_with_its_reason_for_teardown_to_delete(
    fakes: Bundle, held: Held, after: bool
) -> None:
    fakes.points.fail(ADD, TimedOut("CNI plugin bridge: ADD took longer than 60 s"), after=after)

    with pytest.raises(TimedOut):
        await attached(held)

    assert (only(fakes).state, only(fakes).error) == (
        AttachmentState.ADDING,
        "CNI plugin bridge: ADD took longer than 60 s",
    )
    assert await network.detach(held) == []
    assert not fakes.cni.left()


async def test_an_add_that_fails_unexpectedly_stays_as_well(fakes: Bundle, held: Held) -> None:
    fakes.points.fail(ADD, RuntimeError("a fault of ours"))

    with pytest.raises(RuntimeError):
        await attached(held)

    assert only(fakes).state is AttachmentState.ADDING


async def test_an_answer_that_cannot_be_read_fails_and_what_was_added_is_deleted(
    fakes: Bundle, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = fakes.cni.add

    async def unreadable(attachment: Attachment, handed_on: Callable[[bytes], object], around: Around) -> bytes:
        await add(attachment, handed_on)
        return b'{"cniVersion": "1.0.0", "ips": "none"}'

    monkeypatch.setattr(fakes.cni, "add", unreadable)

    with pytest.raises(PluginFailed):
        await attached(held)

    assert only(fakes).state is AttachmentState.ADDED
    assert await network.detach(held) == []
    assert not fakes.cni.left() and not fakes.node.ledger.attachments


async def test_a_pod_that_no_plugin_can_be_asked_for_is_refused_before_anything_is_recorded(
    fakes: Bundle, held: Held
) -> None:
    chosen = await network.choose(fakes.node)
    config = pod_config()
    config.annotations["kubernetes.io/ingress-bandwidth"] = "fast"

    with pytest.raises(InvalidRequest, match="ingress-bandwidth"):
        await network.attach(held, replace(held.sandbox(), config=config), chosen)

    assert not fakes.node.ledger.attachments and not fakes.cni.left()


async def test_attaching_is_a_step_that_says_which_network_and_which_addresses(fakes: Bundle, held: Held) -> None:
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    await attached(held)
    stop()

    (step,) = records
    assert (step.name, step.error) == ("pod.network.attach", "")
    assert step.detail == {"network": "pods", "conf": str(conf_file(fakes)), "ips": "10.88.0.2"}


# detach


async def test_what_was_added_is_deleted_and_leaves_the_ledger(fakes: Bundle, held: Held) -> None:
    await attached(held)

    assert await network.detach(held) == []

    assert not fakes.cni.left() and not fakes.node.ledger.attachments
    assert await network.detach(held) == [], "nothing is there any more"
    assert fakes.points.count("cni.delete") == 1


async def test_it_leaves_the_ledger_only_after_the_del(fakes: Bundle, held: Held) -> None:
    await attached(held)
    fakes.points.hang(DEL, after=True)
    detaching = asyncio.ensure_future(network.detach(held))
    await fakes.points.hangs.wait()

    assert not fakes.cni.attached
    assert only(fakes).state is AttachmentState.DELETING

    fakes.points.release()
    await detaching


async def test_a_del_is_given_what_its_add_was_whatever_became_of_the_configuration(
    fakes: Bundle, held: Held
) -> None:
    await attached(held)
    os.unlink(conf_file(fakes))
    config = pod_config()
    config.annotations["changed"] = "since"
    fakes.node.ledger.update_sandbox(POD, config=config)

    assert await network.detach(held) == []  # the fake compares

    assert not fakes.cni.left()


async def test_what_no_plugin_has_run_for_is_forgotten_without_a_del(fakes: Bundle, held: Held) -> None:
    await attached(held)
    fakes.cni.attached.clear()
    fakes.node.ledger.put_attachment(replace(only(fakes), state=AttachmentState.PLANNED))

    assert await network.detach(held) == []

    assert not fakes.node.ledger.attachments
    assert not fakes.points.count("cni.delete")


OWED = (Owed(position=0, plugin="bridge", error=str(REFUSED), attempts=1),)


@pytest.mark.parametrize(
    ("error", "words", "owed"),
    [(REFUSED, str(REFUSED), OWED), (ValueError("a fault of ours"), "unexpected ValueError: a fault of ours", ())],
    ids=["the plugin's", "unexpected"],
)
async def test_a_del_that_fails_is_a_debt_with_the_reason(
    fakes: Bundle, held: Held, log_lines: LogLines, error: Exception, words: str, owed: tuple[Owed, ...]
) -> None:
    await attached(held)
    before = only(fakes)
    fakes.points.fail(DEL, error)

    (debt,) = await network.detach(held)

    assert debt == only(fakes)
    assert debt.tried_at and debt.failed_at == debt.tried_at
    assert debt == replace(
        before,
        state=AttachmentState.OWED,
        error=words,
        attempts=1,
        tried_at=debt.tried_at,
        failed_at=debt.failed_at,
        owed=owed,
    )
    assert held.node.netns.exists(debt.netns_path), "the next attempt needs it"
    (line,) = log_lines
    assert line["pod"] == "default/web"
    assert (line["log_level"], line["sandbox"], line["network"], line["error"]) == ("warning", POD, "pods", words)
    assert line["exc_info"] is (error if isinstance(error, ValueError) else None), "whose fault is looked for"


async def test_each_attempt_is_counted_until_one_succeeds(fakes: Bundle, held: Held, log_lines: LogLines) -> None:
    await attached(held)
    fakes.points.fail_always("cni.delete", REFUSED)
    for attempts in (1, 2, 3):
        (debt,) = await network.detach(held)
        assert debt.attempts == attempts
        assert [each.attempts for each in debt.owed] == [attempts]
    assert debt.failed_at <= debt.tried_at
    assert len(log_lines) == 1, "the same failure is no news"
    fakes.points.reset()

    assert await network.detach(held) == []

    assert not fakes.node.ledger.attachments


async def test_a_del_that_fails_does_not_keep_the_others_from_theirs(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    await attached(held)
    first = only(fakes)
    second = fakes.node.ledger.put_attachment(replace(first, ifname="net1"))
    await fakes.cni.add(second)
    fakes.points.reset()
    fakes.points.fail(DEL, REFUSED)

    (debt,) = await network.detach(held)

    assert debt.ifname == "net1", "the last added is deleted first"
    assert set(fakes.cni.attached) == {(POD, "pods", "net1")}
    assert only(fakes) == debt


async def test_anothers_attachments_stay(fakes: Bundle, held: Held) -> None:
    await attached(held)
    other = fakes.node.ledger.put_attachment(replace(only(fakes), sandbox_id="e" * 64))

    await network.detach(held)

    assert only(fakes) == other


async def test_detaching_is_a_step_that_says_which_attempt_it_is(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    await attached(held)
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    fakes.points.fail(DEL, REFUSED)
    await network.detach(held)
    await network.detach(held)
    stop()

    assert [(step.name, step.sandbox_id, step.detail["attempt"], step.error) for step in records] == [
        ("pod.network.detach", POD, "1", str(REFUSED)),
        ("pod.network.detach", POD, "2", ""),
    ]


async def test_a_damaged_record_is_a_debt_of_which_the_plugins_side_hears(
    fakes: Bundle, held: Held, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the plugins that an earlier daemon left running, whatever the record says."""
    await attached(held)
    (attachment,) = fakes.node.ledger.attachments
    fakes.node.ledger.put_attachment(replace(attachment, config=b"{"))
    asked: list[str] = []
    delete = fakes.cni.delete

    async def heard(attachment: Attachment, *, without: frozenset[str], around: Around) -> tuple[Owed, ...]:
        asked.append(attachment.sandbox_id)
        return await delete(attachment, without=without)

    monkeypatch.setattr(fakes.cni, "delete", heard)

    (debt,) = await network.release(held, held.sandbox().netns_path)

    assert "not valid JSON" in debt.error
    assert asked == [held.sandbox_id]


# uninstalled plugins

CHAIN = '{"cniVersion": "1.0.0", "name": "%s", "plugins": [%s]}'


def configure(fakes: Bundle, *types: str, name: str = "pods") -> None:
    """The configuration in force names these plugins."""
    conf_file(fakes).write_text(CHAIN % (name, ", ".join(f'{{"type": "{type_}"}}' for type_ in types)))


async def gone(fakes: Bundle, held: Held) -> None:
    """A pod was attached by bridge and dataplane; then dataplane's binary was removed."""
    configure(fakes, "bridge", "dataplane")
    fakes.cni.plugins["dataplane"] = fakes.cni.plugins["bridge"]
    await attached(held)
    del fakes.cni.plugins["dataplane"]


def remove(fakes: Bundle) -> None:
    conf_file(fakes).unlink()


def remove_directory(fakes: Bundle) -> None:
    remove(fakes)
    conf_file(fakes).parent.rmdir()


@pytest.mark.parametrize(
    "uninstall",
    [
        lambda fakes: configure(fakes, "bridge"),
        lambda fakes: configure(fakes, "ptp", name="another"),
        remove,
        remove_directory,
    ],
    ids=[
        "its entry is removed",
        "another network takes its place",
        "the file is removed",
        "the directory is removed",
    ],
)
async def test_a_plugin_that_was_uninstalled_is_not_waited_for(
    fakes: Bundle, held: Held, log_lines: LogLines, uninstall: Callable[[Bundle], None]
) -> None:
    await gone(fakes, held)
    uninstall(fakes)
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)

    assert await network.release(held, held.sandbox().netns_path) == []
    stop()

    assert not fakes.node.ledger.attachments and not fakes.netns.left()
    (line,) = log_lines
    assert (line["log_level"], line["plugin"], line["pod"]) == ("warning", "dataplane", "default/web")
    (step,) = [each for each in records if each.name == "pod.network.detach"]
    assert (step.detail["uninstalled"], step.error) == ("dataplane", "")


@pytest.mark.parametrize(
    "then",
    [
        lambda fakes: None,
        lambda fakes: conf_file(fakes).write_text("{"),
        lambda fakes: configure(fakes, "bridge", "dataplane", name="renamed"),
    ],
    ids=["the file names it", "the file is broken", "another network names it"],
)
async def test_a_binary_that_may_come_back_is_waited_for(
    fakes: Bundle, held: Held, log_lines: LogLines, then: Callable[[Bundle], None]
) -> None:
    await gone(fakes, held)
    then(fakes)

    (debt,) = await network.detach(held)

    assert [(each.plugin, each.missing) for each in debt.owed] == [("dataplane", "dataplane")]
    assert fakes.netns.exists(debt.netns_path)
    fakes.cni.plugins["dataplane"] = fakes.cni.plugins["bridge"]
    assert await network.detach(held) == []


async def test_a_debt_ends_when_its_plugin_is_uninstalled_later(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    await gone(fakes, held)
    assert await network.detach(held)
    configure(fakes, "bridge")

    assert await network.release(held, held.sandbox().netns_path) == []

    assert not fakes.node.ledger.attachments and not fakes.netns.left()


async def test_a_plugin_whose_ipam_plugin_was_uninstalled_does_its_own_del_without_it(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    conf_file(fakes).write_text(CHAIN % ("pods", '{"type": "bridge", "ipam": {"type": "whereabouts"}}'))
    fakes.cni.plugins["whereabouts"] = fakes.cni.plugins["bridge"]
    await attached(held)
    del fakes.cni.plugins["whereabouts"]
    (debt,) = await network.detach(held)
    assert [(each.plugin, each.missing, each.attempts) for each in debt.owed] == [("bridge", "whereabouts", 1)]
    configure(fakes, "bridge")

    assert await network.release(held, held.sandbox().netns_path) == []

    assert not fakes.cni.undeleted, "bridge has done its DEL"
    assert log_lines[-1]["plugin"] == "whereabouts"


async def test_a_plugin_that_is_there_and_refuses_is_waited_for_although_nothing_names_it(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    await attached(held)
    remove(fakes)
    fakes.points.fail_always("cni.delete", REFUSED)

    (debt,) = await network.detach(held)

    assert debt.error == str(REFUSED)


async def test_plugins_are_also_looked_for_where_they_are_now(
    fakes: Bundle, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attached(held)
    fakes.node.ledger.put_attachment(replace(only(fakes), plugin_path="/opt/before"))
    given = []

    async def delete(attachment: Attachment, *, without: frozenset[str], around: Around) -> tuple[Owed, ...]:
        given.append(attachment.plugin_path)
        return ()

    monkeypatch.setattr(fakes.cni, "delete", delete)
    await network.detach(held)

    assert given == [":".join(("/opt/before", *fakes.config.network.plugin_dirs))]


# settle_debts


@pytest.fixture
async def owing(fakes: Bundle, held: Held, log_lines: LogLines) -> Held:
    """A pod that is removed and owes a DEL."""
    await attached(held)
    fakes.points.fail(DEL, REFUSED)
    await network.detach(held)
    fakes.node.ledger.remove_sandbox(POD)
    fakes.points.reset()
    return held


async def test_a_debt_that_is_paid_frees_the_namespace(fakes: Bundle, owing: Held) -> None:
    await network.settle_debts(owing)

    assert not fakes.node.ledger.attachments
    assert not fakes.cni.left() and not fakes.netns.left()


async def test_the_namespace_stays_when_the_del_fails_again(fakes: Bundle, owing: Held) -> None:
    fakes.points.fail_always("cni.delete", REFUSED)

    with pytest.raises(CleanupIncomplete, match="try again later"):
        await network.settle_debts(owing)

    assert fakes.netns.exists(fakes.places.network_namespace(POD))
    assert (only(fakes).state, only(fakes).attempts) == (AttachmentState.OWED, 2)


async def test_every_debt_that_cannot_be_paid_is_named(fakes: Bundle, owing: Held) -> None:
    fakes.node.ledger.put_attachment(replace(only(fakes), ifname="net1"))
    fakes.points.fail_always("cni.delete", REFUSED)

    with pytest.raises(CleanupIncomplete) as caught:
        await network.settle_debts(owing)

    assert str(caught.value) == f"{REFUSED}; {REFUSED}"


async def test_a_namespace_that_cannot_be_removed_is_left_for_another_try(fakes: Bundle, owing: Held) -> None:
    fakes.points.fail(Point("netns.remove", 0), CleanupIncomplete("it is busy"))
    with pytest.raises(CleanupIncomplete, match="it is busy"):
        await network.settle_debts(owing)
    assert (only(fakes).state, only(fakes).error) == (AttachmentState.OWED, "it is busy"), "or nobody would try again"

    await network.settle_debts(owing)

    assert not fakes.netns.left()


async def test_settling_nothing_is_no_error(fakes: Bundle, owing: Held) -> None:
    await network.settle_debts(owing)

    await network.settle_debts(owing)


async def test_a_debt_of_an_earlier_version_frees_the_namespace_that_it_names(
    fakes: Bundle, held: Held, log_lines: LogLines
) -> None:
    """Its path is not what the id gives today."""
    await fakes.netns.remove(held.sandbox().netns_path)
    earlier = f"{fakes.places.netns}/{POD}"
    await fakes.netns.create(earlier)
    fakes.node.ledger.update_sandbox(POD, netns_path=earlier)
    await attached(held)
    fakes.points.fail(DEL, REFUSED)
    await network.detach(held)
    fakes.node.ledger.remove_sandbox(POD)

    await network.settle_debts(held)

    assert not fakes.netns.left() and not fakes.node.ledger.attachments

"""A packet's way through chains of rules."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxd.insight.rulesets import Base, Packet, Rule, follow

PACKET = Packet(source="10.0.0.2", destination="203.0.113.1", iif="br0", oif="up0", port=80)


def base(policy: str = "accept", /, *rules: Rule, **chains: list[Rule]) -> Base:
    return Base(
        backend="iptables-nft",
        family=4,
        table="filter",
        name="FORWARD",
        hook="forward",
        type="filter",
        policy=policy,
        chains={"FORWARD": rules, **chains},
    )


def rule(action: str, target: str = "", /, *, vague: bool = False, **wants: Any) -> Rule:
    asked = tuple((key, tuple(value.lstrip("!").split(",")), value.startswith("!")) for key, value in wants.items())
    return Rule(text=f"rule {action}", action=action, target=target, vague=vague, wants=asked)


def asking(wants: dict[str, Any]) -> Rule:
    """One that drops what fits."""
    return rule("drop", vague=False, **wants)


def test_without_a_rule_that_fits_the_policy_decides() -> None:
    outcome = follow(base("drop", rule("accept", iif="eth9")), PACKET)

    assert (outcome.action, outcome.rule) == ("drop", "iptables-nft filter FORWARD policy drop")


def test_the_first_rule_that_fits_decides_and_is_named() -> None:
    outcome = follow(base("accept", rule("accept", iif="eth9"), rule("drop"), rule("accept")), PACKET)

    assert (outcome.action, outcome.rule) == ("drop", "iptables-nft filter FORWARD: rule drop")


@pytest.mark.parametrize(
    ("wants", "fits"),
    [
        ({"source": "10.0.0.0/24"}, True),
        ({"source": "!10.0.0.0/24"}, False),
        ({"source": "10.0.0.1-10.0.0.9"}, True),
        ({"source": "10.0.0.3-10.0.0.9"}, False),
        ({"destination": "2001:db8::/32"}, False),
        ({"iif": "br+"}, True),
        ({"iif": "br*"}, True),
        ({"iif": "b"}, False),
        ({"oif": "up0", "protocol": "tcp"}, True),
        ({"protocol": "udp"}, False),
        ({"protocol": "all"}, True),
        ({"port": "70:90"}, True),
        ({"port": "443,80"}, True),
        ({"port": "81-90"}, False),
        ({"state": "RELATED,ESTABLISHED"}, False),
        ({"state": "NEW"}, True),
        ({"type": "LOCAL"}, False),
        ({"type": "!LOCAL"}, True),
        ({"family": "4"}, True),
    ],
)
def test_what_a_rule_asks_for_is_compared(wants: dict[str, str], fits: bool) -> None:
    assert (follow(base("accept", asking(wants)), PACKET).action == "drop") is fits


def test_a_chain_that_does_not_decide_is_left_where_it_was_entered() -> None:
    inner = [rule("return", iif="br0"), rule("accept")]
    outcome = follow(base("accept", rule("jump", "inner"), rule("drop"), inner=inner), PACKET)

    assert outcome.action == "drop"


def test_a_goto_does_not_come_back() -> None:
    outcome = follow(base("accept", rule("goto", "inner"), rule("drop"), inner=[]), PACKET)

    assert outcome.action == "accept"


def test_what_is_not_understood_is_a_doubt_and_not_an_answer() -> None:
    outcome = follow(base("drop", rule("accept", vague=True)), PACKET)

    assert outcome.action == "drop"
    assert outcome.may("accept") and not outcome.may("snat")


def test_a_doubtful_jump_leads_to_doubts_only() -> None:
    outcome = follow(base("drop", rule("jump", "inner", vague=True), inner=[rule("accept")]), PACKET)

    assert (outcome.action, set(outcome.doubts)) == ("drop", {"accept"})


def test_an_interface_that_is_not_known_may_be_any() -> None:
    packet = Packet(source="10.0.0.2", destination="203.0.113.1", iif="br0")

    assert follow(base("drop", rule("accept", oif="up0")), packet).doubts == {"accept"}


def test_a_loop_that_no_kernel_would_take_ends() -> None:
    assert follow(base("drop", rule("jump", "FORWARD")), PACKET).may("accept")

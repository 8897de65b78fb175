"""Tokens: long, single-use, short-lived, bounded."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxd.errors import Exhausted, NotFound
from sandboxd.streaming.tokens import Tokens


class Source:
    """Distinct bytes and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[int] = []

    def random(self, count: int) -> bytes:
        self.asked.append(count)
        return len(self.asked).to_bytes(count, "big")

    def clock(self) -> float:
        return self.now


def tokens(source: Source, most: int = 1000) -> Tokens[str]:
    return Tokens(random=source.random, clock=source.clock, most=most)


def test_a_token_has_at_least_128_bits_in_url_safe_characters() -> None:
    """And all of them come from the random source."""
    source = Source()
    token = tokens(source).issue("x")
    assert len(base64.urlsafe_b64decode(token)) * 8 >= 128
    assert source.asked == [24]
    assert token.replace("-", "").replace("_", "").isalnum()


def test_a_token_works_once() -> None:
    """Used and unknown are told alike."""
    issued = tokens(Source())
    token = issued.issue("x")
    assert issued.redeem(token) == "x"
    with pytest.raises(NotFound) as used:
        issued.redeem(token)
    with pytest.raises(NotFound) as unknown:
        issued.redeem("never")
    assert str(used.value) == str(unknown.value)
    assert token not in str(used.value)


@pytest.mark.parametrize(("age", "works"), [(0.0, True), (59.999, True), (60.0, False), (1e9, False)])
def test_a_token_lives_a_minute(age: float, works: bool) -> None:
    """By the injected clock."""
    source = Source()
    issued = tokens(source)
    token = issued.issue("x")
    source.now += age
    assert len(issued) == works
    if works:
        assert issued.redeem(token) == "x"
    else:
        with pytest.raises(NotFound):
            issued.redeem(token)


def test_the_number_out_is_bounded_and_expiry_makes_room() -> None:
    """Exhausted says how many and what to do."""
    source = Source()
    issued = tokens(source, most=2)
    issued.issue("a")
    source.now += 30
    issued.issue("b")
    with pytest.raises(Exhausted, match="2 streaming URLs"):
        issued.issue("c")
    source.now += 30
    issued.issue("c")
    assert len(issued) == 2


def test_what_all_that_are_out_hold_is_bounded_and_use_and_expiry_make_room() -> None:
    source = Source()
    issued = Tokens[str](random=source.random, clock=source.clock, most_bytes=10)
    first = issued.issue("a", 6)
    issued.issue("b", 4)
    source.now += 30
    with pytest.raises(Exhausted, match="streaming URLs for 0 MiB"):
        issued.issue("c", 1)
    issued.issue("of nothing")
    issued.redeem(first)
    issued.issue("d", 6)
    source.now += 30  # "b" expires
    with pytest.raises(Exhausted):
        issued.issue("e", 5)
    issued.issue("e", 4)


@given(st.text(max_size=40), st.integers(0, 31))
def test_what_was_not_given_out_is_not_found(guess: str, at: int) -> None:
    """A token with a character changed is as unknown as any other text, and the token itself stays good."""
    issued = tokens(Source())
    token = issued.issue("x")
    for wrong in (guess, token[:at], token[:at] + guess + token[at + 1 :], token + guess):
        if wrong != token:
            with pytest.raises(NotFound):
                issued.redeem(wrong)
    assert issued.redeem(token) == "x"


class TokensMachine(RuleBasedStateMachine):
    """Against the obvious model: a dictionary with ages."""

    def __init__(self) -> None:
        super().__init__()
        self.source = Source()
        self.tokens = tokens(self.source, most=3)
        self.model: dict[str, float] = {}

    def alive(self) -> list[str]:
        return [token for token, born in self.model.items() if self.source.now - born < 60]

    @rule()
    def issue(self) -> None:
        if len(self.alive()) == 3:
            with pytest.raises(Exhausted):
                self.tokens.issue("x")
        else:
            self.model[self.tokens.issue("x")] = self.source.now

    @precondition(lambda self: self.model)
    @rule()
    def redeem(self) -> None:
        token = next(iter(self.model))
        if token in self.alive():
            assert self.tokens.redeem(token) == "x"
        else:
            with pytest.raises(NotFound):
                self.tokens.redeem(token)
        del self.model[token]

    @rule()
    def wait(self) -> None:
        self.source.now += 25

    @invariant()
    def counts_what_is_alive(self) -> None:
        assert len(self.tokens) == len(self.alive()) <= 3


TestTokensMachine = TokensMachine.TestCase

"""What is told of an error: where it came from, briefly, and nothing that was private."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from sandboxd import disclosure, errors
from sandboxd.disclosure import LEFT_OUT
from sandboxd.pb.cri.v1 import api_pb2 as cri

SECRET = "hunter2-correct horse"


def told(error: BaseException) -> str:
    return disclosure.traceback_of((type(error), error, error.__traceback__))


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as exc:
        return exc
    raise AssertionError("nothing was raised")


def fail_with_a_local() -> NoReturn:
    password = SECRET
    raise ValueError(f"{len(password)} characters are too many")


def test_a_traceback_names_places_and_no_values() -> None:
    text = told(raised(fail_with_a_local))

    assert text.startswith("Traceback (most recent call last):\n")
    assert "in fail_with_a_local" in text
    assert text.endswith("ValueError: 21 characters are too many")
    assert SECRET not in text


def test_a_recursion_is_told_by_its_two_ends() -> None:
    def deeper() -> None:
        deeper()

    text = told(raised(deeper))

    assert "frames left out]" in text
    assert text.count("in deeper") <= disclosure.FIRST_FRAMES + disclosure.LAST_FRAMES
    assert text.endswith("RecursionError: maximum recursion depth exceeded")


def test_causes_come_first_and_a_long_chain_is_cut_off() -> None:
    def act() -> None:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise errors.NotReady("then") from exc

    text = told(raised(act))
    chain = ValueError("0")
    for number in range(1, 200):
        following = ValueError(str(number))
        following.__cause__, chain = chain, following

    assert text.index("KeyError: 'first'") < text.index("the direct cause") < text.index("errors.NotReady: then")
    assert told(chain).count("ValueError") <= disclosure.MAX_CAUSES + 1
    assert "further causes are left out" in told(chain)


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert told(one).count("ValueError") == 2


def test_some_of_a_group_are_told() -> None:
    inner = ExceptionGroup("inner", [ValueError(str(number)) for number in range(100)])

    text = told(ExceptionGroup("outer", [inner, inner]))

    assert "+ 2 of 2:" in text
    assert "+ 4 of 100:" in text
    assert "+ 5 of 100:" not in text


def test_a_message_is_cut_off_and_an_error_that_cannot_speak_has_its_name() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    assert len(told(ValueError("x" * 10_000_000))) < 2 * disclosure.MAX_MESSAGE_CHARS
    assert disclosure.words(Mute()) == "Mute"


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeyError(SECRET),
        lambda: ValueError(f"invalid literal for int() with base 10: {SECRET!r}"),
        lambda: RuntimeError(cri.KeyValue(key="A", value=SECRET.encode())),
        lambda: RuntimeError({"A": SECRET}),
        lambda: OSError(2, "No such file", SECRET),
    ],
)
def test_what_is_private_is_not_in_the_words_of_an_unexpected_error(make: Callable[[], Exception]) -> None:
    disclosure.withhold(lambda: (SECRET,))
    error = make()
    error.add_note(f"while reading {SECRET}")

    assert SECRET in str(error)
    assert SECRET not in disclosure.words(error)
    assert SECRET not in told(error)
    assert LEFT_OUT in disclosure.words(error)


@pytest.mark.parametrize("secret", ["quo\"te's", "tab\there", "größer-Ü", "back\\slash", "new\nline"])
def test_a_secret_is_recognized_however_it_is_spelled(secret: str) -> None:
    disclosure.withhold(lambda: (secret,))
    message = cri.KeyValue(key="A", value=secret.encode())

    for error in (KeyError(secret), ValueError(secret.encode()), ValueError(message), ValueError([secret])):
        assert LEFT_OUT in disclosure.words(error)


def test_a_secret_across_the_edge_of_what_is_told_is_not_told_in_part() -> None:
    disclosure.withhold(lambda: (SECRET,))

    assert "hunter2" not in disclosure.words(ValueError("x" * (disclosure.MAX_MESSAGE_CHARS - 9) + SECRET))
    assert "hunter2" not in disclosure.words(ValueError("x" * (2 * disclosure.MAX_MESSAGE_CHARS - 9) + SECRET))


def test_texts_of_a_few_characters_are_left_alone() -> None:
    disclosure.withhold(lambda: ("", "a", "no"))

    assert disclosure.words(ValueError("no banana")) == "no banana"


async def test_what_is_private_in_a_call_is_so_in_the_jobs_it_starts_and_nowhere_else() -> None:
    async def call(private: str) -> list[str]:
        disclosure.withhold(lambda: (private,))

        async def job() -> str:
            return disclosure.words(ValueError("hunter1 hunter2"))

        return [await asyncio.create_task(job()), disclosure.words(ValueError("hunter1 hunter2"))]

    calls = (asyncio.create_task(call("hunter1")), asyncio.create_task(call("hunter2")))

    assert [*await asyncio.gather(*calls)] == [[f"{LEFT_OUT} hunter2"] * 2, [f"hunter1 {LEFT_OUT}"] * 2]


def test_the_number_of_texts_that_are_looked_for_is_bounded() -> None:
    asked = 0

    def endless() -> object:
        nonlocal asked
        while True:
            asked += 1
            yield f"secret{asked}"

    disclosure.withhold(endless)  # type: ignore[arg-type]

    assert disclosure.words(ValueError("secret1")) == LEFT_OUT
    assert asked <= disclosure.MAX_PRIVATE + 1


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("407 url='http://user:hunter2@proxy:3128/'", f"407 url='http://{LEFT_OUT}@proxy:3128/'"),
        ("https://user:hun/ter2@10.0.0.1/x", f"https://{LEFT_OUT}@10.0.0.1/x"),
        ("http://host/path", "http://host/path"),
    ],
)
def test_the_user_part_of_a_url_is_left_out(text: str, left: str) -> None:
    assert disclosure.words(ValueError(text)) == left


def test_our_own_errors_keep_their_words() -> None:
    disclosure.withhold(lambda: ("container",))

    assert disclosure.words(errors.NotFound("container x does not exist")) == "container x does not exist"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/bin/mysql", "-phunter2"], "/bin/mysql"),
        (["g++-12"], "g++-12"),
        (["mysql -phunter2"], "the command"),
        (["PASSWORD=hunter2"], "the command"),
        ([], ""),
    ],
)
def test_of_a_command_the_program_is_shown(argv: list[str], name: str) -> None:
    assert disclosure.program(argv) == name


def test_a_runtime_that_quotes_a_whole_command_line_is_not_repeated() -> None:
    line = 'mysql -p"hunter2"'
    error = errors.NotReady(f'exec failed: exec: {line!r}: not found, also spelled mysql -p\\"hunter2\\"')

    with pytest.raises(errors.NotReady) as caught, disclosure.program_only([line]):
        raise error

    assert "hunter2" not in str(caught.value)
    with pytest.raises(errors.NotReady, match=r'exec: "mysql"'), disclosure.program_only(["mysql", "-phunter2"]):
        raise errors.NotReady('exec: "mysql": not found')


def test_a_deep_traceback_has_as_many_lines_as_a_shallow_one() -> None:
    def deep(n: int) -> None:
        if not n:
            raise ValueError("bottom")
        deep(n - 1)

    def lines(n: int) -> int:
        return len(told(raised(functools.partial(deep, n))).splitlines())

    assert lines(50) == lines(sys.getrecursionlimit() // 2)


def test_a_sentence_says_of_an_unexpected_error_that_it_is_one_and_withholds_the_same() -> None:
    disclosure.withhold(lambda: ["hunter2-secret"])
    assert disclosure.sentence(errors.NotReady("the disk is full")) == "the disk is full"
    assert disclosure.sentence(KeyError("hunter2-secret")) == "unexpected KeyError: '[withheld]'"
    assert disclosure.sentence(RecursionError()) == "unexpected RecursionError"
    assert len(disclosure.sentence(ValueError("x" * 100_000))) < 600


def test_a_sentence_can_be_written_anywhere() -> None:
    assert disclosure.sentence(ValueError("half a \ud800")) == "unexpected ValueError: half a \\ud800"


def test_the_whole_of_an_error_has_what_was_noted_on_its_way_up() -> None:
    error = errors.NotReady("no address")
    error.add_note("step cni.add")
    error.add_note("pod web")

    assert disclosure.whole(error) == "no address; step cni.add; pod web"
    assert disclosure.whole(ValueError()) == "ValueError"

"""What may be told of an error: tracebacks without values, and words without what is private.

Our own errors (`errors.SandboxdError`) say what they say on purpose, and name things instead of quoting them. Any
other error may quote whatever it met: KeyError its key, ValueError the text that it could not read, and a library a
whole message. Rules:

1. A traceback tells where, never with which values: no locals, no arguments, no `repr` of a request.
2. It is short, whatever happened: a recursion of a thousand frames, a chain of causes, a message of a megabyte.
3. A call says with `withhold` what is private in it. Wherever an error that nobody expected is put into words, in
   the call and in the jobs that it starts, that is left out; passwords in URLs are left out always.
"""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from types import TracebackType

from sandboxd.errors import SandboxdError

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

FIRST_FRAMES, LAST_FRAMES = 6, 14
MOST_CAUSES = 4
MOST_OF_A_GROUP = 4
MOST_WORDS = 8000  # characters of one error's message
MOST_OF_A_SENTENCE = 500  # characters of an error that nobody expected, where it is told in one sentence
LEAST_PRIVATE = 4  # characters; what is shorter is found everywhere and protects nothing
MOST_PRIVATE = 5000  # texts
LEFT_OUT = "[withheld]"

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+@-]{1,255}")
_USERINFO = re.compile(r"(?<=://)[^\s@]{1,1000}@(?=[\w.\[])")

_C_ESCAPES = {ord(char): f"\\{name}" for char, name in zip("\\'\"\n\r\t", "\\'\"nrt", strict=True)}

_private: ContextVar[Callable[[], Iterable[str]] | None] = ContextVar("sandboxd_private", default=None)


def withhold(private: Callable[[], Iterable[str]]) -> None:
    """From here on, in this task and what it starts, keep these texts out of what is told of unexpected errors.

    `private` is called when there is such an error, and not before.
    """
    _private.set(private)


def words(error: BaseException) -> str:
    """The error's message, fit for logs, timelines and answers; its type's name when it has none."""
    text = _message(error)
    # Cut off twice: what is private may lie across the first edge, and is not recognized there.
    return text if isinstance(error, SandboxdError) else without_private(text[: 2 * MOST_WORDS])[:MOST_WORDS]


def sentence(error: BaseException) -> str:
    """The same as one sentence that any record can hold; an error that nobody expected is called that."""
    text = _message(error)
    if not isinstance(error, SandboxdError):
        kind = type(error).__name__
        said = "" if text == kind else f": {words(error)[:MOST_OF_A_SENTENCE]}"
        text = f"unexpected {kind}{said}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def notes(error: BaseException) -> tuple[str, ...]:
    """What was noted on the error on its way up (`add_note`), as `words` would say it."""
    texts = [str(note) for note in getattr(error, "__notes__", ())]
    if isinstance(error, SandboxdError):
        return tuple(texts)
    return tuple(without_private(text[: 2 * MOST_WORDS])[:MOST_WORDS] for text in texts)


def without_private(text: str) -> str:
    """The text without what is private in this call, and without the user part of URLs."""
    text = _USERINFO.sub(f"{LEFT_OUT}@", text)
    private = _private.get()
    if private is None:
        return text
    return without(text, islice(private(), MOST_PRIVATE))


def _spellings(value: str) -> set[str]:
    """How a text looks in other texts: as it is, in a `repr`, in JSON, in a protobuf message."""
    data = value.encode("utf-8", "surrogateescape")
    # A repr escapes the quote that it is in, which depends on the rest of it.
    plain = {value, repr(f'"{value}')[2:-1], repr(data + b'"')[2:-2], value.encode("unicode_escape").decode()}
    quoted = {each.replace("'", "\\'") for each in plain} | {json.dumps(value)[1:-1]}
    return plain | quoted | {"".join(_C_ESCAPES.get(byte) or _c_escape(byte) for byte in data)}


def _c_escape(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"


def program(argv: Sequence[str]) -> str:
    """The program of a command for logs and messages, "" for none; arguments are never part of it.

    Whole command lines are given as a program by mistake, passwords and all: what is not plainly a path is not shown.
    """
    name = argv[0] if argv else ""
    return name if not name or _PLAIN_PATH.fullmatch(name) else "the command"


@contextmanager
def program_only(argv: Sequence[str]) -> Iterator[None]:
    """Around what executes a command: the words of a runtime that refuses it quote no more than `program` shows."""
    try:
        yield
    except SandboxdError as exc:
        if argv and program(argv) != argv[0]:
            exc.args = tuple(without(arg, argv[:1]) if isinstance(arg, str) else arg for arg in exc.args)
        raise


def without(text: str, values: Iterable[str]) -> str:
    """The text without the values, however they are spelled in it; those of few characters stay."""
    for value in sorted({value for value in values if len(value) >= LEAST_PRIVATE}, key=len, reverse=True):
        for spelled in sorted(_spellings(value), key=len, reverse=True):
            text = text.replace(spelled, LEFT_OUT)
    return text


def traceback_of(exc_info: ExcInfo) -> str:
    """A traceback that says where an error came from, and no values; at most some hundred lines."""
    return "\n".join(_chain(exc_info[1], exc_info[2], depth=0))


def _chain(error: BaseException, trace: TracebackType | None, depth: int) -> Iterator[str]:
    """The error after its causes, in Python's own form."""
    errors: list[tuple[BaseException, TracebackType | None, str]] = [(error, trace, "")]
    seen = {id(error)}
    while (following := _cause(errors[-1][0])) is not None and id(following[0]) not in seen:
        if len(errors) > MOST_CAUSES:
            yield "(further causes are left out)"
            break
        seen.add(id(following[0]))
        errors.append((following[0], following[0].__traceback__, following[1]))
    for each, frames, link in reversed(errors):
        yield from _one(each, frames, depth)
        if link:
            yield f"\n{link}\n"


def _cause(error: BaseException) -> tuple[BaseException, str] | None:
    if error.__cause__ is not None:
        return error.__cause__, "The above exception was the direct cause of the following exception:"
    if error.__context__ is not None and not error.__suppress_context__:
        return error.__context__, "During handling of the above exception, another exception occurred:"
    return None


def _one(error: BaseException, trace: TracebackType | None, depth: int) -> Iterator[str]:
    if trace is not None:
        yield "Traceback (most recent call last):"
        yield from _frames(trace)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message = words(error)[:MOST_WORDS]
    yield name if message == kind.__name__ else f"{name}: {message}"
    yield from notes(error)[:MOST_CAUSES]
    if isinstance(error, BaseExceptionGroup) and depth < 2:
        for number, part in enumerate(error.exceptions[:MOST_OF_A_GROUP], 1):
            yield f"+ {number} of {len(error.exceptions)}:"
            yield from (f"  {line}" for line in _chain(part, part.__traceback__, depth + 1))


def _frames(trace: TracebackType) -> Iterator[str]:
    """The first and the last frames; what is between them repeats itself as a rule."""
    places: list[tuple[str, int, str]] = []
    left_out = 0
    at: TracebackType | None = trace
    while at is not None:
        code = at.tb_frame.f_code
        places.append((code.co_filename, at.tb_lineno, code.co_name))
        if len(places) > FIRST_FRAMES + LAST_FRAMES:
            del places[FIRST_FRAMES]
            left_out += 1
        at = at.tb_next
    for number, (file, line, name) in enumerate(places):
        if left_out and number == FIRST_FRAMES:
            yield f"  [{left_out} frames left out]"
        yield f'  File "{file}", line {line}, in {name}'
        if source := linecache.getline(file, line).strip():
            yield f"    {source}"


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__

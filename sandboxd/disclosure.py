"""What may be disclosed about an error: tracebacks without values, and messages without private data.

The messages of our own errors (`errors.SandboxdError`) are deliberate: they name things instead of quoting them. Any
other error may quote its input: KeyError the key, ValueError the text that could not be parsed, a library a whole
message. Rules:

1. A traceback shows where, never with which values: no locals, no arguments, no `repr` of a request.
2. It is short, even for a recursion of a thousand frames, a chain of causes, or a message of a megabyte.
3. A call declares with `withhold` what is private in it. The messages of unexpected errors, in the call and in the
   jobs that it starts, leave that out; passwords in URLs are always left out.
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
MAX_CAUSES = 4
MAX_OF_A_GROUP = 4
MAX_MESSAGE_CHARS = 8000  # of one error
MAX_SENTENCE_CHARS = 500  # of an unexpected error that is reported in one sentence
MIN_PRIVATE_CHARS = 4  # anything shorter occurs everywhere; withholding it protects nothing
MAX_PRIVATE = 5000  # values
LEFT_OUT = "[withheld]"

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+@-]{1,255}")
_USERINFO = re.compile(r"(?<=://)[^\s@]{1,1000}@(?=[\w.\[])")

_C_ESCAPES = {ord(char): f"\\{name}" for char, name in zip("\\'\"\n\r\t", "\\'\"nrt", strict=True)}

_private: ContextVar[Callable[[], Iterable[str]] | None] = ContextVar("sandboxd_private", default=None)


def withhold(private: Callable[[], Iterable[str]]) -> None:
    """From here on, in this task and the tasks that it starts, leave these values out of unexpected errors' messages.

    `private` is called only if there is such an error.
    """
    _private.set(private)


def words(error: BaseException) -> str:
    """The error's message, fit for logs, timelines and answers; its type's name when it has none."""
    text = _message(error)
    if isinstance(error, SandboxdError):
        return text
    # Cut twice: a private value that lies across the first cut would not be recognised.
    return without_private(text[: 2 * MAX_MESSAGE_CHARS])[:MAX_MESSAGE_CHARS]


def sentence(error: BaseException) -> str:
    """The same as one sentence that any record can hold; an unexpected error is marked as such."""
    text = _message(error)
    if not isinstance(error, SandboxdError):
        kind = type(error).__name__
        message = "" if text == kind else f": {words(error)[:MAX_SENTENCE_CHARS]}"
        text = f"unexpected {kind}{message}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def notes(error: BaseException) -> tuple[str, ...]:
    """The notes on the error (`add_note`), treated as in `words`."""
    texts = [str(note) for note in getattr(error, "__notes__", ())]
    if isinstance(error, SandboxdError):
        return tuple(texts)
    return tuple(without_private(text[: 2 * MAX_MESSAGE_CHARS])[:MAX_MESSAGE_CHARS] for text in texts)


def whole(error: BaseException) -> str:
    """The error's message and the notes that were added on its way up."""
    return "; ".join((words(error), *notes(error)))


def without_private(text: str) -> str:
    """The text without this call's private values, and without the user part of URLs."""
    text = _USERINFO.sub(f"{LEFT_OUT}@", text)
    private = _private.get()
    if private is None:
        return text
    return without(text, islice(private(), MAX_PRIVATE))


def _spellings(value: str) -> set[str]:
    """The forms in which a value can appear in a text: as it is, in a `repr`, in JSON, in a protobuf message."""
    data = value.encode("utf-8", "surrogateescape")
    # A repr escapes the kind of quote that surrounds it, which depends on the rest of the string.
    plain = {value, repr(f'"{value}')[2:-1], repr(data + b'"')[2:-2], value.encode("unicode_escape").decode()}
    quoted = {spelled.replace("'", "\\'") for spelled in plain} | {json.dumps(value)[1:-1]}
    return plain | quoted | {"".join(_C_ESCAPES.get(byte) or _c_escape(byte) for byte in data)}


def _c_escape(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"


def program(argv: Sequence[str]) -> str:
    """The program of a command for logs and messages, "" for none; never its arguments.

    Users sometimes give a whole command line as the program, passwords included: only a plain path is shown.
    """
    name = argv[0] if argv else ""
    return name if not name or _PLAIN_PATH.fullmatch(name) else "the command"


@contextmanager
def program_only(argv: Sequence[str]) -> Iterator[None]:
    """Around the execution of a command: a runtime's refusal of it quotes only what `program` shows."""
    try:
        yield
    except SandboxdError as exc:
        if argv and program(argv) != argv[0]:
            exc.args = tuple(without(arg, argv[:1]) if isinstance(arg, str) else arg for arg in exc.args)
        raise


def without(text: str, values: Iterable[str]) -> str:
    """The text without the values, however they are spelled in it; very short ones are kept."""
    for value in sorted({value for value in values if len(value) >= MIN_PRIVATE_CHARS}, key=len, reverse=True):
        for spelled in sorted(_spellings(value), key=len, reverse=True):
            text = text.replace(spelled, LEFT_OUT)
    return text


def traceback_of(exc_info: ExcInfo) -> str:
    """A traceback that shows where an error came from, without values; about a hundred lines at most."""
    return "\n".join(_chain(exc_info[1], exc_info[2], depth=0))


def _chain(error: BaseException, trace: TracebackType | None, depth: int) -> Iterator[str]:
    """The error after its causes, in Python's own form."""
    errors: list[tuple[BaseException, TracebackType | None, str]] = [(error, trace, "")]
    seen = {id(error)}
    while (following := _cause(errors[-1][0])) is not None and id(following[0]) not in seen:
        if len(errors) > MAX_CAUSES:
            yield "(further causes are left out)"
            break
        seen.add(id(following[0]))
        errors.append((following[0], following[0].__traceback__, following[1]))
    for one, frames, link in reversed(errors):
        yield from _one(one, frames, depth)
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
    message = words(error)[:MAX_MESSAGE_CHARS]
    yield name if message == kind.__name__ else f"{name}: {message}"
    yield from notes(error)[:MAX_CAUSES]
    if isinstance(error, BaseExceptionGroup) and depth < 2:
        for number, part in enumerate(error.exceptions[:MAX_OF_A_GROUP], 1):
            yield f"+ {number} of {len(error.exceptions)}:"
            yield from (f"  {line}" for line in _chain(part, part.__traceback__, depth + 1))


def _frames(trace: TracebackType) -> Iterator[str]:
    """The first and the last frames; those in between usually repeat."""
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

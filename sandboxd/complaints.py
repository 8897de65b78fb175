"""Sends complaints of asyncio and libraries, warnings and uncaught errors to our log.

By themselves they would go to stderr, with the `repr` of tasks, callbacks, arguments and results, which can contain
anything that a request contained. We keep a complaint's text, the name of the task, and a traceback without values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
import threading
from typing import Any, TextIO

import structlog

from sandboxd import disclosure

log = structlog.get_logger(__name__)

# Their messages contain the reprs of objects; only the text around these is kept.
_SHOW_OBJECTS = ("asyncio", "concurrent.futures")
_MAX_CHARS = 500  # of a message
# An object in a sentence: `<Task …>`, or the arguments of a callback.
_OBJECT = re.compile(r"<.*|\((?!\)).*", re.DOTALL)
_TASK_NAME = re.compile(r"<Task \w+ name='([^']*)'")
_COROUTINE = re.compile(r"coro=<([\w.<>]+?)\(\)")


def collect() -> None:
    """Take over logging, warnings and the interpreter's hooks of this process."""
    logging.basicConfig(handlers=[_ToOurLog()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's exception handler (`loop.set_exception_handler`)."""
    about = context.get("task") or context.get("future")
    log.error(
        "asyncio reported a problem",
        message=_sentence(str(context.get("message", ""))),
        task=about.get_name() if isinstance(about, asyncio.Task) else None,
        exc_info=context.get("exception"),
    )


class Lossy:
    """A file whose disk may be full: that costs lines of the log, and not the request that is logged."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        """The same for what is buffered."""
        with contextlib.suppress(OSError):
            self._file.flush()


class _ToOurLog(logging.Handler):
    """Passes on the records of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's text to our log, without objects."""
        if record.name in _SHOW_OBJECTS:
            text, fields = _sentence(str(record.msg)), _of_slow_callback(record)
        else:
            text, fields = disclosure.without_private(record.getMessage()[: 2 * _MAX_CHARS])[:_MAX_CHARS], {}
        severity = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(log, severity)(
            "a library reported a problem", library=record.name, message=text, **fields, exc_info=_info(record)
        )


def _of_slow_callback(record: logging.LogRecord) -> dict[str, Any]:
    """What asyncio's debug mode reports about a callback that blocked the loop: how long, and which task."""
    fields: dict[str, Any] = {}
    for item in record.args if isinstance(record.args, tuple) else ():
        if isinstance(item, float):
            fields["seconds"] = round(item, 3)
        elif isinstance(item, str):
            for key, pattern in (("task", _TASK_NAME), ("coroutine", _COROUTINE)):
                if match := pattern.search(item):
                    fields[key] = match[1]
    return fields


def _info(record: logging.LogRecord) -> Any:
    return record.exc_info if record.exc_info and record.exc_info[1] is not None else None


def _sentence(text: str) -> str:
    """The text up to the first object in it."""
    return _OBJECT.sub("…", text)[:_MAX_CHARS]


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical("sandboxd ends because of an unexpected error", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    log.error("a thread ended with an error", thread=args.thread.name if args.thread else None, exc_info=error)


def _unraisable(args: Any) -> None:
    where = getattr(args.object, "__qualname__", type(args.object).__name__)
    log.error("an error could not be raised", where=where, exc_info=args.exc_value)

"""What libraries, asyncio and uncaught errors have to say is in our log, without the objects that it is about."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast

import pytest
import structlog

from sandboxd import complaints

SECRET = "hunter2-secret"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Everything that is logged while the process's complaints are collected."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook
    complaints.collect()
    try:
        with structlog.testing.capture_logs() as entries:
            yield entries
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level, sys.excepthook, threading.excepthook, sys.unraisablehook = before


async def test_a_task_that_nobody_asked_is_told_by_name_and_error(logged: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(complaints.of_loop)

    async def fail(request: str) -> None:
        raise ValueError("no")

    task = loop.create_task(fail(SECRET), name="job:x")
    await asyncio.wait((task,))
    del task
    gc.collect()

    (entry,) = logged
    assert (entry["message"], entry["task"]) == ("Task exception was never retrieved", "job:x")
    assert isinstance(entry["exc_info"], ValueError)


async def test_a_callback_that_failed_is_told_without_its_arguments(logged: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(complaints.of_loop)

    def callback(request: str) -> None:
        raise ValueError("no")

    for debug in (False, True):
        loop.set_debug(debug)
        loop.call_soon(callback, SECRET)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert len(logged) == 2
    assert all(entry["message"].startswith("Exception in callback") for entry in logged)
    assert SECRET not in str(logged)


async def test_what_held_the_loop_is_named_without_its_values(logged: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # everything is slow
    future: asyncio.Future[str] = loop.create_future()

    async def work(request: str) -> str:
        await asyncio.sleep(0)
        return request

    loop.call_soon(future.set_result, SECRET)
    await asyncio.gather(loop.create_task(work(SECRET), name="job:x"), future)
    loop.slow_callback_duration = 60.0

    slow = [entry for entry in logged if entry.get("library") == "asyncio"]
    assert {"job:x"} <= {entry.get("task") for entry in slow}
    assert all("seconds" in entry for entry in slow)
    assert SECRET not in str(logged)


def test_a_librarys_record_keeps_its_text_and_its_error(logged: list[Any]) -> None:
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("grpc._cython.cygrpc").exception("Unexpected [%s]", "KeyError")
    logging.getLogger("chatty").info("nothing")

    (entry,) = logged
    assert (entry["library"], entry["message"], entry["log_level"]) == (
        "grpc._cython.cygrpc",
        "Unexpected [KeyError]",
        "error",
    )
    assert entry["exc_info"][0] is KeyError


def test_warnings_are_logged(logged: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # under the filter of this test
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert ["old" in entry["message"] for entry in logged] == [True]


def test_errors_that_nobody_caught_are_logged(logged: list[Any]) -> None:
    error = ValueError("no")

    sys.excepthook(ValueError, error, None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    thread = threading.Thread(target=_fail, name="worker")
    thread.start()
    thread.join()
    _Unraisable()
    gc.collect()

    assert [entry["log_level"] for entry in logged] == ["critical", "error", "error"]
    assert logged[1]["thread"] == "worker"
    assert "__del__" in logged[2]["where"]
    assert SECRET not in str(logged)


def _fail() -> None:
    raise ValueError("no")


class _Unraisable:
    def __repr__(self) -> str:
        return SECRET

    def __del__(self) -> None:
        raise ValueError("no")


def test_a_log_on_a_full_disk_costs_lines_and_not_what_is_logged() -> None:
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        logger = structlog.WriteLogger(cast(TextIO, complaints.Lossy(full)))
        for _ in range(3):
            logger.msg("a line")
        with contextlib.suppress(OSError):
            full.close()

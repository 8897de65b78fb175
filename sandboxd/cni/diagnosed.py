"""Why a plugin's step failed: noted in its record, and on its error, whose notes clients see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sandboxd import steps
from sandboxd.cni.diagnosis import Failure, diagnose
from sandboxd.errors import PluginFailed, SandboxdError, TimedOut

_NAMED = re.compile(r'^CNI plugin "?([^"\s]+)')

_PANIC = re.compile(rb"^(?:panic|fatal error): ", re.MULTILINE)  # of Go, which exits with 2 then


@contextmanager
def noted(step: steps.Step, command: str) -> Iterator[None]:
    """Around what the step of a plugin does: when it fails, note the kind, the cause and what comes next.

    Cause and next step are noted where they are known, on the step and on its error.
    """
    try:
        yield
    except SandboxdError as exc:
        found = diagnose(_failure(exc, step, command))
        step.note(kind=found.kind, cause=found.cause or None, next=found.remedy or None)
        if found.cause:
            exc.add_note(f"cause: {found.cause}")
        if found.remedy:
            exc.add_note(f"next: {found.remedy}")
        raise


@contextmanager
def before_plugins(network: str = "") -> Iterator[None]:
    """Around what precedes the first plugin: when it fails, that is a step too."""
    try:
        yield
    except SandboxdError as exc:
        named = _NAMED.match(str(exc))
        plugin = named[1].rpartition("/")[2] if named else ""
        with steps.step("cni.prepare", plugin=plugin, network=network) as step, noted(step, "PREPARE"):
            raise


def _failure(exc: SandboxdError, step: steps.Step, command: str) -> Failure:
    cause = exc if isinstance(exc, PluginFailed) else exc.__cause__
    done = step.plugin
    return Failure(
        plugin=step.detail.get("plugin", ""),
        command=command,
        words=str(exc),
        code=cause.code if isinstance(cause, PluginFailed) else 0,
        exit_code=done.exit_code if done else 0,
        timed_out=isinstance(exc, TimedOut),
        panicked=done is not None and _panicked(done),
        conf=_conf(done.stdin) if done else {},
    )


def _panicked(done: steps.PluginExecution) -> bool:
    return done.exit_code == 2 and b"\ngoroutine " in done.stderr and _PANIC.search(done.stderr) is not None


def _conf(stdin: bytes) -> Mapping[str, Any]:
    """The configuration that a plugin was given."""
    try:
        conf = json.loads(stdin)
    except ValueError:
        return {}
    return conf if isinstance(conf, dict) else {}

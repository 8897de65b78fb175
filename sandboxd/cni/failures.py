"""Failed executions of plugins: which error they stand for, in the plugin's own words."""

from __future__ import annotations

import json
import re
import signal

from sandboxd.cni.strict_json import in_any_case
from sandboxd.errors import Exhausted, NotReady, PluginFailed, SandboxdError, TimedOut, Unavailable

# Error codes of the spec ("Error", table) that change what we do.
CONTAINER_UNKNOWN = 3
TRY_AGAIN = 11
NOT_AVAILABLE = (50, 51)

# The reference plugins report nearly everything as 999, so an exhausted pool is recognisable only by the message:
# of host-local, Calico, whereabouts and the AWS plugin, in this order.
EXHAUSTED = (
    r"no ip addresses available|no ips? available|could not allocate ip in range|no available ip addresses?"
    r"|(?:address|ip) (?:range|pool) (?:is )?(?:exhausted|full)"
)
_STDERR_SHOWN = 2000  # characters of stderr in a message; the timeline has all of it
_MAX_OBJECTS = 64  # on stdout, tried in search of an error


def error_from(
    stdout: bytes,
    stderr: bytes,
    exit_code: int,
    timed_out: bool,
    *,
    plugin: str,
    command: str,
    seconds: float,
) -> SandboxdError:
    """The error that a failed execution stands for, in the plugin's own words.

    `seconds` was its time limit. An exhausted address pool is Exhausted, "try again later" Unavailable, a STATUS of
    "not available" NotReady, a timeout TimedOut; these carry the PluginFailed as their cause. Everything else is
    the PluginFailed itself.
    """
    reported = error_object(stdout)
    last_words = stderr.decode(errors="replace").strip()[-_STDERR_SHOWN:]
    if not last_words and b"{" not in stdout:
        last_words = stdout.decode(errors="replace").strip()[-_STDERR_SHOWN:]  # of a shell script, for example
    if timed_out:
        failed = PluginFailed(
            plugin=plugin, command=command, code=0, msg=f"killed after {seconds:g} seconds", details=last_words
        )
        suffix = f"; its last words: {last_words}" if last_words else ""
        return _caused(
            TimedOut(
                f"CNI plugin {plugin} did not finish {command} within {seconds:g} seconds and was killed with its "
                f"children{suffix}"
            ),
            failed,
        )
    if reported is None:
        failed = PluginFailed(plugin=plugin, command=command, code=0, msg=last_words or _ending(exit_code))
    else:
        code, msg, details = reported
        failed = PluginFailed(
            plugin=plugin, command=command, code=code, msg=msg or last_words or _ending(exit_code), details=details
        )
    if failed.code == TRY_AGAIN:
        return _caused(Unavailable(f"{failed}; the plugin asks to try again later"), failed)
    if command == "STATUS" and failed.code in NOT_AVAILABLE:
        return _caused(NotReady(str(failed)), failed)
    if command == "ADD" and re.search(EXHAUSTED, f"{failed.msg} {failed.details}", re.IGNORECASE):
        return _caused(Exhausted(str(failed)), failed)
    return failed


def error_object(stdout: bytes) -> tuple[int, str, str] | None:
    """(code, msg, details) of the error object on stdout, None when there is none.

    Reference plugins that fail late print a result and then the error, so the last error object counts.
    """
    text, position = stdout.decode(errors="replace"), 0
    decoder, error = json.JSONDecoder(), None
    for _ in range(_MAX_OBJECTS):
        position = text.find("{", position)
        if position < 0:
            break
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        code, msg = in_any_case(document, "code"), _words(in_any_case(document, "msg"))
        if not isinstance(code, int) or isinstance(code, bool):
            if not msg or (error and error[0]):
                continue
            code = 0
        error = code, msg, _words(in_any_case(document, "details"))
    return error


def _words(value: object) -> str:
    # JSON can escape half of a surrogate pair; a message must be text that can be encoded.
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with status {exit_code} and said nothing"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"killed by {name}"


def _caused(error: SandboxdError, cause: PluginFailed) -> SandboxdError:
    error.__cause__ = cause
    return error

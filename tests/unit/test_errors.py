"""The error tree: what a caller may rely on."""

from __future__ import annotations

import inspect
import re

import pytest

from sandboxd import errors
from sandboxd.errors import InvalidRequest, PluginFailed, SandboxdError, Unsupported


def kinds() -> list[type[SandboxdError]]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SandboxdError)]


def test_every_error_is_in_the_picture_at_the_head_of_the_module() -> None:
    picture = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))

    assert picture == {kind.__name__ for kind in kinds()} - {"SandboxdError"}


def test_only_unsupported_is_a_special_case_of_another_error() -> None:
    assert {kind for kind in kinds() if kind.__base__ is not SandboxdError} == {SandboxdError, Unsupported}
    assert Unsupported.__base__ is InvalidRequest


@pytest.mark.parametrize(
    ("code", "details", "sentence"),
    [
        (11, "try later", "CNI plugin bridge failed on ADD: busy: try later (CNI error 11)"),
        (11, "", "CNI plugin bridge failed on ADD: busy (CNI error 11)"),
        (0, "", "CNI plugin bridge failed on ADD: busy"),
    ],
)
def test_a_failed_plugin_speaks_in_its_own_words(code: int, details: str, sentence: str) -> None:
    error = PluginFailed(plugin="bridge", command="ADD", code=code, msg="busy", details=details)

    assert str(error) == sentence
    assert (error.plugin, error.command, error.code, error.msg, error.details) == (
        "bridge",
        "ADD",
        code,
        "busy",
        details,
    )

"""What of the environment reaches the daemon, and what it hands on."""

from __future__ import annotations

import io

import pytest

from sandboxd import environment


def test_programs_that_outlive_us_get_nothing_that_ends_with_us_or_with_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "XDG_RUNTIME_DIR", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "/run/user/1000")

    passed = environment.child_environment()

    assert not passed.keys() & {"JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "XDG_RUNTIME_DIR"}
    assert passed["HTTPS_PROXY"] == "/run/user/1000"


@pytest.mark.parametrize(
    ("configured", "own", "passed"),
    [
        ("/opt/tools:/bin", "/home/me/bin", "/opt/tools:/bin"),
        ("", "/home/me/bin:/bin", "/home/me/bin:/bin"),
        ("", "", environment.DEFAULT_PATH),
        ("", None, environment.DEFAULT_PATH),
    ],
)
def test_plugins_get_the_configured_path_or_the_daemons_own(
    monkeypatch: pytest.MonkeyPatch, configured: str, own: str | None, passed: str
) -> None:
    monkeypatch.delenv("PATH")
    if own is not None:
        monkeypatch.setenv("PATH", own)

    assert environment.plugin_path(configured) == passed


def test_what_has_no_descriptor_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "0:0")
    assert not environment.is_journal(io.StringIO())

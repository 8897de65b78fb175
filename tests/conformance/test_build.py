"""The build tool decides what to build, and says why when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import build


def test_pins_are_read_from_the_module_files() -> None:
    """crictl is the one that the project promises; both modules name their toolchain."""
    assert build.wanted(build.TARGETS["crictl"]) == ((1, 26, 2), "v1.36.0")
    go, version = build.wanted(build.TARGETS["containerd"])
    assert go >= (1, 26)
    assert version.startswith("v2.")


def test_no_toolchain_is_said_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing but these tests needs Go, so its absence fails nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["--out", str(tmp_path)]) == 0
    assert "skipped: no Go toolchain" in capsys.readouterr().out


def test_an_old_toolchain_is_named_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Debian 12's own Go cannot build these modules."""
    monkeypatch.setattr(build, "toolchain", lambda: (1, 19, 8))
    assert build.main(["--out", str(tmp_path), "crictl"]) == 0
    assert "crictl skipped: Go 1.19.8 found, 1.26.2 or newer is needed" in capsys.readouterr().out


def test_programs_are_up_to_date_until_an_input_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The stamp holds a digest of the toolchain, the module files and the tool."""
    go = (1, 26, 8)
    monkeypatch.setattr(build, "toolchain", lambda: go)
    (tmp_path / "crictl").touch()
    (tmp_path / "crictl.stamp").write_text(build.inputs(build.TARGETS["crictl"], go))
    assert build.main(["--out", str(tmp_path), "crictl"]) == 0
    assert "crictl v1.36.0: up to date" in capsys.readouterr().out
    assert build.inputs(build.TARGETS["crictl"], go) != build.inputs(build.TARGETS["crictl"], (1, 26, 9))

"""How far a pull or an archive is, drawn for whoever watches."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sandboxd.cli import progress
from sandboxd.pb.host.v1 import host_pb2 as host


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def layer(number: int, stage: str, done: int = 0, total: int = 100) -> host.LayerProgress:
    return host.LayerProgress(digest=f"sha256:{number:064x}", stage=stage, done_bytes=done, total_bytes=total)


def drawn(bars: progress.LayerBars, width: int = 120) -> list[list[str]]:
    """The visible bars, as words: what it is, its stage, how much of how much."""
    console = Console(file=io.StringIO(), width=width)
    console.print(bars._bars.get_renderable())
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    return [[word for word in line if set(word) - set("━╸╺")] for line in lines]


def test_each_layer_has_a_bar_and_all_have_one() -> None:
    bars = progress.LayerBars(Console(file=io.StringIO(), height=20))
    for told in (layer(1, "wait"), layer(2, "wait"), layer(1, "fetch", 25), layer(2, "unpack")):
        bars.update(told)
    whole, first, second = drawn(bars)
    assert [whole[:2], whole[2]] == [["all", "layers"], "125/200"]
    assert first[:3] == ["000000000000", "fetch", "25/100"]
    assert second[:3] == ["000000000000", "unpack", "100/100"]


def test_a_stage_that_this_client_does_not_know_has_its_bytes() -> None:
    bars = progress.LayerBars(Console(file=io.StringIO(), height=20))
    bars.update(layer(1, "polish"))
    assert drawn(bars)[1][1:3] == ["polish", "100/100"]


def test_of_more_layers_than_lines_those_under_way_are_shown() -> None:
    bars = progress.LayerBars(Console(file=io.StringIO(), height=20))
    for number in range(30):
        bars.update(layer(number, "wait"))
    for told in (layer(7, "fetch", 1), layer(8, "fetch", 1), layer(8, "done"), layer(9, "exists")):
        bars.update(told)
    assert [line[1] for line in drawn(bars)] == ["layers", "fetch"]


def test_the_bars_come_and_go_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.layers(quiet=True) as tell:
        tell(layer(1, "fetch", 25))
    assert "fetch" in terminal.getvalue()


def test_lines_are_printed_once_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.LayerLines()
    for stage in ("wait", "fetch", "fetch", "done"):
        lines.update(layer(1, stage, total=5_000_000))
    assert capsys.readouterr().err.splitlines() == ["000000000000  fetch  5MB", "000000000000  done  5MB"]


def test_nothing_is_printed_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.layers(quiet=True) as tell:
        tell(layer(1, "fetch"))
    assert capsys.readouterr().err == ""


def test_a_transfer_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.transfer("send", 100) as report:
        report("send", 50, 0)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.transfer("send", 100) as report:
        report("verify", 50, 100)
    assert "verify" in terminal.getvalue()

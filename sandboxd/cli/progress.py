"""How far something has come, on stderr: bars if somebody watches.

One bar for the bytes of an archive; for a pull, one for each layer, or a line for each step of it where there is no
terminal to draw on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from sandboxd.cli import render
from sandboxd.pb.host.v1 import host_pb2 as host

Report = Callable[[str, int, int], None]  # what is being done, bytes done, bytes altogether (0: unknown)


@contextlib.contextmanager
def transfer(doing: str, size: int) -> Iterator[Report]:
    """A bar for `size` bytes (0: unknown), if somebody watches. It is told how far things are, and the size again."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    columns = (_column("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=size or None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(
                task, description=render.printable(stage, keep=""), completed=done, total=total or size or None
            )

        yield report


@contextlib.contextmanager
def layers(*, quiet: bool) -> Iterator[Callable[[host.LayerProgress], None]]:
    """Show where the layers of a pull are, as they are told; nothing when `quiet` without a terminal."""
    if not sys.stderr.isatty():
        yield (lambda layer: None) if quiet else LayerLines().tell
        return
    with LayerBars(Console(stderr=True)) as bars:
        yield bars.tell


def _column(template: str) -> TextColumn:
    """Text, never markup."""
    return TextColumn(template, markup=False)


class LayerLines:
    """A line whenever a layer begins something else."""

    def __init__(self) -> None:
        self._stages: dict[str, str] = {}

    def tell(self, layer: host.LayerProgress) -> None:
        """Print it, if it is news."""
        if self._stages.get(layer.digest) != layer.stage:
            self._stages[layer.digest] = layer.stage
            if layer.stage != "wait":
                digest, size = render.short_digest(layer.digest), render.size(layer.total_bytes)
                click.echo(render.printable(f"{digest}  {layer.stage}  {size}", keep=""), err=True)


class LayerBars:
    """A bar for each layer, and one for all. Of more layers than the terminal has lines, those under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (_column("{task.description:<12}"), _column("{task.fields[stage]:<6}"), BarColumn())
        self._bars = Progress(*columns, DownloadColumn(), TransferSpeedColumn(), console=console, transient=True)
        self._all = self._bars.add_task("all layers", stage="", total=None)
        self._layers: dict[str, TaskID] = {}
        self._told: dict[str, host.LayerProgress] = {}

    def __enter__(self) -> LayerBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, layer: host.LayerProgress) -> None:
        """Draw it."""
        if new := layer.digest not in self._layers:
            self._layers[layer.digest] = self._bars.add_task(
                render.printable(render.short_digest(layer.digest), keep=""), stage="", total=None
            )
        self._told[layer.digest] = layer
        # The first that has no line of its own takes them from all that do not need theirs.
        for digest in self._layers if new else (layer.digest,):
            self._draw(self._told[digest])
        done = sum(_fetched(each) for each in self._told.values())
        self._bars.update(self._all, completed=done, total=sum(each.total_bytes for each in self._told.values()))

    def _draw(self, layer: host.LayerProgress) -> None:
        roomy = len(self._layers) < self._console.height - 2
        self._bars.update(
            self._layers[layer.digest],
            stage=render.printable(layer.stage, keep=""),
            completed=_fetched(layer),
            total=layer.total_bytes,
            visible=roomy or layer.stage not in ("wait", "exists", "done"),
        )


def _fetched(layer: host.LayerProgress) -> int:
    """Bytes that are here: only fetching counts them up, what comes after it has them all."""
    return layer.done_bytes if layer.stage in ("wait", "fetch") else layer.total_bytes

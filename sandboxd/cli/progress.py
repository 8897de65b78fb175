"""Progress on stderr: bars on a terminal.

One bar for the bytes of an archive. For a pull, one bar for each layer, or without a terminal a line for each of
its stages.
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

Report = Callable[[str, int, int], None]  # stage, bytes done, bytes in total (0: unknown)


@contextlib.contextmanager
def transfer(doing: str, size: int) -> Iterator[Report]:
    """Show a bar for `size` bytes (0: unknown) on a terminal. Yields the function that updates it."""
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
    """Show the layers of a pull; nothing when `quiet` and without a terminal. Yields the function that updates it."""
    if not sys.stderr.isatty():
        yield (lambda layer: None) if quiet else LayerLines().update
        return
    with LayerBars(Console(stderr=True)) as bars:
        yield bars.update


def _column(template: str) -> TextColumn:
    """A column of plain text, without markup."""
    return TextColumn(template, markup=False)


class LayerLines:
    """Prints a line whenever a layer enters another stage."""

    def __init__(self) -> None:
        self._stages: dict[str, str] = {}

    def update(self, layer: host.LayerProgress) -> None:
        """Print the layer's stage, if it has changed."""
        if self._stages.get(layer.digest) != layer.stage:
            self._stages[layer.digest] = layer.stage
            if layer.stage != "wait":
                digest, size = render.short_digest(layer.digest), render.size(layer.total_bytes)
                click.echo(render.printable(f"{digest}  {layer.stage}  {size}", keep=""), err=True)


class LayerBars:
    """A bar for each layer and one for all. If the terminal has too few lines, only the active layers."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (_column("{task.description:<12}"), _column("{task.fields[stage]:<6}"), BarColumn())
        self._bars = Progress(*columns, DownloadColumn(), TransferSpeedColumn(), console=console, transient=True)
        self._all = self._bars.add_task("all layers", stage="", total=None)
        self._layers: dict[str, TaskID] = {}
        self._latest: dict[str, host.LayerProgress] = {}

    def __enter__(self) -> LayerBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, layer: host.LayerProgress) -> None:
        """Draw the layer's progress."""
        if new := layer.digest not in self._layers:
            self._layers[layer.digest] = self._bars.add_task(
                render.printable(render.short_digest(layer.digest), keep=""), stage="", total=None
            )
        self._latest[layer.digest] = layer
        # A new layer may leave too few lines, so that inactive ones have to be hidden.
        for digest in self._layers if new else (layer.digest,):
            self._draw(self._latest[digest])
        done = sum(_fetched(item) for item in self._latest.values())
        self._bars.update(self._all, completed=done, total=sum(item.total_bytes for item in self._latest.values()))

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
    """Bytes that have been fetched: all of them in the stages after fetching."""
    return layer.done_bytes if layer.stage in ("wait", "fetch") else layer.total_bytes

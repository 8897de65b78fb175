"""`top`, `events` and `watch`: what is happening now."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from rich.console import RenderableType

from sandboxd.cli import happenings, parse, rates, render
from sandboxd.cli.present import Present
from sandboxd.cli.screen import pause, screen, usable
from sandboxd.cli.session import Parsed, Session, note, now, pass_session, show
from sandboxd.pb.cri.v1 import api_pb2 as cri

F = TypeVar("F", bound=Callable[..., Any])

_ONCE = click.option("--once", is_flag=True, help="Print one table and end, as without a terminal.")
_INTERVAL = click.option(
    "-d",
    "--delay",
    type=Parsed("TIME", parse.duration),
    default="1s",
    show_default=True,
    help="How long to wait from one look to the next, like 5s.",
)
_LINES = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(("json",)),
    help="Print JSON for programs, one object a line, until interrupted or as --once says.",
)


def _looking(command: F) -> F:
    """--once, --delay and -o json."""
    return functools.reduce(lambda inner, option: option(inner), (_LINES, _INTERVAL, _ONCE), command)


@click.command()
@_looking
@pass_session
def top(session: Session, once: bool, delay: int, form: str | None) -> None:
    """Show what pods and containers use: CPU (100% is one processor), memory, processes and network.

    Rates are those since the look before; the first look takes two. On a terminal q ends it.
    """
    before = _stats(session)

    def look() -> list[rates.Row]:
        nonlocal before
        earlier, before = before, _stats(session)
        return rates.rows(earlier, before)

    pause(delay / 1e9)
    if form:
        for _ in _looks(once, delay):
            moment = now()
            for row in look():
                _line(rates.as_dict(row, moment))
    else:
        _drawn(lambda: rates.table(look()), once, delay)


@click.command()
@_looking
@pass_session
def watch(session: Session, once: bool, delay: int, form: str | None) -> None:
    """Show the requests under way, with the step that each is in and for how long, and pods as they come and go.

    On a terminal q ends it.
    """
    present = Present()

    def look() -> RenderableType:
        present.look(session.operations().running, session.pods(), now())
        return present.shown()

    if form:
        for _ in _looks(once, delay):
            look()
            _line(present.as_dict())
    else:
        _drawn(look, once, delay)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Print what happens from now on, as it happens.")
@click.option("-o", "--output", "form", type=click.Choice(("json",)), help="Print JSON, one object a line.")
@pass_session
def events(session: Session, follow: bool, form: str | None) -> None:
    """Show what has happened to the pods and containers that exist, oldest first.

    That is what their records tell, for the daemon keeps no events: of what was removed there is nothing. With
    --follow only what happens from now on is shown, until interrupted.
    """
    for each in _followed(session) if follow else _past(session):
        if form:
            _line(each.as_dict())
        else:
            click.echo(render.printable(each.line(), keep=""))


def _past(session: Session) -> list[happenings.Happening]:
    pods, containers = session.pods(), session.containers()
    statuses = session.pod_statuses(pod.id for pod in pods)
    ended = session.container_statuses(container.id for container in containers)
    return happenings.past(statuses.values(), ended.values(), happenings.full_names(pods, containers))


def _followed(session: Session) -> Iterator[happenings.Happening]:
    with session.daemon.translating("follow the events"):
        stream = session.daemon.runtime.GetContainerEvents(cri.GetEventsRequest())
        stream.initial_metadata()  # from here on nothing is missed
        names = happenings.Names(session.pods(), session.containers())
        for event in stream:
            yield names.happening(event)
    note("sandboxctl: the daemon has ended the stream")


def _stats(session: Session) -> list[cri.PodSandboxStats]:
    request = cri.ListPodSandboxStatsRequest()
    return list(session.daemon.call(session.daemon.runtime.ListPodSandboxStats, request, "measure the pods").stats)


def _drawn(look: Callable[[], RenderableType], once: bool, delay: int) -> None:
    """Draw what `look` gives again and again, or print it once."""
    if once or not usable():
        show(look())
        return
    with screen() as place:
        place.draw(look())
        while place.waited(delay / 1e9):
            place.draw(look())


def _looks(once: bool, delay: int) -> Iterator[None]:
    yield
    while not once:
        pause(delay / 1e9)
        yield


def _line(data: Any) -> None:
    click.echo(json.dumps(data, sort_keys=True))

"""`start`, `stop`, `rm` and `logs`: commands for existing pods and containers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import BinaryIO

import click

from sandboxd.cli import names, parse
from sandboxd.cli.client import Failure
from sandboxd.cli.session import Parsed, Session, for_each, note, now, pass_session, working
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

_REFERENCES = "[POD|CONTAINER]..."


@click.command()
@click.argument("references", metavar="CONTAINER...", nargs=-1, required=True)
@pass_session
def start(session: Session, references: tuple[str, ...]) -> None:
    """Start containers that were created."""

    def one(reference: str) -> str:
        container = session.container(reference)
        with working(f"Starting {reference}"):
            session.daemon.call(
                session.daemon.runtime.StartContainer,
                cri.StartContainerRequest(container_id=container.id),
                f"start container {reference}",
            )
        return reference

    for_each(references, one)


@click.command()
@click.argument("references", metavar=_REFERENCES, nargs=-1)
@click.option("-a", "--all", "every", is_flag=True, help="All pods.")
@click.option(
    "-t",
    "--grace",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long a container has to stop by itself before it is killed.",
)
@pass_session
def stop(session: Session, references: tuple[str, ...], every: bool, grace: int) -> None:
    """Stop pods with all their containers, or single containers. They exist until they are removed."""
    _require_some(references, every)
    if every:
        ready = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY))
        references = tuple(pod.id for pod in session.pods(ready))

    def one(reference: str) -> str:
        thing = session.pod_or_container(reference)
        if isinstance(thing, cri.PodSandbox):
            session.stop_pod(thing.id, names.pod_name(thing))
        else:
            session.stop_container(thing.id, reference, grace)
        return reference

    for_each(references, one)


@click.command()
@click.argument("references", metavar=_REFERENCES, nargs=-1)
@click.option("-f", "--force", is_flag=True, help="Kill what is running.")
@click.option("-a", "--all", "every", is_flag=True, help="Everything that is stopped; with -f everything.")
@pass_session
def rm(session: Session, references: tuple[str, ...], force: bool, every: bool) -> None:
    """Remove pods, with their containers, or single containers."""
    _require_some(references, every)
    things = _all_removable(session, force) if every else references

    def one(thing: str | cri.PodSandbox | cri.Container) -> str:
        label = thing if isinstance(thing, str) else thing.id
        target = session.pod_or_container(thing) if isinstance(thing, str) else thing
        is_pod = isinstance(target, cri.PodSandbox)
        running = target.state == (cri.SANDBOX_READY if is_pod else cri.CONTAINER_RUNNING)
        if running and not force:
            hint = f"`sandboxctl stop {label}` first, or `sandboxctl rm -f {label}`"
            raise Failure(f"{'pod' if is_pod else 'container'} {label} is running", hint=hint)
        if isinstance(target, cri.PodSandbox):
            session.remove_pod(target.id, names.pod_name(target), running=running)
        else:
            session.remove_container(target.id, label, running=running)
        return label

    for_each(things, one)


@click.command()
@click.argument("reference", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they arrive, until the container ends.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="N", help="Only the last N lines.")
@click.option(
    "--since",
    type=Parsed("10m|TIME", lambda text: parse.since(text, now())),
    default=0,
    help="Only lines since then: a duration, or a time like 2026-01-31T12:00:00Z.",
)
@click.option("--timestamps", is_flag=True, help="Begin each line with its time.")
@pass_session
def logs(session: Session, reference: str, follow: bool, tail: int | None, since: int, timestamps: bool) -> None:
    """Print the output of a container: its stdout to stdout, its stderr to stderr.

    The name of a pod stands for its only container.
    """
    container = session.container(reference)
    request = host.ReadLogsRequest(
        container_id=container.id, follow=follow, tail=-1 if tail is None else tail, since=since
    )
    streams = {
        "stdout": _Lines(sys.stdout.buffer, timestamps),
        "stderr": _Lines(sys.stderr.buffer, timestamps),
    }
    limit = None if follow else session.daemon.timeout
    with session.daemon.translating(f"read the log of {reference}"):
        for answer in session.daemon.host.ReadLogs(request, timeout=limit):
            for line in answer.lines:
                streams["stderr" if line.stream == "stderr" else "stdout"].write(line)
            for stream in streams.values():
                stream.flush()


class _Lines:
    """Prints log lines, and joins the parts of split ones."""

    def __init__(self, out: BinaryIO, timestamps: bool) -> None:
        self._out = out
        self._timestamps = timestamps
        self._within_line = False

    def write(self, line: host.LogLine) -> None:
        if self._timestamps and not self._within_line:
            self._out.write(f"{_rfc3339(line.timestamp)} ".encode())
        self._out.write(line.text if line.partial else line.text + b"\n")
        self._within_line = line.partial

    def flush(self) -> None:
        self._out.flush()


def _rfc3339(moment: int) -> str:
    seconds, rest = divmod(moment, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _require_some(references: tuple[str, ...], every: bool) -> None:
    if bool(references) == every:
        raise click.UsageError(
            "name pods or containers, or use --all, not both" if every else "name a pod or container"
        )


def _all_removable(session: Session, force: bool) -> list[cri.PodSandbox | cri.Container]:
    """Every stopped pod, or with `force` every pod; and the containers of other pods that are not running."""
    pods = session.pods()
    removable: list[cri.PodSandbox | cri.Container] = [pod for pod in pods if force or pod.state != cri.SANDBOX_READY]
    pod_ids = {pod.id for pod in removable}
    containers = [item for item in session.containers() if item.pod_sandbox_id not in pod_ids]
    removable += [item for item in containers if item.state in (cri.CONTAINER_EXITED, cri.CONTAINER_CREATED)]
    kept = sum(pod.id not in pod_ids for pod in pods)
    if kept:
        note(f"sandboxctl: {kept} running {'pod is' if kept == 1 else 'pods are'} kept; -f removes those too")
    return removable

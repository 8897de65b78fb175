"""`exec` and `stats`: running commands in containers, and measuring them."""

from __future__ import annotations

import math
import sys

import click

from sandboxd.cli import render
from sandboxd.cli.session import Session, emit, output_option, pass_session, show
from sandboxd.pb.cri.v1 import api_pb2 as cri

_REPORT_SECONDS = 10.0  # for the daemon to kill a command that takes too long, and to report it


@click.command(name="exec")
@click.argument("reference", metavar="CONTAINER")
@click.argument("argv", metavar="-- CMD...", nargs=-1, required=True)
@pass_session
def exec_one(session: Session, reference: str, argv: tuple[str, ...]) -> None:
    """Run a command in a running container, without input, and exit with its exit code.

    Its output is printed when it has ended. It is killed if it takes longer than sandboxctl's --timeout. For a
    terminal, use crictl exec -it or nsenter.
    """
    container = session.container(reference)
    request = cri.ExecSyncRequest(container_id=container.id, cmd=argv, timeout=math.ceil(session.daemon.timeout))
    answer = session.daemon.call(
        session.daemon.runtime.ExecSync, request, f"run {argv[0]} in {reference}", extra=_REPORT_SECONDS
    )
    for stream, data in ((sys.stdout, answer.stdout), (sys.stderr, answer.stderr)):
        stream.buffer.write(data)
        stream.flush()
    raise click.exceptions.Exit(answer.exit_code)


@click.command()
@click.argument("references", metavar="[CONTAINER]...", nargs=-1)
@output_option
@pass_session
def stats(session: Session, references: tuple[str, ...], form: str | None) -> None:
    """Show the CPU, memory and written data of running containers, or of those named."""
    named = {session.container(reference).id for reference in references}
    answer = session.daemon.call(
        session.daemon.runtime.ListContainerStats, cri.ListContainerStatsRequest(), "measure the containers"
    )
    listed = [item for item in answer.stats if not named or item.attributes.id in named]
    if form:
        emit({"stats": [render.as_dict(item) for item in listed]}, form)
        return
    pods = {pod.id: pod for pod in session.pods()}
    pod_of = {container.id: pods.get(container.pod_sandbox_id) for container in session.containers()}
    shown = [item for item in listed if item.HasField("memory") or named]
    show(render.stats_table(shown, {key: pod for key, pod in pod_of.items() if pod is not None}))

"""`exec` and `stats`: what goes on inside containers."""

from __future__ import annotations

import math
import sys

import click

from sandboxd.cli import render
from sandboxd.cli.session import Session, emit, output_option, pass_session, show
from sandboxd.pb.cri.v1 import api_pb2 as cri

_WORDS_SECONDS = 10.0  # for the daemon to end a command that takes too long, and to say so itself


@click.command(name="exec")
@click.argument("reference", metavar="CONTAINER")
@click.argument("argv", metavar="-- CMD...", nargs=-1, required=True)
@pass_session
def exec_one(session: Session, reference: str, argv: tuple[str, ...]) -> None:
    """Run a command in a running container, without input, and end with its exit code.

    What it prints comes when it has ended. It is killed when it takes longer than sandboxctl's --timeout. For a
    terminal use crictl exec -it, or nsenter.
    """
    container = session.container(reference)
    request = cri.ExecSyncRequest(container_id=container.id, cmd=argv, timeout=math.ceil(session.daemon.timeout))
    answer = session.daemon.call(
        session.daemon.runtime.ExecSync, request, f"run {argv[0]} in {reference}", extra=_WORDS_SECONDS
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
    """Show what running containers, or those named, use: CPU, memory, and what they have written."""
    wanted = {session.container(reference).id for reference in references}
    listed = session.daemon.call(
        session.daemon.runtime.ListContainerStats, cri.ListContainerStatsRequest(), "measure the containers"
    )
    found = [each for each in listed.stats if not wanted or each.attributes.id in wanted]
    if form:
        emit({"stats": [render.as_dict(each) for each in found]}, form)
        return
    pods = {pod.id: pod for pod in session.pods()}
    in_pod = {each.id: pods.get(each.pod_sandbox_id) for each in session.containers()}
    running = [each for each in found if each.HasField("memory") or wanted]
    show(render.stats_table(running, {key: pod for key, pod in in_pod.items() if pod is not None}))

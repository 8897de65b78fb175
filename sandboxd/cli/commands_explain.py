"""`explain`: how a pod was set up, what is under way, and what failed."""

from __future__ import annotations

import json
from typing import Any

import click

from sandboxd.cli import by_hand, changes, ctr, files, names, page, render, timeline
from sandboxd.cli.client import Failure
from sandboxd.cli.session import Session, emit, named, now, output_option, pass_session, show
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host


class _Explain(click.Command):
    """`--commands` takes no value, so that the pod can follow it; `--commands=down` is a flag of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled = {"--commands=up": "--commands", "--commands=down": "--commands-down"}
        return super().parse_args(ctx, [spelled.get(each, each) for each in args])


@click.command(cls=_Explain)
@click.argument("reference", metavar="[POD|CONTAINER|IMAGE]", required=False)
@click.option("--failed", is_flag=True, help="List the requests under way, and those that failed.")
@click.option("-v", "--verbose", is_flag=True, help="Add all that each step and each CNI plugin was told and said.")
@click.option(
    "--commands",
    is_flag=True,
    help="Print what makes the pod by hand, for a shell: network and containers; --commands=down what undoes it.",
)
@click.option(
    "--changes",
    "changed",
    is_flag=True,
    help="Show what each CNI plugin changed on this machine, if the pod was run with --record-changes; else what"
    " there is of its network now.",
)
@click.option("--commands-down", "down", is_flag=True, hidden=True)
@click.option(
    "--html",
    metavar="FILE",
    help='Write it as one HTML page, with a drawing of the network and everything that is recorded; "-" is stdout.',
)
@output_option
@pass_session
def explain(
    session: Session,
    reference: str | None,
    failed: bool,
    verbose: bool,
    commands: bool,
    down: bool,
    html: str | None,
    changed: bool,
    form: str | None,
) -> None:
    """Show how a pod was set up: a line for each step, in order, and one for each execution of a CNI plugin.

    Also of a pod that is being made, and of a pod, a container or an image that could not be made or pulled: the last
    attempts are kept, as [failures] in the configuration says.
    """
    if failed == (reference is not None):
        raise click.UsageError("give a pod, a container or an image, or --failed")
    if (commands or down) and form:
        raise click.UsageError("--commands prints commands; give either it or -o")
    if html and (commands or down or form or failed or changed):
        raise click.UsageError("--html writes a page about one thing; give it without other options")
    if changed and (reference is None or commands or down or verbose):
        raise click.UsageError("--changes goes with a pod and with -o, and with no other option")
    if reference is None:
        listed = session.operations()
        if form:
            emit(render.as_dict(listed), form)
        else:
            show(render.operations_table(listed, now()))
        return
    request, title = asked(session, reference)
    answer = session.daemon.call(session.daemon.host.Explain, request, f"explain {title}")
    if commands or down:
        _print_commands(answer, title, _running(session, answer, title), down=down)
    elif html:
        _write_page(answer, title, html)
    elif changed:
        _show_changes(session, answer, title, form)
    elif form:
        emit(render.explain_dict(answer), form)
    else:
        show(timeline.story(answer, title, now(), verbose=verbose))


def _running(session: Session, answer: host.ExplainResponse, title: str) -> ctr.Pod | None:
    """The pod's containers that run, as containerd has them; None when it has no pause container that does."""
    if not answer.pid:
        return None
    daemon, doing = session.daemon, f"look at the containers of {title}"
    status = daemon.call(
        daemon.runtime.PodSandboxStatus,
        cri.PodSandboxStatusRequest(pod_sandbox_id=answer.pod_sandbox_id, verbose=True),
        doing,
    )
    wanted = cri.ContainerFilter(
        pod_sandbox_id=answer.pod_sandbox_id, state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)
    )
    listed = daemon.call(daemon.runtime.ListContainers, cri.ListContainersRequest(filter=wanted), doing).containers
    requests = [
        cri.ContainerStatusRequest(container_id=each.id, verbose=True)
        for each in sorted(listed, key=lambda each: each.created_at)
    ]
    answers = [each for each in daemon.each(daemon.runtime.ContainerStatus, requests, doing) if each is not None]
    return ctr.pod(_info(status.info), [(each.status.id, each.status.log_path, _info(each.info)) for each in answers])


def _info(info: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(info.get("info", "{}"))
    return parsed


def _write_page(answer: host.ExplainResponse, title: str, path: str) -> None:
    """The page holds what plugins were given, which may be secret: nobody else can read the file."""
    try:
        with files.replaced(path, private=True) as file:
            file.write(page.page(answer, title, now()).encode())
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error


def _print_commands(answer: host.ExplainResponse, title: str, pod: ctr.Pod | None, *, down: bool) -> None:
    try:
        lines = by_hand.undoing(answer, title, pod) if down else by_hand.commands(answer, title, pod)
    except by_hand.NothingRecorded as error:
        raise Failure(f"no commands for {title}: {error}") from error
    for line in lines:
        click.echo(line)


def _show_changes(session: Session, answer: host.ExplainResponse, title: str, form: str | None) -> None:
    pod_id, now_there = answer.pod_sandbox_id, None
    executions = changes.recorded(answer)
    if pod_id and not executions:
        request = host.PodNetworkRequest(pod_sandbox_id=pod_id)
        now_there = session.daemon.call(session.daemon.host.PodNetwork, request, f"look at the network of {title}")
    if form:
        emit(changes.as_data(executions, now_there, pod_id), form)
    elif executions:
        show(changes.told(executions, title, pod_id))
    else:
        show(changes.now(now_there, title, pod_id))


def asked(session: Session, reference: str) -> tuple[host.ExplainRequest, str]:
    """The request, and how its subject is called: a pod that is listed, or whatever the daemon knows of the name."""
    with named():
        try:
            pod = names.find_pod(reference, session.pods())
        except names.NoMatch:
            return host.ExplainRequest(reference=reference), reference
    return host.ExplainRequest(pod_sandbox_id=pod.id), names.pod_name(pod)

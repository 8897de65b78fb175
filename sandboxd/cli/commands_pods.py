"""`pods`, `ps`, `inspect` and `explain`: looking at pods and containers."""

from __future__ import annotations

import click

from sandboxd.cli import names, render, timeline
from sandboxd.cli.session import (
    PAIR,
    Session,
    emit,
    now,
    output_option,
    pass_session,
    quiet_option,
    show,
    with_network,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

_POD_STATES = {"ready": cri.SANDBOX_READY, "notready": cri.SANDBOX_NOTREADY}
_CONTAINER_STATES = {
    "created": cri.CONTAINER_CREATED,
    "running": cri.CONTAINER_RUNNING,
    "exited": cri.CONTAINER_EXITED,
    "unknown": cri.CONTAINER_UNKNOWN,
}


@click.command()
@click.option(
    "--label", "labels", multiple=True, type=PAIR, help="Only those with this label. Repeatable: all of them."
)
@click.option(
    "--state", type=click.Choice(tuple(_POD_STATES), case_sensitive=False), help="Only those in this state."
)
@click.option(
    "--name", "patterns", multiple=True, metavar="PATTERN", help="Only those so named, like 'web*'. Repeatable: any."
)
@click.option("-n", "--namespace", default="", help="Only those in this namespace.")
@quiet_option
@output_option
@pass_session
def pods(
    session: Session,
    labels: tuple[tuple[str, str], ...],
    state: str | None,
    patterns: tuple[str, ...],
    namespace: str,
    quiet: bool,
    form: str | None,
) -> None:
    """List pods, newest first."""
    selected = cri.PodSandboxFilter(label_selector=dict(labels))
    if state:
        selected.state.state = _POD_STATES[state.lower()]
    found = [
        pod
        for pod in session.pods(selected)
        if render.matches(pod.metadata.name, patterns) and namespace in ("", pod.metadata.namespace)
    ]
    if quiet:
        _echo_ids([pod.id for pod in found])
        return
    statuses = session.pod_statuses(pod.id for pod in found)
    if form:
        emit({"items": [with_network(pod, statuses.get(pod.id)) for pod in found]}, form)
    else:
        show(render.pods_table(found, statuses, now()))


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Those that do not run, too.")
@click.option(
    "--label", "labels", multiple=True, type=PAIR, help="Only those with this label. Repeatable: all of them."
)
@click.option(
    "--state", type=click.Choice(tuple(_CONTAINER_STATES), case_sensitive=False), help="Only those in this state."
)
@click.option("--pod", "pod_ref", default="", metavar="NAME|ID", help="Only those of this pod.")
@click.option(
    "--name", "patterns", multiple=True, metavar="PATTERN", help="Only those so named, like 'web*'. Repeatable: any."
)
@quiet_option
@output_option
@pass_session
def ps(
    session: Session,
    every: bool,
    labels: tuple[tuple[str, str], ...],
    state: str | None,
    pod_ref: str,
    patterns: tuple[str, ...],
    quiet: bool,
    form: str | None,
) -> None:
    """List running containers, newest first."""
    selected = cri.ContainerFilter(label_selector=dict(labels))
    if state:
        selected.state.state = _CONTAINER_STATES[state.lower()]
    elif not every:
        selected.state.state = cri.CONTAINER_RUNNING
    if pod_ref:
        selected.pod_sandbox_id = session.pod(pod_ref).id
    found = [each for each in session.containers(selected) if render.matches(each.metadata.name, patterns)]
    if quiet:
        _echo_ids([each.id for each in found])
        return
    pod_statuses = session.pod_statuses(each.pod_sandbox_id for each in found)
    if form:
        emit({"containers": [with_network(each, pod_statuses.get(each.pod_sandbox_id)) for each in found]}, form)
        return
    by_id = {pod.id: pod for pod in session.pods()}
    statuses = session.container_statuses(each.id for each in found if each.state == cri.CONTAINER_EXITED)
    show(render.containers_table(found, by_id, pod_statuses, statuses, now()))


@click.command(name="inspect")
@click.argument("reference", metavar="POD|CONTAINER")
@output_option
@pass_session
def inspect_one(session: Session, reference: str, form: str | None) -> None:
    """Show all that the daemon knows about a pod or container, as JSON unless -o yaml."""
    thing = session.pod_or_container(reference)
    runtime = session.daemon.runtime
    answer: cri.PodSandboxStatusResponse | cri.ContainerStatusResponse
    if isinstance(thing, cri.PodSandbox):
        answer = session.daemon.call(
            runtime.PodSandboxStatus,
            cri.PodSandboxStatusRequest(pod_sandbox_id=thing.id, verbose=True),
            f"inspect pod {names.pod_name(thing)}",
        )
    else:
        answer = session.daemon.call(
            runtime.ContainerStatus,
            cri.ContainerStatusRequest(container_id=thing.id, verbose=True),
            f"inspect container {thing.metadata.name}",
        )
    # The daemon keeps what is verbose under the one key "info"; side by side is how crictl prints it too.
    emit({**render.info_dict(answer.info), "status": render.as_dict(answer.status)}, form or "json")


@click.command()
@click.argument("reference", metavar="POD")
@output_option
@pass_session
def explain(session: Session, reference: str, form: str | None) -> None:
    """Tell how a pod came to be: each step in order, how long it took, and what each CNI plugin was told and said."""
    pod = session.pod(reference)
    answer = session.daemon.call(
        session.daemon.host.Explain,
        host.ExplainRequest(pod_sandbox_id=pod.id),
        f"explain pod {names.pod_name(pod)}",
    )
    if form:
        emit(render.explain_dict(answer), form)
    else:
        show(timeline.story(answer, names.pod_name(pod)))


def _echo_ids(ids: list[str]) -> None:
    for each in ids:
        click.echo(each)

"""`pods`, `ps` and `inspect`: listing and inspecting pods and containers."""

from __future__ import annotations

import click
import grpc

from sandboxd.cli import names, render
from sandboxd.cli.client import Failure
from sandboxd.cli.session import (
    PAIR,
    Session,
    emit,
    note,
    now,
    output_option,
    pass_session,
    quiet_option,
    show,
    with_network,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri

_POD_STATES = {"ready": cri.SANDBOX_READY, "notready": cri.SANDBOX_NOTREADY}
_CONTAINER_STATES = {
    "created": cri.CONTAINER_CREATED,
    "running": cri.CONTAINER_RUNNING,
    "exited": cri.CONTAINER_EXITED,
    "unknown": cri.CONTAINER_UNKNOWN,
}


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also those that are being made or could not be made.")
@click.option(
    "--label", "labels", multiple=True, type=PAIR, help="Only those with this label. Repeatable: all of them."
)
@click.option(
    "--state", type=click.Choice(tuple(_POD_STATES), case_sensitive=False), help="Only those in this state."
)
@click.option(
    "--name",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only those with this name, like 'web*'. Repeatable: any.",
)
@click.option("-n", "--namespace", default="", help="Only those in this namespace.")
@quiet_option
@output_option
@pass_session
def pods(
    session: Session,
    every: bool,
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
    listed = [
        pod
        for pod in session.pods(selected)
        if render.matches(pod.metadata.name, patterns) and namespace in ("", pod.metadata.namespace)
    ]
    if quiet:
        _echo_ids([pod.id for pod in listed])
        return
    statuses = session.pod_statuses(pod.id for pod in listed)
    if form:
        emit({"items": [with_network(pod, statuses.get(pod.id)) for pod in listed]}, form)
        return
    owing = _owing(session)
    unmade = render.unmade_pods(session.operations(), session.pods(), now()) if every else ()
    show(render.pods_table(listed, statuses, now(), owing, unmade))
    if owing:
        who = "1 pod owes its network a DEL" if len(owing) == 1 else f"{len(owing)} pods owe their networks DELs"
        note(f"sandboxctl: {who}; `sandboxctl debts` shows what and why")


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also those that are not running.")
@click.option(
    "--label", "labels", multiple=True, type=PAIR, help="Only those with this label. Repeatable: all of them."
)
@click.option(
    "--state", type=click.Choice(tuple(_CONTAINER_STATES), case_sensitive=False), help="Only those in this state."
)
@click.option("--pod", "pod_ref", default="", metavar="NAME|ID", help="Only those of this pod.")
@click.option(
    "--name",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only those with this name, like 'web*'. Repeatable: any.",
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
    listed = [
        container for container in session.containers(selected) if render.matches(container.metadata.name, patterns)
    ]
    if quiet:
        _echo_ids([container.id for container in listed])
        return
    pod_statuses = session.pod_statuses(container.pod_sandbox_id for container in listed)
    if form:
        emit(
            {
                "containers": [
                    with_network(container, pod_statuses.get(container.pod_sandbox_id)) for container in listed
                ]
            },
            form,
        )
        return
    by_id = {pod.id: pod for pod in session.pods()}
    statuses = session.container_statuses(
        container.id for container in listed if container.state == cri.CONTAINER_EXITED
    )
    show(render.containers_table(listed, by_id, pod_statuses, statuses, now()))


@click.command(name="inspect")
@click.argument("reference", metavar="POD|CONTAINER")
@output_option
@pass_session
def inspect_one(session: Session, reference: str, form: str | None) -> None:
    """Show all details of a pod or container, as JSON, or as YAML with -o yaml."""
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
    # The daemon has the verbose part under the key "info"; like crictl, print its members at the top level.
    emit({**render.info_dict(answer.info), "status": render.as_dict(answer.status)}, form or "json")


def _owing(session: Session) -> set[str]:
    """The ids of the pods that owe, removed ones included; none when the daemon is older than the question."""
    try:
        return {debt.pod_sandbox_id for debt in session.debts() if not debt.kept}
    except Failure as failure:
        if failure.code is grpc.StatusCode.UNIMPLEMENTED:
            return set()
        raise


def _echo_ids(ids: list[str]) -> None:
    for object_id in ids:
        click.echo(object_id)

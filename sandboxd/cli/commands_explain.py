"""`explain`: how a pod was set up, what is under way, and what failed."""

from __future__ import annotations

import click

from sandboxd.cli import names, render, timeline
from sandboxd.cli.session import Session, emit, named, now, output_option, pass_session, show
from sandboxd.pb.host.v1 import host_pb2 as host


@click.command()
@click.argument("reference", metavar="[POD|CONTAINER|IMAGE]", required=False)
@click.option("--failed", is_flag=True, help="List the requests under way, and those that failed.")
@output_option
@pass_session
def explain(session: Session, reference: str | None, failed: bool, form: str | None) -> None:
    """Show how a pod was set up: each step in order, its duration, and each CNI plugin's input and output.

    Also of a pod that is being made, and of a pod, a container or an image that could not be made or pulled: the last
    attempts are kept, as [failures] in the configuration says.
    """
    if failed == (reference is not None):
        raise click.UsageError("give a pod, a container or an image, or --failed")
    if reference is None:
        listed = session.operations()
        if form:
            emit(render.as_dict(listed), form)
        else:
            show(render.operations_table(listed, now()))
        return
    request, title = _asked(session, reference)
    answer = session.daemon.call(session.daemon.host.Explain, request, f"explain {title}")
    if form:
        emit(render.explain_dict(answer), form)
    else:
        show(timeline.story(answer, title, now()))


def _asked(session: Session, reference: str) -> tuple[host.ExplainRequest, str]:
    """The request, and how its subject is called: a pod that is listed, or whatever the daemon knows of the name."""
    with named():
        try:
            pod = names.find_pod(reference, session.pods())
        except names.NoMatch:
            return host.ExplainRequest(reference=reference), reference
    return host.ExplainRequest(pod_sandbox_id=pod.id), names.pod_name(pod)

"""`doctor`: whether a pod's network, or the machine, is well."""

from __future__ import annotations

import click

from sandboxd.cli import names, render
from sandboxd.cli.client import Exit
from sandboxd.cli.session import Session, emit, output_option, pass_session, show, working
from sandboxd.pb.host.v1 import host_pb2 as host

COULD_NOT_LOOK = 2  # an exit status of this command only


@click.command()
@click.argument("reference", metavar="[POD]", required=False)
@output_option
@pass_session
def doctor(session: Session, reference: str | None, form: str | None) -> None:
    """Look for what is wrong with a pod's network, or without POD with the machine.

    Reads what CNI CHECK does not, and sends packets to the pod's gateway, to other pods, name servers and host
    ports. Names what is wrong with the evidence and the remedy, and in one line what is well.

    Exits with 0 when all is well, with 1 when something is not, and with 2 when nothing is known to be wrong and
    something could not be looked at.
    """
    pod = session.pod(reference) if reference else None
    subject = f"pod {names.pod_name(pod)}" if pod else "the machine"
    with working(f"Looking at {subject}"):
        request = host.DoctorRequest(pod_sandbox_id=pod.id if pod else "")
        answer = session.daemon.call(session.daemon.host.Doctor, request, f"look at {subject}")
    if form:
        emit({"checks": [render.as_dict(each) for each in answer.checks]}, form)
    else:
        show(render.doctor_text(answer.checks))
    severities = {each.severity for each in answer.checks}
    if severities & {"warning", "error"}:
        raise click.exceptions.Exit(Exit.FAILED)
    if "unknown" in severities:
        raise click.exceptions.Exit(COULD_NOT_LOOK)

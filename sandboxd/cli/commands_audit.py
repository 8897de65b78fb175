"""`audit`: what is on the machine and nobody's, or missing."""

from __future__ import annotations

import click

from sandboxd.cli import render
from sandboxd.cli.client import Exit
from sandboxd.cli.session import Session, emit, note, now, output_option, pass_session, show, working
from sandboxd.pb.host.v1 import host_pb2 as host


@click.command()
@click.option("--repair", is_flag=True, help="Remove what is nobody's, and put back what can be.")
@output_option
@pass_session
def audit(session: Session, repair: bool, form: str | None) -> None:
    """Compare what is on the machine with the daemon's records.

    Names what is left of pods that no record knows, with the pod that it was of and what would be done about it, and
    what records know and is gone. What may be another runtime's is named too and left alone.

    Exits with 1 when something is left that is not unclear.
    """
    with working("Repairing" if repair else "Looking"):
        request = host.AuditRequest(repair=repair)
        answer = session.daemon.call(session.daemon.host.Audit, request, "audit the machine")
    findings = list(answer.findings)
    left = [each for each in findings if not each.repaired and not each.unclear]
    if form:
        emit({"findings": [render.as_dict(each) for each in findings]}, form)
    elif findings:
        show(render.audit_table(findings, now(), repair=repair))
    else:
        note("sandboxctl: nothing is found: all that is there is known, and all that is known is there")
    if left and not repair and not form:
        note("sandboxctl: `sandboxctl audit --repair` does what the last column says")
    if left:
        raise click.exceptions.Exit(Exit.FAILED)

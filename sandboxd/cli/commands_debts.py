"""`debts`: networks of stopped and removed pods for which a CNI DEL failed."""

from __future__ import annotations

import click

from sandboxd.cli import names, render
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.session import Session, emit, for_each, now, output_option, pass_session, show, working
from sandboxd.pb.host.v1 import host_pb2 as host


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
def debts(ctx: click.Context, form: str | None) -> None:
    """List what stopped and removed pods still owe their networks.

    A CNI plugin whose DEL fails leaves a debt: the pod's namespace is kept, and so may be its address. The daemon
    tries again by itself; `retry` does so now, and `forgive` gives it up.
    """
    if ctx.invoked_subcommand:
        return
    session = ctx.find_object(Session)
    assert session is not None
    listed = session.debts()
    if form:
        emit({"debts": [render.as_dict(debt) for debt in listed]}, form)
    else:
        show(render.debts_table(listed, now()))


@debts.command()
@click.argument("references", metavar="POD...", nargs=-1)
@click.option("-a", "--all", "every", is_flag=True, help="The debts of all pods.")
@pass_session
def retry(session: Session, references: tuple[str, ...], every: bool) -> None:
    """Try now to pay what pods owe: run the DELs that failed."""

    def one(pod_id: str) -> str:
        with working(f"Paying for {pod_id[: names.SHORT_ID]}"):
            request = host.RetryDebtRequest(pod_sandbox_id=pod_id)
            doing = f"pay what pod {pod_id[: names.SHORT_ID]} owes"
            session.daemon.call(session.daemon.host.RetryDebt, request, doing)
        return pod_id

    for_each(_owing(session, references, every), one)


@debts.command()
@click.argument("references", metavar="POD...", nargs=-1)
@click.option("-a", "--all", "every", is_flag=True, help="The debts of all pods.")
@pass_session
def forgive(session: Session, references: tuple[str, ...], every: bool) -> None:
    """Give up what pods owe, and remove their namespaces.

    What the plugins made outside of the namespace may be left, such as addresses and rules: free it by hand.
    """

    def one(pod_id: str) -> str:
        request = host.ForgiveDebtRequest(pod_sandbox_id=pod_id)
        doing = f"forgive what pod {pod_id[: names.SHORT_ID]} owes"
        answer = session.daemon.call(session.daemon.host.ForgiveDebt, request, doing)
        ips = [ip for debt in answer.forgiven for ip in debt.ips]
        return f"{pod_id}  may still hold {', '.join(ips)}" if ips else pod_id

    for_each(_owing(session, references, every), one)


def _owing(session: Session, references: tuple[str, ...], every: bool) -> list[str]:
    """The ids of the pods that owe and are meant: by NAME, NAMESPACE/NAME or a prefix of the id."""
    if bool(references) == every:
        raise click.UsageError("name pods or use --all, not both" if every else "name a pod, or use --all")
    listed = session.debts()
    if every:
        return list(dict.fromkeys(debt.pod_sandbox_id for debt in listed))
    found: list[str] = []
    for reference in references:
        named = [
            debt.pod_sandbox_id
            for debt in listed
            if reference in (debt.pod_sandbox_id, debt.pod, debt.pod.partition("/")[2])
        ]
        meant = named or [debt.pod_sandbox_id for debt in listed if debt.pod_sandbox_id.startswith(reference)]
        if not meant:
            hint = "`sandboxctl debts` lists them"
            raise Failure(f"there is no debt of pod {reference!r}", exit_code=Exit.NOT_FOUND, hint=hint)
        if len(set(meant)) > 1:
            ids = ", ".join(each[: names.SHORT_ID] for each in dict.fromkeys(meant))
            raise Failure(f"{reference!r} is more than one pod: {ids}")
        found += meant[:1]
    return list(dict.fromkeys(found))

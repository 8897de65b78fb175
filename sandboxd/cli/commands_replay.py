"""`replay`: one recorded execution of a plugin, run again."""

from __future__ import annotations

import click

from sandboxd.cli import executions, replayed
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.commands_explain import asked
from sandboxd.cli.session import Session, emit, now, output_option, pass_session, show, working
from sandboxd.pb.host.v1 import host_pb2 as host

_PLUGIN_SECONDS = 600.0  # a chain may take several times what one plugin may; the daemon bounds each


@click.command()
@click.argument("reference", metavar="POD")
@click.argument("words", metavar="[STEP]...", nargs=-1)
@click.option("-l", "--list", "listing", is_flag=True, help="List the recorded executions with their numbers.")
@click.option("--in-place", is_flag=True, help="Run a CHECK in the pod itself.")
@click.option("--keep", is_flag=True, help="Leave the scratch namespace as it is then, to look at it.")
@click.option("-v", "--verbose", is_flag=True, help="Add all that the plugin was told and said, then and now.")
@output_option
@pass_session
def replay(
    session: Session,
    reference: str,
    words: tuple[str, ...],
    listing: bool,
    in_place: bool,
    keep: bool,
    verbose: bool,
    form: str | None,
) -> None:
    """Run one recorded execution of a CNI plugin again, to see whether it fails again, and what it prints.

    STEP is a number of --list, a command, a plugin, or both: 2, ADD, bridge, ADD bridge. Without it, the last
    execution that failed is run again. The pod may have failed or be removed, as long as `explain` knows of it.

    It runs in a scratch network namespace, after the plugins that come before it in the chain; then everything is
    undone. The pod is not touched: id, pod name and host ports are others.

    Exits with 1 when the plugin fails, or something could not be undone.
    """
    request, title = asked(session, reference)
    answer = session.daemon.call(session.daemon.host.Explain, request, f"look up {title}")
    known = executions.listed(answer)
    if listing:
        if form:
            raise click.UsageError("--list prints a table; `explain -o json` has the executions for programs")
        show(executions.table(known, now()))
        return
    try:
        step = executions.meant(known, words).step
    except executions.NotOne as error:
        raise Failure(f"cannot replay {title}: {error}", exit_code=Exit.NOT_FOUND) from error
    wanted = host.ReplayRequest(
        pod_sandbox_id=request.pod_sandbox_id,
        reference=request.reference,
        started_at=step.started_at,
        name=step.name,
        in_place=in_place,
        keep=keep,
    )
    doing = f"replay {step.plugin.command} of {title}"
    with working(f"Running {step.plugin.command} {step.detail.get('plugin', '')} again"):
        outcome = session.daemon.call(session.daemon.host.Replay, wanted, doing, extra=_PLUGIN_SECONDS)
    if form:
        emit(replayed.as_dict(outcome), form)
    else:
        show(replayed.text(outcome, title, verbose=verbose))
    if not outcome.HasField("replayed") or outcome.replayed.error or outcome.left:
        raise click.exceptions.Exit(Exit.FAILED)

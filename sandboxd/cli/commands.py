"""sandboxctl itself: its global flags, its exit codes, and the commands about the daemon."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import click
from click.shell_completion import get_completion_class

from sandboxd.cli import (
    commands_audit,
    commands_debts,
    commands_doctor,
    commands_explain,
    commands_images,
    commands_inside,
    commands_life,
    commands_now,
    commands_pods,
    commands_replay,
    commands_run,
    commands_transfer,
    parse,
    render,
)
from sandboxd.cli.client import Daemon, Exit, Failure
from sandboxd.cli.session import Parsed, Session, emit, output_option, pass_session, show
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

DEFAULT_SOCKET = "/run/sandboxd/sandboxd.sock"
DEFAULT_TIMEOUT = "2m"

_COMPLETION_VARIABLE = "_SANDBOXCTL_COMPLETE"


class Program(click.Group):
    """A command group with sandboxctl's exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            failure.show()
            raise click.exceptions.Exit(failure.exit_code) from failure
        except KeyboardInterrupt as error:
            click.echo("sandboxctl: interrupted", err=True)
            raise click.exceptions.Exit(Exit.INTERRUPTED) from error


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "-s",
    "--socket",
    default=DEFAULT_SOCKET,
    envvar="SANDBOXD_SOCKET",
    show_default=True,
    show_envvar=True,
    metavar="PATH",
    help="The daemon's socket.",
)
@click.option(
    "--timeout",
    type=Parsed("TIME", parse.duration),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="How long one request may take, like 30s.",
)
@click.pass_context
def cli(ctx: click.Context, socket: str, timeout: int) -> None:
    """Run and inspect pods on this machine.

    A pod is given by NAME, NAMESPACE/NAME or a prefix of its id, a container by NAME, POD/NAME or a prefix of
    its id.

    Exit codes: 0 success, 1 the request failed, 2 usage, 3 not found, 4 the daemon cannot be reached or is not
    ready, 130 interrupted.
    """
    daemon = Daemon(socket.removeprefix("unix://"), timeout / 10**9)
    ctx.call_on_close(daemon.close)
    ctx.obj = Session(daemon)


@cli.command()
@output_option
@pass_session
def version(session: Session, form: str | None) -> None:
    """Print the versions of sandboxctl and of the daemon."""
    answer = session.daemon.call(
        session.daemon.runtime.Version, cri.VersionRequest(version="v1"), "ask for the version"
    )
    if form:
        emit({"client": _own_version(), **render.as_dict(answer)}, form)
        return
    show(
        render.facts(
            [
                ("sandboxctl", _own_version()),
                (answer.runtime_name, answer.runtime_version),
                ("CRI", answer.runtime_api_version),
            ]
        )
    )


@cli.command()
@output_option
@pass_session
def info(session: Session, form: str | None) -> None:
    """Show whether the daemon is ready, and if not, why; and its configuration."""
    runtime = session.daemon.runtime
    status = session.daemon.call(runtime.Status, cri.StatusRequest(verbose=True), "ask for the status")
    config = session.daemon.call(runtime.RuntimeConfig, cri.RuntimeConfigRequest(), "ask for the configuration")
    details = render.info_dict(status.info)
    if form:
        emit({**render.as_dict(status), "info": details, "runtimeConfig": render.as_dict(config)}, form)
        return
    show(render.facts(render.info_facts(status, config, details)))


@cli.command()
@pass_session
def metrics(session: Session) -> None:
    """Print the daemon's counters, in Prometheus' text format."""
    answer = session.daemon.call(session.daemon.host.Metrics, host.MetricsRequest(), "ask for the metrics")
    # Unchanged for programs. On a terminal, control characters in labels are escaped: they come from others' names.
    click.echo(render.printable(answer.text) if sys.stdout.isatty() else answer.text, nl=False)


@cli.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of a shell: source <(sandboxctl completion bash)."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    click.echo(kind(cli, {}, "sandboxctl", _COMPLETION_VARIABLE).source())


for _command in (
    commands_run.run,
    commands_run.runp,
    commands_run.create,
    commands_pods.pods,
    commands_pods.ps,
    commands_pods.inspect_one,
    commands_explain.explain,
    commands_replay.replay,
    commands_audit.audit,
    commands_doctor.doctor,
    commands_debts.debts,
    commands_life.start,
    commands_life.stop,
    commands_life.rm,
    commands_life.logs,
    commands_inside.exec_one,
    commands_inside.stats,
    commands_now.top,
    commands_now.events,
    commands_now.watch,
    commands_images.images,
    commands_images.inspecti,
    commands_images.rmi,
    commands_transfer.pull,
    commands_transfer.load,
    commands_transfer.save,
):
    cli.add_command(_command)


def _own_version() -> str:
    try:
        return importlib.metadata.version("sandboxd")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main() -> None:
    """The console script `sandboxctl`."""
    cli(prog_name="sandboxctl", complete_var=_COMPLETION_VARIABLE)

"""`sandboxd`: serve, print the effective configuration, check the machine."""

# ruff: noqa: E402 - one library is imported in a way of its own.

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import click

# structlog imports rich, which is there for sandboxctl, to print tracebacks; ours are `disclosure`'s. Without it a
# fifteenth of what starting takes is saved. (None in sys.modules makes an import fail: Python reference, 5.3.1.)
_rich = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog

if _rich is None:
    del sys.modules["rich"]

import sandboxd
from sandboxd import complaints, disclosure, environment, spans
from sandboxd import config as configuration
from sandboxd.config import Config
from sandboxd.errors import SandboxdError


def _options(command: Any) -> Any:
    """The options that every command takes."""
    for option in (
        click.option("--config", "file", metavar="FILE", help=f"TOML file [default: {configuration.DEFAULT_FILE}]"),
        click.option("--root", help="shorthand for --set daemon.root=…"),
        click.option("--state", help="shorthand for --set daemon.state=…"),
        click.option("--socket", help="shorthand for --set api.socket=…"),
        click.option("--log-level", help="shorthand for --set daemon.log_level=…"),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="set section.key; repeatable"),
    ):
        command = option(command)
    return command


# Of syslog(3), by the logger's methods.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}


def _load(file: str | None, settings: tuple[str, ...], **shorthands: str | None) -> Config:
    flags: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: expected KEY=VALUE")
        flags[key] = value
    names = {"root": "daemon.root", "state": "daemon.state", "socket": "api.socket", "log_level": "daemon.log_level"}
    flags |= {names[key]: value for key, value in shorthands.items() if value is not None}
    return configuration.load(file, flags)


def _with_trace(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the trace that a line belongs to, if there is one."""
    if span := spans.current():
        event["trace_id"] = span.trace_id
    return event


def _with_priority(logger: Any, method: str, line: Any) -> str:
    """The line with its level as systemd's journal takes it from a line's first characters (sd-daemon(3))."""
    return f"<{_PRIORITIES[method]}>{line}"


def _configure_logging(config: Config) -> None:
    to_terminal = sys.stderr.isatty() if config.daemon.log_format == "auto" else config.daemon.log_format == "console"
    renderer: Any = (
        # structlog's default prints the locals of every frame if the package rich is installed.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if to_terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _with_trace,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.ExceptionRenderer(disclosure.traceback_of),
            renderer,
            *([_with_priority] if environment.is_journal(sys.stderr) else []),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(config.daemon.log_level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, complaints.Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    complaints.collect()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sandboxd.__version__, prog_name="sandboxd")
def cli() -> None:
    """A CRI-compatible pod sandbox daemon over containerd and CNI that shows what it does."""


@cli.command()
@_options
def serve(**options: Any) -> None:
    """Serve CRI and the host API on a unix socket until SIGTERM."""
    config = _load(**options)
    _configure_logging(config)
    # What is imported stays: a twentieth of the start would go into looking for garbage in it.
    gc.disable()
    # Here and not above: the other commands need little of it.
    from sandboxd import daemon

    gc.enable()

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(complaints.of_loop)
        await daemon.serve(config)

    asyncio.run(run())


@cli.command("config")
@_options
def show_config(**options: Any) -> None:
    """Print the effective configuration and where each value came from."""
    section = ""
    for name, value, origin in configuration.effective(_load(**options)):
        head, _, key = name.rpartition(".")
        if head != section:
            click.echo(f"{'' if not section else chr(10)}[{head}]")
            section = head
        click.echo(f"{key} = {_toml(value)}  # {origin}")


@cli.command()
@_options
def check(**options: Any) -> None:
    """Check whether this machine can run pods; exit 1 if it cannot."""
    from sandboxd.insight import doctor

    findings = doctor.examine(_load(**options))
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.words}")
        if finding.remedy:
            click.echo(f"      → {finding.remedy}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def main() -> None:
    """The console script. Our own errors are printed as one sentence, not as a traceback."""
    try:
        cli()
    except SandboxdError as exc:
        click.echo(f"sandboxd: {exc}", err=True)
        sys.exit(1)
    except PermissionError as exc:
        click.echo(f"sandboxd: {exc}; sandboxd needs root", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

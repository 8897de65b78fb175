"""The real commands against a fake daemon."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sandboxd.cli.commands import cli
from tests.unit.cli.fake_daemon import FakeDaemon

Sandboxctl = Callable[..., Result]


@pytest.fixture
def socket() -> Iterator[Path]:
    """A path short enough for a socket, which pytest's own directories are not."""
    with tempfile.TemporaryDirectory(prefix="ctl") as directory:
        yield Path(directory, "s")


@pytest.fixture
def daemon(socket: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon()  # type: ignore[abstract]  # the stubs ask for all methods, grpc does not
    with fake.serve(socket):
        yield fake


@pytest.fixture
def sandboxctl(socket: Path) -> Sandboxctl:
    """Runs one command line; the result has stdout, stderr and exit_code apart."""

    def run(*args: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, ["--socket", str(socket), "--timeout", "20s", *args], input=stdin)

    return run

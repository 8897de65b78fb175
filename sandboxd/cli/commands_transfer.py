"""`pull`, `load` and `save`: transferring images."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import click

from sandboxd.cli import credentials, files, parse, progress, pulling, render
from sandboxd.cli.client import Failure
from sandboxd.cli.session import Parsed, Session, emit, output_option, pass_session, quiet_option
from sandboxd.pb.host.v1 import host_pb2 as host

_CHUNK = 256 * 1024  # bytes


@click.command()
@click.argument("image", metavar="IMAGE")
@click.option(
    "--creds",
    type=Parsed("USER[:PASSWORD]", parse.credentials),
    help="User at the registry. A missing password is prompted for; given here, other users of this machine see it in"
    " the list of processes, and the shell keeps it in its history.",
)
@click.option(
    "--username",
    type=Parsed("USER", parse.username),
    help="User at the registry. The password is prompted for, or read from stdin.",
)
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin, up to its end; a final newline is dropped."
)
@quiet_option
@output_option
@pass_session
def pull(
    session: Session,
    image: str,
    creds: parse.CredentialsFlag | None,
    username: str | None,
    password_stdin: bool,
    quiet: bool,
    form: str | None,
) -> None:
    """Fetch an image from its registry, and show the progress of each layer.

    \b
        sandboxctl pull nginx:1.27
        sandboxctl pull --username me registry.example/team/app:v1
        sandboxctl pull --username me --password-stdin registry.example/team/app:v1 < token
    """
    who = credentials.given(creds, username, from_stdin=password_stdin)
    pulled = pulling.pull(session, image, who, quiet=quiet)
    if form:
        emit(render.as_dict(pulled), form)
    else:
        click.echo(pulled.image_id if quiet else render.printable(pulled.name))


@click.command()
@click.argument("file", metavar="FILE", type=click.File("rb"))
@quiet_option
@output_option
@pass_session
def load(session: Session, file: BinaryIO, quiet: bool, form: str | None) -> None:
    """Add the images of an archive: OCI layout or `docker save`, one tar, gzipped or not; "-" is stdin."""
    source = getattr(file, "name", "<stdin>")
    loaded: list[host.LoadedImage] = []
    unreadable: list[OSError] = []
    with progress.transfer("send", _size(file)) as report, session.daemon.translating(f"load {source}"):
        try:
            for answer in session.daemon.host.LoadImage(_chunks(file, report, unreadable)):
                if answer.HasField("loaded"):
                    loaded.append(answer.loaded)
                elif answer.HasField("progress") and answer.progress.total_bytes:
                    report(answer.progress.stage, answer.progress.done_bytes, answer.progress.total_bytes)
        except Exception:
            # gRPC only says that the request iterator raised.
            if unreadable:
                raise Failure(f"cannot read {source}: {unreadable[0].strerror}") from unreadable[0]
            raise
    for remark in dict.fromkeys(remark for image in loaded for remark in image.remarks):
        click.echo(f"note: {render.printable(remark)}", err=True)
    if form:
        emit({"images": [render.as_dict(image) for image in loaded]}, form)
        return
    for image in loaded:
        for name in [image.image_id] if quiet or not image.names else image.names:
            click.echo(render.printable(name))


def _chunks(
    file: BinaryIO, report: Callable[[str, int, int], None], unreadable: list[OSError]
) -> Iterator[host.LoadImageRequest]:
    """Runs in gRPC's own thread, so an error of reading is stored in `unreadable`."""
    sent = 0
    try:
        while chunk := file.read(_CHUNK):
            yield host.LoadImageRequest(chunk=chunk)
            sent += len(chunk)
            report("send", sent, 0)
    except OSError as error:
        unreadable.append(error)
        raise


def _size(file: BinaryIO) -> int:
    """Bytes of the file; 0 for a pipe."""
    with contextlib.suppress(OSError):
        return os.fstat(file.fileno()).st_size
    return 0


@click.command()
@click.argument("references", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "path", default="-", metavar="FILE", help='The archive; stdout by default, or for "-".'
)
@pass_session
def save(session: Session, references: tuple[str, ...], path: str) -> None:
    """Write images to an archive, by name or id: for `sandboxctl load`, `docker load`, `ctr images import`.

    \b
        sandboxctl save -o web.tar nginx:1.27 busybox
        sandboxctl save nginx:1.27 | ssh other sandboxctl load -
    """
    if path == "-" and _is_terminal():
        raise click.UsageError("an archive cannot go to a terminal: use -o FILE, or redirect stdout")
    try:
        with files.replaced(path) as file:
            _receive(session, references, file)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error


def _receive(session: Session, references: tuple[str, ...], file: BinaryIO) -> None:
    """Write the archive that the daemon sends."""
    call = session.daemon.host.SaveImage(host.SaveImageRequest(images=references))
    written = total = 0
    try:
        with progress.transfer("save", 0) as report, session.daemon.translating(f"save {', '.join(references)}"):
            for answer in call:
                file.write(answer.chunk)
                written, total = written + len(answer.chunk), total or answer.total_bytes
                report("save", written, total)
    finally:
        call.cancel()


def _is_terminal() -> bool:
    return sys.stdout.isatty()

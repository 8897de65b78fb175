"""`images`, `rmi` and `load`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sandboxd.cli import render
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.session import (
    Session,
    emit,
    for_each,
    output_option,
    pass_session,
    quiet_option,
    show,
    working,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

_CHUNK = 256 * 1024  # bytes


@click.command()
@quiet_option
@output_option
@pass_session
def images(session: Session, quiet: bool, form: str | None) -> None:
    """List the images on this machine."""
    answer = session.daemon.call(session.daemon.images.ListImages, cri.ListImagesRequest(), "list the images")
    if quiet:
        for image in answer.images:
            click.echo(image.id)
    elif form:
        emit(render.as_dict(answer), form)
    else:
        show(render.images_table(answer.images))


@click.command()
@click.argument("references", metavar="IMAGE...", nargs=-1, required=True)
@pass_session
def rmi(session: Session, references: tuple[str, ...]) -> None:
    """Remove images, by name or id, with all their names."""

    def one(reference: str) -> str:
        if session.image(reference) is None:  # CRI's RemoveImage succeeds for what is not there
            raise Failure(f"there is no image {reference}", exit_code=Exit.NOT_FOUND, hint="see `sandboxctl images`")
        with working(f"Removing {reference}"):
            session.daemon.call(
                session.daemon.images.RemoveImage,
                cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)),
                f"remove image {reference}",
            )
        return reference

    for_each(references, one)


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
    with _progress(_size(file)) as report, session.daemon.translating(f"load {source}"):
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
    if form:
        emit({"images": [render.as_dict(image) for image in loaded]}, form)
        return
    for image in loaded:
        for name in [image.image_id] if quiet or not image.names else image.names:
            click.echo(name)


def _chunks(
    file: BinaryIO, report: Callable[[str, int, int], None], unreadable: list[OSError]
) -> Iterator[host.LoadImageRequest]:
    """Runs in gRPC's own thread, so a failure to read is left in `unreadable`."""
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


@contextlib.contextmanager
def _progress(size: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar, if somebody watches. It is told the stage, and the bytes done of how many (0: of `size`)."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("send", total=size or None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or size or None)

        yield report

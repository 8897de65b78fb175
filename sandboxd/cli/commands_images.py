"""`images`, `inspecti` and `rmi`: the images on this machine."""

from __future__ import annotations

import click

from sandboxd.cli import render
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.session import (
    Session,
    emit,
    for_each,
    note,
    output_option,
    pass_session,
    quiet_option,
    show,
    working,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri

_HINT = "see `sandboxctl images`"


@click.command()
@click.argument("reference", metavar="[IMAGE]", default="")
@click.option("--digests", is_flag=True, help="Show their digests in registries.")
@quiet_option
@output_option
@pass_session
def images(session: Session, reference: str, digests: bool, quiet: bool, form: str | None) -> None:
    """List the images on this machine, or the one with this name or id."""
    answer = session.daemon.call(
        session.daemon.images.ListImages,
        cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=reference))),
        "list the images",
    )
    if quiet:
        for image in answer.images:
            click.echo(image.id)
    elif form:
        emit(render.as_dict(answer), form)
    else:
        show(render.images_table(answer.images, digests=digests))


@click.command()
@click.argument("references", metavar="IMAGE...", nargs=-1, required=True)
@output_option
@pass_session
def inspecti(session: Session, references: tuple[str, ...], form: str | None) -> None:
    """Show all details of images, by name or id, as JSON, or as YAML with -o yaml; several as a list."""
    images = [_inspected(session, reference) for reference in references]
    emit(images[0] if len(images) == 1 else images, form or "json")


def _inspected(session: Session, reference: str) -> dict[str, object]:
    answer = session.daemon.call(
        session.daemon.images.ImageStatus,
        cri.ImageStatusRequest(image=cri.ImageSpec(image=reference), verbose=True),
        f"inspect image {reference}",
    )
    if not answer.HasField("image"):
        raise Failure(f"there is no image {reference}", exit_code=Exit.NOT_FOUND, hint=_HINT)
    # The daemon has the verbose part under the key "info"; like crictl, print its members at the top level.
    return {**render.info_dict(answer.info), "status": render.as_dict(answer.image)}


@click.command()
@click.argument("references", metavar="[IMAGE...]", nargs=-1)
@click.option("--prune", is_flag=True, help="Remove every image that no container uses and that is not pinned.")
@pass_session
def rmi(session: Session, references: tuple[str, ...], prune: bool) -> None:
    """Remove images, by name or id, with all their names.

    Layers that containers use are kept until those are removed.
    """
    if prune == bool(references):
        raise click.UsageError("name the images to remove, or use --prune")
    if prune:
        _prune(session)
    else:
        for_each(references, lambda reference: _remove_named(session, reference))


def _remove_named(session: Session, reference: str) -> str:
    if session.image(reference) is None:  # CRI's RemoveImage succeeds for an image that does not exist
        raise Failure(f"there is no image {reference}", exit_code=Exit.NOT_FOUND, hint=_HINT)
    _remove(session, reference, reference)
    return reference


def _prune(session: Session) -> None:
    """Remove unused images, and report how much space that freed."""
    answer = session.daemon.call(session.daemon.images.ListImages, cri.ListImagesRequest(), "list the images")
    used = _used(session)
    unused = [image for image in answer.images if not image.pinned and image.id not in used]
    before = _unpacked_bytes(session)
    removed: list[str] = []

    def one(image: cri.Image) -> str:
        # By id: by now the names may belong to another image.
        _remove(session, image.id, render.image_name(image))
        removed.append(image.id)
        return render.image_name(image)

    try:
        for_each(unused, one)
    finally:
        freed = render.size(max(0, before - _unpacked_bytes(session)))
        note(f"removed {len(removed)} of {len(answer.images)} images; their unpacked layers took {freed}")


def _used(session: Session) -> set[str]:
    """The ids of the images that containers were created from or mount."""
    containers = session.containers()
    references = {container.image_id or container.image_ref or container.image.image for container in containers}
    for status in session.container_statuses(container.id for container in containers).values():
        references |= {mount.image.image for mount in status.mounts}
    images = [session.image(reference) for reference in sorted(references) if reference]
    return {image.id for image in images if image is not None}


def _remove(session: Session, reference: str, label: str) -> None:
    with working(f"Removing {label}"):
        session.daemon.call(
            session.daemon.images.RemoveImage,
            cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)),
            f"remove image {label}",
        )


def _unpacked_bytes(session: Session) -> int:
    """The size of all unpacked images in bytes."""
    answer = session.daemon.call(
        session.daemon.images.ImageFsInfo, cri.ImageFsInfoRequest(), "ask for the images' disk usage"
    )
    return sum(each.used_bytes.value for each in answer.image_filesystems)

"""CheckpointContainer: a running container's memory and files, as an archive; the container continues.

    directory of its own → pause → CRIU, through the OCI runtime → changed files → resume → archive → directory gone

The container stands still between pause and resume, so that its memory and its files are of the same moment. The
directory is made first and goes last: if one is found with no checkpoint in progress, a checkpoint was interrupted,
and `undo` resumes the container. CRIU is needed for nothing else, so it is looked for only here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from sandboxd import disclosure, private, steps, trees
from sandboxd.containers import checkpoint_archive as archive
from sandboxd.errors import CleanupIncomplete, InvalidRequest, NotReady, TimedOut
from sandboxd.jobs import in_pieces
from sandboxd.machine import programs
from sandboxd.machine.handlers import RUNC_SHIM
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.operations import Held, perform, running_container

log = structlog.get_logger(__name__)

CRIU = "criu"
CHECK_SECONDS = 15.0
DEFAULT_SECONDS = 600.0  # for the whole, when the client does not say
LOG_BYTES = 1 << 20  # of the end of CRIU's log, which grows with what the container is made of
CRIU_SECONDS = 10.0  # for a CRIU whose runtime was killed to put everything back

# In a checkpoint's directory, beside what goes into the archive.
_WORK = "work"
_UNFINISHED = "unfinished"  # a link to the archive that is being written
_PROC = Path("/proc")


async def checkpoint_container(node: Node, container_id: str, location: str, seconds: int) -> None:
    """Write an archive of a running container to `location` in at most `seconds` (0 is ten minutes).

    Raises NotFound, InvalidRequest, NotReady saying what is missing or with CRIU's words, TimedOut; then there is no
    archive, and in any case the container runs on.
    """
    if not location.startswith("/") or location.endswith("/"):
        raise InvalidRequest(f"location: {location!r} is not the absolute path of a file")
    if seconds < 0:
        raise InvalidRequest(f"timeout: {seconds} is less than 0 seconds")
    deadline = time.monotonic() + (float(seconds) or DEFAULT_SECONDS)
    container = running_container(node, container_id)
    await perform(
        node,
        "CheckpointContainer",
        container.sandbox_id,
        lambda held: _checkpoint(held, container_id, Path(location), deadline),
        container_id=container_id,
        key=(container_id, location, seconds),
    )


async def _checkpoint(held: Held, container_id: str, location: Path, deadline: float) -> None:
    container = held.running_container(container_id)
    await _check(held.node, container)
    if not location.parent.is_dir():
        raise NotReady(f"location: there is no directory {location.parent}")

    async def undo_it(_: BaseException) -> None:
        await undo(held, container_id)

    name = container.config.metadata.name
    async with held.effect("container.checkpoint", undo=undo_it, container=name, archive=str(location)):
        await undo(held, container_id)
        try:
            await _take(held.node, container, location, deadline)
        except OSError as exc:
            raise NotReady(f"the checkpoint of container {container_id} cannot be written: {exc}") from exc
    try:
        await undo(held, container_id)
    except Exception as left:
        # The archive is whole and the container runs on: that is what was asked for. The next comparison tries again.
        words = disclosure.sentence(left)
        log.error("what a checkpoint gathered could not be removed", container=container_id, error=words)


async def _check(node: Node, container: ContainerRecord) -> None:
    """Raise NotReady, saying what is missing, where no checkpoint can be taken."""
    words = f"container {container.id} cannot be checkpointed: "
    name = node.ledger.sandboxes[container.sandbox_id].runtime_handler or node.config.runtime.default_handler
    handler = node.config.runtime.handlers.get(name)
    if handler is None:
        raise NotReady(f"{words}its runtime handler {name!r} is no longer configured")
    if handler.type != RUNC_SHIM:
        raise NotReady(f"{words}the shim {handler.type} of its runtime handler {name!r} does not do that")
    path = shutil.which(CRIU)
    if path is None:
        raise NotReady(f"{words}the program {CRIU} is not installed on this machine")
    try:
        status, output, errors = await programs.ask((path, "check"), CHECK_SECONDS)
    except (OSError, TimeoutError) as exc:
        raise NotReady(f"{words}`{path} check` cannot be run: {str(exc) or type(exc).__name__}") from exc
    if status != 0:
        said = _last_lines(errors or output)
        raise NotReady(f"{words}`{path} check` finds that this machine's kernel and CRIU do not fit: {said}")


def _last_lines(text: bytes) -> str:
    return "; ".join(text.decode("utf-8", "replace").splitlines()[-3:]) or "it does not say why"


async def _take(node: Node, container: ContainerRecord, location: Path, deadline: float) -> None:
    scratch = _directory(node, container.id)
    images, work = scratch / archive.IMAGES, scratch / _WORK
    private.make(str(scratch.parent), private.CLOSED)
    for directory in (scratch, images, work):
        directory.mkdir(mode=private.CLOSED)
    at = time.time_ns()
    with steps.step("container.pause"):
        await node.runtime.pause(container.id)
    with steps.step("container.dump"):
        await _dump(node, container, images, work, deadline)
    with steps.step("container.changes"), (scratch / archive.CHANGES).open("wb") as file:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await node.images.rootfs_changes(container.id, file)
        except TimeoutError as exc:
            raise TimedOut(f"checkpoint of {container.id}: its changed files were not packed in time") from exc
    with steps.step("container.resume"):
        await node.runtime.resume(container.id)
    documents = {
        "config.dump": archive.config_dump(container, RUNC_SHIM, at),
        "spec.dump": await node.runtime.spec(container.id),
    }
    with steps.step("container.archive"):
        await _archive(container, location, scratch, documents, deadline)


async def _dump(node: Node, container: ContainerRecord, images: Path, work: Path, deadline: float) -> None:
    """Have the OCI runtime's CRIU write the paused container's memory to `images`. Raises NotReady with its words."""
    try:
        await node.runtime.checkpoint(
            container.id,
            image_path=str(images),
            work_path=str(work),
            terminal=container.config.tty,
            timeout=max(0.0, deadline - time.monotonic()),
        )
    except NotReady as exc:
        if said := _complaints(work / archive.DUMP_LOG):
            exc.add_note(f"CRIU says: {said}")
        raise


async def _archive(
    container: ContainerRecord, location: Path, scratch: Path, documents: Mapping[str, Any], deadline: float
) -> None:
    """Pack what was gathered in `scratch`, the container's log and `documents` into the archive at `location`."""
    unfinished = location.parent / f".{container.id}.unfinished"
    (scratch / _UNFINISHED).symlink_to(unfinished)
    work = scratch / _WORK
    files = {
        archive.CHANGES: scratch / archive.CHANGES,
        archive.LOG: Path(container.log_path or "/"),
        archive.DUMP_LOG: work / archive.DUMP_LOG,
        archive.STATISTICS: work / archive.STATISTICS,
    }
    present = {name: path for name, path in files.items() if archive.has_file(path)}
    cut_off = threading.Event()
    try:
        await asyncio.to_thread(
            archive.write,
            location,
            unfinished,
            files={archive.IMAGES: scratch / archive.IMAGES, **present},
            documents=documents,
            deadline=deadline,
            cut_off=cut_off.is_set,
        )
    finally:
        cut_off.set()  # at a shutdown the thread would go on, and the daemon would wait for it


def _complaints(path: Path) -> str:
    """The last of the errors in CRIU's log, "" when there are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            lines = file.read(LOG_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "; ".join([line.partition(") ")[2] for line in lines if ") Error (" in line][-3:])


def _directory(node: Node, container_id: str) -> Path:
    return Path(node.places.checkpoint(container_id))


async def undo(held: Held, container_id: str) -> None:
    """Resume the container and remove what its checkpoint left, including a partial archive.

    Idempotent. Raises CleanupIncomplete, and the runtime's errors.
    """
    node = held.node
    scratch = _directory(node, container_id)
    if not scratch.exists():
        return
    await _criu_has_ended(scratch)
    await node.runtime.resume(container_id)
    await node.images.forget_changes(container_id)
    link = scratch / _UNFINISHED
    try:
        if link.is_symlink():
            Path(os.readlink(link)).unlink(missing_ok=True)
    except OSError as exc:
        raise CleanupIncomplete(f"an unfinished checkpoint cannot be removed: {exc}") from exc
    await in_pieces(trees.remove(str(scratch)))


def interrupted(node: Node) -> list[tuple[str, str]]:
    """(container id, the pod whose lock `undo` needs) of each checkpoint that was interrupted."""
    try:
        left = os.listdir(node.places.checkpoints)
    except FileNotFoundError:
        return []
    containers, busy = node.ledger.containers, node.jobs.held()
    owners = {id_: containers[id_].sandbox_id if id_ in containers else id_ for id_ in left}
    return [(container_id, owner) for container_id, owner in owners.items() if owner not in busy]


async def _criu_has_ended(scratch: Path) -> None:
    """Wait, for a while, until no CRIU process is working on this checkpoint.

    A CRIU whose runtime was killed by the time limit restores the container's processes to the paused state. That
    must not happen after they were resumed. Killing it would leave its parasite code in them.
    """
    deadline = time.monotonic() + CRIU_SECONDS
    while time.monotonic() < deadline:
        if not await asyncio.to_thread(_works_in, scratch / _WORK):
            return
        await asyncio.sleep(0.05)


def _works_in(directory: Path) -> bool:
    """Whether a process has its working directory there, as CRIU does."""
    try:
        wanted = directory.stat()
    except FileNotFoundError:
        return False
    for entry in _PROC.iterdir():
        try:
            if entry.name.isdecimal() and os.path.samestat((entry / "cwd").stat(), wanted):
                return True
        except OSError:
            continue
    return False

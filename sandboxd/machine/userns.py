"""A pod's user namespace, and the file systems that its processes see with their own ids.

Files on disk are owned by host ids; a pod with a user namespace must see them owned by its own. The kernel translates
at a mount ("idmapped mounts", Linux 5.12; below overlayfs 5.19). sandboxd makes these mounts and passes them to
containerd and the OCI runtime as ordinary directories, so versions that do not support them work as well. They are
needed only while the runtime creates a container: an overlay, and a container's own bind mounts, are copies.

Each container's staged mounts are in a directory of their own, which is unmounted and then removed with rmdir, never
recursively: what is mounted there belongs to others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from sandboxd import mounts, private, syscalls
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import CleanupIncomplete, NotReady, SandboxdError
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import userns
from sandboxd.oci.userns import IdMap
from sandboxd.pb.cri.v1 import api_pb2 as cri


async def create(node: Node, sandbox: SandboxRecord, ids: IdMap) -> None:
    """Make the pod's user namespace, and with it the network namespace that it owns. Raises NotReady; clean then."""
    private.make(node.places.sandbox(sandbox.id), private.CLOSED)
    await node.netns.create_user_namespace(
        node.places.user_namespace(sandbox.id),
        uid_map=ids.uids.kernel,
        gid_map=ids.gids.kernel,
        netns_path=sandbox.netns_path,
    )


async def remove(node: Node, sandbox_id: str) -> None:
    """Unpin it, and remove what was staged for the pause container. Idempotent."""
    await drop(node, sandbox_id)
    await node.netns.remove(node.places.user_namespace(sandbox_id))


# --- staging ---------------------------------------------------------------------------------------------------


def mapped_mounts(node: Node, container_id: str, config: cri.ContainerConfig) -> dict[int, str]:
    """The staged source of each id-mapped mount that is asked for, by its index."""
    return {
        i: f"{node.places.stage(container_id)}/mount-{i}"
        for i, mount in enumerate(config.mounts)
        if mount.uidMappings and mount.host_path
    }


@asynccontextmanager
async def staged(
    node: Node,
    sandbox: SandboxRecord,
    object_id: str,
    rootfs: Sequence[Mount],
    config: cri.ContainerConfig | None = None,
) -> AsyncIterator[Sequence[Mount]]:
    """The root file system as the pod's ids see it; the id-mapped mounts of `config` exist inside the block.

    Without a user namespace that is `rootfs` itself. Raises NotReady when the kernel or a file system refuses.
    """
    ids = userns.of(sandbox.config)
    if ids is None:
        yield rootfs
        return
    wanted = {
        target: os.path.realpath(config.mounts[i].host_path)
        for i, target in (mapped_mounts(node, object_id, config) if config else {}).items()
        if config
    }
    try:
        yield await asyncio.to_thread(_stage, node, sandbox, object_id, rootfs, wanted, ids)
    finally:
        # To its end even when the request is cancelled: what stays here is other people's files.
        await asyncio.shield(asyncio.to_thread(unstage, node, object_id))


def _stage(
    node: Node, sandbox: SandboxRecord, object_id: str, rootfs: Sequence[Mount], wanted: Mapping[str, str], ids: IdMap
) -> list[Mount]:
    unstage(node, object_id)
    directory = node.places.stage(object_id)
    try:
        private.make(directory, private.CLOSED)
        with namespace_fd(node, sandbox.id) as fd:
            for target, source in wanted.items():
                map_mount(source, target, userns_fd=fd, recursive=True)
            return [map_rootfs(mount, f"{directory}/{i}", fd, ids) for i, mount in enumerate(rootfs)]
    except OSError as exc:
        raise NotReady(
            f"the files of {object_id} cannot be shown with the ids of its user namespace: {exc}; their file system"
            " has to support idmapped mounts"
        ) from exc


@contextmanager
def namespace_fd(node: Node, sandbox_id: str) -> Iterator[int]:
    """The pod's user namespace as a descriptor."""
    fd = os.open(node.places.user_namespace(sandbox_id), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def map_rootfs(mount: Mount, prefix: str, userns_fd: int, ids: IdMap) -> Mount:
    """`mount` over mapped copies of what it is made of, at `prefix`-0 and so on. Raises OSError.

    An overlay's layers are mapped one by one; its upper directory is written with host ids and has to belong to
    the pod's root from the start.
    """
    if mount.type != "overlay":
        read_only = syscalls.MOUNT_ATTR_RDONLY if "ro" in mount.options else 0
        map_mount(mount.source, f"{prefix}-0", userns_fd=userns_fd, attributes=read_only)
        return replace(mount, source=f"{prefix}-0")
    options = []
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "lowerdir":
            targets = [f"{prefix}-{i}" for i in range(value.count(":") + 1)]
            for source, target in zip(value.split(":"), targets, strict=True):
                map_mount(source, target, userns_fd=userns_fd, attributes=syscalls.MOUNT_ATTR_RDONLY)
            options.append(f"lowerdir={':'.join(targets)}")
            continue
        if key == "upperdir" and os.stat(value).st_uid == 0:
            os.chown(value, ids.uids.host, ids.gids.host)
        options.append(option)
    return replace(mount, options=tuple(options))


def map_mount(source: str, target: str, *, userns_fd: int = -1, attributes: int = 0, recursive: bool = False) -> None:
    """Mount a copy of `source` at `target`, which is made, with ids mapped by the namespace if there is one.

    `attributes` are MOUNT_ATTR_* for the copy. Raises OSError.
    """
    if userns_fd >= 0:
        attributes |= syscalls.MOUNT_ATTR_IDMAP
    tree = syscalls.open_tree(source, recursive=recursive)
    try:
        try:
            syscalls.mount_setattr(tree, attributes, userns_fd=userns_fd, recursive=recursive)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, source) from exc
        if os.path.isdir(source):
            private.make(target, private.CLOSED)
        else:
            os.close(os.open(target, os.O_RDONLY | os.O_CREAT, 0o600))
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


async def drop(node: Node, object_id: str) -> None:
    """Remove what a daemon that died has left staged."""
    if os.path.lexists(node.places.stage(object_id)):
        await asyncio.to_thread(unstage, node, object_id)


def unstage(node: Node, object_id: str) -> None:
    """Unmount and remove what is staged for a container. Idempotent. Raises CleanupIncomplete."""
    directory = node.places.stage(object_id)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                mounts.unmount(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.path)
                else:
                    # If something were still mounted on it, this would fail with EBUSY.
                    os.unlink(entry.path)
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise CleanupIncomplete(f"{directory} cannot be removed: {exc}") from exc


# --- support on this machine -----------------------------------------------------------------------------------


async def probe(node: Node) -> str:
    """Try an idmapped mount of one of the daemon's directories, once: "" if it works, or the kernel's error."""
    directory = node.config.daemon.root

    async def ask() -> str:
        try:
            await _probe(node, directory)
        except SandboxdError as exc:
            return str(exc)
        return ""

    return await node.machine.remembered.answer(("idmapped mounts", directory), ask)


async def _probe(node: Node, directory: str) -> None:
    pin = node.places.sandbox("userns-probe")
    private.make(os.path.dirname(pin), private.CLOSED)
    await node.netns.remove(pin)
    await node.netns.create_user_namespace(pin, uid_map="0 65536 65536\n", gid_map="0 65536 65536\n")
    try:
        tree = syscalls.open_tree(directory)
        try:
            fd = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=fd)
            finally:
                os.close(fd)
        finally:
            os.close(tree)
    except OSError as exc:
        raise NotReady(f"the file system of {directory} does not support idmapped mounts: {exc}") from exc
    finally:
        await node.netns.remove(pin)

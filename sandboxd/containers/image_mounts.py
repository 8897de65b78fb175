"""Images mounted into containers as read-only directories.

An image is mounted once for a pod, at a place that the pod's id and the image's give, from a view snapshot that
keeps the image's layers even if the image is removed. The directories are below the daemon's root and not its
state: after a reboot they tell which snapshots are left to be removed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from sandboxd import mountinfo, mounts, places, private, steps, syscalls
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import CleanupIncomplete, InvalidRequest, NotReady
from sandboxd.machine import userns
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import linux
from sandboxd.oci import userns as ids_of
from sandboxd.operations import Held
from sandboxd.pb.cri.v1 import api_pb2 as cri

# What an image brings is data here: neither its set-id programs nor its device nodes are to have any effect.
READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_FLAGS = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
_MOST_LINKS = 40  # as the kernel's own limit


def resolved(node: Node, config: cri.ContainerConfig) -> cri.ContainerConfig:
    """`config` with the id of each image that it mounts in `image_ref`: a tag may lead elsewhere tomorrow.

    Raises NotFound for an image that is not on this machine.
    """
    if not any(linux.shows_image(mount) for mount in config.mounts):
        return config
    found = cri.ContainerConfig()
    found.CopyFrom(config)
    for mount in found.mounts:
        if linux.shows_image(mount):
            mount.image.image_ref = node.images.resolve(mount.image.image).id
    return found


async def mount(held: Held, sandbox: SandboxRecord, container_id: str, config: cri.ContainerConfig) -> dict[int, str]:
    """Mount the images of a resolved `config`; return the directory to show for each, by its index.

    Raises NotFound for an image that is gone, InvalidRequest for a sub path that is not a directory in it.
    """
    found = {}
    for i, wanted in enumerate(config.mounts):
        if not linux.shows_image(wanted):
            continue
        with steps.step("image.mount", image=wanted.image.image_ref):
            target = await _mounted(held.node, sandbox, container_id, wanted.image.image_ref)
        found[i] = await asyncio.to_thread(_inside, target, wanted.image_sub_path)
    return found


async def remove(held: Held) -> None:
    """Unmount the pod's images and remove their snapshots. Idempotent."""
    node, sandbox_id = held.node, held.sandbox_id
    base = Path(node.places.image_mounts(sandbox_id))
    try:
        entries = sorted(base.iterdir())
    except FileNotFoundError:
        return
    try:
        for entry in entries:
            await asyncio.to_thread(mounts.unmount, str(entry))
            await node.images.remove_rootfs(places.image_snapshot(sandbox_id, entry.name))
            entry.rmdir()
        base.rmdir()
    except OSError as exc:
        raise CleanupIncomplete(f"{base} cannot be removed: {exc}") from exc


async def _mounted(node: Node, sandbox: SandboxRecord, container_id: str, image_id: str) -> str:
    """The image's directory on this machine."""
    target = node.places.image_mount(sandbox.id, image_id)
    if await asyncio.to_thread(_is_mounted, target):
        return target
    private.make(target, private.CLOSED)
    view = await node.images.view(places.image_snapshot(sandbox.id, image_id), node.images.resolve(image_id))
    try:
        await asyncio.to_thread(_mount, node, sandbox, container_id, view, target)
    except OSError as exc:
        raise NotReady(f"image {image_id} cannot be mounted: {exc}") from exc
    finally:
        await userns.drop(node, container_id)
    return target


def _is_mounted(target: str) -> bool:
    return mountinfo.visible(mounts.listed(), os.path.realpath(target)) is not None


def _mount(node: Node, sandbox: SandboxRecord, container_id: str, view: Sequence[Mount], target: str) -> None:
    if len(view) != 1:
        raise OSError(0, f"its snapshot is made of {len(view)} mounts")
    (mount,) = view
    ids = ids_of.of(sandbox.config)
    directory = node.places.stage(container_id)
    private.make(directory, private.CLOSED)
    if ids is not None:
        with userns.namespace_fd(node, sandbox.id) as fd:
            mount = userns.map_rootfs(mount, f"{directory}/volume", fd, ids)
    if mount.type != "overlay":
        userns.map_mount(mount.source, target, attributes=READ_ONLY)
        return
    options = [_short(option, directory) for option in mount.options if option not in ("ro", "rw")]
    syscalls.mount("overlay", target, _FLAGS, "overlay", ",".join(options))


def _short(option: str, directory: str) -> str:
    """`lowerdir=` by way of links: all options of a mount must fit into one page, and layers are many."""
    key, _, value = option.partition("=")
    if key != "lowerdir":
        return option
    links = []
    for i, layer in enumerate(value.split(":")):
        links.append(f"{directory}/{i}")
        os.symlink(layer, links[-1])
    return f"lowerdir={':'.join(links)}"


def _inside(root: str, sub_path: str) -> str:
    """The directory `sub_path` of a mounted image, links followed as if `root` were the root.

    The image is read-only, so nothing changes under us. Raises InvalidRequest if there is no such directory.
    """
    done: list[str] = []
    todo = sub_path.split("/")[::-1]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            info = os.lstat("/".join((root, *done, part)))
            if not stat.S_ISLNK(info.st_mode):
                done.append(part)
                if not stat.S_ISDIR(info.st_mode):
                    raise InvalidRequest(
                        f"config.mounts: image_sub_path {sub_path!r} is not a directory in the image"
                    )
                continue
            links += 1
            if links > _MOST_LINKS:
                raise InvalidRequest(f"config.mounts: image_sub_path {sub_path!r} leads through too many links")
            target = os.readlink("/".join((root, *done, part)))
            done = [] if target.startswith("/") else done
            todo += target.split("/")[::-1]
    except OSError as exc:
        raise InvalidRequest(
            f"config.mounts: image_sub_path {sub_path!r} is not in the image: {exc.strerror}"
        ) from exc
    return "/".join((root, *done))

"""What a runtime handler can do: asked of its OCI runtime, and of this kernel.

`runc features` and its like print what the runtime knows (OCI runtime spec, "features.md"); one that does not know
the command is taken to know nothing. The answer is kept for as long as the program's file stays the same. What is
not certain to work is not advertised, since clients choose by it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sandboxd import syscalls
from sandboxd.config import Handler
from sandboxd.containerd.tasks import RuntimeOptions
from sandboxd.errors import InvalidRequest
from sandboxd.machine import facts, programs, userns
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import linux
from sandboxd.oci import userns as oci_userns
from sandboxd.remembered import version

log = structlog.get_logger(__name__)

RUNC_SHIM = "io.containerd.runc.v2"
ASK_SECONDS = 15.0
AGAIN_SECONDS = 60.0  # after which a runtime that did not answer is asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What an OCI runtime says that it knows."""

    mount_options: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What pods of a handler can ask for on this machine."""

    recursive_read_only: bool = False
    user_namespaces: bool = False
    no_user_namespaces: str = ""  # why not


async def ask_all(node: Node) -> None:
    """Know what every handler offers before a client asks: Status is not to wait for programs."""
    for handler in node.config.runtime.handlers.values():
        await features(node, handler)


async def features(node: Node, handler: Handler) -> Features:
    """What works with this handler; never raises. The first time its runtime is executed, later that is known."""
    binary, known = await _asked_of(node, handler)
    if known is None:
        missing = (
            f"the shim {handler.type} does not tell what it can do"
            if not binary
            else f"{binary} cannot be asked what it can do"
        )
        return Features(no_user_namespaces=missing)
    why = await _no_user_namespaces(node, binary, known)
    return Features(
        recursive_read_only=_mounts_recursively(known),
        user_namespaces=not why,
        no_user_namespaces=why,
    )


async def recursive_read_only(node: Node, handler: Handler) -> bool:
    """That one of the features, by itself."""
    _, known = await _asked_of(node, handler)
    return known is not None and _mounts_recursively(known)


def resolve(node: Node, name: str) -> Handler:
    """The configured handler ("" is the default one); raises InvalidRequest naming the known ones."""
    configured = node.config.runtime.handlers
    try:
        return configured[name or node.config.runtime.default_handler]
    except KeyError:
        known = ", ".join(sorted(configured))
        raise InvalidRequest(f"unknown runtime handler {name!r}; known: {known}") from None


def runtime_options(node: Node, sandbox: SandboxRecord) -> RuntimeOptions:
    """The options of containerd's shim for containers of this pod."""
    found = resolve(node, sandbox.runtime_handler)
    ids = oci_userns.of(sandbox.config)
    return RuntimeOptions(
        type=found.type,
        binary=found.binary,
        root=found.root,
        systemd_cgroup=node.config.runtime.cgroup_driver == "systemd",
        # /dev/stdout can then be opened again by the pod's root.
        io_uid=ids.uids.host if ids else 0,
        io_gid=ids.gids.host if ids else 0,
    )


async def pod_facts(node: Node, sandbox: SandboxRecord) -> linux.HostFacts:
    """The machine as the pod's specs see it, and what the pod's handler offers and passes on."""
    handler = resolve(node, sandbox.runtime_handler)
    return replace(
        node.machine.facts,
        recursive_read_only=await recursive_read_only(node, handler),
        annotations=handler.annotations,
    )


async def sandbox_facts(node: Node, sandbox: SandboxRecord) -> linux.HostFacts:
    """The same, with what this pod's own security context needs to be known."""
    found = await pod_facts(node, sandbox)
    return await asyncio.to_thread(facts.for_pod, found, sandbox.config, node.config.runtime)


def parse(output: bytes) -> Abilities:
    """The abilities in a runtime's answer; none when it is not one."""
    try:
        answer = json.loads(output)
        return Abilities(
            mount_options=frozenset(answer.get("mountOptions") or ()),
            namespaces=frozenset((answer.get("linux") or {}).get("namespaces") or ()),
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        return Abilities()


async def _asked_of(node: Node, handler: Handler) -> tuple[str, Abilities | None]:
    """The OCI runtime's program, "" for a shim that we cannot ask, and what it knows."""
    binary = (handler.binary or "runc") if handler.type == RUNC_SHIM else ""
    return binary, await _abilities(node, binary) if binary else None


def _mounts_recursively(known: Abilities) -> bool:
    return "rro" in known.mount_options and kernel_has_mount_setattr()


async def _abilities(node: Node, binary: str) -> Abilities | None:
    """What the runtime at `binary` (a path, or a name in PATH) knows; None when it cannot be executed."""
    path = shutil.which(binary)
    if path is None:
        return None
    try:
        file = version(path)
    except OSError:
        return None  # replaced at this moment
    try:
        return await node.machine.remembered.answer(
            ("features", path), lambda: _ask(path), version=file, error_seconds=AGAIN_SECONDS
        )
    except (OSError, TimeoutError):
        return None


async def _ask(path: str) -> Abilities:
    try:
        status, output, _ = await programs.ask((path, "features"), ASK_SECONDS)
    except (OSError, TimeoutError) as exc:
        words = str(exc) or type(exc).__name__
        log.warning("an OCI runtime could not be asked for its features", binary=path, error=words)
        raise
    return parse(output if status == 0 else b"")


async def _no_user_namespaces(node: Node, binary: str, known: Abilities) -> str:
    if "user" not in known.namespaces:
        return f"{binary} does not say that it knows user namespaces"
    if not kernel_maps_overlays(os.uname().release):
        return f"Linux {os.uname().release} cannot map the ids of an overlay's layers: that takes 5.19"
    try:
        if int(Path("/proc/sys/user/max_user_namespaces").read_text(encoding="ascii")) == 0:
            return "user.max_user_namespaces is 0"
    except (OSError, ValueError):
        return "this kernel has no user namespaces"
    return await userns.probe(node)


def kernel_has_mount_setattr() -> bool:
    """Whether mounts can be made read-only recursively: mount_setattr(2), Linux 5.12."""
    try:
        syscalls.mount_setattr(-1, syscalls.MOUNT_ATTR_RDONLY)
    except OSError as exc:
        return exc.errno == errno.EBADF
    return False


def kernel_maps_overlays(release: str) -> bool:
    """Whether overlayfs takes id-mapped layers, by the kernel's release (5.19, "ovl: support idmapped layers")."""
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and (int(version[1]), int(version[2])) >= (5, 19)

"""Records as text: what a row of the ledger holds, and what containerd keeps with a container for us. Pure.

Values that a record does not know are left out when it is read: a later version may have written more. What else is
wrong with a text is an error of any kind, which tells the reader that it is damaged.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from sandboxd.model import AnyRecord, Attachment, AttachmentState, ContainerRecord, Owed, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri

KEPT_VERSION = 1  # of what containerd keeps

Record = TypeVar("Record", SandboxRecord, ContainerRecord)

_BODIES = {
    kind: tuple(f.name for f in fields(kind) if f.name not in ("id", "config"))
    for kind in (SandboxRecord, ContainerRecord)
}
_ATTACHMENT = tuple(f.name for f in fields(Attachment))


def body(record: AnyRecord) -> str:
    """Everything of a record but its id and its configuration, which rows have columns for."""
    return json.dumps({name: getattr(record, name) for name in _BODIES[type(record)]})


def record(kind: type[Record], id_: str, config: Any, text: str) -> Record:
    """The record of which `body` made this text."""
    values = known(kind, json.loads(text))
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return kind(id=id_, config=config, **values)


def attachment_text(attachment: Attachment) -> str:
    """All of an attachment."""
    values = {name: getattr(attachment, name) for name in _ATTACHMENT}
    values["state"] = attachment.state.value
    values["owed"] = [asdict(each) for each in attachment.owed]
    for key in ("config", "capability_args", "result"):
        values[key] = encoded(values[key])
    return json.dumps(values)


def attachment(text: str) -> Attachment:
    """The attachment of which `attachment_text` made this text."""
    values = json.loads(text)
    values["state"] = AttachmentState(values["state"])
    values["owed"] = tuple(Owed(**known(Owed, each)) for each in values.get("owed", ()))
    values["backends"] = tuple(values.get("backends", ()))
    for key in ("config", "capability_args", "result"):
        values[key] = base64.b64decode(values[key])
    return Attachment(**known(Attachment, values))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSandbox:
    """What containerd keeps of a pod: as it was just before its pause container was created."""

    record: SandboxRecord
    attachment: Attachment | None  # to its network, before any plugin ran; None for a pod in the host's


def keep_sandbox(sandbox: SandboxRecord, planned: Attachment | None) -> bytes:
    """What containerd is to keep of a pod."""
    return _kept(sandbox, attachment="" if planned is None else attachment_text(planned))


def kept_sandbox(id_: str, data: bytes) -> KeptSandbox:
    """What `keep_sandbox` made, for the pod `id_`."""
    values = _opened(data)
    config = cri.PodSandboxConfig.FromString(base64.b64decode(values["config"]))
    text = values["attachment"]
    planned = attachment(text) if text else None
    if planned is not None and planned.sandbox_id != id_:
        raise ValueError(f"the attachment is that of {planned.sandbox_id}")
    return KeptSandbox(record=record(SandboxRecord, id_, config, values["body"]), attachment=planned)


def keep_container(container: ContainerRecord) -> bytes:
    """What containerd is to keep of a container. The environment is in its runtime spec anyway."""
    return _kept(container)


def kept_container(id_: str, data: bytes) -> ContainerRecord:
    """What `keep_container` made, for the container `id_`."""
    values = _opened(data)
    config = cri.ContainerConfig.FromString(base64.b64decode(values["config"]))
    return record(ContainerRecord, id_, config, values["body"])


def _kept(of: AnyRecord, **more: str) -> bytes:
    values = {"version": KEPT_VERSION, "config": encoded(of.config.SerializeToString()), "body": body(of), **more}
    return json.dumps(values).encode()


def _opened(data: bytes) -> dict[str, Any]:
    if not data:
        raise ValueError("nothing was kept: an earlier version of sandboxd made it")
    values: dict[str, Any] = json.loads(data)
    if values["version"] != KEPT_VERSION:
        raise ValueError(f"it is of version {values['version']}, this sandboxd reads {KEPT_VERSION}")
    return values


def encoded(data: bytes) -> str:
    """Bytes as base64, for JSON."""
    return base64.b64encode(data).decode("ascii")


def known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values for which `kind` has fields: a newer sandboxd with the same schema may have written more."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}

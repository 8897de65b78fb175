"""Records to CRI messages. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from sandboxd.cni import result as cni_result
from sandboxd.errors import PluginFailed
from sandboxd.model import Attachment, ContainerRecord, ContainerState, ImageRecord, SandboxRecord, SandboxState
from sandboxd.network_state import Thing
from sandboxd.oci import stop_signal
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.steps import Act, NetworkChange, PluginExecution, Running, StepRecord, Story

_CONTAINER_STATES = {
    ContainerState.CREATED: cri.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.CONTAINER_EXITED,
}
_SIGNALS = dict(cri.Signal.items())
# CRI has several names for some, of which the first counts.
_NUMBERED = {
    stop_signal.number(name.replace("PLUS", "+").replace("MINUS", "-")): value
    for name, value in reversed(_SIGNALS.items())
}
TIMELINE_ROOM = 1 << 20  # characters; clients take answers of 16 MiB
_ACT_ROOM = 120  # of an act, besides what it is called and what it is about


def sandbox_state(record: SandboxRecord) -> cri.PodSandboxState.ValueType:
    """READY or NOTREADY; CRI has no third."""
    return cri.SANDBOX_READY if record.state is SandboxState.READY else cri.SANDBOX_NOTREADY


def sandbox(record: SandboxRecord) -> cri.PodSandbox:
    """An entry of ListPodSandbox."""
    return cri.PodSandbox(
        id=record.id,
        metadata=record.config.metadata,
        state=sandbox_state(record),
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.runtime_handler,
    )


def sandbox_status(record: SandboxRecord) -> cri.PodSandboxStatus:
    """What PodSandboxStatus answers; without an address for a pod in the host's network, as CRI demands."""
    network = cri.PodSandboxNetworkStatus()
    if record.ips and not record.stopped_at:
        network.ip = record.ips[0]
        network.additional_ips.extend(cri.PodIP(ip=ip) for ip in record.ips[1:])
    return cri.PodSandboxStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=sandbox_state(record),
        created_at=record.created_at,
        network=network,
        linux=cri.LinuxPodSandboxStatus(
            namespaces=cri.Namespace(options=record.config.linux.security_context.namespace_options)
        ),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.runtime_handler,
    )


def container_state(record: ContainerRecord) -> cri.ContainerState.ValueType:
    """The state of one that clients can see: not of one that is still being created."""
    return _CONTAINER_STATES[record.state]


def container(record: ContainerRecord) -> cri.Container:
    """An entry of ListContainers."""
    return cri.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=record.config.metadata,
        image=record.config.image,
        image_ref=record.image_ref,
        image_id=record.image_id,
        state=container_state(record),
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
    )


def container_status(record: ContainerRecord) -> cri.ContainerStatus:
    """What ContainerStatus answers."""
    return cri.ContainerStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=container_state(record),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=record.config.image,
        image_ref=record.image_ref,
        image_id=record.image_id,
        reason=record.reason if record.finished_at else "",
        message=record.message,
        labels=record.config.labels,
        annotations=record.config.annotations,
        mounts=record.config.mounts,
        log_path=record.log_path,
        user=_user(record.user),
        resources=_resources(record.config),
        stop_signal=_stop_signal(record.stop_signal),
    )


def _stop_signal(text: str) -> cri.Signal.ValueType:
    """The stop signal of the request or the image; RUNTIME_DEFAULT for the default, and for one that CRI lacks."""
    named = text.upper().replace("+", "PLUS").replace("-", "MINUS")
    if named in _SIGNALS:
        return _SIGNALS[named]
    number = stop_signal.number(text)
    return cri.RUNTIME_DEFAULT if number is None else _NUMBERED.get(number, cri.RUNTIME_DEFAULT)


def _resources(config: cri.ContainerConfig) -> cri.ContainerResources | None:
    if not config.linux.HasField("resources"):
        return None
    return cri.ContainerResources(linux=config.linux.resources)


def _user(ids: Sequence[int]) -> cri.ContainerUser | None:
    if not ids:
        return None
    uid, gid, *groups = ids
    return cri.ContainerUser(linux=cri.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups))


def image(record: ImageRecord) -> cri.Image:
    """An entry of ListImages, and what ImageStatus answers."""
    uid = cri.Int64Value(value=record.uid) if record.uid is not None else None
    return cri.Image(
        id=record.id,
        repo_tags=record.repo_tags,
        repo_digests=record.repo_digests,
        size=record.size,
        uid=uid,
        username=record.username,
        spec=cri.ImageSpec(image=record.id),
        pinned=record.pinned,
    )


def labels_match(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """CRI's label selector: every pair must match exactly."""
    return all(labels.get(key) == value for key, value in selector.items())


def info(**parts: Any) -> dict[str, str]:
    """The verbose part of a status: one JSON text under "info", as crictl and other clients expect it."""
    return {"info": json.dumps({key: value for key, value in parts.items() if value is not None})}


def message_dict(message: Any) -> dict[str, Any]:
    """A message as JSON-able data, with the field names of the contract."""
    parsed: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return parsed


def timeline(steps: Sequence[StepRecord], room: int = TIMELINE_ROOM) -> list[dict[str, Any]]:
    """The timeline for a verbose status: what happened, when, how long it took, and what plugins were told and said.

    Plugins' input and output and what steps changed have `room` characters together, and the newest come first: the
    status must fit a message, whatever plugins print. Plugins without room say "cut", and of a step's acts without
    room there is only their number.
    """
    told = []
    for step in reversed(steps):
        plugin, room = _execution_dict(step.plugin, room) if step.plugin else (None, room)
        acts, room = _acts_list(step.acts, room)
        told.append(
            {
                "operation": step.operation,
                "step": step.name,
                "startedAt": step.started_at,
                "durationNs": step.duration,
                **({"error": step.error} if step.error else {}),
                **({"detail": dict(step.detail)} if step.detail else {}),
                **({"plugin": plugin} if plugin else {}),
                **({"acts": acts} if acts else {}),
            }
        )
    return told[::-1]


def _acts_list(acts: Sequence[Act], room: int) -> tuple[list[dict[str, Any]] | int, int]:
    """What a step changed, or how many acts there were, and the room that is left."""
    size = sum(_ACT_ROOM + len(each.what) + len(each.about) for each in acts)
    return ([_act_dict(each) for each in acts], room - size) if size <= room else (len(acts), room)


def _act_dict(act: Act) -> dict[str, Any]:
    return {
        "what": act.what,
        "about": act.about,
        "startedAt": act.started_at,
        "durationNs": act.duration,
        **({"outcome": act.outcome} if act.outcome else {}),
        **({"bytes": act.size} if act.size >= 0 else {}),
    }


def _execution_dict(plugin: PluginExecution, room: int) -> tuple[dict[str, Any], int]:
    """One execution, and the room that is left after it."""
    told: dict[str, Any] = {
        "command": plugin.command,
        "binary": plugin.binary,
        "exitCode": plugin.exit_code,
        "durationNs": plugin.duration,
        **({"timedOut": True} if plugin.timed_out else {}),
        **({"endedBy": plugin.ended_by} if plugin.ended_by else {}),
        **({"backend": plugin.backend} if plugin.backend else {}),
    }
    texts = {key: getattr(plugin, key).decode(errors="replace") for key in ("stdin", "stdout", "stderr")}
    size = sum(map(len, texts.values())) + sum(len(key) + len(value) for key, value in plugin.env.items())
    if size > room:
        return {**told, "cut": True}, room
    return {**told, "env": dict(plugin.env), **{key: text for key, text in texts.items() if text}}, room - size


def step(record: StepRecord) -> host_pb2.Step:
    """A timeline entry of the host API, plugin execution included."""
    return host_pb2.Step(
        operation=record.operation,
        name=record.name,
        container_id=record.container_id,
        started_at=record.started_at,
        duration=record.duration,
        error=record.error,
        detail=record.detail,
        plugin=_execution(record.plugin) if record.plugin else None,
        acts=map(_act, record.acts),
        changes=map(network_change, record.changes),
    )


def _act(act: Act) -> host_pb2.Act:
    return host_pb2.Act(
        what=act.what,
        about=act.about,
        started_at=act.started_at,
        duration=act.duration,
        outcome=act.outcome,
        size=act.size if act.size >= 0 else None,
    )


def network_change(change: NetworkChange) -> host_pb2.NetworkChange:
    """What a plugin changed."""
    return host_pb2.NetworkChange(
        place=change.place,
        kind=change.kind,
        name=change.name,
        change="added" if change.before is None else "removed" if change.after is None else "changed",
        before=change.before,
        after=change.after,
        belongs_to=change.belongs_to,
    )


def network_thing(thing: Thing, owner: str) -> host_pb2.NetworkThing:
    """What there is of a pod's network."""
    return host_pb2.NetworkThing(
        place=thing.place, kind=thing.kind, name=thing.name, fields=thing.fields, belongs_to=owner
    )


def story(told: Story) -> host_pb2.Operation:
    """An operation that failed."""
    return host_pb2.Operation(
        operation=told.operation,
        subject=told.subject,
        pod_sandbox_id=told.sandbox_id,
        container_id=told.container_id,
        started_at=told.started_at,
        duration=told.duration,
        error=told.error,
        steps=[step(each) for each in told.steps],
        times=told.times,
    )


def running(now: Running) -> host_pb2.Operation:
    """An operation under way."""
    return host_pb2.Operation(
        operation=now.operation,
        subject=now.subject,
        pod_sandbox_id=now.sandbox_id,
        container_id=now.container_id,
        started_at=now.started_at,
        steps=[step(each) for each in now.ended],
        open=[
            host_pb2.Step(
                operation=now.operation,
                name=each.name,
                started_at=each.started_at,
                detail=each.detail,
                acts=map(_act, each.acts),
            )
            for each in now.open
        ],
    )


def _execution(plugin: PluginExecution) -> host_pb2.PluginExecution:
    return host_pb2.PluginExecution(
        command=plugin.command,
        binary=plugin.binary,
        env=plugin.env,
        stdin=plugin.stdin,
        stdout=plugin.stdout,
        stderr=plugin.stderr,
        exit_code=plugin.exit_code,
        duration=plugin.duration,
        timed_out=plugin.timed_out,
        ended_by=plugin.ended_by,
        backend=plugin.backend,
    )


def attachment(record: Attachment) -> host_pb2.Attachment:
    """A network attachment of the host API."""
    return host_pb2.Attachment(
        network=record.network,
        ifname=record.ifname,
        state=record.state.value,
        conf_file=record.conf_file,
        config=record.config,
        result=record.result,
        error=record.error,
        attempts=record.attempts,
        ips=_ips(record),
        backends=record.backends,
    )


def debt(record: Attachment, next_at: int, *, exists: bool) -> host_pb2.Debt:
    """A debt of the host API. `exists`: the pod's record is there."""
    return host_pb2.Debt(
        pod_sandbox_id=record.sandbox_id,
        pod=record.pod,
        pod_exists=exists,
        network=record.network,
        ifname=record.ifname,
        netns_path=record.netns_path,
        ips=_ips(record),
        plugins=[
            host_pb2.OwedPlugin(plugin=each.plugin, error=each.error, attempts=each.attempts) for each in record.owed
        ],
        error=record.error,
        attempts=record.attempts,
        failed_at=record.failed_at,
        tried_at=record.tried_at,
        next_at=next_at,
        kept=record.kept,
    )


def _ips(attachment: Attachment) -> tuple[str, ...]:
    if not attachment.result:
        return ()
    try:
        return cni_result.pod_ips(cni_result.parse_result(attachment.result, attachment.network), attachment.ifname)
    except PluginFailed:
        return ()  # the raw result is shown beside it

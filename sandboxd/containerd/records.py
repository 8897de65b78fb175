"""The container records that containerd keeps, listed with what we stored beside them.

A record holds more than its spec: labels that say whose it is, and an extension, bytes of ours that containerd keeps
and does not read. From these a lost ledger is rebuilt (`pods.adopt`), and what nobody knows is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import any_pb2, timestamp_pb2

from sandboxd.containerd.client import OWNER_LABEL, Containerd, translate
from sandboxd.pb.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc

EXTENSION = "sandboxd.io/record"  # the key among the extensions of a record, and the type of its value
LIST_SECONDS = 60.0  # for all of them; each comes with its spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A container's record in containerd, whoever made it."""

    id: str
    labels: Mapping[str, str]
    extension: bytes  # what `create_container` was given to keep, b"" for a record without
    snapshotter: str
    snapshot_key: str  # "" for a container that has no snapshot
    created_at: int  # unix nanoseconds

    @property
    def owner(self) -> str:
        """The mark of the daemon that made it, "" when it has none: a stranger's, or an earlier version's."""
        return self.labels.get(OWNER_LABEL, "")


class Records:
    """containerd's container records in our namespace."""

    def __init__(self, client: Containerd) -> None:
        self._meta = client.metadata
        self._stub = containers_pb2_grpc.ContainersStub(client.channel)

    async def list(self) -> dict[str, Stored]:
        """Every record, by id, strangers' included. Raises Unavailable, TimedOut."""
        found = {}
        with translate("container records"):
            # As a stream: the specs of a few hundred containers are more than one message may hold.
            call = self._stub.ListStream(
                containers_pb2.ListContainersRequest(), metadata=self._meta, timeout=LIST_SECONDS
            )
            async for message in call:
                found[message.container.id] = _stored(message.container)
        return found


def extension(data: bytes) -> dict[str, any_pb2.Any]:
    """The extensions of a record that keeps `data`."""
    return {EXTENSION: any_pb2.Any(type_url=EXTENSION, value=data)} if data else {}


def _stored(container: containers_pb2.Container) -> Stored:
    return Stored(
        id=container.id,
        labels=dict(container.labels),
        # Looked up with `in`: reading an absent key of a protobuf map creates it.
        extension=container.extensions[EXTENSION].value if EXTENSION in container.extensions else b"",
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=nanoseconds(container.created_at),
    )


def nanoseconds(stamp: timestamp_pb2.Timestamp) -> int:
    """A protobuf timestamp as unix nanoseconds."""
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)

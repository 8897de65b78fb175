"""A pod's user namespace in the terms of CRI, the kernel and the runtime spec (user_namespaces(7); config-linux.md).

A pod has one range of uids and one of gids, both from container id 0; `validate` has checked that.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.errors import InvalidRequest
from sandboxd.oci.linux import Json
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Container ids 0 to length - 1 are host ids `host` to host + length - 1."""

    host: int
    length: int

    @property
    def kernel(self) -> str:
        """The line for /proc/PID/uid_map or gid_map."""
        return f"0 {self.host} {self.length}\n"

    @property
    def spec(self) -> list[Json]:
        """`linux.uidMappings` or `linux.gidMappings`."""
        return [{"containerID": 0, "hostID": self.host, "size": self.length}]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """The mapping from a pod's ids to the machine's."""

    uids: Range
    gids: Range


def of(pod: cri.PodSandboxConfig) -> IdMap | None:
    """The pod's map; None when it has no user namespace of its own."""
    modes = pod.linux.security_context.namespace_options
    if not modes.HasField("userns_options") or modes.userns_options.mode != cri.POD:
        return None
    (uids,), (gids,) = modes.userns_options.uids, modes.userns_options.gids
    return IdMap(uids=Range(host=uids.host_id, length=uids.length), gids=Range(host=gids.host_id, length=gids.length))


def check_user(user: User, ids: IdMap | None) -> None:
    """Raise InvalidRequest when the user has an id that the pod's namespace does not map."""
    if ids is None:
        return
    if user.uid >= ids.uids.length:
        raise InvalidRequest(
            f"user {user.uid} does not exist in the pod's user namespace, which maps {ids.uids.length} uids"
        )
    for gid in (user.gid, *user.additional_gids):
        if gid >= ids.gids.length:
            raise InvalidRequest(
                f"group {gid} does not exist in the pod's user namespace, which maps {ids.gids.length} gids"
            )

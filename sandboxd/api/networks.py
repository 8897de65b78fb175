"""Our own RPC about what there is of a pod's network now."""

from __future__ import annotations

from typing import Any

from sandboxd import network_state
from sandboxd.api import views
from sandboxd.api.lookup import Lookup
from sandboxd.ledger import Ledger
from sandboxd.machine import network_look
from sandboxd.pb.host.v1 import host_pb2


class Networks:
    """See host.proto for what each RPC promises."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lookup = Lookup(ledger)

    async def PodNetwork(self, request: host_pb2.PodNetworkRequest, context: Any) -> host_pb2.PodNetworkResponse:
        pod = self._lookup.sandbox(request.pod_sandbox_id)
        found: dict[network_state.Key, host_pb2.NetworkThing] = {}
        unseen: list[str] = []
        for attachment in self._ledger.attachments_of(pod.id):
            subject = network_look.Subject.of(attachment)
            now = await network_look.look(subject)
            for thing, owner in network_state.present(now, subject.marks(now)):
                found.setdefault(thing.key, views.network_thing(thing, owner))
            unseen += now.unseen.values()
        return host_pb2.PodNetworkResponse(things=found.values(), unseen=dict.fromkeys(unseen))

"""Our own RPCs about debts: networks for which a DEL failed."""

from __future__ import annotations

from typing import Any

from sandboxd.api import views
from sandboxd.model import find
from sandboxd.node import Node
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.pods import debts


class Debts:
    """See host.proto for what each RPC promises."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def ListDebts(self, request: host_pb2.ListDebtsRequest, context: Any) -> host_pb2.ListDebtsResponse:
        return host_pb2.ListDebtsResponse(debts=[self._view(debt) for debt in debts.listed(self._node)])

    async def RetryDebt(self, request: host_pb2.RetryDebtRequest, context: Any) -> host_pb2.RetryDebtResponse:
        await debts.retry(self._node, self._pod(request.pod_sandbox_id))
        return host_pb2.RetryDebtResponse()

    async def ForgiveDebt(self, request: host_pb2.ForgiveDebtRequest, context: Any) -> host_pb2.ForgiveDebtResponse:
        forgiven = await debts.forgive(self._node, self._pod(request.pod_sandbox_id))
        return host_pb2.ForgiveDebtResponse(
            forgiven=[self._view(debts.Debt(attachment=each, next_at=0)) for each in forgiven]
        )

    def _view(self, debt: debts.Debt) -> host_pb2.Debt:
        return views.debt(
            debt.attachment, debt.next_at, exists=debt.attachment.sandbox_id in self._node.ledger.sandboxes
        )

    def _pod(self, text: str) -> str:
        """The id of the pod that owes; that of a removed one is known by its debts only."""
        return find({debt.attachment.sandbox_id for debt in debts.listed(self._node)}, text, "debt of pod")

"""CRI's RPCs that run or reach something inside a pod: Exec, ExecSync, Attach and PortForward."""

from __future__ import annotations

from typing import Any

from sandboxd.api.lookup import Lookup
from sandboxd.containers import attach as attaching
from sandboxd.containers import exec as execs
from sandboxd.containers.output import Output
from sandboxd.node import Node
from sandboxd.operations import running_container, unstopped_sandbox
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import ports
from sandboxd.streaming.remotecommand import Streams
from sandboxd.streaming.server import StreamingServer
from sandboxd.streaming.sessions import AttachRequest, ExecRequest, PortForwardRequest

PORT_BYTES = 40  # that a number takes in a tuple


class Inside:
    """See the CRI API for what each RPC promises; the streaming ones answer with a URL."""

    def __init__(self, node: Node, streaming: StreamingServer) -> None:
        self._node = node
        self._attaching = attaching.Attaching(node)
        self._streaming = streaming
        self._lookup = Lookup(node.ledger)

    async def ExecSync(self, request: cri.ExecSyncRequest, context: Any) -> cri.ExecSyncResponse:
        container_id = self._lookup.container(request.container_id).id
        output = Output(self._node)
        context.add_done_callback(lambda _: output.sent())
        stdout, stderr, code = await execs.exec_sync(self._node, container_id, request.cmd, request.timeout, output)
        return cri.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=code)

    async def Exec(self, request: cri.ExecRequest, context: Any) -> cri.ExecResponse:
        container_id = self._lookup.container(request.container_id).id
        running_container(self._node, container_id)
        execs.check_command(request.cmd)
        wanted = Streams(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty)
        names = tuple(name for name in ("stdin", "stdout", "stderr") if getattr(wanted, name))
        pending = execs.Pending(self._node, container_id, request.cmd, tty=request.tty, streams=names)
        url = self._streaming.url_for(
            ExecRequest(
                subject=container_id,
                streams=wanted,
                admit=pending.admit,
                open=pending.start,
                private=tuple(request.cmd),
            ),
            request.ByteSize(),
        )
        return cri.ExecResponse(url=url)

    async def Attach(self, request: cri.AttachRequest, context: Any) -> cri.AttachResponse:
        container_id = self._lookup.container(request.container_id).id
        container = running_container(self._node, container_id)
        if request.stdin:
            attaching.check_stdin(container)
        # The container decides whether there is a terminal; a client cannot change that.
        tty = container.config.tty
        wanted = Streams(
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr and not tty, tty=tty and request.tty
        )
        url = self._streaming.url_for(
            AttachRequest(
                subject=container_id,
                streams=wanted,
                open=lambda: self._attaching.attach(
                    container_id, stdin=wanted.stdin, stdout=wanted.stdout, stderr=wanted.stderr
                ),
            )
        )
        return cri.AttachResponse(url=url)

    async def PortForward(self, request: cri.PortForwardRequest, context: Any) -> cri.PortForwardResponse:
        sandbox_id = self._lookup.sandbox(request.pod_sandbox_id).id
        unstopped_sandbox(self._node, sandbox_id)
        url = self._streaming.url_for(
            PortForwardRequest(
                subject=sandbox_id, ports=tuple(request.port), target=ports.PodPorts(self._node, sandbox_id)
            ),
            len(request.port) * PORT_BYTES,
        )
        return cri.PortForwardResponse(url=url)

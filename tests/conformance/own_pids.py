"""A stand-in before a CRI socket, for a suite that never asks for what every kubelet does.

    python own_pids.py LISTEN UPSTREAM

Pods that say nothing of namespaces are asked for with pid namespaces of their containers' own, and so are the
containers in them. Everything else is passed on as it is, byte by byte.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from sandboxd.pb.cri.v1 import api_pb2 as cri

STREAMS = ("GetContainerEvents", "StreamPodSandboxes", "StreamContainers", "StreamImages")
OWN = cri.NamespaceOption(pid=cri.CONTAINER)
CALL_SECONDS, STREAM_SECONDS = 900.0, 3600.0  # longer than any client of the suite waits
THREADS = 64


class Rewriter:
    """Knows the pods that it has changed."""

    def __init__(self) -> None:
        self.changed: set[str] = set()

    def pod(self, data: bytes) -> tuple[bytes, bool]:
        """The request for a pod, and whether it says now what it did not."""
        request = cri.RunPodSandboxRequest.FromString(data)
        context = request.config.linux.security_context
        if context.HasField("namespace_options"):
            return data, False
        context.namespace_options.CopyFrom(OWN)
        return request.SerializeToString(), True

    def container(self, data: bytes) -> bytes:
        """The request for a container."""
        request = cri.CreateContainerRequest.FromString(data)
        context = request.config.linux.security_context
        if request.pod_sandbox_id not in self.changed or context.HasField("namespace_options"):
            return data
        context.namespace_options.CopyFrom(OWN)
        return request.SerializeToString()


class Handler(grpc.GenericRpcHandler):
    """Passes every call on."""

    def __init__(self, upstream: grpc.Channel) -> None:
        self._upstream = upstream
        self._rewriter = Rewriter()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler for one method; messages stay bytes."""
        verb = details.method.rpartition("/")[2]
        if verb in STREAMS:
            stream: Callable[..., Any] = self._upstream.unary_stream(details.method)

            def streamed(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
                answers = stream(data, timeout=_left(context, STREAM_SECONDS))

                def end() -> None:
                    answers.cancel()

                context.add_callback(end)
                try:
                    yield from answers
                except grpc.RpcError as error:
                    if context.is_active():
                        _tell(context, error)

            return grpc.unary_stream_rpc_method_handler(streamed)
        call: Callable[..., bytes] = self._upstream.unary_unary(details.method)

        def once(data: bytes, context: grpc.ServicerContext) -> bytes:
            changed = False
            if verb == "RunPodSandbox":
                data, changed = self._rewriter.pod(data)
            elif verb == "CreateContainer":
                data = self._rewriter.container(data)
            try:
                answer = call(data, timeout=_left(context, CALL_SECONDS))
            except grpc.RpcError as error:
                _tell(context, error)
                raise
            if changed:
                self._rewriter.changed.add(cri.RunPodSandboxResponse.FromString(answer).pod_sandbox_id)
            return answer

        return grpc.unary_unary_rpc_method_handler(once)


def _left(context: grpc.ServicerContext, most: float) -> float:
    """How long the client waits; one without a deadline seems to wait for billions of years."""
    return min(context.time_remaining() or most, most)


def _tell(context: grpc.ServicerContext, error: grpc.RpcError) -> None:
    """End the call with the upstream's code and words."""
    assert isinstance(error, grpc.Call)
    context.abort(error.code(), error.details() or "")


def main(listen: str, upstream: str) -> None:
    """Serve until the process is ended."""
    unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix:{upstream}", options=unbounded) as channel:
        server = grpc.server(ThreadPoolExecutor(THREADS), handlers=[Handler(channel)], options=unbounded)
        server.add_insecure_port(f"unix:{listen}")
        server.start()
        server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])

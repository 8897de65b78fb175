"""What gRPC alone costs: the least that this daemon can spend on a pod, whatever else it does. `--profile` prints it.

Two processes with the daemon's own library: a service that answers at once, and a client that asks it now and then,
as pods are made. A call costs more so than in a loop that never rests: each wakes the library's threads.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import grpc
import grpc.aio

from tests.testbed import ROOT

CALLS = 400
PAUSE = 0.004  # between calls: a pod's calls to containerd are about so far apart
BYTES = b"\0" * 400  # of a request and of an answer
_SERVE, _ASK = "serve", "ask"
_METHOD = "/bench.Floor/Call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Milliseconds of processor time for one unary call, of a process that does nothing else."""

    asking: float
    answering: float

    def of(self, *, asked: float, answered: float) -> float:
        """Milliseconds for so many calls to others, and so many of others."""
        return self.asking * asked + self.answering * answered


def measure() -> Floor:
    """Run both processes."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "tests.bench.floor", f"unix:{directory}/socket"]
        with subprocess.Popen([*argv, _SERVE], cwd=ROOT, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                server.stdout.readline()  # it serves
                asked = subprocess.run([*argv, _ASK], cwd=ROOT, capture_output=True, check=True, timeout=120)
            finally:
                server.kill()
    return Floor(**json.loads(asked.stdout))


async def _serve(address: str) -> None:
    async def answer(_request: bytes, _context: object) -> bytes:
        return json.dumps(time.process_time()).encode().ljust(len(BYTES))

    service, method = _METHOD.lstrip("/").split("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()


async def _ask(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        for _ in range(CALLS // 10):  # connected, and everything in memory
            await call(BYTES)
        server, began = float(await call(BYTES)), time.process_time()
        for _ in range(CALLS):
            await call(BYTES, timeout=30)
            await asyncio.sleep(PAUSE)
        asked, answered = time.process_time() - began, float(await call(BYTES)) - server
        began = time.process_time()
        for _ in range(CALLS):
            await asyncio.sleep(PAUSE)
        asked -= time.process_time() - began
    print(json.dumps({"asking": asked / CALLS * 1e3, "answering": answered / CALLS * 1e3}))


if __name__ == "__main__":
    asyncio.run({_SERVE: _serve, _ASK: _ask}[sys.argv[2]](sys.argv[1]))

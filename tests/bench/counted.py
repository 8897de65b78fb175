"""sandboxd that counts what it does: what `--profile` runs as its daemon.

python -m tests.bench.counted DIRECTORY serve --config …

Every call to containerd, every transaction of the ledger, every log record and every process is counted, by the RPC
that it was made for; "" is what the daemon does by itself. SIGUSR2 writes the counts to DIRECTORY/counts.json and
begins anew. With SANDBOXD_CPROFILE set, it writes DIRECTORY/profile.pstats too: processor time of the loop's thread
since its start or the signal before. The product knows nothing of this: it is wrapped from outside.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

PROFILED = "SANDBOXD_CPROFILE"
COUNTS, STATS = "counts.json", "profile.pstats"

_rpc: ContextVar[str] = ContextVar("counted_rpc", default="")
_counts: Counter[tuple[str, str, str]] = Counter()  # kind, what, RPC


def count(kind: str, what: str) -> None:
    _counts[kind, what, _rpc.get()] += 1


class _Channel:
    """containerd's channel; every call is counted when it is begun."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return found

        def prepare(path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            begin = found(path, *args, **kwargs)
            service, method = path.rsplit("/", 2)[-2:]

            def call(*args: Any, **kwargs: Any) -> Any:
                count("containerd", f"{service.rpartition('.')[2]}.{method}")
                return begin(*args, **kwargs)

            return call

        return prepare


class _Aio:
    """grpc.aio, as the client uses it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(grpc.aio, name)

    def insecure_channel(self, *args: Any, **kwargs: Any) -> Any:
        return _Channel(grpc.aio.insecure_channel(*args, **kwargs))


class _Grpc:
    aio = _Aio()

    def __getattr__(self, name: str) -> Any:
        return getattr(grpc, name)


def _put(where: object, name: str, wrapper: object) -> None:
    assert hasattr(where, name), f"{where} has no {name}: tests/bench/counted.py wraps it"
    setattr(where, name, wrapper)


def wrap() -> None:
    """Wrap the product, which must not have been started."""
    from sandboxd import commits, complaints
    from sandboxd.api.edge import Edge
    from sandboxd.containerd import client

    admit, write, say = Edge._admit, commits.Commits._write, complaints.Lossy.write
    spawn = asyncio.BaseEventLoop.subprocess_exec

    def admitted(edge: Edge, name: str, implemented: bool) -> None:
        _rpc.set(name.rpartition("/")[2])
        admit(edge, name, implemented)

    def written(self: commits.Commits, statements: Sequence[commits.Statement]) -> None:
        words = statements[0][0].split() if statements else ["nothing"]
        names = [word for word in words if word not in ("INTO", "FROM", "OR", "REPLACE")]
        count("commit", " ".join(names[:2]))
        write(self, statements)

    def said(self: complaints.Lossy, text: str) -> Any:
        if text.strip():
            count("log", "record")
        return say(self, text)

    async def spawned(loop: Any, protocol: Any, program: Any, *args: Any, **kwargs: Any) -> Any:
        count("process", os.path.basename(os.fsdecode(program)))
        return await spawn(loop, protocol, program, *args, **kwargs)

    _put(client, "grpc", _Grpc())
    _put(Edge, "_admit", admitted)
    _put(commits.Commits, "_write", written)
    _put(complaints.Lossy, "write", said)
    _put(asyncio.BaseEventLoop, "subprocess_exec", spawned)


def _tell(directory: Path, profile: cProfile.Profile | None) -> None:
    if profile is not None:
        profile.disable()
        profile.dump_stats(directory / STATS)
        profile.clear()
    told = {"processor": time.process_time(), "counts": [[*key, number] for key, number in sorted(_counts.items())]}
    _counts.clear()
    (directory / "new").write_text(json.dumps(told), encoding="utf-8")
    (directory / "new").replace(directory / COUNTS)
    if profile is not None:
        profile.enable()


def main() -> None:
    """Run the daemon."""
    directory = Path(sys.argv.pop(1))
    directory.mkdir(parents=True, exist_ok=True)
    wrap()
    from sandboxd import daemon
    from sandboxd.__main__ import main as run

    profile = cProfile.Profile(time.thread_time) if os.environ.get(PROFILED) else None
    serve = daemon.serve

    async def listening(config: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _tell, directory, profile)
        await serve(config)

    _put(daemon, "serve", listening)
    if profile is not None:
        profile.enable()
    run()


if __name__ == "__main__":
    main()

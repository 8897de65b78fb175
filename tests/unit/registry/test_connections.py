"""A pull's connections, whose library is loaded with the first of them."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from sandboxd.registry import connections as module
from sandboxd.registry.connections import connections
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.transport import Transport

NONE = Proxies(http="", https="", no_proxy="")


async def test_each_call_gives_a_transport_of_its_own() -> None:
    first, second = await asyncio.gather(connections(NONE, "one"), connections(NONE, "two"))

    assert type(first) is type(second) is Transport
    assert first is not second


async def test_the_library_is_loaded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second and more, in which every other request would wait."""
    threads = []

    class Watching:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "sandboxd.registry.transport":
                threads.append(threading.current_thread())

    monkeypatch.setattr(sys, "meta_path", [Watching(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "sandboxd.registry.transport")
    monkeypatch.delattr(sys.modules["sandboxd.registry"], "transport")
    assert type(await module.connections(NONE, "one")).__name__ == "Transport"

    assert threads and threading.main_thread() not in threads

"""Ending a process in a container: its own group gets a signal, nobody else. The rest is tests/e2e/test_exec.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd.containers import exec as exec_
from tests.fakes.bundle import CONTAINER, Bundle
from tests.fakes.runtime import Program


@pytest.mark.parametrize(
    ("pid", "group", "signalled"),
    [
        (77, 77, [77]),
        (77, 78, []),  # not the first of its group
        (0, 0, []),  # gone; as a group it would be ours
        (1, 1, []),  # killpg(1) is kill(-1): everybody
        (os.getpgrp(), os.getpgrp(), []),
    ],
)
async def test_only_a_process_that_leads_a_group_of_its_own_takes_it_along(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch, pid: int, group: int, signalled: list[int]
) -> None:
    fakes.runtime.put(CONTAINER)
    if pid:
        await fakes.runtime.processes.add(CONTAINER, "exec", {"args": ["sleep"]})
        await fakes.runtime.processes.start(CONTAINER, "exec")
        fakes.runtime.tasks[CONTAINER].execs["exec"].pid = pid
    found: list[int] = []
    monkeypatch.setattr(Path, "read_text", lambda path, **_: f"0::/pods/{CONTAINER}\n")
    monkeypatch.setattr(os, "getpgid", lambda pid: group)
    monkeypatch.setattr(os, "killpg", lambda pgid, number: found.append(pgid))
    await exec_._kill(fakes.node, CONTAINER, "exec")
    assert found == signalled
    assert fakes.points.count("processes.kill") == 1


ECHO = ("echo", "said")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize(
    "streams", [(), ("stdin",), ("stdout",), ("stderr",), ("stdin", "stdout"), ("stdout", "stderr")]
)
async def test_a_client_gets_the_streams_that_it_wants_whatever_the_shim_needs(
    fakes: Bundle, streams: tuple[str, ...], tty: bool
) -> None:
    fakes.runtime.programs[ECHO] = Program(output=b"said\n", code=3)
    container_id = await fakes.running_container()
    pending = exec_.Pending(fakes.node, container_id, ECHO, tty=tty, streams=streams)
    await pending.admit()
    process = await pending.start()
    try:
        if "stdout" in streams:
            assert [data async for data in process.stdout()] == [b"said\n"]
        assert await process.wait() == 3
    finally:
        await process.close()
    assert not fakes.runtime.tasks[container_id].execs
    assert not os.listdir(fakes.places.execs(container_id))

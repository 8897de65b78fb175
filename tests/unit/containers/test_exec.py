"""Ending a process in a container: its own group gets a signal, nobody else. The rest is tests/e2e/test_exec.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from sandboxd.containers import exec as exec_
from tests.fakes.node import CONTAINER, Faults, Resource, fake_node


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int, group: int, signalled: list[int]
) -> None:
    faults = Faults()
    node = fake_node(tmp_path, faults)
    cast(Any, node.runtime).processes = Resource(faults, "processes", pid=pid)
    found: list[int] = []
    monkeypatch.setattr(Path, "read_text", lambda path, **_: f"0::/pods/{CONTAINER}\n")
    monkeypatch.setattr(os, "getpgid", lambda pid: group)
    monkeypatch.setattr(os, "killpg", lambda pgid, number: found.append(pgid))
    await exec_._kill(node, CONTAINER, "exec")
    assert found == signalled
    assert faults.calls["processes.kill"] == 1

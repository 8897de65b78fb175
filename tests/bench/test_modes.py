"""Ways to run pods are those that the daemon's configuration has keys for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.bench import modes
from tests.bench.modes import COLUMNS, DEFAULT, PINNED, POOL, REAL, UNRECORDED


def built(known: dict[str, dict[str, object]]) -> set[str]:
    return {mode.name for mode in modes.detect(known) if mode.built}


def test_without_any_key_there_are_the_real_plugins_and_nothing_else() -> None:
    assert built({"network": {"conf_dir": "/etc/cni/net.d"}}) == {REAL}


def test_each_key_brings_its_way() -> None:
    everything: dict[str, dict[str, object]] = {
        "network": {"in_process": "auto"},
        "pool": {"size": 0},
        "runtime": {"handlers": {"runc": {"sandbox_mode": "pause"}}},
        "insight": {"timeline": True},
    }

    assert built(everything) == {REAL, DEFAULT, POOL, PINNED, UNRECORDED}
    sections = {mode.name: mode.sections for mode in modes.detect(everything)}
    assert sections[REAL] == {"network": {"in_process": "never"}}
    assert sections[DEFAULT] == {}
    assert sections[UNRECORDED] == {"insight": {"timeline": False}}


def test_what_a_user_gets_is_the_default_where_it_is_more_than_the_plugins() -> None:
    assert modes.main_mode(modes.detect({})).name == REAL
    assert modes.main_mode(modes.detect({"network": {"in_process": "auto"}})).name == DEFAULT


def test_the_ways_are_in_the_order_of_the_columns() -> None:
    assert tuple(mode.name for mode in modes.detect({}))[: len(COLUMNS)] == COLUMNS


def test_what_the_daemon_prints_of_its_configuration_can_be_read(tmp_path: Path) -> None:
    (file := tmp_path / "empty.toml").touch()
    argv = [sys.executable, "-m", "sandboxd", "config", "--config", str(file)]
    known = modes.settings(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert known["insight"]["timeline"] is True
    assert {PINNED, UNRECORDED} <= built(dict(known))

"""What `sandboxd check` says of the network; the other checks are owed their tests."""

from __future__ import annotations

import json
from pathlib import Path

from sandboxd.config import Config, Network
from sandboxd.insight.doctor import Finding, examine


def network(tmp_path: Path, *plugins: dict[str, object], installed: tuple[str, ...] = ()) -> list[Finding]:
    conf = tmp_path / "net.d"
    conf.mkdir()
    (conf / "10-x.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "x", "plugins": plugins}))
    for name in installed:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    config = Config(network=Network(conf_dir=str(conf), plugin_dirs=(str(tmp_path),)))
    return [finding for finding in examine(config) if finding.what in ("network", "network configuration", "ipam")]


def test_a_network_whose_plugins_are_there_is_well(tmp_path: Path) -> None:
    (finding,) = network(tmp_path, {"type": "calico"}, installed=("calico",))

    assert finding.ok
    assert finding.words == f"x (calico) from {tmp_path}/net.d/10-x.conflist"


def test_a_missing_plugin_is_a_failure(tmp_path: Path) -> None:
    (finding,) = network(tmp_path, {"type": "calico"})

    assert not finding.ok
    assert 'CNI plugin "calico" (network "x"' in finding.words


def test_a_missing_delegate_is_said_and_is_no_failure(tmp_path: Path) -> None:
    plugin: dict[str, object] = {"type": "calico", "ipam": {"type": "calico-ipam"}}

    first, second = network(tmp_path, plugin, installed=("calico",))

    assert first.ok and second.ok
    assert 'CNI plugin "calico-ipam"' in second.words
    assert second.words.endswith("; pods fail if a plugin of the network executes it")

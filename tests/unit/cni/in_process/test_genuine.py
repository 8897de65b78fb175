"""Which binaries are the reference plugins."""

from __future__ import annotations

from pathlib import Path

from sandboxd.cni.in_process import genuine

BUILT = b"\x7fELF\0\0path\tgithub.com/containernetworking/plugins/plugins/main/bridge\nbuild\t-compiler=gc\n"


def test_a_binary_is_what_it_was_built_from(tmp_path: Path) -> None:
    binary = tmp_path / "bridge"
    binary.write_bytes(BUILT)

    assert genuine.is_reference(str(binary), "bridge")
    assert not genuine.is_reference(str(binary), "portmap")
    assert not genuine.is_reference(str(binary), "firewall")


def test_a_wrapper_is_not_what_it_wraps(tmp_path: Path) -> None:
    wrapper = tmp_path / "bridge"
    wrapper.write_bytes(b"#!/bin/sh\n# " + BUILT)

    assert not genuine.is_reference(str(wrapper), "bridge")

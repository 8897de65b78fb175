"""Finding plugin binaries before anything is created."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.lookup import find, is_missing, missing_delegates, preflight
from sandboxd.errors import InvalidRequest, NotReady


def install(directory: Path, name: str, mode: int = 0o755) -> str:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("#!/bin/sh\n")
    (directory / name).chmod(mode)
    return str(directory / name)


def network(*plugins: dict[str, object]) -> NetworkConfig:
    return NetworkConfig(name="x", versions=("1.0.0",), plugins=plugins, source="/etc/cni/net.d/10-x.conflist")


def test_every_plugin_and_every_ipam_delegate_is_found_in_the_first_directory_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "bridge").mkdir(parents=True)  # a directory is no plugin
    bridge, local = install(tmp_path / "b", "bridge"), install(tmp_path / "a", "host-local")
    install(tmp_path / "b", "host-local")

    found = preflight(
        network({"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "bridge", "ipam": {}}),
        [str(tmp_path / "missing"), str(tmp_path / "a"), str(tmp_path / "b")],
    )

    assert found == {"bridge": bridge, "host-local": local}


def test_a_missing_reference_plugin_is_told_with_where_it_was_sought_and_what_to_install() -> None:
    with pytest.raises(NotReady) as caught:
        preflight(network({"type": "bridge"}), ["/nowhere/a", "/nowhere/b"])

    assert str(caught.value) == (
        'CNI plugin "bridge" (network "x", from /etc/cni/net.d/10-x.conflist) was not found; '
        "looked in /nowhere/a, /nowhere/b; on Debian it is in the package containernetworking-plugins"
    )


def test_a_missing_plugin_of_a_third_party_is_told_without_a_package(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r'"calico" .* was not found; .*; put its binary in one of them'):
        preflight(network({"type": "calico"}), [str(tmp_path)])


def test_a_missing_delegate_is_no_reason_to_refuse_and_is_told_to_who_asks(tmp_path: Path) -> None:
    """Only the plugin knows whether it executes its delegate."""
    calico, directory = install(tmp_path, "calico"), [str(tmp_path)]
    install(tmp_path, "unfit", 0o644)
    other: dict[str, object] = {"type": "calico", "ipam": {"type": "unfit"}}
    config = network({"type": "calico", "ipam": {"type": "calico-ipam"}}, other)

    assert preflight(config, directory) == {"calico": calico}
    first, second = missing_delegates(config, directory)
    assert '"calico-ipam" (network "x", from /etc/cni/net.d/10-x.conflist) was not found' in str(first)
    assert "unfit, which is not executable" in str(second)
    assert list(map(str, missing_delegates(config, directory, [other]))) == [str(second)]


def test_a_binary_that_is_not_executable_is_named_and_hides_later_ones_as_it_does_for_delegates(
    tmp_path: Path,
) -> None:
    path = install(tmp_path / "a", "bridge", 0o644)
    install(tmp_path / "b", "bridge")

    with pytest.raises(NotReady, match=f"was found at {re.escape(path)}, which is not executable; run: chmod"):
        preflight(network({"type": "bridge"}), [str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize("type_", ["../sh", "/bin/sh", "a\\b", "..", "", "a\0b"])
def test_a_type_that_is_not_a_file_name_is_refused(type_: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot hold path separators"):
        find(type_, ["/bin"], network="x", source="")


def test_relative_directories_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "bridge")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(NotReady):
        find("bridge", ["", "."], network="x", source="")


@pytest.mark.parametrize(
    ("put", "missing"),
    [
        (lambda path: None, True),
        (lambda path: path.mkdir(), True),  # what a container engine leaves where a mount had no source
        (lambda path: path.symlink_to("/opt/gone/bin/plugin"), True),
        (lambda path: path.touch(0o644), False),
    ],
    ids=["nothing", "a directory", "a dangling link", "a file that is not executable"],
)
def test_a_plugin_is_missing_unless_a_file_has_its_name(
    tmp_path: Path, put: Callable[[Path], None], missing: bool
) -> None:
    put(tmp_path / "plugin")

    assert is_missing("plugin", [str(tmp_path)]) is missing

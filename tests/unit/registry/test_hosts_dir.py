"""The first directory that exists decides how a registry is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.registry.hosts import upstream
from sandboxd.registry.hosts_dir import HostsDir


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_nothing_configured_is_the_registry_itself(tmp_path: Path) -> None:
    assert HostsDir("").endpoints("registry.test") == (upstream("registry.test"),)
    assert HostsDir(str(tmp_path / "absent")).endpoints("registry.test") == (upstream("registry.test"),)


def test_a_registrys_own_directory_hides_the_default_one(tmp_path: Path) -> None:
    write(tmp_path / "_default/hosts.toml", '[host."https://all.test"]')
    write(tmp_path / "registry.test_5000_/hosts.toml", '[host."https://own.test"]')
    hosts = HostsDir(str(tmp_path))

    assert [e.host for e in hosts.endpoints("registry.test:5000")] == ["own.test", "registry.test:5000"]
    assert [e.host for e in hosts.endpoints("other.test")] == ["all.test", "other.test"]


def test_a_change_counts_at_the_next_look(tmp_path: Path) -> None:
    hosts = HostsDir(str(tmp_path))
    assert len(hosts.endpoints("registry.test")) == 1

    write(tmp_path / "registry.test/hosts.toml", '[host."https://m.test"]')

    assert len(hosts.endpoints("registry.test")) == 2


def test_certificates_alone_configure_the_registry(tmp_path: Path) -> None:
    write(tmp_path / "registry.test/ca.crt", "PEM")

    (endpoint,) = HostsDir(str(tmp_path)).endpoints("registry.test")

    assert endpoint.ca == (f"{tmp_path}/registry.test/ca.crt",)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "registry.test/hosts.toml").mkdir(parents=True)

    with pytest.raises(InvalidRequest, match=r"hosts\.toml"):
        HostsDir(str(tmp_path)).endpoints("registry.test")

"""The images made from Debian packages are reproducible and are what our own reader expects."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from sandboxd.images.store import host_platform
from sandboxd.oci.archive import Archive

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "images" / "build.py"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script as a module; it is run by path, not installed."""
    spec = importlib.util.spec_from_file_location("image_build", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["nginx", "busybox"])
def test_the_same_packages_give_the_same_bytes(build: ModuleType, tmp_path: Path, name: str) -> None:
    """Twice, in different directories."""
    first, second = (build.build(name, tmp_path / number).read_bytes() for number in ("1", "2"))
    assert first == second
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [f"{name}.tar"] * 2


@pytest.mark.parametrize("name", ["nginx", "busybox"])
def test_the_archive_passes_our_own_reader(build: ModuleType, tmp_path: Path, name: str) -> None:
    """Every digest, the platform, the name, and every entry of the layer."""
    with Archive(build.build(name, tmp_path)) as archive:
        (content,) = archive.images(host_platform())
        with content.layers[0].open() as file, tarfile.open(fileobj=file) as layer:
            members = {member.name: member for member in layer}
    assert content.names == (f"docker.io/library/{name}:latest",)
    assert {(member.mtime, member.uid, member.gid) for member in members.values()} == {(0, 0, 0)}
    assert content.parsed.config["WorkingDir"] == "/"
    assert any(label.startswith("org.debian.package.") for label in content.parsed.config["Labels"])


def test_nginx_has_what_it_needs_to_start(build: ModuleType) -> None:
    """Program, loader, libraries under their sonames, configuration, page, users."""
    tree, config = build.nginx()
    names = set(tree.entries)
    assert {"usr/sbin/nginx", "etc/nginx/nginx.conf", "usr/share/nginx/html/index.html", "etc/passwd"} <= names
    assert any(name.endswith("/libc.so.6") for name in names)
    assert any("/ld-linux" in name for name in names)
    assert config["Entrypoint"] == ["nginx", "-g", "daemon off;"]
    assert config["StopSignal"] == "SIGQUIT"


def test_busybox_answers_to_all_its_names(build: ModuleType) -> None:
    """Each applet is a link to the one program."""
    tree, config = build.busybox()
    assert tree.entries["usr/bin/sh"][2] == "busybox"
    assert tree.entries["usr/bin/sleep"][2] == "busybox"
    assert config["Cmd"] == ["sh"]
    users = tree.entries["etc/passwd"][3].decode()
    assert "root:x:0:0:" in users and "nobody:x:65534:" in users


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit status 1, no file."""

    def without_packages(*names: str, needed: tuple[str, ...]) -> dict[str, str]:
        raise build.missing(needed[0])

    monkeypatch.setattr(build, "package_versions", without_packages)
    assert build.main(["--out", str(tmp_path), "nginx"]) == 1
    assert (
        "the Debian package nginx-light is not installed; run: apt-get install nginx-light" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_noticed(build: ModuleType) -> None:
    """dpkg is asked, not the file system."""
    with pytest.raises(build.BuildFailed, match="sandboxd-no-such-package is not installed"):
        build.package_versions("sandboxd-no-such-package", needed=("sandboxd-no-such-package",))


def test_an_unknown_image_is_refused(build: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """With the known ones."""
    with pytest.raises(SystemExit):
        build.main(["apache"])
    assert "known: nginx, busybox" in capsys.readouterr().err

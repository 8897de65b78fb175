"""Every image that the conformance suite asks for, as one OCI layout in build/conformance/images.

The suite's own images are in registries that are not needed here: what a spec runs in them is built from Debian's
packages and from Debian's source of busybox. Names are those of the repositories below their registry's host, so a
registry that stands in for all hosts (push.py, peers.py) serves them under every host that the suite names.

One image cannot be made: test-image-digest is asked for by the digest of its manifest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.images import build as debian_images
from deploy.images.build import EPOCH, Tree, as_json
from tests.conformance import busybox, debian
from tests.conformance.push import REF_NAME

SANDBOX_IMAGE = "conformance/pause:1"  # for runtimes that fetch the image of their sandboxes
HOSTNET_PORT = 12003

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_USERS = """\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUPS = "root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"

# Where the set-user-ID bit is honoured the effective user is the file's owner, root.
_SHOW_EFFECTIVE_USER = """\
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    return printf("Effective uid: %u\\n", (unsigned)geteuid()) < 0;
}
"""

_APACHE_MODULES = ("authz_core", "dir", "mpm_event")
_APACHE_CONF = """\
ServerRoot /etc/apache2
ServerName localhost
Listen 80
User www-data
Group www-data
DefaultRuntimeDir /run
PidFile /run/httpd.pid
ErrorLog /dev/stderr
LogLevel notice
DocumentRoot /usr/share/httpd
DirectoryIndex index.html
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image to make."""

    repository: str
    tags: tuple[str, ...]
    layers: tuple[Tree, ...]
    config: dict[str, Any]
    has_index: bool = False  # named through an index, as an image for several platforms is


def build(out: Path) -> Path:
    """Write the layout `out`/images and return it; busybox is compiled once and kept. Raises DebianFailed."""
    out.mkdir(parents=True, exist_ok=True)
    program = out / "busybox"
    stamp = out / "busybox.stamp"
    wish = hashlib.sha256(Path(busybox.__file__).read_bytes()).hexdigest()
    if not program.is_file() or not stamp.is_file() or stamp.read_text() != wish:
        stamp.unlink(missing_ok=True)
        busybox.build(program)
        stamp.write_text(wish)
    layout = out / "images"
    unfinished = out / ".images"
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "blobs" / "sha256").mkdir(parents=True)
    try:
        write(list(catalogue(program)), unfinished)
    except debian_images.BuildFailed as exc:
        raise debian.DebianFailed(str(exc)) from exc
    shutil.rmtree(layout, ignore_errors=True)
    unfinished.rename(layout)
    return layout


def catalogue(program: Path) -> Iterator[Image]:
    """All images; `program` is busybox."""
    base = busybox_tree(program)
    shell = {"Cmd": ["sh"], "Env": [_PATH]}
    e2e, staging = "e2e-test-images", "k8s-staging-cri-tools"
    yield Image(repository=f"{e2e}/busybox", tags=("1.29-2",), layers=(base,), config=shell)
    for name, *tags in (
        ("test-image-latest", "latest"),
        ("test-image-tag", "test"),
        ("test-image-tag", "all"),
        ("test-image-tags", "1", "2", "3"),
        ("test-image-1", "latest"),
        ("test-image-2", "latest"),
        ("test-image-3", "latest"),
    ):
        marker = Tree()
        marker.file(f"{name}-{tags[0]}", b"")
        yield Image(repository=f"{staging}/{name}", tags=tuple(tags), layers=(base, marker), config=shell)
    for name, user in (
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1004"),
        ("user-username-group", "www-data:1004"),
    ):
        config = {**shell, "User": user}
        yield Image(repository=f"{staging}/test-image-{name}", tags=("latest",), layers=(base,), config=config)

    groups = Tree()
    groups.file("etc/passwd", f"{_USERS}default-user:x:1000:1000::/home:/bin/sh\n".encode())
    groups.file("etc/group", f"{_GROUPS}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n".encode())
    name, config = f"{staging}/test-image-predefined-group", {**shell, "User": "1000"}
    yield Image(repository=name, tags=("latest",), layers=(base, groups), config=config)

    yield nginx(f"{e2e}/nginx", "1.14-2", program, port=80)
    yield nginx(f"{staging}/hostnet-nginx-{architecture()[0]}", "latest", program, port=HOSTNET_PORT)
    yield httpd(f"{e2e}/httpd", "2.4.39-4", program)
    nnp = Tree()
    nnp.file("nnp", compiled(_SHOW_EFFECTIVE_USER), 0o4755)
    config = {"Cmd": ["/nnp"], "Env": [_PATH]}
    yield Image(repository=f"{e2e}/nonewprivs", tags=("1.3",), layers=(nnp,), config=config)
    # The same under two registries for the suite, and another, which is none of its business, for the sandboxes.
    pause = pause_image("pause", "3.9")
    yield replace(pause, has_index=True)
    repository, _, tag = SANDBOX_IMAGE.partition(":")
    sandbox_config = {**pause.config, "Labels": {"for": "sandboxes"}}
    yield replace(pause, repository=repository, tags=(tag,), config=sandbox_config)


def busybox_tree(program: Path) -> Tree:
    """busybox under all its names, in the directories that it asks for, each a hard link that can be hidden alone."""
    tree = Tree()
    for directory in ("dev", "etc", "home", "proc", "root", "run", "sys", "usr/local/bin", "var/www"):
        tree.directory(directory)
    tree.entries["tmp"] = (tarfile.DIRTYPE, 0o1777, "", b"")
    tree.file("etc/passwd", _USERS.encode())
    tree.file("etc/group", _GROUPS.encode())
    add_links(tree, program, debian.run([str(program), "--list-full"]).split())
    return tree


def add_links(tree: Tree, program: Path, paths: list[str]) -> None:
    """Put a program into a tree once, and hard links to it under all other paths."""
    # An archive is read in its order, which is sorted: the file comes first, then the links to it.
    first, *others = sorted(set(paths))
    tree.file(first, program.read_bytes(), 0o755)
    for path in others:
        tree.directory(path.rpartition("/")[0])
        tree.entries[path] = (tarfile.LNKTYPE, 0o755, first, b"")


def nginx(repository: str, tag: str, program: Path, *, port: int) -> Image:
    """Debian's nginx, as deploy/images has it, with a shell."""
    tree, config = debian_images.nginx()
    add_shell(tree, program)
    conf = debian_images.NGINX_CONF.replace("80 default_server", f"{port} default_server")
    tree.file("etc/nginx/nginx.conf", conf.encode())
    return Image(repository=repository, tags=(tag,), layers=(tree,), config=config)


def httpd(repository: str, tag: str, program: Path) -> Image:
    """Debian's apache2 under upstream's name, with a shell."""
    server = debian_images.installed_file("/usr/sbin/apache2", "apache2-bin")
    tree = debian_images.base_tree()
    add_shell(tree, program)
    tree.file("usr/sbin/httpd", server.read_bytes(), 0o755)
    conf = _APACHE_CONF
    loaded = [server]
    for name in _APACHE_MODULES:
        module = debian_images.installed_file(f"/usr/lib/apache2/modules/mod_{name}.so", "apache2-bin")
        tree.file(f"usr/lib/apache2/modules/mod_{name}.so", module.read_bytes())
        conf += f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
        loaded.append(module)
    for library in sorted({library for item in loaded for library in debian_images.libraries(item)}):
        place = library.parent.resolve() / library.name
        tree.file(str(place).lstrip("/"), library.read_bytes(), 0o755)
    if any(path.startswith("usr/lib64/") for path in tree.entries):
        tree.link("lib64", "usr/lib64")
    tree.file("etc/apache2/httpd.conf", conf.encode())
    tree.file("usr/share/httpd/index.html", b"<html><body>It works</body></html>\n")
    argv = ["httpd", "-D", "FOREGROUND", "-f", "/etc/apache2/httpd.conf"]
    return Image(repository=repository, tags=(tag,), layers=(tree,), config={"Cmd": argv, "Env": [_PATH]})


def add_shell(tree: Tree, program: Path) -> None:
    """busybox's commands and /var/run for an image whose /bin is /usr/bin."""
    applets = debian.run([str(program), "--list"]).split()
    add_links(tree, program, [f"usr/bin/{applet}" for applet in applets])
    tree.link("var/run", "/run")


def pause_image(repository: str, tag: str) -> Image:
    """A program that waits and reaps, and nothing else."""
    tree = Tree()
    tree.file("pause", debian_images.installed_file("/usr/bin/catatonit", "catatonit").read_bytes(), 0o755)
    config = {"Entrypoint": ["/pause", "-P"], "Env": [_PATH], "User": "65535:65535"}
    return Image(repository=repository, tags=(tag,), layers=(tree,), config=config)


def compiled(source: str) -> bytes:
    """A static program from one C source."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "source.c").write_text(source, encoding="ascii")
        debian.run(["gcc", "-static", "-O2", "-s", "-Wall", "-Werror", "-o", "program", "source.c"], cwd=Path(work))
        return (Path(work) / "program").read_bytes()


def architecture() -> tuple[str, str]:
    """This machine's (architecture, variant) in Go's words."""
    name = debian_images.output_of(["dpkg", "--print-architecture"], "dpkg").strip()
    if name not in debian_images.ARCHITECTURES:
        raise debian.DebianFailed(f"images for Debian's architecture {name!r} are not supported")
    return debian_images.ARCHITECTURES[name]


def write(images: list[Image], layout: Path) -> None:
    """Write the images and the index that names them, as push.py reads it."""
    machine, variant = architecture()
    platform = {"architecture": machine, "os": "linux"} | ({"variant": variant} if variant else {})
    packed: dict[int, tuple[dict[str, Any], str]] = {}  # layers are shared by identity
    listed = []

    def add(media_type: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def pack(tree: Tree) -> tuple[dict[str, Any], str]:
        plain = tree.tar()
        blob = add("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(plain, 6, mtime=0))
        return blob, f"sha256:{hashlib.sha256(plain).hexdigest()}"

    for image in images:
        for tree in image.layers:
            packed[id(tree)] = packed.get(id(tree)) or pack(tree)
        layers = [packed[id(tree)] for tree in image.layers]
        config = {
            **platform,
            "created": EPOCH,
            "config": image.config,
            "history": [{"created": EPOCH, "created_by": "tests/conformance"} for _ in layers],
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": add("application/vnd.oci.image.config.v1+json", as_json(config)),
            "layers": [blob for blob, _ in layers],
        }
        top = add(_MANIFEST, as_json(manifest)) | {"platform": platform}
        if image.has_index:
            top = add(_INDEX, as_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [top]}))
        listed += [top | {"annotations": {REF_NAME: f"{image.repository}:{tag}"}} for tag in image.tags]
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="ascii")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": listed}), encoding="ascii")

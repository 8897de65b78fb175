"""Builds image archives from the machine's own Debian packages, so that a demo needs no registry.

    python deploy/images/build.py [--out DIR] [nginx] [busybox]

Each archive is an OCI layout in a tar, with one uncompressed layer. The same packages give the same bytes: entries
are sorted, times are zero, owners are root. It needs only the Python standard library, and takes only files that the
packages installed; configuration and the index page are our own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "build" / "images"
EPOCH = "1970-01-01T00:00:00Z"

# dpkg's name of an architecture to Go's (architecture, variant).
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "amd64": ("amd64", ""),
    "arm64": ("arm64", "v8"),
    "armhf": ("arm", "v7"),
    "i386": ("386", ""),
    "ppc64el": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = """\
root:x:0:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""

NGINX_CONF = """\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr notice;

events {
    worker_connections 512;
}

http {
    types {
        text/html html;
        text/css css;
        application/javascript js;
        application/json json;
        image/png png;
        image/svg+xml svg;
    }
    default_type text/plain;
    access_log /dev/stdout;
    sendfile on;
    server_tokens off;

    server {
        listen 80 default_server;
        listen [::]:80 default_server;
        root /usr/share/nginx/html;
        index index.html;
    }
}
"""
INDEX_HTML = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>A pod that answers</title></head>
<body>
<h1>A pod that answers</h1>
<p>This page comes from nginx, in a container, in the network namespace of its pod.</p>
</body>
</html>
"""


class BuildFailed(Exception):
    """Why an image cannot be built, as one sentence with the next step."""


@dataclass(slots=True)
class Tree:
    """The files of a layer: path without a leading slash to (type, mode, link target, content)."""

    entries: dict[str, tuple[bytes, int, str, bytes]] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        if path not in self.entries:
            self._parents(path)
            self.entries[path] = (tarfile.DIRTYPE, mode, "", b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._parents(path)
        self.entries[path] = (tarfile.REGTYPE, mode, "", content)

    def link(self, path: str, target: str) -> None:
        self._parents(path)
        self.entries[path] = (tarfile.SYMTYPE, 0o777, target, b"")

    def tar(self) -> bytes:
        """The layer's tar. A directory sorts before its contents."""
        return tar_bytes(self.entries)

    def _parents(self, path: str) -> None:
        parent = os.path.dirname(path)
        if parent:
            self.directory(parent)


def tar_bytes(entries: Mapping[str, tuple[bytes, int, str, bytes]]) -> bytes:
    """A tar that depends only on its entries."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, (kind, mode, target, content) in sorted(entries.items()):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(content)
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def base_tree() -> Tree:
    """The files of every image: the merged /usr, mount points, users from files only."""
    tree = Tree()
    for directory in ("dev", "etc", "home", "proc", "run", "sys", "usr/bin", "usr/lib", "usr/sbin", "var/tmp"):
        tree.directory(directory)
    for directory in ("bin", "lib", "sbin"):
        tree.link(directory, f"usr/{directory}")
    tree.directory("root", 0o700)
    tree.entries["tmp"] = tree.entries["var/tmp"] = (tarfile.DIRTYPE, 0o1777, "", b"")
    tree.file("etc/passwd", PASSWD.encode())
    tree.file("etc/group", GROUP.encode())
    tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")
    return tree


def nginx() -> tuple[Tree, dict[str, Any]]:
    """nginx, the libraries that it loads, a minimal configuration and one page."""
    versions = package_versions("nginx-light", "nginx", "nginx-common", needed=("nginx-light", "nginx"))
    program = installed_file("/usr/sbin/nginx", "nginx-light")
    tree = base_tree()
    tree.file("usr/sbin/nginx", program.read_bytes(), 0o755)
    for library in libraries(program):
        # The loader finds libraries by their soname: keep that name, with the content of its target.
        place = os.path.join(os.path.realpath(library.parent), library.name)
        tree.file(place.lstrip("/"), library.read_bytes(), 0o755)
    if any(path.startswith("usr/lib64/") for path in tree.entries):
        tree.link("lib64", "usr/lib64")
    tree.file("etc/nginx/nginx.conf", NGINX_CONF.encode())
    tree.file("usr/share/nginx/html/index.html", INDEX_HTML.encode())
    tree.directory("var/lib/nginx")
    # Compiled in, and opened before the configuration is read.
    tree.link("var/log/nginx/error.log", "/dev/stderr")
    tree.link("var/log/nginx/access.log", "/dev/stdout")
    config = {
        "Entrypoint": ["nginx", "-g", "daemon off;"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {f"org.debian.package.{name}": version for name, version in versions.items()},
        "StopSignal": "SIGQUIT",
        "WorkingDir": "/",
    }
    return tree, config


def busybox() -> tuple[Tree, dict[str, Any]]:
    """The static busybox under all its names."""
    versions = package_versions("busybox-static", needed=("busybox-static",))
    program = installed_file("/bin/busybox", "busybox-static")
    tree = base_tree()
    tree.file("usr/bin/busybox", program.read_bytes(), 0o755)
    applets = output_of([str(program), "--list"], "busybox-static").split()
    for applet in applets:
        if applet != "busybox" and "/" not in applet:
            tree.link(f"usr/bin/{applet}", "busybox")
    config = {
        "Cmd": ["sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Labels": {f"org.debian.package.{name}": version for name, version in versions.items()},
        "WorkingDir": "/",
    }
    return tree, config


IMAGES: Mapping[str, Callable[[], tuple[Tree, dict[str, Any]]]] = {"nginx": nginx, "busybox": busybox}


def archive(name: str, tree: Tree, config: dict[str, Any], architecture: str) -> bytes:
    """An OCI layout with one image, named docker.io/library/NAME:latest."""
    if architecture not in ARCHITECTURES:
        raise BuildFailed(f"images for Debian's architecture {architecture!r} are not supported")
    machine, variant = ARCHITECTURES[architecture]
    platform = {"architecture": machine, "os": "linux"} | ({"variant": variant} if variant else {})
    layer = tree.tar()
    blobs: dict[str, bytes] = {}

    def add(media_type: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [add("application/vnd.oci.image.layer.v1.tar", layer)]
    config_blob = as_json(
        {
            **platform,
            "config": config,
            "created": EPOCH,
            "history": [{"created": EPOCH, "created_by": f"deploy/images/build.py {name}"}],
            "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
        }
    )
    manifest = as_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": add("application/vnd.oci.image.config.v1+json", config_blob),
            "layers": layers,
        }
    )
    listed = add("application/vnd.oci.image.manifest.v1+json", manifest) | {
        "annotations": {
            "io.containerd.image.name": f"docker.io/library/{name}:latest",
            "org.opencontainers.image.ref.name": "latest",
        },
        "platform": platform,
    }
    files = {
        "oci-layout": as_json({"imageLayoutVersion": "1.0.0"}),
        "index.json": as_json({"schemaVersion": 2, "manifests": [listed]}),
        **blobs,
    }
    entries = {path: (tarfile.REGTYPE, 0o644, "", data) for path, data in files.items()}
    entries |= dict.fromkeys(("blobs", "blobs/sha256"), (tarfile.DIRTYPE, 493, "", b""))
    return tar_bytes(entries)


def as_json(document: dict[str, Any]) -> bytes:
    """JSON that depends only on the document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def package_versions(*names: str, needed: Sequence[str]) -> dict[str, str]:
    """The versions of the installed packages. Raises BuildFailed when none of `needed` is installed."""
    versions = {}
    for name in names:
        try:
            done = subprocess.run(
                ["dpkg-query", "-W", "-f=${db:Status-Status} ${Version}", name],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as exc:
            raise BuildFailed("dpkg-query was not found: the images are built on Debian") from exc
        status, _, version = done.stdout.partition(" ")
        if done.returncode == 0 and status == "installed":
            versions[name] = version.strip()
    if not any(name in versions for name in needed):
        raise missing(needed[0])
    return versions


def missing(package: str) -> BuildFailed:
    """The error for a missing package."""
    return BuildFailed(f"the Debian package {package} is not installed; run: apt-get install {package}")


def installed_file(path: str, package: str) -> Path:
    """The path of a file of `package`. Raises BuildFailed when it is missing."""
    if not os.path.isfile(path):
        raise missing(package)
    return Path(path)


def libraries(program: Path) -> list[Path]:
    """The shared libraries that `program` loads, including its loader, according to ldd(1)."""
    paths = []
    for line in output_of(["ldd", str(program)], "libc-bin").splitlines():
        name, arrow, place = (part.strip() for part in line.partition("=>"))
        if place.startswith("not found"):
            raise BuildFailed(f"{program} needs the library {name}, which is not installed")
        path = (place if arrow else name).split(" (")[0]
        if path.startswith("/"):
            paths.append(Path(path))
    return sorted(paths)


def output_of(argv: Sequence[str], package: str) -> str:
    """The output of a command. Raises BuildFailed when it fails or is missing."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        )
    except FileNotFoundError as exc:
        raise missing(package) from exc
    except subprocess.CalledProcessError as exc:
        raise BuildFailed(f"{' '.join(argv)} failed: {exc.stderr.strip() or exc.returncode}") from exc
    return done.stdout


def build(name: str, out: Path) -> Path:
    """Write OUT/NAME.tar atomically, and return its path."""
    architecture = output_of(["dpkg", "--print-architecture"], "dpkg").strip()
    data = archive(name, *IMAGES[name](), architecture)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.tar"
    unfinished = out / f".{name}.tar.{os.getpid()}"
    try:
        unfinished.write_bytes(data)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build image archives from installed Debian packages.")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for the archives (default: build/images)")
    parser.add_argument("image", nargs="*", help=f"any of {', '.join(IMAGES)} (default: all)")
    options = parser.parse_args(arguments)
    for name in options.image:
        if name not in IMAGES:
            parser.error(f"unknown image {name!r}; known: {', '.join(IMAGES)}")
    try:
        for name in options.image or IMAGES:
            path = build(name, options.out)
            print(f"{path}: {path.stat().st_size} bytes, docker.io/library/{name}:latest")
    except BuildFailed as exc:
        print(f"cannot build the image: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"cannot write the image: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

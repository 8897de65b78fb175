"""Build the genuine programs that the conformance tests run: CRI clients, a current containerd, a current runc.

    python tests/conformance/build.py [--out DIR] [--all] [TARGET...]

They come from pinned Go modules (go.mod here, in containerd/ and in runc/) and land in build/conformance/:

    crictl                  the CRI client
    critest, ginkgo         the conformance suite, and what runs its specs in parallel
    containerd/bin/         containerd, its runc shim and ctr
    containerd-cri/bin/     the same containerd with its own CRI plugin, for comparison
    runc/bin/               runc

Without a target, what `make test` needs is built: crictl, and containerd with and without its plugin. All are static,
so they run anywhere. A target is built only when its inputs changed: its module files, its commands, the toolchain's
version.

Without a Go toolchain, or with one too old, this says so and exits 0, because nothing but these tests needs Go;
a build that fails exits 1 with the compiler's last words.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "build" / "conformance"
BUILD_SECONDS = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One Go module whose programs we build."""

    name: str
    module_dir: Path
    module: str  # the requirement whose version is stamped into the programs
    packages: tuple[str, ...]
    bin_dir: str  # below the output directory
    version_variable: str  # "" when the module knows its own version
    tags: str
    is_test: bool = False  # critest's only file is a test
    c_library: str = ""  # as pkg-config(1) calls it; then C is compiled too


DEFAULT = ("crictl", "containerd", "containerd-cri")
TARGETS = {
    "crictl": Target(
        name="crictl",
        module_dir=HERE,
        module="sigs.k8s.io/cri-tools",
        packages=("sigs.k8s.io/cri-tools/cmd/crictl",),
        bin_dir=".",
        version_variable="sigs.k8s.io/cri-tools/pkg/version.Version",
        tags="netgo osusergo",
    ),
    "critest": Target(
        name="critest",
        module_dir=HERE,
        module="sigs.k8s.io/cri-tools",
        packages=("sigs.k8s.io/cri-tools/cmd/critest",),
        bin_dir=".",
        version_variable="sigs.k8s.io/cri-tools/pkg/version.Version",
        tags="netgo osusergo",
        is_test=True,
    ),
    "ginkgo": Target(
        name="ginkgo",
        module_dir=HERE,
        module="github.com/onsi/ginkgo/v2",
        packages=("github.com/onsi/ginkgo/v2/ginkgo",),
        bin_dir=".",
        version_variable="",
        tags="netgo osusergo",
    ),
    "containerd": Target(
        name="containerd",
        module_dir=HERE / "containerd",
        module="github.com/containerd/containerd/v2",
        packages=(
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ),
        bin_dir="containerd/bin",
        version_variable="github.com/containerd/containerd/v2/version.Version",
        # Its own CRI plugin would want the place that sandboxd takes; the snapshotters need libraries.
        tags="netgo osusergo static_build no_cri no_btrfs no_devmapper no_zfs",
    ),
    "containerd-cri": Target(
        name="containerd-cri",
        module_dir=HERE / "containerd",
        module="github.com/containerd/containerd/v2",
        packages=("github.com/containerd/containerd/v2/cmd/containerd",),
        bin_dir="containerd-cri/bin",
        version_variable="github.com/containerd/containerd/v2/version.Version",
        tags="netgo osusergo static_build no_btrfs no_devmapper no_zfs",
    ),
    "runc": Target(
        name="runc",
        module_dir=HERE / "runc",
        module="github.com/opencontainers/runc",
        packages=("github.com/opencontainers/runc",),
        bin_dir="runc/bin",
        version_variable="",
        tags="netgo osusergo seccomp",
        c_library="libseccomp",
    ),
}


class BuildFailed(Exception):
    """A target could not be built; the text is for people."""


def toolchain() -> tuple[int, ...] | None:
    """The version of the `go` in PATH, or None when there is none."""
    if shutil.which("go") is None:
        return None
    # "local": never download another toolchain on the way.
    answer = subprocess.run(
        ["go", "env", "GOVERSION"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"go(\d+(?:\.\d+)*)", answer.stdout)
    return _numbers(found.group(1)) if found else None


def wanted(target: Target) -> tuple[tuple[int, ...], str]:
    """The Go version that the module asks for, and the pinned version of what is built."""
    text = (target.module_dir / "go.mod").read_text(encoding="utf-8")
    go = re.search(r"^go (\S+)$", text, re.MULTILINE)
    pin = re.search(rf"^(?:require )?\s*{re.escape(target.module)} (v\S+)", text, re.MULTILINE)
    if go is None or pin is None:
        raise BuildFailed(f"{target.module_dir / 'go.mod'}: no go version or no requirement on {target.module}")
    return _numbers(go.group(1)), pin.group(1)


def inputs(target: Target, go: tuple[int, ...]) -> str:
    """A digest of everything that decides what the programs are."""
    commands = [command(target, package, "", Path(package)) for package in target.packages]
    digest = hashlib.sha256(repr((go, commands)).encode())
    for path in (target.module_dir / "go.mod", target.module_dir / "go.sum"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def command(target: Target, package: str, version: str, program: Path) -> list[str]:
    """What builds one program."""
    ldflags = "-s -w"
    if target.version_variable:
        ldflags += f" -X {target.version_variable}={version}"
    if target.c_library:
        ldflags += " -linkmode external -extldflags -static"
    argv = ["nice", "-n", "10", "go", *(["test", "-c"] if target.is_test else ["build"]), "-p", "2", "-trimpath"]
    return [*argv, "-buildvcs=false", "-tags", target.tags, "-ldflags", ldflags, "-o", str(program), package]


def build(target: Target, out: Path, go: tuple[int, ...], version: str) -> str:
    """Build one target; returns what was done. Raises BuildFailed."""
    bin_dir = out / target.bin_dir
    stamp = out / f"{target.name}.stamp"
    programs = [bin_dir / package.rsplit("/", 1)[1] for package in target.packages]
    wish = inputs(target, go)
    if all(p.is_file() for p in programs) and stamp.is_file() and stamp.read_text() == wish:
        return f"{target.name} {version}: up to date"
    bin_dir.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    cgo = "1" if target.c_library else "0"
    for package, program in zip(target.packages, programs, strict=True):
        try:
            finished = subprocess.run(
                command(target, package, version, program),
                cwd=target.module_dir,
                env={**os.environ, "CGO_ENABLED": cgo, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BUILD_SECONDS,
            )
        except subprocess.TimeoutExpired as exc:
            raise BuildFailed(f"{program.name}: not built after {BUILD_SECONDS:.0f} s") from exc
        if finished.returncode:
            words = "\n".join(finished.stdout.splitlines()[-15:])
            raise BuildFailed(f"{program.name} {version}: go build failed:\n{words}")
    stamp.write_text(wish)
    return f"{target.name} {version}: built in {bin_dir}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="Build CRI clients, a current containerd and a current runc.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--all", action="store_true", help=f"every target (default: {', '.join(DEFAULT)})")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}: known are {', '.join(TARGETS)}")
    go = toolchain()
    if go is None:
        print("conformance: skipped: no Go toolchain (install Go to build crictl, critest and a current containerd)")
        return 0
    failed = False
    for name in options.targets or (TARGETS if options.all else DEFAULT):
        try:
            needed, version = wanted(TARGETS[name])
            if go < needed:
                print(f"conformance: {name} skipped: Go {_dotted(go)} found, {_dotted(needed)} or newer is needed")
                continue
            if lacking := missing_for_c(TARGETS[name]):
                print(f"conformance: {name} skipped: it needs {lacking}")
                continue
            print(f"conformance: {build(TARGETS[name], options.out, go, version)}")
        except BuildFailed as exc:
            print(f"conformance: {exc}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


def missing_for_c(target: Target) -> str:
    """What this machine lacks to compile and link C, "" when nothing or no C is in the target."""
    if not target.c_library:
        return ""
    for program in ("gcc", "pkg-config"):
        if shutil.which(program) is None:
            return program
    argv = ["pkg-config", "--exists", target.c_library]
    return "" if subprocess.run(argv, timeout=60).returncode == 0 else f"the development files of {target.c_library}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


if __name__ == "__main__":
    sys.exit(main())

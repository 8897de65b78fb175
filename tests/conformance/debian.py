"""What the conformance suite takes from Debian: packages, installed, and the source of one, unpacked.

The machine's own apt settings stay as they are. Sources are asked for where its binary packages come from: its
`deb` entries, read at run time, are repeated as `deb-src` in a directory of our own, which also holds the lists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGES = (
    # what the images are made of, beside what deploy/setup.sh installs
    "apache2-bin",
    # to build busybox, nnp and runc
    "bzip2",
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "libseccomp-dev",
    "make",
    "patch",
    "pkg-config",
    "xz-utils",
    # what the suite runs against, and calls
    "docker-registry",
    "util-linux",
)
APT = Path("/etc/apt")
APT_GET = Path(__file__).resolve().parents[2] / "deploy" / "apt-get.sh"
APT_SECONDS = 600.0
LOCK_SECONDS = 600.0  # for which APT_GET waits for another apt or dpkg

_ENTRY = re.compile(r"^deb\s+(?P<options>\[[^]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")


class DebianFailed(Exception):
    """apt or dpkg could not do what was asked; the text is for people."""


def install(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Install those packages that are missing and return them; services that they bring are not started."""
    missing = [name for name in packages if not _installed(name)]
    if not missing:
        return []
    policy = Path("/usr/sbin/policy-rc.d")  # invoke-rc.d(8): 101 forbids to start anything
    ours = not policy.exists()
    try:
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
            policy.chmod(0o755)
        for words in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *missing]):
            run(["sh", str(APT_GET), *words], within=LOCK_SECONDS + APT_SECONDS)
    finally:
        if ours:
            policy.unlink(missing_ok=True)
    if "docker-registry" in missing and Path("/run/systemd/system").is_dir():
        run(["systemctl", "--quiet", "disable", "docker-registry"])  # nobody asked for one at the next boot
    return missing


def source(package: str, work: Path) -> Path:
    """Fetch the newest source of a package, with Debian's signatures checked, and unpack it below `work`."""
    entries = work / "apt" / "entries"
    entries.mkdir(parents=True)
    for directory in ("lists/partial", "cache/archives/partial"):
        (work / "apt" / directory).mkdir(parents=True)
    files = [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))]
    written = 0
    for file in files:
        if file.is_file() and file.suffix in (".list", ".sources"):
            repeat = source_stanzas if file.suffix == ".sources" else source_lines
            if text := repeat(file.read_text(encoding="utf-8"), codename()):
                (entries / f"{written}{file.suffix}").write_text(text, encoding="utf-8")
                written += 1
    if not written:
        raise DebianFailed(f"{APT} names no place of Debian {codename()}, so there is none to fetch {package} from")
    options = [
        "Dir::Etc::SourceList=/dev/null",
        f"Dir::Etc::SourceParts={entries}",
        f"Dir::State::Lists={work / 'apt' / 'lists'}",
        f"Dir::Cache={work / 'apt' / 'cache'}",
        "APT::Sandbox::User=root",  # the user _apt may not write below `work`
    ]
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    run([*apt, "update"])
    run([*apt, "source", "--download-only", package], cwd=work)
    described = sorted(work.glob("*.dsc"))
    if len(described) != 1:
        raise DebianFailed(f"apt-get source {package}: expected one .dsc in {work}, found {len(described)}")
    # apt has checked the file against the signed lists; the maintainer's own key is not on every machine.
    run(["dpkg-source", "--no-check", "--extract", str(described[0]), "source"], cwd=work)
    return work / "source"


def source_stanzas(text: str, suite: str) -> str:
    """The deb822 stanzas that fetch packages of `suite`, made to fetch their sources (sources.list(5))."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        enabled = fields.get("Enabled", "yes").lower() not in ("no", "false", "0")
        fits = "deb" in fields.get("Types", "").split() and _of_suite(fields.get("Suites", "").split(), suite)
        if enabled and fits:
            found.append(re.sub(r"^Types:.*$", "Types: deb-src", stanza.strip("\n"), count=1, flags=re.MULTILINE))
    return "\n\n".join(found) + "\n" if found else ""


def source_lines(text: str, suite: str) -> str:
    """The same for the one-line style."""
    matches = (_ENTRY.match(line.strip()) for line in text.splitlines())
    found = [match for match in matches if match and _of_suite([match["suite"]], suite)]
    lines = [f"deb-src {m['options'] or ''}{m['uri']} {m['suite']} {m['components']}\n" for m in found]
    return "".join(lines)


def codename() -> str:
    """The release that this machine runs, as in os-release(5)."""
    text = Path("/etc/os-release").read_text(encoding="utf-8")
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", text, re.MULTILINE)
    if found is None:
        raise DebianFailed("/etc/os-release names no release: the images are built from Debian's packages")
    return found.group(1)


def run(argv: Sequence[str], *, cwd: Path | None = None, within: float = APT_SECONDS, stdin: str = "") -> str:
    """Run a program to its end and return what it printed. Raises DebianFailed with its last words."""
    if shutil.which(argv[0]) is None:
        raise DebianFailed(f"{argv[0]} was not found: this needs Debian 12 or newer")
    try:
        finished = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within,
        )
    except subprocess.TimeoutExpired as exc:
        raise DebianFailed(f"{' '.join(argv)}: still running after {within:.0f} s") from exc
    if finished.returncode:
        words = "\n".join(finished.stdout.splitlines()[-10:])
        raise DebianFailed(f"{' '.join(argv)}: exit status {finished.returncode}:\n{words}")
    return finished.stdout


def _of_suite(suites: Iterable[str], suite: str) -> bool:
    return any(name.split("/")[0].split("-")[0] == suite for name in suites)


def _installed(package: str) -> bool:
    argv = ["dpkg-query", "-W", "-f=${db:Status-Abbrev}", package]
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if finished.returncode == 0 and finished.stdout.startswith("ii"):
        return True
    # A virtual package, as pkg-config has become, is there when its program is.
    return package == "pkg-config" and shutil.which("pkg-config") is not None

"""What run.py runs in the dirty machine's namespaces: make it dirty, run the tests, compare."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.dirty.dirt import FILES, SCRIPTS
from tests.processes import until
from tests.testbed import ROOT

SIDE_BY_SIDE = ["-n", "4", "--dist", "loadscope", "--no-loadscope-reorder"]  # as in the Makefile
# One containerd is enough: what differs here is the machine.
ONE_CONTAINERD = ["-k", "not current"]
ROOT_AND_E2E = [
    "tests/root",
    *(f"tests/e2e/test_{name}.py" for name in ("lifecycle", "restart", "demo", "full_run")),
    *ONE_CONTAINERD,
]
# What reads or writes words, modes, times and paths of a user.
IN_GERMAN = [
    *(f"tests/unit/{name}" for name in ("cli", "logs", "machine", "test_config.py", "test_private.py")),
    "tests/root/test_netns.py",
    "tests/e2e/test_lifecycle.py",
    *ONE_CONTAINERD,
]
IMAGES = ROOT / "build" / "images"
LOCALES = Path("/var/tmp/locales")
LOCALE = "de_DE.UTF-8"
HOME = Path("/var/tmp/home of änna")
TEMPORARY = Path("/var/tmp/elsewhere")
CTR = ("ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "default")

# Debian's own, more or less; the path keeps it out of the machine's /opt.
CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
"""

# What people's shells say besides; programs that the tests and the product start read it.
SHELL = {
    "HOME": str(HOME),
    "TMPDIR": str(TEMPORARY),
    "TZ": "Asia/Kathmandu",
    "LANGUAGE": "de:fr",
    "CONTAINERD_NAMESPACE": "moby",
    "CONTAINERD_ADDRESS": "/run/docker/containerd/containerd.sock",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "XDG_CONFIG_HOME": f"{HOME}/.config",
    "PYTHONUNBUFFERED": "1",
}


def main(name: str, arguments: list[str]) -> int:
    """The exit status: that of the first pytest that failed, 1 for a machine that was changed."""
    begun = time.monotonic()
    daemons = []
    for what, script in SCRIPTS.items():
        said(f"dirt: {what}", begun)
        run("sh", "-euc", script)
    for what, make in FILES.items():
        said(f"dirt: {what}", begun)
        make()
    TEMPORARY.mkdir(mode=0o1777)
    said("dirt: another containerd, with a container", begun)
    daemons.append(another_containerd(name))
    said("dirt: a daemon of ours, with a pod", begun)
    daemons.append(daemon_of_ours(name))
    selected = runs(arguments)
    before = observe()

    failed = 0
    for words, selection, settings in selected:
        said(f"tests: {words}", begun)
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SIDE_BY_SIDE, *selection]
        env = {**os.environ, **SHELL, **settings}
        status = subprocess.run(argv, cwd=ROOT, env=env, umask=0o077, check=False).returncode
        failed = failed or status

    said("the machine afterwards", begun)
    changes = difference(before, observe())
    for line in changes:
        print(f"test-dirty: the tests have changed the machine: {line}")
    failed = failed or bool(changes)
    print(f"test-dirty: {'FAILED' if failed else 'passed'} in {time.monotonic() - begun:.0f} s", flush=True)
    for daemon in daemons:
        daemon.kill()
    return int(failed)


def runs(arguments: list[str]) -> list[tuple[str, list[str], Mapping[str, str]]]:
    """What to run, and what the shell says besides SHELL."""
    plain = {"LC_ALL": "C", "LANG": "C"}
    if arguments:
        return [("as asked", arguments, plain)]
    found: list[tuple[str, list[str], Mapping[str, str]]] = [("LC_ALL=C", ROOT_AND_E2E, plain)]
    LOCALES.mkdir()
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(LOCALES / LOCALE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if (LOCALES / LOCALE).is_dir():
        found.append((f"LC_ALL={LOCALE}", IN_GERMAN, {"LC_ALL": LOCALE, "LOCPATH": str(LOCALES)}))
    else:
        print(f"test-dirty: left out what runs in German: localedef makes no {LOCALE}: {made.stderr.strip()}")
    return found


# --- what runs on the machine ----------------------------------------------------------------------------------


def another_containerd(name: str) -> subprocess.Popen[bytes]:
    """The distribution's, at its usual places, with a container that somebody started with ctr."""
    Path("/etc/containerd").mkdir(exist_ok=True)
    Path("/etc/containerd/config.toml").write_text(CONTAINERD, encoding="utf-8")
    with open("/var/log/containerd.log", "wb") as log:
        daemon = subprocess.Popen(["containerd"], stdout=log, stderr=log)
    until(lambda: succeeds(*CTR, "version"), within=30, what="containerd serves")
    run(*CTR, "images", "import", str(IMAGES / "busybox.tar"))
    image = run(*CTR, "images", "list", "--quiet").split()[0]
    run(*CTR, "run", "--detach", "--cgroup", f"/{name}/theirs", image, "theirs", "sleep", "100000")
    return daemon


def daemon_of_ours(name: str) -> subprocess.Popen[bytes]:
    """Ours at its usual places, started from a shell, with its own containerd, and nginx in a pod."""
    program = str(Path(sys.executable).with_name("sandboxd"))
    with open("/var/log/sandboxd.log", "wb") as log:
        daemon = subprocess.Popen(
            [program, "serve", "--set", f"runtime.cgroup_parent=/{name}"],
            stdout=log,
            stderr=log,
            env={**os.environ, **SHELL},
            umask=0o077,
        )
    until(lambda: succeeds(*sandboxctl("info")), within=60, what="our daemon serves")
    run(*sandboxctl("load", str(IMAGES / "nginx.tar")))
    run(*sandboxctl("run", "nginx", "--name", "ours", "--port", "8080:80"))
    until(lambda: answer() == 200, within=20, what="nginx in our pod answers")
    return daemon


def sandboxctl(*words: str) -> tuple[str, ...]:
    return (str(Path(sys.executable).with_name("sandboxctl")), *words)


def answer() -> int:
    """The status that our pod's web server gives, 0 when it gives none."""
    (pod,) = json.loads(run(*sandboxctl("pods", "--output", "json")))["items"]
    try:
        connection = http.client.HTTPConnection(pod["network"]["ip"], timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().status
    except OSError:
        return 0


# --- what must not change --------------------------------------------------------------------------------------


def observe() -> dict[str, list[str]]:
    """What the tests could have changed on the machine that they ran on, one line for each thing.

    The kernel still asks whether an address of a link that just came up is another's (RFC 4862, section 5.4): what it
    says about one meanwhile changes by itself.
    """
    until(lambda: not run("ip", "-o", "address", "show", "tentative"), within=20, what="no address is tentative")
    return {
        "link": run("ip", "-o", "link", "show").splitlines(),
        "address": run("ip", "-o", "address", "show").splitlines(),
        "route": run("ip", "route", "show").splitlines(),
        "firewall": run("nft", "--stateless", "list", "ruleset").splitlines(),
        "network namespace": sorted(os.listdir("/run/netns")),
        "mount": sorted(
            line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().decode().splitlines()
        ),
        "container": run(*CTR, "tasks", "list").splitlines(),
        "pod": run(*sandboxctl("pods", "--output", "json")).splitlines(),
        "answer": [str(answer())],
        "file": files("/etc", "/run", "/tmp", "/var/log", "/var/tmp", "/var/lib"),
        "ip_forward": [Path("/proc/sys/net/ipv4/ip_forward").read_text()],
    }


def files(*directories: str) -> list[str]:
    """All below these directories but what the daemons that run keep for themselves, and what pytest keeps."""
    own = ("/var/lib/containerd", "/var/lib/sandboxd", "/run/containerd", "/run/sandboxd", "/tmp/pytest-of-root")
    left_out = [word for place in own for word in ("-path", place, "-prune", "-o")]
    return sorted(run("find", *directories, *left_out, "-printf", "%p %y %m %U\\n").splitlines())


def difference(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> list[str]:
    found = []
    for kind, lines in before.items():
        found += [f"{kind} is gone: {line}" for line in lines if line not in after[kind]]
        found += [f"{kind} is new: {line}" for line in after[kind] if line not in lines]
    return found


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise SystemExit(f"test-dirty: {' '.join(argv)}: exit status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def said(words: str, begun: float) -> None:
    print(f"test-dirty: {time.monotonic() - begun:4.0f} s  {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

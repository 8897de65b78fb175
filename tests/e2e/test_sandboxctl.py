"""The real sandboxctl against the real daemon."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit import assert_no_leaks, observe
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e


class Ctl:
    """sandboxctl on the bed's socket, from outside: it has nothing but the socket."""

    def __init__(self, bed: Testbed) -> None:
        self._argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket)]

    def run(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command; how it ended."""
        return subprocess.run([*self._argv, *args], capture_output=True, text=True, timeout=timeout)

    def __call__(self, *args: str) -> str:
        """What a command that must succeed prints."""
        finished = self.run(*args)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout


@pytest.fixture(scope="module")
def ctl(bed: Testbed) -> Ctl:
    return Ctl(bed)


@pytest.fixture(scope="module")
def loaded(bed: Testbed, ctl: Ctl) -> Iterator[None]:
    for name in ("nginx", "busybox"):
        assert f"docker.io/library/{name}:latest" in ctl("load", str(bed.build_image(name)))
    yield


def test_run_to_rm_without_a_json_file(bed: Testbed, ctl: Ctl, loaded: None) -> None:
    ctl("run", "busybox", "--name", "warm", "--port", "8082:80", "--", "true")  # portmap makes its static chains
    ctl("rm", "-f", "warm")
    before = observe(bed)
    shown = json.loads(ctl("run", "nginx", "--name", "web", "--port", "8081:80", "-o", "json"))
    assert shown
    pods = ctl("pods")
    ip = next(word for word in pods.split() if word.startswith("10.0.10."))
    assert bed.http_get(ip)[0] == 200
    assert bed.http_get("127.0.0.1", 8081)[0] == 200
    listed = ctl("ps")
    assert "web" in listed and ip in listed
    until(lambda: "GET /" in ctl("logs", "web"), what="the access is logged")
    assert ctl("logs", "--tail", "1", "web").count("\n") == 1
    explained = ctl("explain", "web")
    for fact in (
        "The network namespace is created",
        f"ADD bridge → eth0 {ip}/24 via 10.0.10.1, veth",
        "RunPodSandbox",
    ):
        assert fact in explained
    assert "ADD portmap → host port 8081/tcp to 80" in explained
    ctl("stop", "web")
    assert "Running" not in ctl("ps", "-a")
    ctl("rm", "-f", "web")
    assert json.loads(ctl("pods", "-o", "json")) in ([], {"items": []}, {})
    assert_no_leaks(bed, before)


def test_programs_get_json_and_scripts_get_ids(ctl: Ctl, loaded: None) -> None:
    container_id = ctl("run", "-q", "busybox", "--name", "script", "--", "sleep", "1000").strip()
    assert container_id in ctl("ps", "-q")
    assert container_id in ctl("ps", "-o", "json")
    assert json.loads(ctl("inspect", "script"))
    ctl("rm", "-f", "script")


def test_a_command_runs_in_a_container_and_its_exit_code_is_passed_on(ctl: Ctl, loaded: None) -> None:
    ctl("run", "busybox", "--name", "inside", "--", "sleep", "1000")
    ended = ctl.run("exec", "inside", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "out\n", "err\n")
    late = ctl.run("--timeout", "1s", "exec", "inside", "--", "sleep", "100")
    assert late.returncode == 1 and "did not end within 1 s and was killed" in late.stderr
    assert "inside" in ctl("stats")
    (measured,) = json.loads(ctl("stats", "inside", "-o", "json"))["stats"]
    assert int(measured["memory"]["workingSetBytes"]["value"]) > 0
    ctl("rm", "-f", "inside")


def test_what_is_started_by_hand_has_a_seccomp_filter_that_an_option_lifts(
    bed: Testbed, ctl: Ctl, loaded: None
) -> None:
    script = (
        "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; unshare -Ur true && echo a user namespace; echo done"
    )

    def said(name: str, *options: str) -> list[str]:
        ctl("run", "busybox", "--name", name, *options, "--", "sh", "-c", script)
        lines = [" ".join(line.split()) for line in ctl("logs", "--follow", name).splitlines()]
        assert lines[-1] == "done"
        return lines

    default = said("fenced")
    assert {"Seccomp: 2", "NoNewPrivs: 0"} <= set(default)
    assert "a user namespace" not in default
    assert any("Operation not permitted" in line for line in ctl.run("logs", "fenced").stderr.splitlines())
    lifted = said("lifted", "--security-opt", "seccomp=unconfined")
    assert {"Seccomp: 0", "NoNewPrivs: 0", "a user namespace"} <= set(lifted)

    bed.write("/etc/strict.json", json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
    assert "Seccomp: 2" in said("own", "--security-opt", "seccomp=/etc/strict.json")
    for name in ("fenced", "lifted", "own"):
        ctl("rm", "-f", name)


def test_info_version_and_images_tell_what_is_there(ctl: Ctl, loaded: None) -> None:
    assert "sandboxd" in ctl("version")
    assert "NetworkReady" in ctl("info", "-o", "json")
    assert "docker.io/library/nginx" in ctl("images")


def test_crictls_files_are_taken(ctl: Ctl, loaded: None, tmp_path: Path) -> None:
    pod, container = tmp_path / "pod.json", tmp_path / "container.json"
    pod.write_text(json.dumps({"metadata": {"name": "files", "namespace": "default", "uid": "1", "attempt": 0}}))
    container.write_text(
        json.dumps({"metadata": {"name": "c"}, "image": {"image": "busybox"}, "command": ["sleep", "1000"]})
    )
    pod_id = ctl("runp", str(pod)).split()[-1]
    container_id = ctl("create", pod_id, str(container), str(pod)).split()[-1]
    assert container_id[:12] in ctl("ps", "-a")
    ctl("rm", "-f", "files")


def test_exit_codes_tell_what_went_wrong(ctl: Ctl, bed: Testbed, tmp_path: Path) -> None:
    assert ctl.run("inspect", "no-such-thing").returncode == 3
    assert ctl.run("run", "--pull", "never", "no-such-image").returncode == 3
    assert ctl.run("frobnicate").returncode == 2
    nobody = Ctl(bed)
    nobody._argv[2] = str(tmp_path / "nobody.sock")
    finished = nobody.run("pods")
    assert finished.returncode == 4
    assert "is sandboxd running" in finished.stderr


def test_a_run_that_fails_leaves_no_pod(ctl: Ctl, bed: Testbed, loaded: None) -> None:
    finished = ctl.run("run", "busybox", "--name", "broken", "--", "no-such-command")
    assert finished.returncode == 1
    assert "no-such-command" in finished.stderr
    assert "broken" not in ctl("pods")


@pytest.mark.parametrize("case", ["a wrong digest", "a path that escapes", "no archive"])
def test_a_bad_archive_is_refused_and_leaves_nothing(
    ctl: Ctl, bed: Testbed, loaded: None, tmp_path: Path, case: str
) -> None:
    before = observe(bed)
    images = ctl("images")
    bad = tmp_path / "bad.tar"
    if case == "no archive":
        bad.write_bytes(b"this is not a tar file" * 100)
    else:
        with tarfile.open(bed.build_image("busybox")) as source, tarfile.open(bad, "w") as target:
            for member in source.getmembers():
                file = source.extractfile(member) if member.isfile() else None
                data = file.read() if file else b""
                if case == "a path that escapes" and member.name.startswith("blobs/"):
                    member.name = f"../../{member.name}"
                elif case == "a wrong digest" and len(data) > 100_000:
                    middle = len(data) // 2  # inside the one large file
                    data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                _add(target, member, data)
    finished = ctl.run("load", str(bad))
    assert finished.returncode == 1
    assert finished.stderr.strip()
    if case == "a wrong digest":
        assert "sha256:" in finished.stderr
    assert ctl("images") == images
    assert_no_leaks(bed, before)


def _add(target: tarfile.TarFile, member: tarfile.TarInfo, data: bytes) -> None:
    member.size = len(data)
    target.addfile(member, io.BytesIO(data) if member.isfile() else None)


def test_every_command_of_the_readme_is_in_the_help(ctl: Ctl) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"sandboxctl ([a-z]+)", text))
    assert {"run", "pods", "explain", "logs", "rm", "load"} <= commands
    shown = ctl("--help")
    assert [command for command in sorted(commands) if f"\n  {command} " not in shown] == []

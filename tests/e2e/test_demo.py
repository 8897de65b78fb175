"""`make demo` and `make demo-down`, on a machine of their own."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.places import CGROUP
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e


def demo(bed: Testbed, command: str, *, check: bool = True) -> tuple[int, str]:
    """Run what the Makefile runs, without the set-up that needs registries."""
    script = f"cd {ROOT} && exec {sys.executable} -m deploy.demo {command}"
    finished = bed.run(["sh", "-c", script], check=check, timeout=120)
    return finished.returncode, finished.stdout + finished.stderr


@pytest.fixture
def machine(fresh_bed: StartBed) -> Testbed:
    """A machine without a daemon or a network, and with the demo's image built."""
    bed = fresh_bed(daemon=False, network=False)
    bed.build_image("nginx")
    return bed


def test_the_demo_tells_the_story_twice_and_leaves_the_machine_as_it_was(machine: Testbed) -> None:
    before = observe(machine)
    forwarding = machine.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout
    for _ in range(2):
        _, told = demo(machine, "up")
        for fact in ("/run/netns/", "ADD /usr/lib/cni/bridge", "10.0.10.", "the same network namespace", "HTTP 200"):
            assert fact in told
        assert "NOT the same" not in told
    for words in ("the machine is as it was", "nothing to do"):
        assert words in demo(machine, "down")[1]
    assert_no_leaks(machine, before)
    assert machine.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout == forwarding


def test_a_demo_whose_daemon_died_is_taken_down_all_the_same(machine: Testbed) -> None:
    before = observe(machine)
    demo(machine, "up")
    machine.run(["kill", "-9", machine.path("/run/sandboxd-demo/sandboxd.pid").read_text().strip()])
    assert "the machine is as it was" in demo(machine, "down")[1]
    assert_no_leaks(machine, before)


def test_an_address_range_in_use_is_said_and_nothing_is_started(machine: Testbed) -> None:
    machine.run(["ip", "addr", "add", "10.0.10.77/24", "dev", "up0"])
    before = observe(machine)
    status, words = demo(machine, "up", check=False)
    assert status == 1
    assert "10.0.10.0/24 is in use on up0" in words
    assert_no_leaks(machine, before)


@pytest.fixture
def other() -> Iterator[Path]:
    """The cgroup of another demo's pod, with a process in it: all share the machine's, and it may have its own."""
    hierarchies = [path for path in Path("/sys/fs/cgroup").iterdir() if (path / "cgroup.procs").is_file()]
    parent = next(iter(hierarchies), Path("/sys/fs/cgroup")) / CGROUP
    made = parent / f"somebodys-{secrets.token_hex(4)}"
    made.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as process:
        (made / "cgroup.procs").write_text(str(process.pid))
        yield made
        process.kill()
    until(lambda: not (made / "cgroup.procs").read_text(), what="the cgroup is empty")
    made.rmdir()
    with contextlib.suppress(OSError):
        parent.rmdir()  # unless the machine has its own demo


def test_a_demo_that_is_taken_down_leaves_the_cgroups_of_another_alone(machine: Testbed, other: Path) -> None:
    before = observe(machine)
    demo(machine, "up")
    assert "the machine is as it was" in demo(machine, "down")[1]
    assert other.is_dir()
    assert_no_leaks(machine, before)

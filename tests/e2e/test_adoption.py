"""The ledger is lost, whole or in part: pods go on, are known again, and can be used and removed as before."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_info,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    pod_info,
    pod_status,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

CTR = ("ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "sandboxd")
COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
PORT = cri.PortMapping(protocol=cri.TCP, container_port=80, host_port=18080)


def ledger_file(bed: Testbed) -> Path:
    return bed.path("/var/lib/sandboxd/ledger.db")


def delete(file: Path) -> None:
    for path in file.parent.glob("ledger.db*"):
        path.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, 0)


def truncate_to_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite(file: Path) -> None:
    file.write_bytes(b"garbage " * 4096)


def zero_a_page(file: Path) -> None:
    """That of the table of sandboxes."""
    with closing(sqlite3.connect(file)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sandboxes'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(bytes(size))


def damage_each_row(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        for table in ("sandboxes", "containers", "attachments"):
            db.execute(f"UPDATE {table} SET body = '{{'")


LOSSES = (delete, truncate, truncate_to_half, overwrite, zero_a_page, damage_each_row)


@pytest.fixture(scope="module")
def warm(bed: Testbed, images: tuple[str, ...]) -> Testbed:
    """A bed that has had a pod with a host port and a log: what the first one leaves on purpose is there."""
    pod_id = run_pod(bed, pod_config(port_mappings=[PORT]))
    run_container(bed, pod_id, shell("exit 0"))
    remove_pod(bed, pod_id)
    return bed


def lose(bed: Testbed, how: Callable[[Path], None]) -> None:
    """Kill the daemon, lose the ledger, start again."""
    bed.kill_daemon()
    how(ledger_file(bed))
    bed.relaunch_daemon()


def is_a_count(lines: list[str]) -> bool:
    return lines == [str(number) for number in range(1, len(lines) + 1)]


def seen(bed: Testbed, pod_id: str, containers: list[str]) -> list[object]:
    """What a client sees of a pod and its containers, and what must not change."""
    status = pod_status(bed, pod_id)
    known = [
        (each.id, each.state, each.metadata.name, each.image_ref, each.log_path, container_info(bed, each.id)["pid"])
        for each in (container_status(bed, container_id) for container_id in containers)
    ]
    info = pod_info(bed, pod_id)
    return [
        status.state,
        status.metadata.name,
        status.created_at,
        list(status.labels.items()),
        status.network.ip,
        [each.ip for each in status.network.additional_ips],
        (info["pid"], info["netNamespacePath"], info["netNamespaceInode"]),
        known,
    ]


@pytest.mark.parametrize("how", LOSSES, ids=lambda how: how.__name__)
def test_pods_go_on_are_known_and_can_be_removed_whole(warm: Testbed, how: Callable[[Path], None]) -> None:
    bed = warm
    before = observe(bed)
    configs = [pod_config(labels={"a": "b"}, port_mappings=ports) for ports in ([PORT], [])]
    pods = [run_pod(bed, config) for config in configs]
    containers = {
        pod_id: [
            run_container(bed, pod_id, shell(COUNTS)),
            run_container(bed, pod_id, container_config("nginx", "nginx")),
        ]
        for pod_id in pods
    }
    was = {pod_id: seen(bed, pod_id, ids) for pod_id, ids in containers.items()}
    lose(bed, how)

    assert listed(bed) == set(pods)
    assert {pod_id: seen(bed, pod_id, ids) for pod_id, ids in containers.items()} == was
    assert [run_pod(bed, config) for config in configs] == pods, "the same request again"
    for pod_id, (counts, _) in containers.items():
        so_far = len(log_lines(bed, counts))
        until(lambda counts=counts, so_far=so_far: len(log_lines(bed, counts)) > so_far + 3, what="it counts on")  # type: ignore[misc]
        assert is_a_count(log_lines(bed, counts))
        assert bed.http_get(pod_status(bed, pod_id).network.ip)[0] == 200
        answer = bed.runtime.ExecSync(cri.ExecSyncRequest(container_id=counts, cmd=["echo", "hello"], timeout=30))
        assert (answer.exit_code, answer.stdout) == (0, b"hello\n")

    # As any other pod: one more container, and an end that is seen.
    another = run_container(bed, pods[0], shell("exit 7"))
    until(lambda: exited(bed, another), what="it ends")
    assert container_status(bed, another).exit_code == 7
    for pod_id in pods:
        remove_pod(bed, pod_id)
    for aside in ledger_file(bed).parent.glob("ledger.db.damaged-*"):
        aside.unlink()
    assert_no_leaks(bed, before)


def test_what_does_not_run_is_in_its_state_and_what_was_being_made_is_gone(warm: Testbed) -> None:
    """Containers that were not started, or ended before or while the ledger was lost; a stopped pod."""
    bed = warm
    before = observe(bed)
    ends_later = "while [ ! -e /data/go ]; do sleep 0.02; done; exit 5"
    gate = bed.write("/var/lib/adoption-gate/.keep", "").parent
    mount = cri.Mount(host_path="/var/lib/adoption-gate", container_path="/data")
    pod_id, stopped, in_the_making = (run_pod(bed) for _ in range(3))
    created = create_container(bed, pod_id, shell("sleep 100000"))
    ended = run_container(bed, pod_id, shell("exit 3"))
    until(lambda: exited(bed, ended), what="it ends")
    ends = run_container(bed, pod_id, shell(ends_later, mounts=[mount]))
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=stopped))

    bed.kill_daemon()
    (gate / "go").touch()
    # As a run that was cut off leaves it: its task does not run, its network is there.
    bed.run([*CTR, "tasks", "kill", "-s", "SIGKILL", in_the_making])
    until(lambda: have_ended(bed, ends, in_the_making), what="both end while nobody looks")
    delete(ledger_file(bed))
    bed.relaunch_daemon()

    def state(container_id: str) -> tuple[int, int, str]:
        status = container_status(bed, container_id)
        return status.state, status.exit_code, status.reason

    assert state(created)[0] == cri.CONTAINER_CREATED
    assert state(ended) == (cri.CONTAINER_EXITED, 255, "Unknown")
    assert state(ends) == (cri.CONTAINER_EXITED, 5, "Error")
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert pod_status(bed, stopped).state == cri.SANDBOX_NOTREADY
    until(lambda: in_the_making not in listed(bed), what="what never came to be is removed")
    start_container(bed, created)
    assert pod_info(bed, pod_id)["timeline"][0]["step"] == "pod.adopt"
    for known in (pod_id, stopped):
        remove_pod(bed, known)
    shutil.rmtree(gate)
    assert_no_leaks(bed, before)


def test_a_ledger_that_is_lost_while_the_daemon_runs_is_written_anew(fresh_bed: StartBed) -> None:
    """So that the next daemon finds in it all that this one knew; what is made while it is lost, too."""
    bed = fresh_bed(daemon=False)
    bed.start_daemon(daemon={"reconcile_seconds": 0.5})
    first = run_pod(bed)
    delete(ledger_file(bed))
    second = run_pod(bed)
    until(lambda: ledger_file(bed).exists(), what="the comparison writes another")
    third = run_pod(bed)
    before = {pod_id: len(pod_info(bed, pod_id)["timeline"]) for pod_id in (first, second, third)}
    until(lambda: steps_written(bed) == before, what="the steps are written, some at a time")
    bed.kill_daemon()
    bed.relaunch_daemon()
    assert {pod_id: len(pod_info(bed, pod_id)["timeline"]) for pod_id in before} == before
    assert "a pod that the ledger had lost" not in bed.log_file.read_text(encoding="utf-8", errors="replace")
    for pod_id in before:
        remove_pod(bed, pod_id)


def steps_written(bed: Testbed) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{ledger_file(bed)}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT sandbox_id, count(*) FROM steps GROUP BY sandbox_id"))


def listed(bed: Testbed) -> set[str]:
    return {pod.id for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}


def have_ended(bed: Testbed, *ids: str) -> bool:
    """Whether containerd says so of the tasks of these containers."""
    fields = map(str.split, bed.run([*CTR, "tasks", "ls"]).stdout.splitlines())
    return set(ids) <= {line[0] for line in fields if line[-1] == "STOPPED"}

"""`sandboxctl audit` on real containerd: each kind of residue is found, named, repaired; a stranger's is not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.records import EXTENSION
from sandboxd.containerd.snapshots import ROOT_LABEL, Snapshots
from sandboxd.containerd.tasks import RuntimeOptions, Tasks
from sandboxd.pb.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from sandboxd.pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.audit import assert_no_leaks, difference, observe
from tests.conftest import StartBed
from tests.pods import create_container, pod_config, pod_status, remove_pod, run_container, run_pod, shell
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

ROOT, STATE = "/var/lib/sandboxd", "/run/sandboxd"
SOCKET = f"{STATE}/containerd/containerd.sock"
BUNDLES = f"{STATE}/containerd/state/io.containerd.runtime.v2.task/sandboxd"
ADDRESSES = "/var/lib/cni/networks/sandboxd"
OWNER = hashlib.sha256(ROOT.encode()).hexdigest()[:16]  # as places has it: an earlier version's marks must stay known
AUDITS = 50
KEPT = {ROOT_LABEL: "2026-01-01T00:00:00Z"}  # by containerd, whether or not something refers to it

Planted = dict[tuple[str, str], str]  # kind, name -> the id of its pod or container


def audit(bed: Testbed, *, repair: bool = False) -> list[host.AuditFinding]:
    return list(bed.host.Audit(host.AuditRequest(repair=repair), timeout=300).findings)


def named(findings: list[host.AuditFinding]) -> Planted:
    return {(each.kind, each.name): each.owner_id for each in findings}


def sandboxctl(bed: Testbed, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket), *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300)


def containerd(bed: Testbed, do: Callable[[Containerd], Awaitable[None]], owner: str = OWNER) -> None:
    """Do something with containerd, as the daemon with this mark would."""

    async def connected() -> None:
        client = Containerd(str(bed.path(SOCKET)), "sandboxd", owner)
        try:
            await client.wait_until_serving(30)
            await do(client)
        finally:
            await client.close()

    asyncio.run(connected())


def new_id() -> str:
    return secrets.token_hex(32)


@pytest.fixture
def bed(fresh_bed: StartBed) -> Testbed:
    """A bed in which a pod with a container has been run and removed."""
    made = fresh_bed()
    made.load_image("busybox")
    warm = run_pod(made, pod_config(port_mappings=[cri.PortMapping(container_port=80, host_port=8080)]))
    run_container(made, warm, shell("sleep 1000"))
    remove_pod(made, warm)
    return made


# --- a daemon that works -----------------------------------------------------------------------------------------


def test_nothing_is_found_while_pods_come_and_go(bed: Testbed) -> None:
    done = threading.Event()
    bystander = run_pod(bed)
    run_container(bed, bystander, shell("sleep 1000"))

    def come_and_go() -> int:
        rounds = 0
        while not done.is_set():
            pod_id = run_pod(bed)
            container_id = run_container(bed, pod_id, shell("sleep 1000"))
            request = cri.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=60)
            assert bed.runtime.ExecSync(request, timeout=120).exit_code == 0
            create_container(bed, pod_id, shell("true"))
            remove_pod(bed, pod_id)
            rounds += 1
        return rounds

    def archive() -> Iterator[host.LoadImageRequest]:
        data = bed.build_image("busybox").read_bytes()
        yield host.LoadImageRequest(chunk=data[: 1 << 18])
        done.wait()
        for at in range(1 << 18, len(data), 1 << 18):
            yield host.LoadImageRequest(chunk=data[at : at + (1 << 18)])

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(come_and_go) for _ in range(2)]
        load = pool.submit(list, bed.host.LoadImage(archive(), timeout=300))
        try:
            until(lambda: any(bed.path(f"{ROOT}/uploads").iterdir()), what="an archive is being received")
            found = [audit(bed) for _ in range(AUDITS)]
        finally:
            done.set()
        assert all(loop.result() for loop in loops), "pods came and went"
        assert load.result()
    assert [findings for findings in found if findings] == []
    assert pod_status(bed, bystander).state == cri.SANDBOX_READY
    assert audit(bed, repair=True) == []
    assert pod_status(bed, bystander).state == cri.SANDBOX_READY


# --- a pod whose record is lost ----------------------------------------------------------------------------------


def lose(bed: Testbed, pod_id: str) -> None:
    """Kill the daemon and take every trace of the pod out of its ledger, and out of what it could be adopted from."""
    bed.kill_daemon()

    async def strip(client: Containerd) -> None:
        stub = containers_pb2_grpc.ContainersStub(client.channel)
        request = containers_pb2.ListContainersRequest(filters=[f'labels."sandboxd.io/sandbox"=={pod_id}'])
        listed = await stub.List(request, metadata=client.metadata)
        assert listed.containers
        for container in listed.containers:
            container.extensions[EXTENSION].CopyFrom(any_pb2.Any(type_url=EXTENSION, value=b""))
            update = containers_pb2.UpdateContainerRequest(container=container)
            update.update_mask.paths.append(f"extensions.{EXTENSION}")
            await stub.Update(update, metadata=client.metadata)

    containerd(bed, strip)
    with closing(sqlite3.connect(str(bed.path(f"{ROOT}/ledger.db")))) as ledger, ledger:
        for statement in (
            "DELETE FROM containers WHERE json_extract(body, '$.sandbox_id') = ?",
            "DELETE FROM attachments WHERE sandbox_id = ?",
            "DELETE FROM steps WHERE sandbox_id = ?",
            "DELETE FROM sandboxes WHERE id = ?",
        ):
            changed = ledger.execute(statement, (pod_id,)).rowcount
        assert changed == 1, "the pod's record is gone"
    bed.relaunch_daemon()


def test_a_pod_without_a_record_is_named_with_all_that_it_has_and_removed_whole(bed: Testbed) -> None:
    before = observe(bed)
    ports = [cri.PortMapping(container_port=80, host_port=8080)]
    pod_id = run_pod(bed, pod_config("lost", port_mappings=ports))
    other = run_pod(bed, pod_config("other"))
    running, created = run_container(bed, pod_id, shell("sleep 1000")), create_container(bed, pod_id, shell("true"))
    lose(bed, pod_id)

    listed = sandboxctl(bed, "audit", "-o", "json")
    assert listed.returncode == 1
    findings = json.loads(listed.stdout)["findings"]
    assert {(each["ownerId"], each["pod"]) for each in findings} == {(pod_id, "default/lost")}
    seen = {(each["kind"], each["name"]) for each in findings}
    assert seen >= {
        *(("container", each) for each in (pod_id, running, created)),
        *(("snapshot", each) for each in (pod_id, running, created)),
        *(("task", each) for each in (pod_id, running)),
        ("shim", pod_id),
        ("namespace", f"/run/netns/sandboxd-{pod_id}"),
        ("cgroup", f"{bed.cgroup_parent}/{pod_id}"),
        ("directory", f"{ROOT}/pod-files/{pod_id}"),
        ("directory", f"{STATE}/sandboxes/{pod_id}"),
        ("directory", f"{STATE}/containers/{running}"),
        ("mount", f"{ROOT}/pod-files/{pod_id}"),
        ("mount", f"{STATE}/sandboxes/{pod_id}/shm"),
    }
    kinds = {kind for kind, _ in seen}
    assert {"address", "iptables rule"} <= kinds
    assert not any(each.get("missing") or each.get("unclear") for each in findings)

    repaired = sandboxctl(bed, "audit", "--repair")
    assert (repaired.returncode, repaired.stderr) == (0, ""), repaired.stdout
    assert repaired.stdout.count("repaired") == len(findings)
    assert audit(bed) == []
    assert pod_status(bed, other).state == cri.SANDBOX_READY
    remove_pod(bed, other)
    assert_no_leaks(bed, before)


def test_what_a_plugin_does_not_release_is_a_debt_and_the_rest_goes(bed: Testbed) -> None:
    before = observe(bed)
    pod_id = run_pod(bed, pod_config("lost"))
    lose(bed, pod_id)
    conf = bed.path("/etc/cni/net.d/10-sandboxd.conflist")
    good = conf.read_text()
    broken = json.loads(good)
    broken["plugins"][0]["ipam"]["dataDir"] = "/run/blocked/here"
    bed.write("/run/blocked", "a file")
    conf.write_text(json.dumps(broken))
    findings = audit(bed, repair=True)
    left = {each.kind: each.error for each in findings if not each.repaired}
    assert set(left) <= {"namespace", "address", "iptables rule"} and "debts" in left["namespace"]
    assert [each.pod_sandbox_id for each in bed.host.ListDebts(host.ListDebtsRequest()).debts] == [pod_id]
    bed.path("/run/blocked").unlink()
    bed.host.RetryDebt(host.RetryDebtRequest(pod_sandbox_id=pod_id), timeout=60)
    shutil.rmtree(bed.path("/run/blocked"))
    conf.write_text(good)
    # An address that an earlier configuration had reserved is left. Nothing says any more whose it is: it is shown,
    # and not touched.
    left_of_it = audit(bed, repair=True)
    assert {(each.kind, each.unclear, each.repaired) for each in left_of_it} == {("address", True, False)}
    (added,) = difference(before, observe(bed))
    assert f"{ADDRESSES}/10.0.10." in added


# --- each kind, planted ------------------------------------------------------------------------------------------


def directory(bed: Testbed, path: str, *names: str) -> tuple[str, str]:
    for name in names or ("",):
        bed.path(f"{path}/{name}").mkdir(parents=True, exist_ok=True)
    return "directory", path


def evidence(bed: Testbed, planted: Planted, id_: str) -> None:
    """Something that says that the id is ours: only a sandboxd with this root directory can have made it."""
    planted[directory(bed, f"{ROOT}/pod-files/{id_}")] = id_


def cgroup(bed: Testbed, path: str) -> None:
    tops = ["/sys/fs/cgroup"]
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        tops = [f"/sys/fs/cgroup/{name}" for name in ("memory", "pids") if Path(f"/sys/fs/cgroup/{name}").is_dir()]
    for top in tops:
        os.makedirs(f"{top}{path}")


def shim(bed: Testbed, group: str, socket: str) -> None:
    script = "import signal; signal.pause()"
    words = f'exec -a /usr/bin/containerd-shim-runc-v2 {sys.executable} -I -c "{script}" "$@"'
    process = bed.popen(["bash", "-c", words, "-", "-namespace", "sandboxd", "-id", group, "-address", socket])
    until(lambda: group in (bed.run(["pgrep", "-fa", group], check=False)).stdout, what="it runs")
    assert process.poll() is None


def plant_on_the_machine(bed: Testbed) -> Planted:
    planted: Planted = {}
    for name in ("containers", "sandboxes"):
        id_ = new_id()
        planted[directory(bed, f"{STATE}/{name}/{id_}", "io", "deep/er")] = id_
        os.mkfifo(bed.path(f"{STATE}/{name}/{id_}/io/stdout"))
    for name in ("pod-files", "volumes", "image-volumes", "checkpoints"):
        id_ = new_id()
        planted[directory(bed, f"{ROOT}/{name}/{id_}", new_id())] = id_
    of_pods = f"{ROOT}/pod-files/ID", f"{STATE}/sandboxes/ID/shm"
    for place in (*of_pods, f"{STATE}/idmapped/ID/0", f"{ROOT}/volumes/ID/m"):
        id_ = new_id()
        if "idmapped" in place:
            id_ = id_[:16]
        path = place.replace("ID", id_)
        top = path[: path.index(id_) + len(id_)]
        planted[directory(bed, top)] = id_
        bed.path(path).mkdir(exist_ok=True)
        bed.run(["mount", "-t", "tmpfs", "planted", path])
        planted["mount", path] = id_

    id_ = new_id()
    evidence(bed, planted, id_)
    bed.run(["ip", "netns", "add", f"sandboxd-{id_}"])
    planted["namespace", f"/run/netns/sandboxd-{id_}"] = id_
    id_ = new_id()
    evidence(bed, planted, id_)
    bed.write(f"/run/netns/sandboxd-{id_}", "")  # its mount is gone
    planted["namespace", f"/run/netns/sandboxd-{id_}"] = id_
    id_ = new_id()
    evidence(bed, planted, id_)
    bed.write(f"{ADDRESSES}/10.0.10.200", f"{id_}\r\neth0")
    planted["address", f"{ADDRESSES}/10.0.10.200"] = id_
    id_ = new_id()
    evidence(bed, planted, id_)
    cgroup(bed, f"{bed.cgroup_parent}/{id_}/{new_id()}")
    planted["cgroup", f"{bed.cgroup_parent}/{id_}"] = id_
    id_ = new_id()
    evidence(bed, planted, id_)
    shim(bed, id_, SOCKET)
    planted["shim", id_] = id_
    id_ = new_id()
    evidence(bed, planted, id_)
    bed.path(f"{BUNDLES}/{id_}").mkdir()
    planted["bundle", f"{BUNDLES}/{id_}"] = id_
    bed.write(f"{ROOT}/uploads/archive-planted", "half of an image")
    planted["upload", f"{ROOT}/uploads/archive-planted"] = ""
    bed.write(f"{ADDRESSES}/10.0.10.222", "")  # as a power cut leaves it
    planted["reservation", f"{ADDRESSES}/10.0.10.222"] = ""
    return planted


def labels(kind: str, pod_id: str, name: str = "") -> dict[str, str]:
    of_kubernetes = {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default"} if name else {}
    return {"sandboxd.io/kind": kind, "sandboxd.io/sandbox": pod_id, **of_kubernetes}


async def record(client: Containerd, id_: str, marks: dict[str, str]) -> None:
    await Tasks(client).create_container(
        id_,
        spec={},
        image="",
        snapshotter="overlayfs",
        snapshot_key=id_,
        labels=marks,
        runtime=RuntimeOptions(type="io.containerd.runc.v2"),
    )


def plant_in_containerd(bed: Testbed) -> Planted:
    planted: Planted = {}
    pod, container, earlier, unmarked = new_id(), new_id(), new_id(), new_id()
    evidence(bed, planted, earlier)
    evidence(bed, planted, unmarked)
    image, draft = new_id(), f"sandboxd-unpack-0123456789ab-sha256:{new_id()}"
    lease = "sandboxd-unpack-0123456789abcdef"
    transfer = f"sandboxd-pull-sha256:{new_id()}"

    async def marked(client: Containerd) -> None:
        snapshots = Snapshots(client, "overlayfs")
        await record(client, pod, labels("sandbox", pod, "planted"))
        await record(client, container, labels("container", pod))
        for key in (container, f"{pod}-image-{image}"):
            await snapshots.prepare(key, "", {**client.owned, **KEPT})
        await snapshots.prepare(draft, "", {**client.owned, **KEPT})
        await Leases(client).create(lease, seconds=3600)
        stub = content_pb2_grpc.ContentStub(client.channel)

        async def begin() -> AsyncIterator[content_pb2.WriteContentRequest]:
            yield content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref=transfer, data=b"half")

        async for _ in stub.Write(begin(), metadata=client.metadata):
            pass

    async def by_an_earlier_version(client: Containerd) -> None:
        await record(client, earlier, labels("sandbox", earlier))
        await Snapshots(client, "overlayfs").prepare(unmarked, "", KEPT)

    containerd(bed, marked)
    containerd(bed, by_an_earlier_version, "")
    for id_ in (pod, container):
        planted["container", id_] = pod
    planted["container", earlier] = earlier
    planted["snapshot", container] = planted["snapshot", f"{pod}-image-{image}"] = pod
    planted["snapshot", unmarked] = unmarked
    planted["draft", draft] = planted["lease", lease] = planted["transfer", transfer] = ""
    return planted


def plant_strangers(bed: Testbed) -> Planted:
    """Things like ours that others have; those that a sandboxd may have made, by their names."""
    bed.run(["ip", "netns", "add", "theirs"])
    bed.path("/run/theirs").mkdir()
    bed.run(["mount", "-t", "tmpfs", "theirs", "/run/theirs"])
    for path in (f"{ROOT}/volumes/lost+found", f"{STATE}/sandboxes/{new_id()[:40]}", f"{BUNDLES}/theirs"):
        bed.path(path).mkdir()
    bed.write(f"{ADDRESSES}/10.0.10.201", "not-an-id\r\neth0")
    bed.write(f"{ROOT}/uploads/note", "a person's")
    cgroup(bed, f"{bed.cgroup_parent}/theirs")
    shim(bed, "theirs", SOCKET)
    shim(bed, new_id(), "/run/another/containerd.sock")
    theirs, other, foreign = new_id(), new_id(), new_id()

    async def by_another_daemon(client: Containerd) -> None:
        await record(client, other, labels("sandbox", other))
        draft = f"sandboxd-unpack-0123456789cd-sha256:{new_id()}"
        await Snapshots(client, "overlayfs").prepare(draft, "", {**client.owned, **KEPT})
        await Leases(client).create("sandboxd-unpack-fedcba9876543210", seconds=3600)

    async def by_another_runtime(client: Containerd) -> None:
        await record(client, theirs, {})
        for key in (theirs, "theirs"):
            await Snapshots(client, "overlayfs").prepare(key, "", KEPT)
        await Leases(client).create("theirs", seconds=3600)

    containerd(bed, by_another_daemon, "0123456789abcdef")
    containerd(bed, by_another_runtime, "")
    # What is of containers that are theirs in containerd is theirs, whatever it is called.
    for id_ in (theirs, other):
        bed.run(["ip", "netns", "add", f"sandboxd-{id_}"])
        cgroup(bed, f"{bed.cgroup_parent}/{id_}")
    bed.write(f"{ADDRESSES}/10.0.10.202", f"{theirs}\r\neth0")
    # Of these nobody says whose they are.
    bed.run(["ip", "netns", "add", f"sandboxd-{foreign}"])
    bed.write(f"{ADDRESSES}/10.0.10.203", f"{foreign}\r\neth0")
    cgroup(bed, f"{bed.cgroup_parent}/{foreign}")
    return {
        ("namespace", f"/run/netns/sandboxd-{foreign}"): foreign,
        ("address", f"{ADDRESSES}/10.0.10.203"): foreign,
        ("cgroup", f"{bed.cgroup_parent}/{foreign}"): foreign,
    }


def test_each_kind_of_residue_is_found_named_and_repaired_and_a_strangers_is_left_alone(bed: Testbed) -> None:
    unclear = plant_strangers(bed)
    assert named(audit(bed)) == unclear
    before = observe(bed)
    planted = plant_on_the_machine(bed) | plant_in_containerd(bed)

    found = audit(bed)
    assert named(found) == planted | unclear
    assert {(each.kind, each.name) for each in found if each.unclear} == set(unclear)
    assert not [each for each in found if not each.why or not each.remedy or each.missing]
    (image,) = (name for kind, name in planted if kind == "snapshot" and "-image-" in name)
    assert {each.pod for each in found if each.owner_id == planted["snapshot", image]} == {"default/planted"}

    repaired = audit(bed, repair=True)
    assert named(repaired) == planted | unclear
    left = {(each.kind, each.name): each.error for each in repaired if not each.repaired}
    assert left == dict.fromkeys(unclear, "")
    assert named(audit(bed)) == unclear
    assert named(audit(bed, repair=True)) == unclear, "a repair can be repeated"
    assert_no_leaks(bed, before)


# --- what should be there and is not -----------------------------------------------------------------------------


def test_what_a_record_says_and_is_gone_is_named_and_put_back_where_that_can_be(bed: Testbed) -> None:
    pod_id = run_pod(bed, pod_config("robbed"))
    container_id = run_container(bed, pod_id, shell("sleep 1000"))
    created = create_container(bed, pod_id, shell("true"))
    netns = f"/run/netns/sandboxd-{pod_id}"
    bed.run(["umount", "-l", netns])
    bed.run(["umount", "-l", f"{ROOT}/pod-files/{pod_id}"])

    async def rob(client: Containerd) -> None:
        await Tasks(client).delete_container(created)
        await Snapshots(client, "overlayfs").remove(created)

    containerd(bed, rob)
    gone = {("namespace", netns), ("pod files", pod_id), ("container", created), ("snapshot", created)}
    found = audit(bed)
    assert set(named(found)) == gone
    assert all(each.missing and (each.owner_id, each.pod) == (pod_id, "default/robbed") for each in found)

    repaired = audit(bed, repair=True)
    assert {(each.kind, each.name) for each in repaired if not each.repaired} == {
        ("container", created),
        ("snapshot", created),
    }
    assert bed.run(["findmnt", netns]).stdout
    assert sandboxctl(bed, "audit").returncode == 1
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=created), timeout=60)
    assert audit(bed) == []
    assert container_id
    remove_pod(bed, pod_id)


def test_the_daemon_says_at_its_start_what_is_nobodys_and_counts_it(bed: Testbed) -> None:
    id_ = new_id()
    bed.stop_daemon()
    directory(bed, f"{ROOT}/volumes/{id_}")
    bed.relaunch_daemon()
    until(lambda: "things that no record knows" in bed.log_file.read_text(), what="it is logged")
    assert id_ in bed.log_file.read_text()
    assert "sandboxd_audit_findings 1.0" in bed.host.Metrics(host.MetricsRequest()).text
    audit(bed, repair=True)
    assert "sandboxd_audit_findings 0.0" in bed.host.Metrics(host.MetricsRequest()).text

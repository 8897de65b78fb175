"""What changes around the daemon while pods run: each is told, harms no pod, and is over once it is put right."""

from __future__ import annotations

import itertools
import json
import resource
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import observe
from tests.e2e.test_reboot import reboot
from tests.faults.bystander import Bystander, left
from tests.faults.cells import Cells
from tests.faults.clock import OFFSET
from tests.pods import container_status, pod_config, pod_status, refused, remove_pod, run_container, run_pod, shell
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

# The daemon finds programs here and nowhere else, so that one can be taken away. Directories are inside the bed.
PROGRAMS = "/opt/programs"
PLUGINS = "/opt/cni/bin"
CONF = "/etc/cni/net.d/10-sandboxd.conflist"
LEDGER = "/var/lib/sandboxd/ledger.db"
YEAR = 365 * 86400
SLEEPS = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
UNWELL = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)

OTHER = {
    "cniVersion": "1.0.0",
    "name": "other",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "other0",
            "isGateway": True,
            "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"},
        }
    ],
}


class Ground:
    """A bed with a bystander, kept from one circumstance to the next."""

    def __init__(self, stack: ExitStack) -> None:
        self.bed = bed = stack.enter_context(Testbed())
        for outside in (Path("/usr/sbin"), Path("/usr/bin")):
            bed.path(PROGRAMS).mkdir(exist_ok=True)
            for program in outside.iterdir():
                if not bed.path(f"{PROGRAMS}/{program.name}").is_symlink():
                    bed.path(f"{PROGRAMS}/{program.name}").symlink_to(program)
        bed.path(PLUGINS).mkdir()
        for name in ("bridge", "host-local", "portmap"):
            bed.path(f"{PLUGINS}/{name}").symlink_to(f"/usr/lib/cni/{name}")
        bed.default_network()
        bed.env["PYTHONPATH"] = str(ROOT)
        bed.daemon_argv = ["env", f"PATH={PROGRAMS}", sys.executable, "-m", "tests.faults.clock"]
        bed.start_daemon(
            daemon={"reconcile_seconds": 1.0},
            network={"plugin_dirs": [PLUGINS]},
            runtime={"pause_binary": f"{PROGRAMS}/catatonit"},
        )
        bed.load_image("busybox")
        self._ports = itertools.count(20000)
        self.bystander = Bystander.start(bed)
        self.live_and_go()
        limiting(bed)
        self._before = observe(bed)

    def live(self) -> str:
        """A pod with a published port and a container that runs; its id."""
        port = cri.PortMapping(container_port=80, host_port=next(self._ports))
        pod_id = run_pod(self.bed, pod_config(port_mappings=[port]))
        container_id = run_container(self.bed, pod_id, shell(SLEEPS))
        assert container_status(self.bed, container_id).state == cri.CONTAINER_RUNNING
        return pod_id

    def live_and_go(self) -> None:
        """All that a pod does."""
        remove_pod(self.bed, self.live())

    def refusal(self, *words: str) -> None:
        """No pod can be run now, and the answer says why."""
        with pytest.raises(grpc.RpcError) as caught:
            run_pod(self.bed)
        code, said = refused(caught.value)
        assert code not in UNWELL and all(word in said for word in words), (code, said)

    def trouble(self, condition: str) -> str:
        """What Status says of RuntimeReady or NetworkReady, "" when that is well."""
        status = self.bed.runtime.Status(cri.StatusRequest(), timeout=60).status
        (found,) = (each for each in status.conditions if each.type == condition)
        return "" if found.status else f"{found.reason}: {found.message}"

    def check(self) -> None:
        """All is well again, nothing is left, and the bystander has not noticed."""
        until(lambda: not self.trouble("RuntimeReady"), what="the runtime is ready")
        until(lambda: not self.trouble("NetworkReady"), what="the network is ready")
        self.live_and_go()
        self.bystander.assert_undisturbed()
        lines = left(self.bed, self._before, within=30)
        assert not lines, "\n".join(lines)


class Grounds:
    """The bed for the next circumstance: another one when the last cell on it failed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._ground: Ground | None = None

    @contextmanager
    def cell(self, cells: Cells, at: str, what: str) -> Iterator[Ground]:
        """Try one circumstance; at its end all must be well again."""
        failed = cells.failed
        with cells.cell("circumstances", at=at, what=what):
            ground = self._ground = self._ground or Ground(self._stack)
            yield ground
            ground.check()
        if cells.failed > failed:
            self.close()

    def close(self) -> None:
        self._ground = None
        self._stack.close()


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    made = Grounds()
    yield made
    made.close()


@contextmanager
def away(path: Path) -> Iterator[None]:
    """A file that is not there for a while."""
    hidden = path.with_name(f".{path.name}.away")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


# The configuration directory


def remove_conf(conf: Path) -> None:
    conf.unlink()


def spoil_conf(conf: Path) -> None:
    conf.write_bytes(b'{"cniVersion": "1.0.0", "plug\x00\xff')


def hide_conf(conf: Path) -> None:
    conf.unlink()
    conf.mkdir()


def replace_conf(conf: Path) -> None:
    conf.write_text(json.dumps(OTHER), encoding="utf-8")


@pytest.mark.parametrize("edit", [remove_conf, spoil_conf, hide_conf, replace_conf])
def test_a_pod_leaves_the_network_that_it_joined_whatever_is_configured_since(
    grounds: Grounds, cells: Cells, edit: Callable[[Path], None]
) -> None:
    with grounds.cell(cells, "configuration directory", edit.__name__) as ground:
        conf = ground.bed.path(CONF)
        text, pod_id = conf.read_text(), ground.live()
        edit(conf)
        if edit is replace_conf:
            other = run_pod(ground.bed)
            assert pod_status(ground.bed, other).network.ip.startswith("10.99.")
        elif edit is spoil_conf:
            ground.live_and_go()  # what was read before stays in force
        else:
            until(lambda: ground.trouble("NetworkReady"), within=20, what="Status says so")
            assert "/etc/cni/net.d" in ground.trouble("NetworkReady")
            ground.refusal("/etc/cni/net.d")
        ground.bystander.assert_undisturbed()
        remove_pod(ground.bed, pod_id)
        if conf.is_dir():
            conf.rmdir()
        conf.write_text(text, encoding="utf-8")
        if edit is replace_conf:
            remove_pod(ground.bed, other)
            ground.bed.run(["ip", "link", "delete", "other0"])  # bridges stay


# Programs


@pytest.mark.parametrize("program", ["runc", "containerd-shim-runc-v2"])
def test_without_the_runtime_no_pod_is_made_and_none_is_harmed(grounds: Grounds, cells: Cells, program: str) -> None:
    with grounds.cell(cells, "program", program) as ground:
        pod_id = ground.live()
        with away(ground.bed.path(f"{PROGRAMS}/{program}")):
            ground.refusal(program)
            ground.bystander.assert_undisturbed()
            asked = ground.bed.runtime.StopPodSandbox.future(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
            error = asked.exception(timeout=120)
            assert error is None or refused(error)[0] not in UNWELL, refused(error)
        remove_pod(ground.bed, pod_id)


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_without_a_plugin_no_pod_is_made_and_what_is_owed_is_paid_when_it_is_back(
    grounds: Grounds, cells: Cells, plugin: str
) -> None:
    with grounds.cell(cells, "program", plugin) as ground:
        pod_id = ground.live()
        with away(ground.bed.path(f"{PLUGINS}/{plugin}")):
            ground.refusal(plugin)
            ground.bystander.assert_undisturbed()
            remove_pod(ground.bed, pod_id)


def test_a_containerd_that_ended_and_is_not_there_is_told_and_started_when_it_is(
    grounds: Grounds, cells: Cells
) -> None:
    with grounds.cell(cells, "program", "containerd") as ground:
        pod_id = ground.live()
        with away(ground.bed.path(f"{PROGRAMS}/containerd")):
            pid = ground.bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()
            ground.bed.run(["kill", "-9", pid])
            until(lambda: "was not found" in ground.trouble("RuntimeReady"), within=20, what="Status says so")
            ground.refusal("containerd")
        until(lambda: not ground.trouble("RuntimeReady"), what="it is started again")
        remove_pod(ground.bed, pod_id)


def test_a_daemon_that_starts_without_the_pause_binary_says_so_or_does_without(
    grounds: Grounds, cells: Cells
) -> None:
    with grounds.cell(cells, "program", "catatonit") as ground, away(ground.bed.path(f"{PROGRAMS}/catatonit")):
        ground.bed.restart_daemon()
        ground.bystander.assert_undisturbed()
        try:
            remove_pod(ground.bed, run_pod(ground.bed))
        except grpc.RpcError as error:
            assert "catatonit" in refused(error)[1], refused(error)


# The clock


@pytest.mark.parametrize("seconds", [-20 * YEAR, -3600, 3600, 20 * YEAR])
def test_a_clock_that_jumps_stalls_nothing(grounds: Grounds, cells: Cells, seconds: int) -> None:
    with grounds.cell(cells, "clock", f"{seconds:+} s") as ground:
        pod_id = ground.live()
        ground.bed.write(OFFSET, str(seconds))
        ground.bystander.assert_undisturbed()
        ground.live_and_go()
        with away(ground.bed.path(f"{PLUGINS}/portmap")):
            remove_pod(ground.bed, pod_id)  # owes portmap its DEL, which is tried again all the same
        later = ground.live()
        ground.bed.write(OFFSET, "0")
        remove_pod(ground.bed, later)


# Limits


def limit_files(bed: Testbed) -> Callable[[], None]:
    """Not one descriptor more; returns what lifts the limit."""
    pid = str(bed.daemon_pid)
    before = Path("/proc", pid, "limits").read_text().partition("Max open files")[2].split()[:2]
    set_limit(pid, "16", before[1])
    return lambda: set_limit(pid, *before)


def set_limit(pid: str, soft: str, hard: str) -> None:
    resource.prlimit(int(pid), resource.RLIMIT_NOFILE, (int(soft), int(hard)))


def limiting(bed: Testbed) -> Path:
    """A cgroup that can limit processes; the bed removes it."""
    top = Path("/sys/fs/cgroup/pids")
    if not top.is_dir():
        top = Path("/sys/fs/cgroup")
        (top / bed.name / "cgroup.subtree_control").write_text("+pids")
    made = top / bed.name / "limited"
    made.mkdir(exist_ok=True)
    return made


def limit_processes(bed: Testbed) -> Callable[[], None]:
    """Not one process or thread more; returns what lifts the limit."""
    limited = limiting(bed)
    (limited / "pids.max").write_text("1")
    (limited / "cgroup.procs").write_text(str(bed.daemon_pid))

    def lift() -> None:
        (limited / "pids.max").write_text("max")

    return lift


def removed(bed: Testbed, pod_id: str) -> bool:
    """Remove a pod; False when the daemon ended meanwhile, which is started again, as systemd does.

    gRPC's core ends the process when it could start no thread for ten seconds.
    """
    if not bed.daemon_running:
        bed.relaunch_daemon()
    try:
        remove_pod(bed, pod_id)
    except grpc.RpcError as error:
        assert refused(error)[0] is grpc.StatusCode.UNAVAILABLE, refused(error)
        return False
    return True


@pytest.mark.parametrize("limit", [limit_files, limit_processes])
def test_a_limit_that_is_met_fails_requests_and_harms_no_pod(
    grounds: Grounds, cells: Cells, limit: Callable[[Testbed], Callable[[], None]]
) -> None:
    with grounds.cell(cells, "limit", limit.__name__) as ground:
        pod_id = ground.live()
        lift = limit(ground.bed)
        try:
            ground.refusal()
            asked = ground.bed.runtime.StopPodSandbox.future(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
            error = asked.exception(timeout=120)
            assert error is None or refused(error)[0] not in UNWELL, refused(error)
        finally:
            lift()
        if limit is limit_files:
            assert ground.bed.daemon_running, ground.bed.log_tail()
        until(lambda: removed(ground.bed, pod_id), what="the pod can be removed")


def test_a_daemon_with_few_descriptors_serves_what_it_can(grounds: Grounds, cells: Cells) -> None:
    with grounds.cell(cells, "limit", "64 descriptors from the start") as ground:
        argv = ground.bed.daemon_argv
        ground.bed.daemon_argv = ["prlimit", "--nofile=64:64", *argv]
        ground.bed.restart_daemon()
        with ThreadPoolExecutor(16) as clients:
            made = [clients.submit(run_pod, ground.bed) for _ in range(16)]
            errors = [pod.exception() for pod in made]
        codes = [refused(error) for error in errors if error is not None]
        assert not [each for each in codes if each[0] in UNWELL], codes
        ground.bystander.assert_undisturbed()
        ground.bed.daemon_argv = argv
        ground.bed.restart_daemon()
        for pod in made:
            if pod.exception() is None:
                remove_pod(ground.bed, pod.result())


# What takes all that is known: each on a bed of its own


def overwrite(ledger: Path) -> None:
    ledger.write_bytes(secrets.token_bytes(ledger.stat().st_size))


def zero_a_page(ledger: Path) -> None:
    with ledger.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


@pytest.mark.parametrize("damage", [overwrite, zero_a_page])
def test_a_daemon_with_a_damaged_ledger_starts_says_so_and_ends_no_pod(
    cells: Cells, damage: Callable[[Path], None]
) -> None:
    with cells.cell("circumstances", at="ledger", what=damage.__name__), ExitStack() as stack:
        ground = Ground(stack)
        ground.bed.stop_daemon()
        damage(ground.bed.path(LEDGER))
        logged = ground.bed.log_file.stat().st_size
        ground.bed.relaunch_daemon()
        said = ground.bed.log_file.read_text("utf-8", "replace")[logged:]
        assert "ledger" in said and "damaged" in said, said
        ground.bystander.assert_undisturbed()
        remove_pod(ground.bed, run_pod(ground.bed))
        ground.bystander.assert_undisturbed()


def test_after_a_reboot_pods_are_asked_for_again_and_nothing_of_the_old_is_left(cells: Cells) -> None:
    with cells.cell("circumstances", at="machine", what="reboot"), ExitStack() as stack:
        bed = Ground(stack).bed
        old = {pod.id for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
        reboot(bed)
        bed.relaunch_daemon()
        new = run_pod(bed)
        assert pod_status(bed, new).state == cri.SANDBOX_READY
        for pod_id in old:
            assert pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY
        for pod_id in (*old, new):
            remove_pod(bed, pod_id)
        assert not list(bed.path("/run/netns").iterdir())
        assert not list(bed.path("/var/lib/cni/networks/sandboxd").glob("10.*"))

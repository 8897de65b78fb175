"""The generated code speaks the published contracts: names, numbers and bytes that peers rely on."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.pb.containerd.events import task_pb2 as task_events
from sandboxd.pb.containerd.runc.options import oci_pb2 as runc
from sandboxd.pb.containerd.services.containers.v1 import containers_pb2
from sandboxd.pb.containerd.services.content.v1 import content_pb2
from sandboxd.pb.containerd.services.diff.v1 import diff_pb2
from sandboxd.pb.containerd.services.events.v1 import events_pb2
from sandboxd.pb.containerd.services.images.v1 import images_pb2
from sandboxd.pb.containerd.services.introspection.v1 import introspection_pb2
from sandboxd.pb.containerd.services.leases.v1 import leases_pb2
from sandboxd.pb.containerd.services.namespaces.v1 import namespace_pb2
from sandboxd.pb.containerd.services.snapshots.v1 import snapshots_pb2
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2
from sandboxd.pb.containerd.services.version.v1 import version_pb2
from sandboxd.pb.containerd.types import descriptor_pb2, event_pb2, mount_pb2
from sandboxd.pb.containerd.types.task import task_pb2
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sandboxd" / "pb"
CONTRACTS = sorted((ROOT / "proto").rglob("*.proto"))

RUNTIME_CALLS = [
    "Version",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "StreamPodSandboxes",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListContainers",
    "StreamContainers",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "StreamContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "StreamPodSandboxStats",
    "UpdateRuntimeConfig",
    "Status",
    "CheckpointContainer",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
]
IMAGE_CALLS = ["ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"]


def service(file: FileDescriptor, name: str) -> ServiceDescriptor:
    return file.services_by_name[name]


def test_cri_has_its_41_calls() -> None:
    """Every RPC of cri-api v0.36 is there under its name, and none besides."""
    runtime = [method.name for method in service(cri.DESCRIPTOR, "RuntimeService").methods]
    image = [method.name for method in service(cri.DESCRIPTOR, "ImageService").methods]
    assert runtime == RUNTIME_CALLS
    assert image == IMAGE_CALLS
    assert len(runtime) + len(image) == 41


def test_cri_streams_only_answers_of_stream_calls_and_events() -> None:
    """No CRI call streams its request; the Stream* calls and GetContainerEvents stream the answer."""
    methods = [method for each in cri.DESCRIPTOR.services_by_name.values() for method in each.methods]
    streaming = {method.name for method in methods if method.server_streaming}
    assert streaming == {name for name in RUNTIME_CALLS + IMAGE_CALLS if name.startswith("Stream")} | {
        "GetContainerEvents"
    }
    assert not any(method.client_streaming for method in methods)


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="n")), "0a030a016e"),
        (cri.PodSandboxMetadata(uid="u", namespace="s", attempt=2), "1201751a01732002"),
        (cri.PodSandboxConfig(hostname="h"), "120168"),
        (cri.PodSandboxConfig(log_directory="l"), "1a016c"),
        (cri.PodSandboxConfig(dns_config=cri.DNSConfig(servers=["s"])), "22030a0173"),
        (cri.PodSandboxConfig(port_mappings=[cri.PortMapping(host_port=80)]), "2a021850"),
        (cri.PodSandboxConfig(labels={"k": "v"}), "32060a016b120176"),
        (cri.PodSandboxConfig(annotations={"k": "v"}), "3a060a016b120176"),
        (cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent="c")), "42030a0163"),
        (cri.RunPodSandboxRequest(runtime_handler="h"), "120168"),
        (cri.LinuxSandboxSecurityContext(privileged=True), "3001"),
        (cri.LinuxSandboxSecurityContext(run_as_group=cri.Int64Value(value=0)), "4200"),
        (cri.NamespaceOption(network=cri.NODE), "0802"),
        (cri.NamespaceOption(pid=cri.TARGET, target_id="t"), "1003220174"),
        (cri.PodSandboxStatus(state=cri.SANDBOX_NOTREADY), "1801"),
        (cri.PodSandboxStatus(network=cri.PodSandboxNetworkStatus(ip="i")), "2a030a0169"),
        (cri.ContainerConfig(log_path="l", tty=True), "5a016c7001"),
        (cri.ContainerConfig(stop_signal=cri.SIGTERM), "900117"),
        (cri.ContainerStatus(state=cri.CONTAINER_EXITED, exit_code=137), "1802388901"),
        (cri.ImageSpec(user_specified_image="i"), "92010169"),
        (cri.StopContainerRequest(container_id="c", timeout=1), "0a01631001"),
        (cri.RuntimeCondition(type="t", status=True), "0a01741001"),
        (cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS), "0801"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else None,
)
def test_cri_messages_have_the_published_bytes(message: Message, wire: str) -> None:
    """A field number that moved would break every client; these are the ones that pods are made with."""
    assert message.SerializeToString(deterministic=True).hex() == wire


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (mount_pb2.Mount(type="t", source="s", target="d", options=["o"]), "0a01741201731a016422016f"),
        (descriptor_pb2.Descriptor(digest="d", size=1, annotations={"k": "v"}), "12016418012a060a016b120176"),
        (event_pb2.Envelope(topic="/", event=Any(value=b"v")), "1a012f220312" + "0176"),
        (task_pb2.Process(id="i", pid=1, status=task_pb2.STOPPED, exit_status=9), "12016918012003" + "4809"),
        (task_events.TaskExit(container_id="c", id="i", exit_status=9), "0a01631201692009"),
        (task_events.TaskExit(exited_at=Timestamp(seconds=1)), "2a020801"),
        (task_events.TaskOOM(container_id="c"), "0a0163"),
        (
            containers_pb2.Container(id="c", snapshotter="s", snapshot_key="k", sandbox="p"),
            "0a01633201733a016b5a0170",
        ),
        (containers_pb2.Container(runtime=containers_pb2.Container.Runtime(name="r")), "22030a0172"),
        (tasks_pb2.CreateTaskRequest(container_id="c", rootfs=[mount_pb2.Mount(type="t")]), "0a01631a030a0174"),
        (tasks_pb2.CreateTaskRequest(options=Any(value=b"v")), "4a03120176"),
        (tasks_pb2.KillRequest(container_id="c", signal=9, all=True), "0a016318092001"),
        (content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", total=1), "08021201721801"),
        (content_pb2.WriteContentRequest(expected="d", offset=1, data=b"b"), "2201642801320162"),
        (snapshots_pb2.CommitSnapshotRequest(name="n", key="k"), "12016e1a016b"),
        (diff_pb2.DiffResponse(diff=descriptor_pb2.Descriptor(digest="d")), "1a03120164"),
        (leases_pb2.CreateRequest(labels={"k": "v"}), "1a060a016b120176"),
        (images_pb2.DeleteImageRequest(name="n", sync=True), "0a016e1001"),
        (runc.Options(binary_name="b", root="r", systemd_cgroup=True), "3201623a01724801"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else None,
)
def test_containerd_messages_have_the_published_bytes(message: Message, wire: str) -> None:
    """The same bytes for containerd 1.6 and 2."""
    assert message.SerializeToString(deterministic=True).hex() == wire


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (cri.DESCRIPTOR, "runtime.v1.RuntimeService"),
        (cri.DESCRIPTOR, "runtime.v1.ImageService"),
        (containers_pb2.DESCRIPTOR, "containerd.services.containers.v1.Containers"),
        (content_pb2.DESCRIPTOR, "containerd.services.content.v1.Content"),
        (diff_pb2.DESCRIPTOR, "containerd.services.diff.v1.Diff"),
        (events_pb2.DESCRIPTOR, "containerd.services.events.v1.Events"),
        (images_pb2.DESCRIPTOR, "containerd.services.images.v1.Images"),
        (introspection_pb2.DESCRIPTOR, "containerd.services.introspection.v1.Introspection"),
        (leases_pb2.DESCRIPTOR, "containerd.services.leases.v1.Leases"),
        (namespace_pb2.DESCRIPTOR, "containerd.services.namespaces.v1.Namespaces"),
        (snapshots_pb2.DESCRIPTOR, "containerd.services.snapshots.v1.Snapshots"),
        (tasks_pb2.DESCRIPTOR, "containerd.services.tasks.v1.Tasks"),
        (version_pb2.DESCRIPTOR, "containerd.services.version.v1.Version"),
        (host.DESCRIPTOR, "sandboxd.host.v1.Host"),
    ],
)
def test_services_have_their_wire_names(file: FileDescriptor, name: str) -> None:
    """A call goes to /NAME/METHOD, so the name is the address, wherever the file lies in our tree."""
    assert [each.full_name for each in file.services_by_name.values() if each.full_name == name] == [name]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (runc.Options, "containerd.runc.v1.Options"),
        (task_events.TaskExit, "containerd.events.TaskExit"),
        (task_pb2.Process, "containerd.v1.types.Process"),
    ],
)
def test_messages_that_travel_in_any_have_their_wire_names(message: type[Message], name: str) -> None:
    """The name is the Any's type URL, by which the other side chooses what to decode."""
    assert message.DESCRIPTOR.full_name == name


def test_host_api_streams_archives_in_and_out_and_logs_and_progress_out() -> None:
    """The shape of our own calls."""
    methods = service(host.DESCRIPTOR, "Host").methods
    shapes = [(method.name, method.client_streaming, method.server_streaming) for method in methods]
    assert shapes == [
        ("LoadImage", True, True),
        ("Explain", False, False),
        ("PodNetwork", False, False),
        ("ListOperations", False, False),
        ("ReadLogs", False, True),
        ("PullImage", False, True),
        ("SaveImage", False, True),
        ("Metrics", False, False),
        ("ListDebts", False, False),
        ("RetryDebt", False, False),
        ("ForgiveDebt", False, False),
        ("Audit", False, False),
        ("Replay", False, False),
        ("Doctor", False, False),
    ]


def test_secrets_of_a_pull_are_marked() -> None:
    """What prints messages for debugging can tell which fields of AuthConfig to leave out."""
    marked = {field.name for field in cri.AuthConfig.DESCRIPTOR.fields if field.GetOptions().debug_redact}
    assert marked == {"password", "auth", "identity_token", "registry_token"}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: str(path.relative_to(ROOT / "proto" / "sandboxd")))
def test_each_contract_has_its_code(contract: Path) -> None:
    """Messages always, a grpc module only for a contract with a service, and nothing without its types."""
    target = ROOT / contract.relative_to(ROOT / "proto")
    present = {path.name for path in target.parent.glob(f"{contract.stem}_pb2*.py*")}
    expected = {f"{contract.stem}_pb2.py", f"{contract.stem}_pb2.pyi"}
    if "\nservice " in contract.read_text():
        expected |= {f"{contract.stem}_pb2_grpc.py", f"{contract.stem}_pb2_grpc.pyi"}
    assert present == expected


def test_the_code_runs_on_the_oldest_protobuf_that_we_allow() -> None:
    """Newer protoc and grpc plugins write a check of the runtime's version into each module; ours may not."""
    modules = list(PACKAGE.rglob("*_pb2*.py"))
    checks = ("import runtime_version", "GRPC_GENERATED_VERSION")
    pinned = [path.name for path in modules if any(check in path.read_text() for check in checks)]
    assert len(modules) > len(CONTRACTS)
    assert pinned == []


ALONE = """
import importlib, pkgutil, sys, types
import sandboxd.pb
for module in pkgutil.walk_packages(sandboxd.pb.__path__, "sandboxd.pb."):
    importlib.import_module(module.name)
assert sys.modules["types"] is types and not hasattr(types, "__path__"), "the standard library's types is hidden"
taken = {"containerd", "cri", "events", "runtime", "services"} & sys.modules.keys()
assert not taken, f"top-level modules of generated code: {taken}"
ours = [name for name in sys.modules if name.startswith("sandboxd.") and not name.startswith("sandboxd.pb")]
assert not ours, f"generated code imports {ours}"
from google.protobuf import descriptor_pool
try:
    descriptor_pool.Default().FindMessageTypeByName("google.rpc.Status")
except KeyError:
    print("imported", sum(name.endswith(("_pb2", "_pb2_grpc")) for name in sys.modules if "sandboxd.pb" in name))
"""


def test_all_of_it_imports_without_a_warning_and_in_its_own_place() -> None:
    """In a fresh interpreter: no warning, no name outside sandboxd.pb, no claim on google.rpc.Status.

    That last name belongs to a package that a user of ours may load too; two definitions cannot coexist.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    modules = sum(1 for path in PACKAGE.rglob("*_pb2*.py"))
    assert done.stdout.split() == ["imported", str(modules)]

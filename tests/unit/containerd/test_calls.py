"""Which of containerd's calls change something: each method of its services is known to do, or known not to."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from sandboxd.containerd import calls
from sandboxd.pb.containerd import services
from sandboxd.pb.containerd.services.containers.v1 import containers_pb2
from sandboxd.pb.containerd.services.leases.v1 import leases_pb2
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2

READING = {
    "Containers": ("Get", "List", "ListStream"),
    "Content": ("Info", "List", "ListStatuses", "Read", "Status"),
    "Events": ("Subscribe",),
    "Images": ("Get", "List"),
    "Introspection": ("PluginInfo", "Plugins", "Server"),
    "Leases": ("List", "ListResources"),
    "Snapshots": ("List", "Mounts", "Stat", "Usage"),
    "Tasks": ("Get", "List", "ListPids", "Metrics", "Wait"),
    "Version": ("Version",),
}
ONLY_READING = frozenset(f"{service}.{verb}" for service, verbs in READING.items() for verb in verbs)
UNUSED = frozenset({"Events", "Namespaces"})  # services of which this daemon only reads


def methods() -> dict[str, type]:
    """Each method of each of containerd's services, with the type of its requests."""
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(services.__path__, f"{services.__name__}."):
        if module.name.endswith("_pb2"):
            loaded = importlib.import_module(module.name)
            for service in loaded.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    found[calls.name(f"/{service.full_name}/{method.name}")] = method.input_type._concrete_class
    return found


def test_each_method_changes_something_or_reads() -> None:
    known = {*calls.CHANGING, calls.WRITE, *ONLY_READING}
    used = {name for name in methods() if name.partition(".")[0] not in UNUSED or name in ONLY_READING}

    assert used == known
    assert not ONLY_READING & {*calls.CHANGING, calls.WRITE}


@pytest.mark.parametrize("name", sorted(calls.CHANGING))
def test_what_a_call_is_about_can_be_read_of_any_request(name: str) -> None:
    assert isinstance(calls.CHANGING[name](methods()[name]()), str)


def test_a_call_is_named_by_the_key_and_not_by_what_it_carries() -> None:
    container = containers_pb2.Container(id="c1", labels={"secret": "x"})
    resource = leases_pb2.Resource(id="sha256:1", type="content")
    for name, request, about in (
        ("Containers.Create", containers_pb2.CreateContainerRequest(container=container), "c1"),
        ("Tasks.Kill", tasks_pb2.KillRequest(container_id="c1", signal=15), "c1 signal 15"),
        ("Tasks.Start", tasks_pb2.StartRequest(container_id="c1"), "c1"),
        ("Tasks.Exec", tasks_pb2.ExecProcessRequest(container_id="c1", exec_id="e2"), "c1/e2"),
        ("Leases.AddResource", leases_pb2.AddResourceRequest(id="l", resource=resource), "l content/sha256:1"),
    ):
        assert calls.CHANGING[name](request) == about

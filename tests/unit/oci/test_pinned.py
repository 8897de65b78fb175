"""A pod without a pause container: who can be one, where its namespaces are, and what its containers join."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci.container import container_spec
from sandboxd.oci.linux import Json
from sandboxd.oci.pinned import needs_pause, pinned_spec, pins
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden import cases
from tests.unit.oci.golden.cases import HOST, in_context, pod_config, pod_context, record

OWN = cri.CONTAINER


def modes(**changes: int) -> cri.PodSandboxConfig:
    return pod_context(namespace_options=cri.NamespaceOption(**{"pid": OWN, **changes}))  # type: ignore[arg-type]


def spec(config: cri.PodSandboxConfig) -> Json:
    return pinned_spec(replace(record(config), pinned=True, pid=0), places=cases.places_on(HOST), host=HOST)


def workload(config: cri.PodSandboxConfig, pid: cri.NamespaceMode.ValueType = OWN) -> Json:
    return container_spec(
        cases.CONTAINER_ID,
        in_context(namespace_options=cri.NamespaceOption(pid=pid)),
        sandbox=replace(record(config), pinned=True, pid=0),
        places=cases.places_on(HOST),
        image=cases.NGINX_IMAGE,
        image_name="nginx",
        user=cases.ROOT,
        host=HOST,
    )


def joined(made: Json) -> dict[str, str]:
    return {each["type"]: each.get("path", "new") for each in made["linux"]["namespaces"]}


def test_a_pod_whose_containers_have_pids_of_their_own_can_do_without() -> None:
    assert needs_pause(modes()) == ""
    assert needs_pause(modes(pid=cri.NODE)) == ""
    assert needs_pause(modes(network=cri.NODE, ipc=cri.NODE)) == ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (pod_config(), "share a pid namespace"),
        (modes(pid=cri.POD), "share a pid namespace"),
        (pod_context(privileged=True, namespace_options=cri.NamespaceOption(pid=OWN)), "it is privileged"),
    ],
)
def test_what_only_a_process_can_hold_takes_a_pause_container(config: cri.PodSandboxConfig, words: str) -> None:
    assert words in needs_pause(config)


def test_a_user_namespace_takes_one() -> None:
    config = modes()
    config.linux.security_context.namespace_options.userns_options.CopyFrom(
        cri.UserNamespace(
            mode=cri.POD,
            uids=[cri.IDMapping(host_id=100000, length=65536)],
            gids=[cri.IDMapping(host_id=100000, length=65536)],
        )
    )
    assert "user namespace" in needs_pause(config)


def test_a_privileged_pod_in_the_hosts_network_sees_the_hosts_sys_and_needs_none() -> None:
    options = cri.NamespaceOption(pid=OWN, network=cri.NODE)
    assert needs_pause(pod_context(privileged=True, namespace_options=options)) == ""


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, {"ipc", "uts"}),
        ({"network": cri.NODE}, {"ipc"}),
        ({"ipc": cri.NODE}, {"uts"}),
        ({"network": cri.NODE, "ipc": cri.NODE}, set()),
    ],
)
def test_what_is_the_machines_is_not_pinned(changes: dict[str, int], kinds: set[str]) -> None:
    found = pins(record(modes(**changes)), cases.places_on(HOST))
    assert found == {kind: f"{cases.SANDBOX_DIR}/{kind}" for kind in kinds}


def test_the_stored_spec_says_what_was_made_and_set() -> None:
    config = modes()
    config.linux.sysctls["kernel.shmmax"] = "1000"
    made = spec(config)
    assert joined(made) == {
        "network": f"/run/netns/{cases.SANDBOX_ID}",
        "ipc": f"{cases.SANDBOX_DIR}/ipc",
        "uts": f"{cases.SANDBOX_DIR}/uts",
    }
    assert made["hostname"] == "web-0"
    assert made["linux"]["sysctl"]["kernel.shmmax"] == "1000"
    assert made["annotations"]["io.kubernetes.cri.sandbox-id"] == cases.SANDBOX_ID
    assert "process" not in made, "nothing is run from it"
    assert "hostname" not in spec(modes(network=cri.NODE))


def test_what_a_pause_container_would_be_refused_is_refused() -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="absent")
    options = cri.NamespaceOption(pid=OWN)
    with pytest.raises((InvalidRequest, Unsupported)):
        spec(pod_context(apparmor=profile, namespace_options=options))


def test_its_containers_join_by_path_and_have_pids_of_their_own() -> None:
    found = joined(workload(modes()))
    assert found["pid"] == "new"
    assert found["ipc"] == f"{cases.SANDBOX_DIR}/ipc"
    assert found["uts"] == f"{cases.SANDBOX_DIR}/uts"
    assert found["network"] == f"/run/netns/{cases.SANDBOX_ID}"


def test_its_containers_are_in_the_machines_namespaces_where_the_pod_is() -> None:
    found = joined(workload(modes(network=cri.NODE, ipc=cri.NODE, pid=cri.NODE), pid=cri.NODE))
    assert not {"network", "uts", "ipc", "pid"} & set(found)


def test_a_container_that_wants_to_share_pids_is_told_what_to_ask_for() -> None:
    with pytest.raises(Unsupported, match=r"has no pause container to hold one: use CONTAINER, or POD for the pod"):
        workload(modes(), pid=cri.POD)
    assert "pid" not in joined(workload(modes(pid=cri.NODE), pid=cri.POD)), "the pod's is the machine's"

"""The pause container's runtime spec."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci.sandbox import handed_out, sandbox_spec, sysctls
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden import cases
from tests.unit.oci.golden.cases import (
    HOST,
    PAUSE_IMAGE,
    SANDBOX_ID,
    V2_HOST,
    pause,
    pod_config,
    pod_context,
    record,
    userns_pod,
)


@pytest.mark.parametrize("case", [name for name in cases.CASES if name.startswith("pause")])
def test_golden(case: str) -> None:
    """`python -m tests.unit.oci.golden.cases` rewrites the files."""
    expected = (cases.DIRECTORY / f"{case}.json").read_text(encoding="utf-8")
    assert json.loads(expected) == json.loads(cases.text(case))


def kinds(spec: dict[str, Any]) -> dict[str, str]:
    """Namespace kind -> path."""
    return {entry["type"]: entry.get("path", "") for entry in spec["linux"]["namespaces"]}


def test_the_network_namespace_is_joined_at_its_pinned_path() -> None:
    assert record().netns_path == kinds(pause())["network"]


def test_host_network_means_the_hosts_names_too() -> None:
    spec = pause(pod_context(namespace_options=cri.NamespaceOption(network=cri.NODE)))
    assert {"mount", "ipc", "pid"} == set(kinds(spec))
    assert "hostname" not in spec
    assert spec["linux"]["sysctl"] == {}


@pytest.mark.parametrize(
    ("mode", "private"), [(cri.POD, True), (cri.CONTAINER, True), (cri.NODE, False)], ids=["pod", "container", "node"]
)
def test_only_pid_node_shares_the_hosts_processes(mode: cri.NamespaceMode.ValueType, private: bool) -> None:
    modes = cri.NamespaceOption(pid=mode)
    assert private == ("pid" in kinds(pause(pod_context(namespace_options=modes))))


@pytest.mark.parametrize(
    ("mode", "source"), [(cri.POD, f"{cases.SANDBOX_DIR}/shm"), (cri.NODE, "/dev/shm")], ids=["pod", "node"]
)
def test_shared_memory_goes_with_the_ipc_namespace(mode: cri.NamespaceMode.ValueType, source: str) -> None:
    spec = pause(pod_context(namespace_options=cri.NamespaceOption(ipc=mode)))
    assert [source] == [mount["source"] for mount in spec["mounts"] if mount["destination"] == "/dev/shm"]
    assert (mode == cri.POD) == ("ipc" in kinds(spec))


def test_a_pods_sysctls_win_over_the_defaults_in_either_spelling() -> None:
    asked = {"net/ipv4/ip_unprivileged_port_start": "1024", "kernel.shm_rmid_forced": "1"}
    assert sysctls(pod_config(sysctls=asked)) == {
        "net.ipv4.ip_unprivileged_port_start": "1024",
        "net.ipv4.ping_group_range": "0 2147483647",
        "kernel.shm_rmid_forced": "1",
    }


def test_a_dotted_interface_name_survives() -> None:
    name = "net/ipv4/conf/eth0.100/rp_filter"
    assert name in sysctls(pod_config(sysctls={name: "1"}))


def test_the_oom_score_is_clamped_where_it_cannot_be_lowered() -> None:
    assert pause()["process"]["oomScoreAdj"] == -998
    host = replace(HOST, oom_score_adj=0, can_lower_oom_score_adj=False)
    assert pause(host=host)["process"]["oomScoreAdj"] == 0


def test_pause_holds_no_capability_and_gains_none() -> None:
    process = pause()["process"]
    assert process["capabilities"] == {"bounding": [], "effective": [], "permitted": []}
    assert process["noNewPrivileges"]


def test_the_runtimes_filter_applies_to_pause_when_asked_for() -> None:
    assert "seccomp" not in pause()["linux"]
    assert "seccomp" in pause(pod_context(seccomp=cri.SecurityProfile()))["linux"]


def test_what_was_prepared_is_told_as_what_it_is_now() -> None:
    before = pause()
    asked = pod_config()
    asked.metadata.name, asked.hostname, asked.log_directory = "web-1", "web-1", "/var/log/web"
    now = replace(record(), config=asked)

    after = handed_out(before, now, "/kube/pod1/x")

    told = after["annotations"]
    assert (told["io.kubernetes.cri.sandbox-name"], after["hostname"]) == ("web-1", "web-1")
    assert told["io.kubernetes.cri.sandbox-log-directory"] == "/var/log/web"
    assert told["io.kubernetes.cri.container-type"] == "sandbox"
    assert after["linux"] == {**before["linux"], "cgroupsPath": "/kube/pod1/x"}
    assert handed_out(before, now, "")["linux"] == before["linux"]


def test_a_pause_image_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="pause image builtin"):
        sandbox_spec(
            record(),
            places=cases.places_on(HOST),
            image={"Env": ["A=b"]},
            image_name="builtin",
            user=User(uid=0, gid=0, additional_gids=(0,)),
            host=HOST,
        )


def test_limits_are_annotated_when_the_pod_has_them() -> None:
    config = pod_config(resources=cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64))
    annotations = pause(config)["annotations"]
    assert annotations["io.kubernetes.cri.sandbox-cpu-shares"] == "512"
    assert annotations["io.kubernetes.cri.sandbox-memory"] == "64"
    assert "io.kubernetes.cri.sandbox-memory" not in pause()["annotations"]


def test_sys_is_writable_in_a_privileged_pod_so_that_its_containers_can_have_it() -> None:
    for privileged, access in ((False, "ro"), (True, "rw")):
        mounts = {mount["destination"]: mount for mount in pause(pod_context(privileged=privileged))["mounts"]}
        assert access in mounts["/sys"]["options"]


def test_a_user_namespace_is_joined_where_it_is_pinned() -> None:
    spec = pause(userns_pod())
    assert kinds(spec)["user"] == f"{cases.SANDBOX_DIR}/userns"
    assert "user" not in kinds(pause())


@pytest.mark.parametrize(("length", "highest"), [(1, 0), (65536, 65535), (2**32 - 2, 2**31 - 1)])
def test_pings_are_for_the_groups_that_exist(length: int, highest: int) -> None:
    config = userns_pod()
    config.linux.security_context.namespace_options.userns_options.gids[0].length = length
    config.linux.security_context.namespace_options.userns_options.gids[0].host_id = 1
    assert pause(config)["linux"]["sysctl"]["net.ipv4.ping_group_range"] == f"0 {highest}"


def test_a_user_namespace_in_the_hosts_network_sees_the_hosts_sys_and_cannot_write_it() -> None:
    config = userns_pod(network=cri.NODE)
    (sys,) = [m for m in pause(config, host=V2_HOST)["mounts"] if m["destination"] == "/sys"]
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert "rro" in sys["options"]
    with pytest.raises(Unsupported, match="recursive read-only mounts"):
        pause(config, host=HOST)


def test_pause_runs_as_somebody_who_exists() -> None:
    config = userns_pod()
    with pytest.raises(InvalidRequest, match="user 70000 does not exist"):
        sandbox_spec(
            record(config),
            places=cases.places_on(HOST),
            image=PAUSE_IMAGE,
            image_name="builtin",
            user=User(uid=70000, gid=0, additional_gids=()),
            host=HOST,
        )


def test_a_handler_cannot_pass_on_what_we_say_ourselves() -> None:
    config = pod_config()
    config.annotations.update({"io.kubernetes.cri.sandbox-id": "another", "x": "1"})
    annotations = pause(config, host=replace(HOST, annotations=("*",)))["annotations"]
    assert annotations["x"] == "1"
    assert annotations["io.kubernetes.cri.sandbox-id"] == SANDBOX_ID

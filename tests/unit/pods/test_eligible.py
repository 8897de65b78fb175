"""Which requests a prepared pod can serve: what a running pod cannot be given must not be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import RECORD_CHANGES
from sandboxd.pods import eligible
from sandboxd.pods.eligible import template, why_not

Change = Callable[[cri.PodSandboxConfig], object]
Profile = cri.SecurityProfile


def network(*capabilities: str) -> NetworkConfig:
    plugins = ({"type": "bridge", "capabilities": dict.fromkeys(capabilities, True)},)
    return NetworkConfig(name="pods", versions=("1.0.0",), plugins=plugins)


def asked(change: Change = lambda config: None) -> cri.PodSandboxConfig:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u", attempt=1),
        hostname="web",
        log_directory="/var/log/pods/web",
        dns_config=cri.DNSConfig(servers=["10.0.0.1"], searches=["shop"], options=["ndots:5"]),
        labels={"app": "web"},
        annotations={"kubernetes.io/config.source": "api"},
    )
    change(config)
    return config


def context(config: cri.PodSandboxConfig) -> cri.LinuxSandboxSecurityContext:
    return config.linux.security_context


def modes(config: cri.PodSandboxConfig) -> cri.NamespaceOption:
    return context(config).namespace_options


def port(host: int) -> Change:
    return lambda config: config.port_mappings.add(container_port=80, host_port=host)


def annotated(key: str, value: str) -> Change:
    return lambda config: config.annotations.update({key: value})


def mapped(config: cri.PodSandboxConfig) -> None:
    options = modes(config).userns_options
    options.mode = cri.POD
    options.uids.add(host_id=100_000, container_id=0, length=65_536)
    options.gids.add(host_id=100_000, container_id=0, length=65_536)


SERVED: dict[str, Change] = {
    "names, labels, DNS": lambda config: None,
    "nothing but a name": lambda config: config.CopyFrom(cri.PodSandboxConfig(metadata=config.metadata)),
    "a port of the container only": port(0),
    "a pid namespace for all": lambda config: setattr(modes(config), "pid", cri.POD),
    "a pid namespace for each": lambda config: setattr(modes(config), "pid", cri.CONTAINER),
    "the host's ids": lambda config: setattr(modes(config).userns_options, "mode", cri.NODE),
    "the default filter": lambda config: setattr(context(config).seccomp, "profile_type", Profile.RuntimeDefault),
    "the default filter by its older name": lambda config: setattr(
        context(config), "seccomp_profile_path", "runtime/default"
    ),
    "the default AppArmor profile": lambda config: setattr(
        context(config).apparmor, "profile_type", Profile.RuntimeDefault
    ),
    "an empty SELinux label": lambda config: context(config).selinux_options.SetInParent(),
    "a read-only root": lambda config: setattr(context(config), "readonly_rootfs", True),
    "a cgroup": lambda config: setattr(config.linux, "cgroup_parent", "/kubepods/pod1"),
    "resources": lambda config: setattr(config.linux.resources, "cpu_shares", 512),
    "overhead": lambda config: setattr(config.linux.overhead, "memory_limit_in_bytes", 1 << 20),
    "no recording": annotated(RECORD_CHANGES, "false"),
}

NOT_SERVED: dict[str, tuple[Change, str]] = {
    "a user namespace": (mapped, eligible.USER_NAMESPACE),
    "the host's processes": (lambda config: setattr(modes(config), "pid", cri.NODE), eligible.NAMESPACES),
    "another's processes": (lambda config: setattr(modes(config), "pid", cri.TARGET), eligible.NAMESPACES),
    "the host's ipc": (lambda config: setattr(modes(config), "ipc", cri.NODE), eligible.NAMESPACES),
    "privileges": (lambda config: setattr(context(config), "privileged", True), eligible.SECURITY),
    "a user": (lambda config: setattr(context(config).run_as_user, "value", 7), eligible.SECURITY),
    "root by number": (lambda config: context(config).run_as_user.SetInParent(), eligible.SECURITY),
    "a group": (lambda config: setattr(context(config).run_as_group, "value", 7), eligible.SECURITY),
    "groups": (lambda config: context(config).supplemental_groups.append(7), eligible.SECURITY),
    "no groups of the image": (
        lambda config: setattr(context(config), "supplemental_groups_policy", cri.Strict),
        eligible.SECURITY,
    ),
    "no filter": (
        lambda config: setattr(context(config).seccomp, "profile_type", Profile.Unconfined),
        eligible.SECURITY,
    ),
    "a filter of its own": (
        lambda config: setattr(context(config), "seccomp_profile_path", "localhost/own.json"),
        eligible.SECURITY,
    ),
    "an AppArmor profile": (
        lambda config: setattr(context(config).apparmor, "profile_type", Profile.Localhost),
        eligible.SECURITY,
    ),
    "an SELinux label": (
        lambda config: setattr(context(config).selinux_options, "level", "s0:c1,c2"),
        eligible.SECURITY,
    ),
    "a sysctl": (lambda config: config.linux.sysctls.update({"net.core.somaxconn": "1"}), eligible.SYSCTLS),
    "a host port": (port(8080), eligible.NETWORK),
    "an address": (annotated("sandboxd.io/ips", "10.88.0.9"), eligible.NETWORK),
    "a MAC address": (annotated("sandboxd.io/mac", "02:00:00:00:00:01"), eligible.NETWORK),
    "a bandwidth": (annotated("kubernetes.io/ingress-bandwidth", "10M"), eligible.NETWORK),
    "a record of what plugins change": (annotated(RECORD_CHANGES, "true"), eligible.NETWORK),
    "what this version does not know": (lambda config: config.windows.SetInParent(), eligible.OTHER),
}


@pytest.mark.parametrize("what", SERVED)
def test_what_a_running_pod_can_be_given_is_served(what: str) -> None:
    assert why_not(asked(SERVED[what]), network()) == ""


@pytest.mark.parametrize("what", NOT_SERVED)
def test_what_it_cannot_be_given_is_not(what: str) -> None:
    change, reason = NOT_SERVED[what]

    assert why_not(asked(change), network()) == reason
    assert reason in eligible.REASONS


def test_a_pod_in_the_hosts_network_is_not() -> None:
    assert why_not(asked(), None) == eligible.HOST_NETWORK


@pytest.mark.parametrize(
    ("capability", "change"),
    [
        ("dns", lambda config: None),
        ("io.kubernetes.cri.pod-annotations", lambda config: None),
        ("cgroupPath", lambda config: setattr(config.linux, "cgroup_parent", "/kubepods/pod1")),
    ],
)
def test_what_a_plugin_is_given_of_a_pod_is_not_served(capability: str, change: Change) -> None:
    config = asked(change)

    assert why_not(config, network(capability)) == eligible.NETWORK
    assert why_not(config, network()) == ""


def test_a_plugin_may_be_told_the_pods_own_cgroup() -> None:
    assert why_not(asked(), network("cgroupPath")) == ""


def test_annotations_that_reach_the_runtime_are_not_served() -> None:
    config = asked(annotated("vm.example/size", "large"))

    assert why_not(config, network(), annotations=["vm.example/*"]) == eligible.ANNOTATIONS
    assert why_not(config, network(), annotations=["other/*"]) == ""


def test_systemd_alone_moves_processes_into_its_slices() -> None:
    config = asked(SERVED["a cgroup"])

    assert why_not(config, network(), systemd=True) == eligible.CGROUP
    assert why_not(asked(), network(), systemd=True) == ""


@pytest.mark.parametrize("what", ["the default filter", "the default filter by its older name"])
def test_without_filters_in_the_kernel_who_asks_for_one_is_to_be_refused(what: str) -> None:
    assert why_not(asked(SERVED[what]), network(), seccomp=False) == eligible.SECURITY


@pytest.mark.parametrize(
    "message", [cri.PodSandboxConfig, cri.LinuxPodSandboxConfig, cri.LinuxSandboxSecurityContext]
)
def test_every_field_that_cri_has_was_decided_about(message: Any) -> None:
    """A field that is new is not served; this says that there is one to decide about."""
    decided = {
        *eligible._GIVEN,
        *eligible._GIVEN_LINUX,
        *("linux", "security_context", "sysctls", "windows"),
        *("namespace_options", "selinux_options", "run_as_user", "run_as_group", "readonly_rootfs", "seccomp"),
        *("supplemental_groups", "supplemental_groups_policy", "privileged", "apparmor", "seccomp_profile_path"),
    }
    assert {field.name for field in message.DESCRIPTOR.fields} <= decided


@pytest.mark.parametrize("seccomp", [True, False])
def test_the_template_itself_is_served(seccomp: bool) -> None:
    config = template("a" * 64, seccomp=seccomp)

    assert why_not(config, network(), seccomp=seccomp) == ""
    assert config.metadata.uid == "a" * 64

"""What is refused before anything exists, and that it is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import validate
from sandboxd.pb.cri.v1 import api_pb2 as cri

Edit = Callable[[Any], object]


def sandbox() -> cri.PodSandboxConfig:
    """A config that is accepted and uses most fields."""
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u-1"),
        hostname="web-0.example_x",
        log_directory="/var/log/pods/web",
        dns_config=cri.DNSConfig(servers=["10.0.0.10", "fd00::a"], searches=["a.local"], options=["ndots:5"]),
        port_mappings=[
            cri.PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1"),
            cri.PortMapping(container_port=80, host_port=8080, protocol=cri.UDP),
            cri.PortMapping(container_port=80),
            cri.PortMapping(container_port=80),
        ],
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent="/pods/a",
            sysctls={"net.ipv4.ip_forward": "1", "net/core/somaxconn": "9", "kernel.sem": "1 2 3 4"},
            resources=cri.LinuxContainerResources(cpu_shares=2),
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(
                    pid=cri.CONTAINER, userns_options=cri.UserNamespace(mode=cri.NODE)
                ),
                run_as_user=cri.Int64Value(value=0),
                run_as_group=cri.Int64Value(value=0),
                seccomp=cri.SecurityProfile(),
                apparmor=cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined),
                selinux_options=cri.SELinuxOption(),
                privileged=True,
            ),
        ),
    )


def container() -> cri.ContainerConfig:
    """A config that is accepted and uses most fields."""
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="nginx"),
        image=cri.ImageSpec(image="sha256:abc"),
        command=["sh"],
        args=["-c", "line one\nline two"],
        working_dir="/srv",
        envs=[cri.KeyValue(key="A", value=b"1=2\n"), cri.KeyValue(key="EMPTY")],
        mounts=[
            cri.Mount(container_path="/data", host_path="/srv", selinux_relabel=True, image=cri.ImageSpec()),
            cri.Mount(container_path="/data/ro", host_path="/srv", readonly=True, recursive_read_only=True),
        ],
        devices=[cri.Device(container_path="/dev/a", host_path="/dev/b", permissions="mrw")],
        log_path="nginx/0.log",
        stop_signal=cri.SIGQUIT,
        linux=cri.LinuxContainerConfig(
            resources=cri.LinuxContainerResources(
                cpu_period=100_000,
                cpu_quota=-1,
                cpu_shares=1024,
                memory_limit_in_bytes=64 << 20,
                memory_swap_limit_in_bytes=64 << 20,
                oom_score_adj=-998,
                cpuset_cpus="0-1,3",
                cpuset_mems="0",
                hugepage_limits=[cri.HugepageLimit(page_size="2MB")],
                unified={"memory.high": "max"},
            ),
            security_context=cri.LinuxContainerSecurityContext(
                capabilities=cri.Capability(add_capabilities=["ALL"], drop_capabilities=["net_raw"]),
                namespace_options=cri.NamespaceOption(pid=cri.TARGET, target_id="abc"),
                run_as_username="web",
                run_as_group=cri.Int64Value(value=5),
                supplemental_groups=[0, 2**31 - 1],
                supplemental_groups_policy=cri.Strict,
                masked_paths=["/proc/kcore"],
                privileged=True,
                seccomp_profile_path="runtime/default",
                apparmor_profile="unconfined",
            ),
        ),
    )


def test_good_configs_are_accepted() -> None:
    validate.sandbox_config(sandbox())
    validate.container_config(container(), sandbox())
    minimal = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="a", namespace="b", uid="c"))
    validate.sandbox_config(minimal)
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image="i"))
    validate.container_config(config, minimal)


def _modes(config: Any) -> cri.NamespaceOption:
    modes: cri.NamespaceOption = config.linux.security_context.namespace_options
    return modes


def _pod(name: str, value: object) -> Edit:
    return lambda config: setattr(config.metadata, name, value)


def _set(path: str, value: Any) -> Edit:
    """Set a field given as a.b.c; lists and maps are extended."""

    def edit(config: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            config = getattr(config, name)
        if isinstance(value, list):
            getattr(config, last).extend(value)
        elif isinstance(value, dict):
            getattr(config, last).update(value)
        elif hasattr(value, "ListFields"):
            getattr(config, last).CopyFrom(value)
        else:
            setattr(config, last, value)

    return edit


CONTEXT = "linux.security_context"
MODES = f"{CONTEXT}.namespace_options"
RESOURCES = "linux.resources"

BAD_SANDBOXES: list[tuple[Edit, str]] = [
    (lambda c: c.ClearField("metadata"), "config.metadata.name: is empty"),
    (_pod("namespace", ""), "config.metadata.namespace: is empty"),
    (_pod("uid", ""), "config.metadata.uid: is empty"),
    (_pod("name", "a/b"), "config.metadata.name: 'a/b' holds a slash"),
    (_pod("uid", "a\nb"), "config.metadata.uid: 'a\\nb' holds a control character"),
    (_pod("namespace", "é" * 127), "config.metadata.namespace: is longer than 253 bytes"),
    (_pod("name", "a;IgnoreUnknown=1"), "config.metadata.name: 'a;IgnoreUnknown=1' holds ';' or '='"),
    (_pod("name", "a\0"), "config.metadata.name: holds a NUL"),
    (_set("hostname", "-a"), "config.hostname: '-a'"),
    (_set("hostname", "a b"), "config.hostname: 'a b'"),
    (_set("hostname", "a\n"), "config.hostname:"),
    (_set("hostname", "a" * 65), "config.hostname: is longer than the kernel's limit of 64"),
    (_set("log_directory", "logs"), "config.log_directory: 'logs' is not an absolute path"),
    (_set("dns_config.servers", ["1.1.1.1\nnameserver 6.6.6.6"]), "config.dns_config.servers[2]:"),
    (_set("dns_config.servers", ["dns.example"]), "config.dns_config.servers[2]: 'dns.example' is not an IP"),
    (_set("dns_config.searches", ["a b"]), "config.dns_config.searches[1]: 'a b' is not one word"),
    (_set("dns_config.options", [""]), "config.dns_config.options[1]: '' is not one word"),
    (_set("dns_config.options", ["a\x1b"]), "config.dns_config.options[1]:"),
    (_set("port_mappings", [cri.PortMapping(container_port=65536)]), "config.port_mappings[4].container_port: 65536"),
    (_set("port_mappings", [cri.PortMapping(host_port=-1)]), "config.port_mappings[4].host_port: -1"),
    (_set("port_mappings", [cri.PortMapping(host_port=1)]), "config.port_mappings[4].container_port: is not set"),
    (_set("port_mappings", [cri.PortMapping(host_ip="x")]), "config.port_mappings[4].host_ip: 'x' is not an IP"),
    (
        _set("port_mappings", [cri.PortMapping(container_port=1, host_port=8080, protocol=cri.UDP)]),
        "config.port_mappings[4].host_port: UDP port 8080 is mapped twice",
    ),
    (_set("linux.cgroup_parent", "pods"), "config.linux.cgroup_parent: 'pods' is not an absolute path"),
    (_set("linux.cgroup_parent", "/a/../b"), "config.linux.cgroup_parent: '/a/../b' holds '..'"),
    (_set("linux.cgroup_parent", "../x.slice"), "config.linux.cgroup_parent:"),
    (_set("linux.sysctls", {"net..x": "1"}), "config.linux.sysctls['net..x']: is not a sysctl name"),
    (_set("linux.sysctls", {"net": "1"}), "config.linux.sysctls['net']: is not"),
    (_set("linux.sysctls", {"../../etc/passwd": "1"}), "config.linux.sysctls['../../etc/passwd']: is not"),
    (_set("linux.sysctls", {"vm.swappiness": "1"}), "config.linux.sysctls['vm.swappiness']: does not belong"),
    (_set("linux.sysctls", {"kernel.hostname": "a"}), "config.linux.sysctls['kernel.hostname']: is what config.host"),
    (_set(f"{MODES}.network", cri.NODE), "config.linux.sysctls['net.ipv4.ip_forward']: would change the machine"),
    (_set(f"{MODES}.ipc", cri.NODE), "config.linux.sysctls['kernel.sem']: would change the machine"),
    (_set(f"{MODES}.network", cri.CONTAINER), f"config.{MODES}.network: CONTAINER is not possible"),
    (_set(f"{MODES}.ipc", cri.TARGET), f"config.{MODES}.ipc: TARGET is not possible"),
    (_set(f"{MODES}.pid", cri.TARGET), f"config.{MODES}.pid: TARGET is not possible for a sandbox"),
    (_set(f"{MODES}.pid", 9), f"config.{MODES}.pid: 9 is not a NamespaceMode"),
    (_set(f"{MODES}.userns_options.mode", cri.CONTAINER), f"config.{MODES}.userns_options.mode: CONTAINER"),
    (_set(f"{MODES}.userns_options.mode", cri.TARGET), f"config.{MODES}.userns_options.mode: TARGET"),
    (_set(f"{MODES}.userns_options.mode", cri.POD), f"config.{MODES}.userns_options.uids: must be exactly one"),
    (
        _set(f"{MODES}.userns_options.uids", [cri.IDMapping(length=1)]),
        f"config.{MODES}.userns_options.uids: is set",
    ),
    (_set(f"{CONTEXT}.run_as_user", cri.Int64Value(value=-1)), f"config.{CONTEXT}.run_as_user: -1 is not between"),
    (_set(f"{CONTEXT}.supplemental_groups", [2**31]), f"config.{CONTEXT}.supplemental_groups[0]: 2147483648"),
    (
        lambda c: c.linux.security_context.ClearField("run_as_user"),
        f"config.{CONTEXT}.run_as_group: is set without run_as_user",
    ),
    (
        _set(f"{CONTEXT}.seccomp.profile_type", cri.SecurityProfile.Localhost),
        f"config.{CONTEXT}.seccomp.localhost_ref: is empty",
    ),
    (_set(f"{CONTEXT}.seccomp.profile_type", 7), f"config.{CONTEXT}.seccomp.profile_type: 7 is not a ProfileType"),
    (_set("linux.overhead.memory_limit_in_bytes", -5), "config.linux.overhead.memory_limit_in_bytes: -5"),
    (_set("labels", {"a\0": "b"}), "config.labels: holds a NUL"),
    (_set("annotations", {"a": "\0"}), "config.annotations['a']: holds a NUL"),
    (
        _set("annotations", {"sandboxd.io/record-changes": "yes"}),
        'config.annotations[\'sandboxd.io/record-changes\']: must be "true" or "false"',
    ),
]

BAD_CONTAINERS: list[tuple[Edit, str]] = [
    (lambda c: c.ClearField("metadata"), "config.metadata.name: is empty"),
    (_pod("name", "a/b"), "config.metadata.name: 'a/b' holds a slash"),
    (lambda c: c.ClearField("image"), "config.image.image: is empty"),
    (_set("working_dir", "srv"), "config.working_dir: 'srv'"),
    (_set("args", ["a\0b"]), "config.args[2]: holds a NUL"),
    (_set("envs", [cri.KeyValue(key="", value=b"x")]), "config.envs[2].key: ''"),
    (_set("envs", [cri.KeyValue(key="A=B")]), "config.envs[2].key: 'A=…'"),
    (_set("envs", [cri.KeyValue(key="A\0")]), "config.envs[2].key: holds a NUL"),
    (_set("envs", [cri.KeyValue(key="A", value=b"\0")]), "config.envs[2].value: holds a NUL"),
    (_set("envs", [cri.KeyValue(key="A", value=b"\xff")]), "config.envs[2].value: the value of A is not UTF-8"),
    (_set("mounts", [cri.Mount(host_path="/a")]), "config.mounts[2].container_path: is empty"),
    (_set("mounts", [cri.Mount(container_path="a\n", host_path="/a")]), "config.mounts[2].container_path: 'a\\n'"),
    (_set("mounts", [cri.Mount(container_path=".", host_path="/a")]), "config.mounts[2].container_path: is the root"),
    (_set("log_path", "/"), "config.log_path: '/' is not a file inside"),
    (_set("log_path", "//../other/0.log"), "config.log_path: '//../other/0.log' is not a file inside"),
    (_set("log_path", "../other/0.log"), "config.log_path: '../other/0.log' is not a file inside"),
    (_set("log_path", "a/../../b"), "config.log_path: 'a/../../b' is not a file inside"),
    (_set("log_path", "a/.."), "config.log_path: 'a/..' is not a file"),
    (_set("mounts", [cri.Mount(container_path="/x")]), "config.mounts[2].host_path: is empty"),
    (_set("mounts", [cri.Mount(container_path="/x", host_path="a")]), "config.mounts[2].host_path: 'a'"),
    (
        _set("mounts", [cri.Mount(container_path="/x/..", host_path="/")]),
        "config.mounts[2].container_path: is the root",
    ),
    (
        _set("mounts", [cri.Mount(container_path="/x", host_path="/a", recursive_read_only=True)]),
        "config.mounts[2].recursive_read_only: is set, but readonly is not",
    ),
    *(
        (
            _set(
                "mounts",
                [
                    cri.Mount(
                        container_path="/x",
                        host_path="/a",
                        readonly=True,
                        recursive_read_only=True,
                        propagation=propagation,
                    )
                ],
            ),
            "config.mounts[2].recursive_read_only: is set, but propagation is not PRIVATE",
        )
        for propagation in (cri.PROPAGATION_HOST_TO_CONTAINER, cri.PROPAGATION_BIDIRECTIONAL)
    ),
    (
        _set("mounts", [cri.Mount(container_path="/x", host_path="/a", image=cri.ImageSpec(image="i"))]),
        "config.mounts[2].host_path: is set together with image",
    ),
    (lambda c: setattr(c.mounts[0], "propagation", 5), "config.mounts[0].propagation: 5 is not a MountPropagation"),
    (_set("devices", [cri.Device(container_path="a\n", host_path="/a")]), "config.devices[1].container_path: 'a\\n'"),
    (_set("devices", [cri.Device(container_path="/a", host_path="b")]), "config.devices[1].host_path: 'b'"),
    (
        _set("devices", [cri.Device(container_path="/a", host_path="/b", permissions="x")]),
        "config.devices[1].permissions: 'x'",
    ),
    (_set("stop_signal", 999), "config.stop_signal: 999 is not a Signal"),
    (_set(f"{RESOURCES}.cpu_shares", -1), f"config.{RESOURCES}.cpu_shares: -1"),
    (_set(f"{RESOURCES}.cpu_period", 10), f"config.{RESOURCES}.cpu_period: 10"),
    (_set(f"{RESOURCES}.cpu_quota", 999), f"config.{RESOURCES}.cpu_quota: 999"),
    (_set(f"{RESOURCES}.memory_limit_in_bytes", -2), f"config.{RESOURCES}.memory_limit_in_bytes: -2"),
    (_set(f"{RESOURCES}.memory_swap_limit_in_bytes", 1), f"config.{RESOURCES}.memory_swap_limit_in_bytes: 1 is less"),
    (_set(f"{RESOURCES}.oom_score_adj", 1001), f"config.{RESOURCES}.oom_score_adj: 1001"),
    (_set(f"{RESOURCES}.cpuset_cpus", "all"), f"config.{RESOURCES}.cpuset_cpus: 'all'"),
    (
        _set(f"{RESOURCES}.hugepage_limits", [cri.HugepageLimit(page_size="2M")]),
        f"config.{RESOURCES}.hugepage_limits[1].page_size: '2M'",
    ),
    (_set(f"{RESOURCES}.unified", {"../x": "1"}), f"config.{RESOURCES}.unified: '../x'"),
    (_set(f"{CONTEXT}.capabilities.drop_capabilities", ["NET_ADMN"]), "'NET_ADMN' is not a Linux capability"),
    (_set(f"{CONTEXT}.masked_paths", ["proc"]), f"config.{CONTEXT}.masked_paths[1]: 'proc'"),
    (_set(f"{CONTEXT}.readonly_paths", [""]), f"config.{CONTEXT}.readonly_paths[0]: ''"),
    (
        _set(f"{CONTEXT}.run_as_user", cri.Int64Value(value=1)),
        f"config.{CONTEXT}.run_as_username: is set together with run_as_user",
    ),
    (_set(f"{CONTEXT}.run_as_username", ""), f"config.{CONTEXT}.run_as_group: is set without"),
    (_set(f"{CONTEXT}.supplemental_groups_policy", 3), f"config.{CONTEXT}.supplemental_groups_policy: 3 is not"),
    (_set(f"{CONTEXT}.seccomp_profile_path", "what"), f"config.{CONTEXT}.seccomp_profile_path: 'what'"),
    (_set(f"{MODES}.target_id", ""), f"config.{MODES}.target_id: is empty"),
    (_set(f"{MODES}.pid", cri.POD), f"config.{MODES}.target_id: is set, but pid is POD"),
    (_set(f"{MODES}.network", cri.NODE), f"config.{MODES}.network: is NODE, but the sandbox's is POD"),
    (_set(f"{MODES}.ipc", cri.NODE), f"config.{MODES}.ipc: is NODE, but the sandbox's is POD"),
]


@pytest.mark.parametrize(("edit", "words"), BAD_SANDBOXES, ids=[words for _, words in BAD_SANDBOXES])
def test_a_bad_sandbox_config_is_refused_by_field(edit: Edit, words: str) -> None:
    config = sandbox()
    edit(config)
    with pytest.raises(InvalidRequest) as raised:
        validate.sandbox_config(config)
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize(("edit", "words"), BAD_CONTAINERS, ids=[words for _, words in BAD_CONTAINERS])
def test_a_bad_container_config_is_refused_by_field(edit: Edit, words: str) -> None:
    config = container()
    edit(config)
    with pytest.raises(InvalidRequest) as raised:
        validate.container_config(config, sandbox())
    assert str(raised.value).startswith(words)


def test_a_log_path_needs_no_log_directory() -> None:
    """Without one nothing is logged, as elsewhere."""
    pod = sandbox()
    pod.log_directory = ""
    validate.container_config(container(), pod)


# What other runtimes accept and clients send, however odd.
ODD_CONTAINERS: list[Edit] = [
    _set("mounts", [cri.Mount(container_path="rel", host_path="/a")]),
    _set("mounts", [cri.Mount(container_path="//data/x/..", host_path="/a")]),
    _set("devices", [cri.Device(host_path="/dev/a", permissions="r")]),
    _set("devices", [cri.Device(host_path="/dev/a", container_path="a", permissions="r")]),
    _set(f"{RESOURCES}.cpu_shares", 1),
    _set(f"{RESOURCES}.cpu_shares", 2**40),
    _set(f"{RESOURCES}.cpu_quota", -2),
    _set(f"{RESOURCES}.memory_limit_in_bytes", -1),
    *(_set(f"{RESOURCES}.cpuset_cpus", text) for text in ("0-3,", "0, 2", "0-31:2/16", "1\n")),
    _set(f"{CONTEXT}.selinux_options", cri.SELinuxOption(level="s0")),
    _set("stdin_once", True),
    _set("log_path", ""),
    _set("log_path", "a/b/../c.log"),
    _set("log_path", "/abs.log"),
    _set("log_path", "//var/log/0.log"),
]


@pytest.mark.parametrize("edit", ODD_CONTAINERS)
def test_what_is_odd_and_common_is_accepted(edit: Edit) -> None:
    config = container()
    edit(config)
    validate.container_config(config, sandbox())


def test_a_privileged_container_needs_a_privileged_sandbox() -> None:
    pod = sandbox()
    pod.linux.security_context.privileged = False
    with pytest.raises(InvalidRequest, match="its sandbox is not privileged"):
        validate.container_config(container(), pod)


def test_node_is_accepted_in_a_sandbox_that_has_it() -> None:
    pod, config = sandbox(), container()
    _modes(pod).pid = cri.NODE
    _modes(config).CopyFrom(cri.NamespaceOption(pid=cri.NODE))
    validate.container_config(config, pod)


def test_a_bare_slice_is_a_cgroup_parent() -> None:
    config = sandbox()
    config.linux.cgroup_parent = "system.slice"
    validate.sandbox_config(config)


ONE_MAPPING = [cri.IDMapping(host_id=1000, container_id=0, length=1)]
LOCALHOST = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="p")
USERNS = cri.UserNamespace(mode=cri.POD, uids=ONE_MAPPING, gids=ONE_MAPPING)


def test_what_is_not_offered_is_said() -> None:
    pod, config = sandbox(), container()
    pod.windows.SetInParent()
    with pytest.raises(Unsupported, match="Windows pods are not offered"):
        validate.sandbox_config(pod)
    config.windows.SetInParent()
    with pytest.raises(Unsupported, match="Windows containers are not offered"):
        validate.container_config(config, sandbox())
    assert len(validate.REFUSED_SANDBOXES) == len(validate.REFUSED_CONTAINERS) == 1


def userns_sandbox(**changes: Any) -> cri.PodSandboxConfig:
    """A sandbox with a user namespace; `changes` are fields of UserNamespace."""
    fields: dict[str, Any] = {"mode": cri.POD, "uids": ONE_MAPPING, "gids": ONE_MAPPING, **changes}
    pod = sandbox()
    _modes(pod).userns_options.CopyFrom(cri.UserNamespace(**fields))
    return pod


def test_a_user_namespace_has_one_range_of_uids_and_one_of_gids() -> None:
    validate.sandbox_config(userns_sandbox())


OTHER = cri.IDMapping(host_id=1000, container_id=1, length=1)
EMPTY = cri.IDMapping(host_id=1000, container_id=0, length=0)
PAST = cri.IDMapping(host_id=2**32 - 2, container_id=0, length=2)
BAD_USERNS: list[tuple[dict[str, Any], str]] = [
    ({"mode": cri.CONTAINER}, "mode: CONTAINER is not possible"),
    ({"mode": cri.TARGET}, "mode: TARGET is not possible"),
    ({"mode": cri.NODE}, "uids: is set"),
    ({"uids": []}, "uids: must be exactly one mapping"),
    ({"gids": []}, "gids: must be exactly one mapping"),
    ({"uids": ONE_MAPPING * 2}, "uids: must be exactly one mapping"),
    ({"gids": [OTHER]}, "gids: must be exactly one mapping, from container id 0"),
    ({"uids": [EMPTY]}, "uids: must be exactly one mapping, from container id 0, of at least one id"),
    ({"uids": [PAST]}, "uids: the mapping exceeds the highest id"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_USERNS, ids=[words for _, words in BAD_USERNS])
def test_a_bad_user_namespace_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"config.{MODES}.userns_options.{words}")):
        validate.sandbox_config(userns_sandbox(**changes))


@pytest.mark.parametrize("name", ["pid", "ipc"])
def test_a_user_namespace_and_the_hosts_processes_exclude_each_other(name: str) -> None:
    pod = userns_sandbox()
    setattr(_modes(pod), name, cri.NODE)
    pod.linux.sysctls.clear()
    with pytest.raises(InvalidRequest, match=f"{name}: is NODE, which a pod with a user namespace cannot have"):
        validate.sandbox_config(pod)


OTHER_IDS = cri.UserNamespace(mode=cri.POD, uids=[cri.IDMapping(host_id=5, length=1)], gids=ONE_MAPPING)


@pytest.mark.parametrize("asked", [USERNS, None])
def test_a_container_has_its_pods_user_namespace(asked: cri.UserNamespace | None) -> None:
    config = container()
    if asked is not None:
        _modes(config).userns_options.CopyFrom(asked)
    validate.container_config(config, userns_sandbox())


@pytest.mark.parametrize(
    ("asked", "pod"),
    [
        (USERNS, sandbox()),
        (OTHER_IDS, userns_sandbox()),
        (cri.UserNamespace(mode=cri.NODE), userns_sandbox()),
    ],
)
def test_a_container_cannot_have_another_user_namespace(asked: cri.UserNamespace, pod: cri.PodSandboxConfig) -> None:
    config = container()
    _modes(config).userns_options.CopyFrom(asked)
    with pytest.raises(InvalidRequest, match="share its user namespace"):
        validate.container_config(config, pod)


def test_a_mount_is_mapped_as_its_pod_is_or_not_at_all() -> None:
    mapped = cri.Mount(container_path="/m", host_path="/m", uidMappings=ONE_MAPPING, gidMappings=ONE_MAPPING)
    half = cri.Mount(container_path="/m", host_path="/m", uidMappings=ONE_MAPPING)
    other = cri.Mount(container_path="/m", host_path="/m", uidMappings=[OTHER], gidMappings=ONE_MAPPING)
    for mount, pod, good in (
        (mapped, userns_sandbox(), True),
        (mapped, sandbox(), False),
        (half, userns_sandbox(), False),
        (other, userns_sandbox(), False),
    ):
        config = container()
        config.mounts.append(mount)
        if good:
            validate.container_config(config, pod)
            continue
        with pytest.raises(InvalidRequest, match=r"config\.mounts\[2\]\.uidMappings"):
            validate.container_config(config, pod)


def _image_mount(**changes: Any) -> Edit:
    fields: dict[str, Any] = {"container_path": "/i", "readonly": True, "image": cri.ImageSpec(image="i")}
    return _set("mounts", [cri.Mount(**{**fields, **changes})])


@pytest.mark.parametrize("sub_path", ["", "etc", "./a//b/", "a/../b"])
def test_an_image_or_a_directory_of_it_is_mounted_read_only(sub_path: str) -> None:
    config = container()
    _image_mount(image_sub_path=sub_path, recursive_read_only=True)(config)
    validate.container_config(config, sandbox())


BAD_SECURITY: list[tuple[Edit, str]] = [
    (_image_mount(readonly=False), "config.mounts[2].readonly: is not set"),
    (_image_mount(host_path="/a"), "config.mounts[2].host_path: is set together with image"),
    (_image_mount(propagation=cri.PROPAGATION_HOST_TO_CONTAINER), "config.mounts[2].propagation: is not PRIVATE"),
    (_image_mount(image_sub_path="/etc"), "config.mounts[2].image_sub_path: '/etc' is not a relative path"),
    (_image_mount(image_sub_path="a/../.."), "config.mounts[2].image_sub_path: 'a/../..' is not a relative path"),
    (
        _set("mounts", [cri.Mount(container_path="/i", host_path="/i", image_sub_path="a")]),
        "config.mounts[2].image_sub_path: is set, but image is not",
    ),
    (_set(f"{CONTEXT}.capabilities.add_ambient_capabilities", ["FLY"]), "'FLY' is not a Linux capability"),
    (_set("CDI_devices", [cri.CDIDevice(name="gpu0")]), "CDI device 'gpu0' is not of the form"),
    (_set("annotations", {"cdi.k8s.io/x": "v.example/gpu=0,"}), "CDI device '' is not of the form"),
    (_set(f"{CONTEXT}.selinux_options.level", "s0,c4,c5"), f"config.{CONTEXT}.selinux_options.level: 's0,c4,c5'"),
    (_set(f"{CONTEXT}.selinux_options.type", "a:b"), f"config.{CONTEXT}.selinux_options.type: 'a:b'"),
    (_set(f"{CONTEXT}.apparmor_profile", "web"), f"config.{CONTEXT}.apparmor_profile: 'web' is not unconfined"),
    (
        _set(f"{CONTEXT}.apparmor", cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost)),
        f"config.{CONTEXT}.apparmor.localhost_ref: is empty",
    ),
]


@pytest.mark.parametrize(("edit", "words"), BAD_SECURITY, ids=[words for _, words in BAD_SECURITY])
def test_security_that_cannot_be_meant_is_refused(edit: Edit, words: str) -> None:
    config = container()
    edit(config)
    with pytest.raises(InvalidRequest) as raised:
        validate.container_config(config, sandbox())
    assert str(raised.value).startswith(words)


def test_a_filter_that_a_privileged_container_would_not_get_is_no_reason_to_refuse() -> None:
    config = container()
    config.linux.security_context.seccomp.CopyFrom(LOCALHOST)
    validate.container_config(config, sandbox())


TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["/a", "a/b", "..", "/../x.slice", "net.x", "\0", "é"]))
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**31 - 1, 2**31, -(2**63), 2**63 - 1]))
SMALL = st.integers(-(2**31), 2**31 - 1)
PROFILES = st.builds(cri.SecurityProfile, profile_type=st.integers(0, 4), localhost_ref=TEXT)
OPTIONS = st.builds(
    cri.NamespaceOption,
    network=st.integers(0, 4),
    pid=st.integers(0, 4),
    ipc=st.integers(0, 4),
    target_id=TEXT,
    userns_options=st.none() | st.builds(cri.UserNamespace, mode=st.integers(0, 4)),
)
ANY_RESOURCES = st.builds(
    cri.LinuxContainerResources,
    cpu_period=NUMBERS,
    memory_limit_in_bytes=NUMBERS,
    memory_swap_limit_in_bytes=NUMBERS,
    cpuset_cpus=TEXT,
    unified=st.dictionaries(TEXT, TEXT, max_size=2),
)
ANY_SANDBOX = st.builds(
    cri.PodSandboxConfig,
    metadata=st.builds(cri.PodSandboxMetadata, name=TEXT, uid=TEXT, namespace=TEXT),
    hostname=TEXT,
    log_directory=TEXT,
    dns_config=st.builds(cri.DNSConfig, servers=st.lists(TEXT, max_size=2), searches=st.lists(TEXT, max_size=2)),
    port_mappings=st.lists(
        st.builds(cri.PortMapping, protocol=st.integers(0, 4), container_port=SMALL, host_port=SMALL, host_ip=TEXT),
        max_size=2,
    ),
    linux=st.builds(
        cri.LinuxPodSandboxConfig,
        cgroup_parent=TEXT,
        sysctls=st.dictionaries(TEXT, TEXT, max_size=2),
        resources=ANY_RESOURCES,
        security_context=st.builds(
            cri.LinuxSandboxSecurityContext,
            namespace_options=OPTIONS,
            seccomp=PROFILES,
            seccomp_profile_path=TEXT,
            run_as_user=st.none() | st.builds(cri.Int64Value, value=NUMBERS),
        ),
    ),
)
ANY_CONTAINER = st.builds(
    cri.ContainerConfig,
    metadata=st.builds(cri.ContainerMetadata, name=TEXT),
    image=st.builds(cri.ImageSpec, image=TEXT),
    args=st.lists(TEXT, max_size=2),
    working_dir=TEXT,
    envs=st.lists(st.builds(cri.KeyValue, key=TEXT, value=st.binary(max_size=4)), max_size=2),
    mounts=st.lists(
        st.builds(
            cri.Mount,
            container_path=TEXT,
            host_path=TEXT,
            propagation=st.integers(0, 4),
            readonly=st.booleans(),
            recursive_read_only=st.booleans(),
        ),
        max_size=3,
    ),
    log_path=TEXT,
    stop_signal=st.integers(0, 200),
    linux=st.builds(
        cri.LinuxContainerConfig,
        resources=ANY_RESOURCES,
        security_context=st.builds(
            cri.LinuxContainerSecurityContext,
            namespace_options=OPTIONS,
            apparmor=PROFILES,
            capabilities=st.builds(cri.Capability, add_capabilities=st.lists(TEXT, max_size=2)),
            run_as_username=TEXT,
            supplemental_groups=st.lists(NUMBERS, max_size=2),
        ),
    ),
)


@given(ANY_SANDBOX)
def test_any_sandbox_config_is_accepted_or_refused(config: cri.PodSandboxConfig) -> None:
    before = config.SerializeToString(deterministic=True)
    try:
        validate.sandbox_config(config)
    except InvalidRequest as exc:
        assert str(exc)
    assert before == config.SerializeToString(deterministic=True)


@given(ANY_CONTAINER)
def test_any_container_config_is_accepted_or_refused(config: cri.ContainerConfig) -> None:
    try:
        validate.container_config(config, sandbox())
    except InvalidRequest as exc:
        assert str(exc)


def test_the_same_mapping_declared_by_two_containers_is_one_mapping() -> None:
    config = sandbox()
    config.port_mappings.extend(list(config.port_mappings))
    config.port_mappings.add(container_port=81, host_port=8081, host_ip="::1")
    config.port_mappings.add(container_port=81, host_port=8081, host_ip="0:0:0:0:0:0:0:1")

    validate.sandbox_config(config)


@pytest.mark.parametrize("name", ["kernel.domainname", "kernel/domainname"])
def test_the_domain_name_belongs_to_the_pod_unless_its_names_are_the_hosts(name: str) -> None:
    config = cri.PodSandboxConfig(metadata=sandbox().metadata)
    config.linux.sysctls[name] = "example.test"
    validate.sandbox_config(config)
    config.linux.security_context.namespace_options.network = cri.NODE

    with pytest.raises(InvalidRequest, match="uts namespace"):
        validate.sandbox_config(config)

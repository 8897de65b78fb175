"""The security context end to end: who a container is, what it may do, what it sees, and what is refused."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    IDS,
    container_info,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    pod_info,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

USERNS = cri.UserNamespace(mode=cri.POD, uids=IDS, gids=IDS)
Profile = cri.SecurityProfile


@pytest.fixture(scope="module")
def mapped_pod(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A pod with a user namespace."""
    pod_id = run_pod(bed, userns_pod())
    yield pod_id
    remove_pod(bed, pod_id)


@pytest.fixture
def pods(bed: Testbed, images: tuple[str, ...]) -> Iterator[Callable[[cri.PodSandboxConfig], str]]:
    """Run pods that are removed after the test."""
    made: list[str] = []

    def run(config: cri.PodSandboxConfig) -> str:
        made.append(run_pod(bed, config))
        return made[-1]

    yield run
    for pod_id in made:
        remove_pod(bed, pod_id)


def scripted(script: str, *, linux: dict[str, Any] | None = None, **changes: Any) -> cri.ContainerConfig:
    """A busybox container that runs a script and says all on stdout; `linux` are fields of its security context."""
    if linux is not None:
        context = cri.LinuxContainerSecurityContext(**linux)
        changes["linux"] = cri.LinuxContainerConfig(security_context=context)
    return shell(f"exec 2>&1; {script}", **changes)


def output(bed: Testbed, pod_id: str, script: str, **changes: Any) -> list[str]:
    """What a container that runs the script prints, standard error included."""
    container_id = run_container(bed, pod_id, scripted(script, **changes))
    until(lambda: exited(bed, container_id), what="the container ends")
    return log_lines(bed, container_id)


def idle(bed: Testbed, pod_id: str, **changes: Any) -> str:
    """A container that waits to be asked."""
    return run_container(bed, pod_id, scripted("exec sleep 1000", **changes))


def ask(bed: Testbed, container_id: str, script: str) -> str:
    """What a script prints that is executed in a running container."""
    answer = bed.runtime.ExecSync(
        cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", f"exec 2>&1; {script}"], timeout=60),
        timeout=60,
    )
    return answer.stdout.decode()


def pod_context(**changes: Any) -> cri.PodSandboxConfig:
    return pod_config(linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(**changes)))


def userns_pod(**modes: Any) -> cri.PodSandboxConfig:
    return pod_context(namespace_options=cri.NamespaceOption(userns_options=USERNS, **modes))


def localhost(ref: str) -> cri.SecurityProfile:
    return Profile(profile_type=Profile.Localhost, localhost_ref=ref)


def numbers(line: str) -> list[int]:
    return [int(word) for word in line.split()]


# Who it is.


def test_groups_of_the_image_are_merged_or_left_out_and_the_status_says_which(bed: Testbed, shared_pod: str) -> None:
    for policy, groups in ((cri.Merge, {0, 10, 1234}), (cri.Strict, {0, 1234})):
        config = scripted(
            "id -G",
            linux={
                "run_as_user": cri.Int64Value(value=0),
                "supplemental_groups": [1234],
                "supplemental_groups_policy": policy,
            },
        )
        container_id = run_container(bed, shared_pod, config)
        until(lambda id_=container_id: exited(bed, id_), what="the container ends")  # type: ignore[misc]
        got = set(numbers(log_lines(bed, container_id)[0]))
        user = container_status(bed, container_id).user.linux
        assert got == set(user.supplemental_groups)
        assert {0, 1234} <= got
        assert policy == cri.Merge or got == groups
    assert bed.runtime.Status(cri.StatusRequest()).features.supplemental_groups_policy


def test_an_ambient_capability_is_kept_by_a_user_other_than_root(bed: Testbed, shared_pod: str) -> None:
    def held(**capabilities: Any) -> int:
        script = "grep CapEff /proc/self/status"
        lines = output(
            bed,
            shared_pod,
            script,
            linux={"run_as_user": cri.Int64Value(value=1000), "capabilities": cri.Capability(**capabilities)},
        )
        return int(lines[0].split()[1], 16)

    assert held(add_capabilities=["NET_ADMIN"]) == 0
    assert held(add_ambient_capabilities=["NET_ADMIN"]) == 1 << 12
    assert held(add_ambient_capabilities=["NET_ADMIN"], drop_capabilities=["net_admin"]) == 0


# Filters.

NO_CHMOD = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}],
}


@pytest.mark.parametrize(
    ("file", "ref"),
    [("/run/profiles/absolute.json", "/run/profiles/absolute.json"), ("/etc/sandboxd/seccomp/a/b.json", "a/b.json")],
)
def test_a_localhost_seccomp_profile_is_in_force(bed: Testbed, shared_pod: str, file: str, ref: str) -> None:
    bed.write(file, json.dumps(NO_CHMOD))
    script = "grep Seccomp: /proc/self/status; touch /x; chmod 600 /x"
    lines = output(bed, shared_pod, script, linux={"seccomp": localhost(ref)})
    assert lines[0].split()[1] == "2"
    assert "Operation not permitted" in lines[1]


def test_a_pod_may_be_filtered_too(bed: Testbed, pods: Callable[[cri.PodSandboxConfig], str]) -> None:
    bed.write("/run/profiles/pod.json", json.dumps(NO_CHMOD))
    pod_id = pods(pod_context(seccomp=localhost("/run/profiles/pod.json")))
    status = (bed.proc / str(pod_info(bed, pod_id)["pid"]) / "status").read_text()
    assert "Seccomp:\t2" in status


# User namespaces.


def test_a_pod_with_a_user_namespace_owns_what_it_sees_and_no_more(bed: Testbed, mapped_pod: str) -> None:
    script = """
        cat /proc/self/uid_map; id -u; stat -c %u:%g / /etc/passwd /etc/hosts /dev/shm; touch /new; chown 7:8 /new;
        stat -c %u:%g /new; cat /proc/sys/net/ipv4/ping_group_range; echo again > /dev/stdout; echo x >> /etc/hosts;
        stat -c %u /sys/kernel
    """
    lines = output(bed, mapped_pod, script)
    assert numbers(lines[0]) == [0, 100000, 65536]
    assert lines[1:7] == ["0", "0:0", "0:0", "0:0", "0:0", "7:8"]
    assert numbers(lines[7]) == [0, 65535]
    assert lines[8:] == ["again", "65534"]
    pid = pod_info(bed, mapped_pod)["pid"]
    assert os.stat(bed.proc / str(pid)).st_uid == 100000


def test_the_network_of_a_pod_with_a_user_namespace_is_its_own(bed: Testbed, mapped_pod: str) -> None:
    linux = {"capabilities": cri.Capability(add_capabilities=["NET_ADMIN"])}
    lines = output(bed, mapped_pod, "ip link set lo mtu 1400; ip link show lo; ip addr show eth0", linux=linux)
    assert any("mtu 1400" in line for line in lines)
    assert any("inet 10." in line for line in lines)


def test_containers_of_the_pod_share_its_user_namespace(bed: Testbed, mapped_pod: str) -> None:
    namespaces = {
        os.readlink(bed.proc / str(container_info(bed, idle(bed, mapped_pod))["pid"]) / "ns" / "user") for _ in "ab"
    }
    pause = bed.proc / str(pod_info(bed, mapped_pod)["pid"]) / "ns" / "user"
    assert namespaces == {os.readlink(pause)}
    assert namespaces != {os.readlink("/proc/self/ns/user")}


def test_a_privileged_container_of_the_pod_is_so_in_its_namespace_only(
    bed: Testbed, pods: Callable[[cri.PodSandboxConfig], str]
) -> None:
    config = userns_pod()
    config.linux.security_context.privileged = True
    lines = output(
        bed, pods(config), "mount -t tmpfs t /tmp && echo mounted; mknod /b b 1 1", linux={"privileged": True}
    )
    assert lines[0] == "mounted"
    assert "Operation not permitted" in lines[1]


def test_a_mount_with_mappings_shows_the_host_s_files_as_the_pod_s(bed: Testbed, mapped_pod: str) -> None:
    directory = bed.path("/var/lib/mapped")
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text("root's")
    os.chmod(directory / "file", 0o600)
    file = bed.write("/var/lib/mapped-file", "one")
    os.chmod(file, 0o600)
    script = (
        "stat -c %u /m /m/file /f; cat /m/file; echo; cat /f; echo; echo written > /m/new; stat -c %u /plain/file"
    )
    lines = output(
        bed,
        mapped_pod,
        script,
        mounts=[
            cri.Mount(container_path="/m", host_path="/var/lib/mapped", uidMappings=IDS, gidMappings=IDS),
            cri.Mount(container_path="/f", host_path="/var/lib/mapped-file", uidMappings=IDS, gidMappings=IDS),
            cri.Mount(container_path="/plain", host_path="/var/lib/mapped"),
        ],
    )
    assert lines == ["0", "0", "0", "root's", "one", "65534"]
    assert (directory / "new").stat().st_uid == 0
    assert (directory / "new").read_text() == "written\n"


def test_a_pod_with_a_user_namespace_can_be_in_the_host_s_network(
    bed: Testbed, pods: Callable[[cri.PodSandboxConfig], str]
) -> None:
    assert bed.runtime.Status(cri.StatusRequest()).features.user_namespaces_host_network
    pod_id = pods(userns_pod(network=cri.NODE))
    lines = output(bed, pod_id, "id -u; ip link show up0 | head -1; ls -d /sys/class/net/up0; touch /sys/kernel/x")
    assert lines[0] == "0"
    assert "up0" in lines[1]
    assert lines[2] == "/sys/class/net/up0"
    assert "Read-only file system" in lines[3] or "denied" in lines[3]


def test_node_means_no_user_namespace(bed: Testbed, pods: Callable[[cri.PodSandboxConfig], str]) -> None:
    node = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.NODE))
    lines = output(
        bed, pods(pod_context(namespace_options=node)), "cat /proc/self/uid_map", linux={"namespace_options": node}
    )
    assert numbers(lines[0]) == numbers(Path("/proc/self/uid_map").read_text())


def test_a_created_container_starts_after_the_daemon_was_killed_and_nothing_is_left(
    fresh_bed: StartBed,
) -> None:
    """User namespace, id-mapped mount and mounted image survive the daemon, and go with the pod."""
    bed = fresh_bed()
    bed.load_image("busybox")
    bed.path("/var/lib/mapped").mkdir()
    config = scripted(
        "stat -c %u /m /i; ls /i/bin/sh; exec sleep 1000",
        mounts=[
            cri.Mount(container_path="/m", host_path="/var/lib/mapped", uidMappings=IDS, gidMappings=IDS),
            cri.Mount(container_path="/i", readonly=True, image=cri.ImageSpec(image="busybox")),
        ],
    )
    warm = run_pod(bed, userns_pod())
    idle(bed, warm, mounts=config.mounts)
    remove_pod(bed, warm)
    before = observe(bed)
    pod_id = run_pod(bed, userns_pod())
    container_id = create_container(bed, pod_id, config)
    bed.restart_daemon(kill=True)
    start_container(bed, container_id)
    until(lambda: len(log_lines(bed, container_id)) == 3, what="the container prints")
    assert log_lines(bed, container_id) == ["0", "0", "/i/bin/sh"]
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_terminal_works_in_a_user_namespace(bed: Testbed, mapped_pod: str) -> None:
    """Its owner is the pod's root, who could not open it otherwise."""
    lines = output(bed, mapped_pod, "tty; stat -c %u $(tty)", tty=True)
    assert [line.strip() for line in lines] == ["/dev/pts/0", "0"]


# Mounts.


@pytest.fixture
def tree(bed: Testbed) -> Iterator[str]:
    """A shared tmpfs of the bed with another one below it."""
    top = f"/run/tree-{secrets.token_hex(4)}"
    bed.run(["mkdir", top])
    bed.run(["mount", "-t", "tmpfs", "tree", top])
    bed.run(["mount", "--make-shared", top])
    bed.run(["mkdir", f"{top}/below", f"{top}/later", f"{top}/inner"])
    bed.run(["mount", "-t", "tmpfs", "below", f"{top}/below"])
    yield top
    bed.run(["umount", "-R", "-l", top])


def test_read_only_is_recursive_only_when_asked(bed: Testbed, shared_pod: str, tree: str) -> None:
    for recursive, words in ((False, "written"), (True, "Read-only file system")):
        lines = output(
            bed,
            shared_pod,
            "touch /t/x; touch /t/below/x && echo written",
            mounts=[
                cri.Mount(container_path="/t", host_path=tree, readonly=True, recursive_read_only=recursive),
            ],
        )
        assert "Read-only file system" in lines[0]
        assert words in lines[1]
    assert all(
        handler.features.recursive_read_only_mounts
        for handler in bed.runtime.Status(cri.StatusRequest()).runtime_handlers
    )


@pytest.mark.parametrize(
    ("propagation", "from_host"),
    [
        (cri.PROPAGATION_PRIVATE, False),
        (cri.PROPAGATION_HOST_TO_CONTAINER, True),
        (cri.PROPAGATION_BIDIRECTIONAL, True),
    ],
)
def test_mounts_propagate_as_asked(
    bed: Testbed,
    pods: Callable[[cri.PodSandboxConfig], str],
    tree: str,
    propagation: cri.MountPropagation.ValueType,
    from_host: bool,
) -> None:
    pod_id = pods(pod_context(privileged=True))
    mount = cri.Mount(container_path="/t", host_path=tree, propagation=propagation)
    container_id = idle(bed, pod_id, linux={"privileged": True}, mounts=[mount])
    bed.run(["mount", "-t", "tmpfs", "later", f"{tree}/later"])
    assert (" /t/later " in ask(bed, container_id, "cat /proc/mounts")) == from_host
    ask(bed, container_id, "mount -t tmpfs inner /t/inner")
    assert (f" {tree}/inner " in bed.mountinfo) == (propagation == cri.PROPAGATION_BIDIRECTIONAL)
    assert list(container_status(bed, container_id).mounts) == [mount]


def test_an_image_is_mounted_read_only_for_all_containers_of_the_pod(bed: Testbed, shared_pod: str) -> None:
    asked = cri.Mount(container_path="/image", readonly=True, image=cri.ImageSpec(image="busybox"))
    part = cri.Mount(
        container_path="/part", readonly=True, image=cri.ImageSpec(image="busybox"), image_sub_path="./etc"
    )
    first = idle(bed, shared_pod, mounts=[asked])
    second = idle(bed, shared_pod, mounts=[asked, part])
    assert "Read-only file system" in ask(bed, first, "touch /image/x")
    assert ask(bed, second, "/image/bin/sh -c 'echo runs'") == "runs\n"
    assert ask(bed, second, "cat /part/passwd /part/group") == ask(bed, second, "cat /etc/passwd /etc/group")
    assert "Read-only file system" in ask(bed, second, "touch /part/x")
    image = bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="busybox"))).image
    assert [m.image.image_ref for m in container_status(bed, second).mounts] == [image.id, image.id]
    assert [m.image.image for m in container_status(bed, second).mounts] == ["busybox", "busybox"]
    assert sum("image-volumes" in line for line in bed.mountinfo.splitlines()) == 1
    config = scripted("true", mounts=[asked])
    assert create_container(bed, shared_pod, config) == create_container(bed, shared_pod, config)


# Devices.


def test_a_device_is_made_with_its_permissions(bed: Testbed, shared_pod: str) -> None:
    for permissions, words in (("r", "Operation not permitted"), ("rw", "opened")):
        lines = output(
            bed,
            shared_pod,
            "stat -c %t:%T /dev/thing; : > /dev/thing && echo opened",
            devices=[cri.Device(container_path="/dev/thing", host_path="/dev/kmsg", permissions=permissions)],
        )
        assert lines[0] == "1:b"
        assert words in lines[1]


def test_a_cdi_device_brings_what_its_specification_says(bed: Testbed, shared_pod: str) -> None:
    bed.write("/run/vendor/library", "of the vendor")
    hook = {"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo hooked > /run/vendor/hook"]}
    edits = {
        "env": ["THING=first"],
        "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/kmsg", "permissions": "rw"}],
        "mounts": [{"hostPath": "/run/vendor/library", "containerPath": "/lib-vendor", "options": ["ro", "bind"]}],
        "additionalGids": [4321],
    }
    spec = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.example/thing",
        "containerEdits": {"env": ["ALL=common"], "hooks": [hook]},
        "devices": [
            {"name": "0", "containerEdits": edits},
            {"name": "1", "containerEdits": {"env": ["THING=second"]}},
        ],
    }
    bed.write("/etc/cdi/vendor.json", json.dumps(spec))
    bed.write("/etc/cdi/broken.yaml", "kind: [")
    lines = output(
        bed,
        shared_pod,
        "echo $THING $ALL; cat /lib-vendor; echo; : > /dev/vendor0 && stat -c %t:%T /dev/vendor0; id -G",
        CDI_devices=[cri.CDIDevice(name="vendor.example/thing=0")],
        annotations={"cdi.k8s.io/request": "vendor.example/thing=1"},
    )
    assert lines[:3] == ["second common", "of the vendor", "1:b"]
    assert 4321 in numbers(lines[3])
    assert bed.path("/run/vendor/hook").read_text() == "hooked\n"


# Sysctls and resources.


def test_unsafe_sysctls_of_the_pod_s_namespaces_are_set(
    bed: Testbed, pods: Callable[[cri.PodSandboxConfig], str]
) -> None:
    sysctls = {"fs.mqueue.msg_max": "100", "kernel.shm_rmid_forced": "1", "net/ipv4/ip_forward": "1"}
    for config in (pod_config(), userns_pod()):
        config.linux.sysctls.update(sysctls)
        files = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in sysctls)
        assert output(bed, pods(config), f"cat {files}") == ["100", "1", "1"]


def test_a_container_keeps_the_limits_of_the_runtime(bed: Testbed, shared_pod: str) -> None:
    """CRI has no rlimits; containers inherit those of the shim, which has containerd's."""
    soft = output(bed, shared_pod, "ulimit -n")[0]
    assert soft == "unlimited" or int(soft) >= 1024


# What is refused.

BAD_PODS = [
    (userns_pod(pid=cri.NODE), "pid: is NODE"),
    (userns_pod(ipc=cri.NODE), "ipc: is NODE"),
    (
        pod_context(
            namespace_options=cri.NamespaceOption(
                userns_options=cri.UserNamespace(mode=cri.POD, uids=[*IDS, *IDS], gids=IDS)
            )
        ),
        "uids: must be exactly one mapping",
    ),
    (
        pod_context(namespace_options=cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.CONTAINER))),
        "userns_options.mode: CONTAINER is not possible",
    ),
    (
        pod_context(namespace_options=cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.TARGET))),
        "userns_options.mode: TARGET is not possible",
    ),
    (pod_context(selinux_options=cri.SELinuxOption(level="s0,c4,c5")), "is not a level"),
    (pod_context(apparmor=localhost("web")), "does not run AppArmor"),
    (pod_context(seccomp=localhost("/no/such.json")), "/no/such.json cannot be read: No such file"),
    (pod_context(seccomp=localhost("../../etc/passwd")), "is not a file in /etc/sandboxd/seccomp"),
]


@pytest.mark.parametrize(("config", "words"), BAD_PODS, ids=[words for _, words in BAD_PODS])
def test_a_pod_that_cannot_be_secured_as_asked_is_refused_and_leaves_nothing(
    bed: Testbed, images: tuple[str, ...], config: cri.PodSandboxConfig, words: str
) -> None:
    before = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest())
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, config)
    code, text = refused(error.value)
    assert words in text
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()) == before


def image_mount(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"container_path": "/i", "readonly": True, "image": cri.ImageSpec(image="busybox")}
    return {"mounts": [cri.Mount(**{**fields, **changes})]}


BAD_CONTAINERS: list[tuple[dict[str, Any], str]] = [
    ({"linux": {"apparmor": localhost("web")}}, "does not run AppArmor"),
    ({"linux": {"apparmor_profile": "localhost/web"}}, "does not run AppArmor"),
    ({"linux": {"apparmor_profile": "web"}}, "is not unconfined"),
    ({"linux": {"selinux_options": cri.SELinuxOption(level="s0,c4,c5")}}, "is not a level"),
    ({"linux": {"seccomp": localhost("/no/such.json")}}, "/no/such.json cannot be read: No such file"),
    ({"linux": {"seccomp": localhost("/etc/passwd")}}, "seccomp profile /etc/passwd: not valid JSON"),
    (
        {"linux": {"capabilities": cri.Capability(add_ambient_capabilities=["FLY"])}},
        "'FLY' is not a Linux capability",
    ),
    (
        {"linux": {"namespace_options": cri.NamespaceOption(userns_options=USERNS)}},
        "a pod's containers share its user namespace",
    ),
    ({"CDI_devices": [cri.CDIDevice(name="gpu")]}, "'gpu' is not of the form"),
    ({"CDI_devices": [cri.CDIDevice(name="nobody.example/gpu=0")]}, "no specification on this machine describes it"),
    (image_mount(readonly=False), "readonly: is not set"),
    (image_mount(host_path="/tmp"), "set only one of them"),
    (image_mount(image=cri.ImageSpec(image="none:1")), "is not on this machine"),
    (image_mount(image_sub_path="../etc"), "is not a relative path inside the image"),
    (image_mount(image_sub_path="no/such"), "is not in the image"),
    (image_mount(image_sub_path="etc/passwd"), "is not a directory in the image"),
    (
        {"mounts": [cri.Mount(container_path="/m", host_path="/tmp", uidMappings=IDS, gidMappings=IDS)]},
        "must be those of the sandbox's user namespace",
    ),
    (
        {"mounts": [cri.Mount(container_path="/m", host_path="/tmp", recursive_read_only=True)]},
        "is set, but readonly is not",
    ),
    (
        {
            "mounts": [
                cri.Mount(
                    container_path="/m",
                    host_path="/tmp",
                    readonly=True,
                    recursive_read_only=True,
                    propagation=cri.PROPAGATION_HOST_TO_CONTAINER,
                )
            ]
        },
        "is set, but propagation is not PRIVATE",
    ),
    (
        {"mounts": [cri.Mount(container_path="/m", host_path="/proc", propagation=cri.PROPAGATION_BIDIRECTIONAL)]},
        "BIDIRECTIONAL propagation needs a source on a shared mount",
    ),
    ({"devices": [cri.Device(container_path="/d", host_path="/dev/none", permissions="r")]}, "cannot be used"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_CONTAINERS, ids=[words for _, words in BAD_CONTAINERS])
def test_a_container_that_cannot_be_secured_as_asked_is_refused_when_created(
    bed: Testbed, shared_pod: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, shared_pod, scripted("true", **changes))
    code, text = refused(error.value)
    assert words in text
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_a_user_that_the_namespace_does_not_map_is_refused(bed: Testbed, mapped_pod: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, mapped_pod, scripted("true", linux={"run_as_user": cri.Int64Value(value=65536)}))
    assert "user 65536 does not exist in the pod's user namespace" in refused(error.value)[1]


def test_hugepage_limits_are_set_where_they_can_be(bed: Testbed, shared_pod: str) -> None:
    config = scripted("exec sleep 1000")
    config.linux.resources.hugepage_limits.add(page_size="2MB", limit=2 << 20)
    roots = (Path("/sys/fs/cgroup/hugetlb"), Path("/sys/fs/cgroup"))
    if not any("hugetlb" in name.name for root in roots if root.is_dir() for name in root.iterdir()):
        container_id = run_container(bed, shared_pod, config)
        assert "this machine has no hugetlb" in bed.log_tail(100)
        assert "hugepageLimits" not in container_info(bed, container_id)["runtimeSpec"]["linux"]["resources"]
        return
    container_id = run_container(bed, shared_pod, config)
    limits = container_info(bed, container_id)["runtimeSpec"]["linux"]["resources"]["hugepageLimits"]
    assert limits == [{"pageSize": "2MB", "limit": 2 << 20}]

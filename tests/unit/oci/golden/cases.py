"""The inputs of the golden runtime specs beside this file, one function a case.

After a change that is meant to change specs, rewrite them and read the difference before it is committed:

    python -m tests.unit.oci.golden.cases
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sandboxd.model import SandboxRecord
from sandboxd.oci import linux, users
from sandboxd.oci.container import container_spec
from sandboxd.oci.linux import DeviceNode, HostFacts, Json, MountSource
from sandboxd.oci.sandbox import sandbox_spec
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places

DIRECTORY = Path(__file__).parent
SANDBOX_ID = "5a" * 32
SANDBOX_DIR = f"/run/sandboxd/sandboxes/{SANDBOX_ID}"
CONTAINER_ID = "c0" * 32
ROOT = users.User(uid=0, gid=0, additional_gids=(0,), username="root", home="/root")

HOST = HostFacts(
    hostname="node-1",
    machine="x86_64",
    capabilities=frozenset(linux.ALL_CAPABILITIES),
    oom_score_adj=-500,
    can_lower_oom_score_adj=True,
    cgroup_v2=False,
)
V2_HOST = replace(HOST, cgroup_v2=True, cgroup2_options=("nsdelegate",), recursive_read_only=True)
PAUSE_IMAGE = {"Entrypoint": ["/pause", "-P"]}
NGINX_IMAGE = {
    "Entrypoint": ["/docker-entrypoint.sh"],
    "Cmd": ["nginx", "-g", "daemon off;"],
    "Env": ["PATH=/usr/sbin:/usr/bin", "NGINX_VERSION=1.27.0"],
    "WorkingDir": "/srv",
}


def places_on(host: HostFacts) -> Places:
    """What is where on `host`: machines with cgroup v2 mostly have systemd."""
    return Places(
        root="/var/lib/sandboxd",
        state="/run/sandboxd",
        netns="/run/netns",
        cgroup_driver="systemd" if host.cgroup_v2 else "cgroupfs",
        cgroup_parent="/sandboxd",
    )


def pod_config(**linux_config: object) -> cri.PodSandboxConfig:
    """A pod's config with these members of LinuxPodSandboxConfig."""
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u-1"),
        hostname="web-0",
        log_directory="/var/log/pods/web",
        linux=cri.LinuxPodSandboxConfig(**linux_config),  # type: ignore[arg-type]
    )


def pod_context(**context: object) -> cri.PodSandboxConfig:
    """A pod's config with these members of its security context."""
    return pod_config(security_context=cri.LinuxSandboxSecurityContext(**context))  # type: ignore[arg-type]


def record(config: cri.PodSandboxConfig | None = None) -> SandboxRecord:
    """A running sandbox with that config."""
    config = config or pod_config()
    host_network = config.linux.security_context.namespace_options.network == cri.NODE
    return SandboxRecord(
        id=SANDBOX_ID,
        config=config,
        runtime_handler="",
        netns_path="" if host_network else f"/run/netns/{SANDBOX_ID}",
        created_at=1,
        pid=4242,
        started_at=2,
    )


def pause(config: cri.PodSandboxConfig | None = None, *, host: HostFacts = HOST) -> Json:
    """The spec of a pod's pause container."""
    return sandbox_spec(
        record(config),
        places=places_on(host),
        image=PAUSE_IMAGE,
        image_name="builtin",
        user=ROOT,
        host=host,
    )


def workload(
    config: cri.ContainerConfig | None = None,
    *,
    pod: cri.PodSandboxConfig | None = None,
    host: HostFacts = HOST,
    user: users.User = ROOT,
    image: Json = NGINX_IMAGE,
    target_pid: int = 0,
    volumes: dict[str, str] | None = None,
) -> Json:
    """The spec of a workload container."""
    return container_spec(
        CONTAINER_ID,
        config or cri.ContainerConfig(metadata=cri.ContainerMetadata(name="nginx")),
        sandbox=record(pod),
        places=places_on(host),
        image=image,
        image_name="registry.example/nginx:1.27",
        user=user,
        host=host,
        target_pid=target_pid,
        volumes=volumes,
    )


def in_context(**context: object) -> cri.ContainerConfig:
    """A container's config with these members of its security context."""
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="nginx"),
        linux=cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(**context)  # type: ignore[arg-type]
        ),
    )


def _pause_default() -> Json:
    return pause()


def _pause_host_namespaces_v2() -> Json:
    modes = cri.NamespaceOption(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE)
    config = pod_context(namespace_options=modes)
    config.linux.cgroup_parent = "/kubepods.slice/kubepods-pod1.slice"
    config.linux.resources.cpu_shares = 512
    return pause(config, host=replace(V2_HOST, can_lower_oom_score_adj=False))


def _container_default() -> Json:
    return workload()


def _container_full_v2() -> Json:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="app", attempt=3),
        command=["/bin/app"],
        args=["--listen", ":80"],
        working_dir="/work",
        tty=True,
        envs=[cri.KeyValue(key="NGINX_VERSION", value=b"overridden"), cri.KeyValue(key="A", value=b"x=y")],
        mounts=[
            cri.Mount(container_path="/data/cache/", host_path="/srv/cache"),
            cri.Mount(container_path="/data", host_path="/srv/link", readonly=True, recursive_read_only=True),
            cri.Mount(container_path="/mnt", host_path="/srv/shared", propagation=cri.PROPAGATION_HOST_TO_CONTAINER),
            cri.Mount(container_path="/etc/hosts", host_path="/srv/hosts"),
        ],
        devices=[cri.Device(container_path="/dev/thing", host_path="/dev/thing", permissions="rw")],
        linux=cri.LinuxContainerConfig(
            resources=cri.LinuxContainerResources(
                cpu_period=100_000,
                cpu_quota=50_000,
                cpu_shares=512,
                cpuset_cpus="0-1",
                memory_limit_in_bytes=64 << 20,
                oom_score_adj=985,
                unified={"memory.high": "60000000"},
            ),
            security_context=cri.LinuxContainerSecurityContext(
                capabilities=cri.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["mknod", "NET_RAW"]),
                namespace_options=cri.NamespaceOption(pid=cri.CONTAINER),
                readonly_rootfs=True,
                no_new_privs=True,
                masked_paths=["/proc/kcore"],
                readonly_paths=["/proc/sys"],
            ),
        ),
    )
    host = replace(
        V2_HOST,
        devices={"/dev/thing": (DeviceNode(path="/dev/thing0", kind="c", major=10, minor=7),)},
        mount_sources={
            "/srv/link": MountSource(path="/srv/real"),
            "/srv/shared": MountSource(path="/srv/shared", slave=True),
        },
    )
    user = users.User(uid=1000, gid=1000, additional_gids=(1000, 2000))
    return workload(config, host=host, user=user, volumes={"/var/lib/app": "/vol/1"})


def _container_privileged() -> Json:
    host = replace(HOST, host_devices=(DeviceNode(path="/dev/kvm", kind="c", major=10, minor=232, gid=36),))
    config = in_context(privileged=True, namespace_options=cri.NamespaceOption(pid=cri.NODE))
    modes = cri.NamespaceOption(pid=cri.NODE)
    return workload(config, pod=pod_context(privileged=True, namespace_options=modes), host=host)


def _container_seccomp() -> Json:
    return workload(in_context(seccomp=cri.SecurityProfile()))


USERNS = cri.UserNamespace(
    mode=cri.POD,
    uids=[cri.IDMapping(host_id=100000, container_id=0, length=65536)],
    gids=[cri.IDMapping(host_id=200000, container_id=0, length=65536)],
)
CONFINED_HOST = replace(
    V2_HOST,
    apparmor=True,
    apparmor_loaded=frozenset({"web"}),
    selinux=linux.SelinuxContexts(process="system_u:system_r:container_t:s0", file="system_u:object_r:files_t:s0"),
    seccomp_profile={"defaultAction": "SCMP_ACT_LOG", "syscalls": []},
    annotations=("vendor.example/*",),
)


def userns_pod(**modes: object) -> cri.PodSandboxConfig:
    """A pod's config with a user namespace and these members of NamespaceOption."""
    return pod_context(namespace_options=cri.NamespaceOption(userns_options=USERNS, **modes))  # type: ignore[arg-type]


def _pause_userns() -> Json:
    return pause(userns_pod())


def _pause_userns_host_network_v2() -> Json:
    return pause(userns_pod(network=cri.NODE), host=V2_HOST)


def _container_userns_v2() -> Json:
    mapping = [*USERNS.uids]
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="app"),
        command=["/bin/app"],
        mounts=[
            cri.Mount(container_path="/data", host_path="/srv/data", uidMappings=mapping, gidMappings=[*USERNS.gids]),
            cri.Mount(container_path="/models", readonly=True, image=cri.ImageSpec(image="models")),
        ],
    )
    host = replace(V2_HOST, mapped_mounts={0: "/run/sandboxd/idmapped/c0/mount-0"}, image_volumes={1: "/volumes/m"})
    return workload(config, pod=userns_pod(), host=host)


def _container_confined() -> Json:
    localhost = cri.SecurityProfile.Localhost
    config = in_context(
        seccomp=cri.SecurityProfile(profile_type=localhost, localhost_ref="/p.json"),
        apparmor=cri.SecurityProfile(profile_type=localhost, localhost_ref="web"),
        selinux_options=cri.SELinuxOption(level="s0:c1,c2"),
        capabilities=cri.Capability(drop_capabilities=["ALL"], add_ambient_capabilities=["NET_BIND_SERVICE"]),
    )
    config.annotations.update({"vendor.example/a": "1", "other": "2"})
    return workload(config, host=CONFINED_HOST, user=users.User(uid=1000, gid=1000, additional_gids=(1000,)))


CASES: dict[str, Callable[[], Json]] = {
    "pause-default": _pause_default,
    "pause-host-namespaces-v2": _pause_host_namespaces_v2,
    "pause-userns": _pause_userns,
    "pause-userns-host-network-v2": _pause_userns_host_network_v2,
    "container-default": _container_default,
    "container-full-v2": _container_full_v2,
    "container-privileged": _container_privileged,
    "container-seccomp": _container_seccomp,
    "container-userns-v2": _container_userns_v2,
    "container-confined": _container_confined,
}


def text(case: str) -> str:
    """The golden file's content for a case, computed now."""
    return json.dumps(CASES[case](), indent=1) + "\n"


def main() -> None:
    """Rewrite every golden file, and remove those that no case makes."""
    for stale in set(DIRECTORY.glob("*.json")) - {DIRECTORY / f"{case}.json" for case in CASES}:
        stale.unlink()
    for case in CASES:
        (DIRECTORY / f"{case}.json").write_text(text(case), encoding="utf-8")


if __name__ == "__main__":
    main()

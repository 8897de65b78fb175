"""The runtime spec of a workload container: its config over its image's defaults, in its pod's namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.model import SandboxRecord
from sandboxd.oci import files, linux, lsm, pinned, seccomp, userns
from sandboxd.oci import sandbox as pod
from sandboxd.oci.linux import HOST, NEW, HostFacts, Json, MountSource
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places

_PROPAGATION: dict[int, str] = {
    cri.PROPAGATION_PRIVATE: "rprivate",
    cri.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    cri.PROPAGATION_BIDIRECTIONAL: "rshared",
}


def container_spec(
    container_id: str,
    config: cri.ContainerConfig,
    *,
    sandbox: SandboxRecord,
    places: Places,
    image: Mapping[str, Any],
    image_name: str,
    user: User,
    host: HostFacts,
    target_pid: int = 0,
    volumes: Mapping[str, str] | None = None,
) -> Json:
    """The runtime spec for a container of a running `sandbox`; both configs must have been validated.

    `image` is the `config` object of the image (Entrypoint, Cmd, Env, WorkingDir, Volumes). `target_pid`
    is the process whose pid namespace to join when the pid mode is TARGET. `volumes` gives a host directory for each
    of `image_volumes()`.

    Raises InvalidRequest when there is no command or a mount's source does not allow its propagation; Unsupported
    for what this machine cannot do.
    """
    context = config.linux.security_context
    privileged = context.privileged
    held = _capabilities(context, host)
    ambient = linux.ambient_names(context.capabilities.add_ambient_capabilities, held)
    ids = userns.of(sandbox.config)
    userns.check_user(user, ids)
    device_nodes, device_rules = linux.devices(config.devices, host, privileged=privileged)
    # On v1 a cgroup namespace would not hide the host's named hierarchies.
    own_cgroups = host.cgroup_v2 and not privileged
    masked, readonly = _guarded_paths(context, ids)
    spec: Json = {
        "ociVersion": linux.OCI_VERSION,
        "process": {
            "terminal": config.tty,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
            "args": _args(config, image),
            "env": _env(config, sandbox, image, host),
            "cwd": linux.clean(config.working_dir or image.get("WorkingDir") or "/"),
            "capabilities": linux.capabilities(held, ambient),
            "noNewPrivileges": context.no_new_privs,
            # Set even when it is 0, or the container would inherit the daemon's own value.
            "oomScoreAdj": linux.oom_score_adj(config.linux.resources.oom_score_adj, host),
        },
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "mounts": _mounts(config, sandbox, places, host, volumes or {}, own_cgroups=own_cgroups),
        "annotations": {
            **linux.passed_on(config.annotations, host.annotations),
            "io.kubernetes.cri.container-type": "container",
            **pod.identity(sandbox),
            "io.kubernetes.cri.container-name": config.metadata.name,
            "io.kubernetes.cri.image-name": image_name,
        },
        "linux": {
            "namespaces": linux.namespaces(
                {
                    "user": pod.user_namespace(sandbox, places),
                    "mount": NEW,
                    "pid": _pid_namespace(context.namespace_options, sandbox, target_pid),
                    **_pod_namespaces(sandbox, places),
                    "cgroup": NEW if own_cgroups else HOST,
                }
            ),
            "cgroupsPath": places.cgroups_path(sandbox, container_id),
            "resources": {"devices": device_rules, **linux.first_resources(config.linux.resources, host)},
            "devices": device_nodes,
            "maskedPaths": masked,
            "readonlyPaths": readonly,
        },
    }
    if propagation := _rootfs_propagation(config):
        spec["linux"]["rootfsPropagation"] = propagation
    if profile := seccomp.for_context(context, held, host):
        spec["linux"]["seccomp"] = profile
    pod.confine(spec, lsm.apparmor(context, host), labels(config, sandbox, host))
    pod.map_ids(spec, ids)
    return spec


def labels(config: cri.ContainerConfig, sandbox: SandboxRecord, host: HostFacts) -> lsm.Labels:
    """The container's SELinux labels; `selinux_relabel` gives host files the mount's."""
    context = config.linux.security_context
    options = sandbox.config.linux.security_context.selinux_options
    return lsm.selinux(context.selinux_options, options, sandbox.id, host, privileged=context.privileged)


def image_volumes(config: cri.ContainerConfig, image: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of the image's volumes on which the request mounts nothing: each needs a host directory."""
    mounted = {linux.clean(mount.container_path) for mount in config.mounts}
    declared = {linux.clean(path) for path in image.get("Volumes") or ()}
    return tuple(sorted(declared - mounted - {"/"}))


# --- process ---------------------------------------------------------------------------------------------------


def _args(config: cri.ContainerConfig, image: Mapping[str, Any]) -> list[str]:
    """`command` replaces the image's entrypoint and command, `args` only its command.

    An entrypoint of one empty word is none: it is how a Dockerfile takes away that of its base image.
    """
    if config.command:
        return [*config.command, *config.args]
    entrypoint = list(image.get("Entrypoint") or ())
    args = [*(entrypoint if entrypoint != [""] else ()), *(config.args or image.get("Cmd") or ())]
    if not args:
        raise InvalidRequest("config.command: is empty, and the image has neither an entrypoint nor a command")
    return args


def _env(config: cri.ContainerConfig, sandbox: SandboxRecord, image: Mapping[str, Any], host: HostFacts) -> list[str]:
    return linux.environment(
        [
            linux.DEFAULT_PATH,
            *(["TERM=xterm"] if config.tty else []),
            f"HOSTNAME={sandbox.config.hostname or host.hostname}",
            *(image.get("Env") or ()),
            *(f"{item.key}={item.value.decode()}" for item in config.envs),
        ]
    )


def _capabilities(context: cri.LinuxContainerSecurityContext, host: HostFacts) -> list[str]:
    if context.privileged:
        return linux.capability_names(add=["ALL"], drop=[], own=host.capabilities)
    asked = context.capabilities
    return linux.capability_names(
        # An ambient capability must be permitted as well (capabilities(7)).
        add=[*asked.add_capabilities, *asked.add_ambient_capabilities],
        drop=asked.drop_capabilities,
        own=host.capabilities,
    )


# --- namespaces ------------------------------------------------------------------------------------------------


def _pod_namespaces(sandbox: SandboxRecord, places: Places) -> dict[str, str | None]:
    """The namespaces that a container always shares with its pod.

    The network namespace is joined by its pinned path, which stays valid when the pause process dies and its pid
    is reused; only that process holds the others, unless they are pinned as well.
    """
    if sandbox.pinned:
        return {"network": sandbox.netns_path or HOST, "uts": HOST, "ipc": HOST, **pinned.pins(sandbox, places)}
    modes = sandbox.config.linux.security_context.namespace_options
    host_network = modes.network == cri.NODE
    return {
        "network": HOST if host_network else sandbox.netns_path,
        "uts": HOST if host_network else _of_pid(sandbox.pid, "uts"),
        "ipc": HOST if modes.ipc == cri.NODE else _of_pid(sandbox.pid, "ipc"),
    }


def _pid_namespace(modes: cri.NamespaceOption, sandbox: SandboxRecord, target_pid: int) -> str | None:
    match modes.pid:
        case cri.CONTAINER:
            return NEW
        case cri.TARGET:
            return _of_pid(target_pid, "pid")
        case cri.NODE:
            return HOST
    sandbox_modes = sandbox.config.linux.security_context.namespace_options
    if sandbox.pinned and sandbox_modes.pid != cri.NODE:
        raise Unsupported(
            "config.linux.security_context.namespace_options.pid: is POD, but this pod was asked for without a shared"
            " pid namespace and has no pause container to hold one: use CONTAINER, or POD for the pod too"
        )
    return HOST if sandbox_modes.pid == cri.NODE else _of_pid(sandbox.pid, "pid")


def _of_pid(pid: int, kind: str) -> str:
    if pid <= 0:
        # A caller's mistake; "" or "/proc/0" here would silently give the container a wrong namespace.
        raise ValueError(f"the {kind} namespace to join belongs to no running process (pid {pid})")
    return f"/proc/{pid}/ns/{kind}"


# --- filesystem ------------------------------------------------------------------------------------------------


def _guarded_paths(
    context: cri.LinuxContainerSecurityContext, ids: userns.IdMap | None
) -> tuple[list[str], list[str]]:
    """(masked, readonly) paths.

    If the request lists any, exactly those. Empty lists are ambiguous, since protobuf cannot distinguish them from
    unset ones. kubelet sends empty lists only for `procMount: Unmasked`, which it accepts only for pods with a user
    namespace; other clients (crictl, scripts) send them because they do not set the fields. So empty lists mean the
    defaults, unless the container is privileged or in a user namespace.
    """
    if context.privileged:
        return [], []
    if not context.masked_paths and not context.readonly_paths and ids is None:
        return list(linux.DEFAULT_MASKED_PATHS), list(linux.DEFAULT_READONLY_PATHS)
    return list(context.masked_paths), list(context.readonly_paths)


def _mounts(
    config: cri.ContainerConfig,
    sandbox: SandboxRecord,
    places: Places,
    host: HostFacts,
    volumes: Mapping[str, str],
    *,
    own_cgroups: bool,
) -> list[Json]:
    """All mounts, parents before children; where two have the same destination, the request's wins.

    If the request mounts /dev, that mount brings its own pts, shm and mqueue; ours would only hide them.
    """
    context = config.linux.security_context
    requested = [_requested_mount(i, mount, host) for i, mount in enumerate(config.mounts)]
    taken = {mount["destination"] for mount in requested}
    pseudo = [
        linux.proc(),
        linux.dev(),
        linux.dev_pts(ids.gids.length) if (ids := userns.of(sandbox.config)) else linux.dev_pts(),
        linux.dev_mqueue(),
        pod.sysfs(sandbox, host, writable=context.privileged),
        linux.cgroup(writable=context.privileged, options=() if own_cgroups else host.cgroup2_options),
    ]
    if "/dev" in taken:
        pseudo = [mount for mount in pseudo if not mount["destination"].startswith("/dev/")]
    access = "ro" if context.readonly_rootfs else "rw"
    # The flags of the file system that holds the files: in a user namespace a mount cannot drop any.
    options = ["rprivate", access, "nosuid", "nodev", "noexec"]
    ours = [linux.bind(f"{places.pod_files(sandbox.id)}/{name}", f"/etc/{name}", options) for name in files.NAMES]
    ours.append(linux.bind(pod.shm(sandbox, places), "/dev/shm", ["rprivate", "rw"]))
    ours += [linux.bind(source, linux.clean(path), ["rprivate", "rw"]) for path, source in sorted(volumes.items())]
    defaults = [mount for mount in (*pseudo, *ours) if mount["destination"] not in taken]
    # A default must not follow a requested mount below it. The sort is stable, so equals keep their order.
    return sorted((*defaults, *requested), key=lambda mount: linux.depth(mount["destination"]))


def _requested_mount(index: int, mount: cri.Mount, host: HostFacts) -> Json:
    if mount.recursive_read_only and not host.recursive_read_only:
        raise Unsupported(
            f"config.mounts: {mount.container_path}: recursive_read_only needs Linux 5.12 and a runtime that"
            " supports rro"
        )
    access = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    options = [_PROPAGATION[mount.propagation], access]
    if linux.shows_image(mount):
        source = host.image_volumes[index]
        options += ["nosuid", "nodev"]  # the source's own: in a user namespace a mount cannot drop any
    else:
        source = host.mapped_mounts.get(index, _host_source(mount, host))
    return linux.bind(source, linux.clean(mount.container_path), options)


def _host_source(mount: cri.Mount, host: HostFacts) -> str:
    """The host path with symlinks resolved. Raises InvalidRequest when it cannot propagate as requested."""
    source = host.mount_sources.get(mount.host_path) or MountSource(path=mount.host_path)
    if mount.propagation == cri.PROPAGATION_BIDIRECTIONAL and not source.shared:
        raise InvalidRequest(
            f"config.mounts: {mount.host_path}: BIDIRECTIONAL propagation needs a source on a shared mount"
            f" (mount --make-shared), and {source.path} is not on one"
        )
    if mount.propagation == cri.PROPAGATION_HOST_TO_CONTAINER and not (source.shared or source.slave):
        raise InvalidRequest(
            f"config.mounts: {mount.host_path}: HOST_TO_CONTAINER propagation needs a source on a shared or slave"
            f" mount (mount --make-shared), and {source.path} is not on one"
        )
    return source.path


def _rootfs_propagation(config: cri.ContainerConfig) -> str:
    """The widest propagation of any mount: the root above a mount limits how far it propagates."""
    modes = {mount.propagation for mount in config.mounts}
    if cri.PROPAGATION_BIDIRECTIONAL in modes:
        return "rshared"
    return "rslave" if cri.PROPAGATION_HOST_TO_CONTAINER in modes else ""

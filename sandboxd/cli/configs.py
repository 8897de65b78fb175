"""CRI messages from flags, or from crictl's JSON and YAML files."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from sandboxd.cli import parse
from sandboxd.pb.cri.v1 import api_pb2 as cri

LOG_ROOT = "/var/log/pods"
RECORD_CHANGES = ("sandboxd.io/record-changes", "true")  # the annotation of a pod

M = TypeVar("M", bound=Message)

_UNKNOWN_FIELD = re.compile(r'no field named "(?P<field>[^"]*)"(?: at "(?P<where>[^"]*)")?')
_KNOWN_FIELDS = re.compile(r"Available Fields\(except extensions\): (?P<fields>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFlags:
    """A pod as `run` describes it. `seccomp` and `apparmor` are parse.UNCONFINED, or "" for the runtime's default."""

    name: str
    namespace: str
    uid: str
    hostname: str = ""
    ports: Sequence[cri.PortMapping] = ()
    dns_servers: Sequence[str] = ()
    dns_searches: Sequence[str] = ()
    host_network: bool = False
    seccomp: str = ""
    apparmor: str = ""
    labels: Sequence[tuple[str, str]] = ()
    annotations: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFlags:
    """A container as `run` describes it. Mount sources are absolute here.

    `seccomp` and `apparmor` are parse.UNCONFINED, an absolute file or a profile's name, or "" for the runtime's
    default.
    """

    name: str
    image: str
    image_as_typed: str = ""
    entrypoint: str = ""
    args: Sequence[str] = ()
    envs: Sequence[tuple[str, str]] = ()
    mounts: Sequence[parse.MountFlag] = ()
    cpu: parse.CpuFlag | None = None
    memory: int = 0  # bytes, 0 is no limit
    user: parse.UserFlag | None = None
    workdir: str = ""
    tty: bool = False
    seccomp: str = ""
    apparmor: str = ""
    labels: Sequence[tuple[str, str]] = ()
    annotations: Sequence[tuple[str, str]] = ()


def image_name(reference: str) -> str:
    """The last part of an image reference, the default name of a container.

    "docker.io/library/nginx:1.27@sha256:…" → "nginx". A bare digest or id gives "container".
    """
    path = reference.split("@", 1)[0]
    last = path.rsplit("/", 1)[-1].split(":", 1)[0]
    if last == "sha256" or re.fullmatch(r"[0-9a-f]{12,64}", last):
        return "container"
    name = re.sub(r"[^a-z0-9-]+", "-", last.lower()).strip("-")
    return name or "container"


def pod_config(flags: PodFlags) -> cri.PodSandboxConfig:
    """The pod's config, with the labels by which crictl shows the pod of a container."""
    own = {
        "io.kubernetes.pod.name": flags.name,
        "io.kubernetes.pod.namespace": flags.namespace,
        "io.kubernetes.pod.uid": flags.uid,
    }
    network = cri.NODE if flags.host_network else cri.POD
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=flags.name, namespace=flags.namespace, uid=flags.uid),
        # CRI: empty only for a pod in the host's network.
        hostname=flags.hostname or ("" if flags.host_network else flags.name),
        log_directory=f"{LOG_ROOT}/{flags.namespace}_{flags.name}_{flags.uid}",
        port_mappings=flags.ports,
        labels={**own, **dict(flags.labels)},
        annotations=dict(flags.annotations),
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(network=network, pid=cri.CONTAINER, ipc=cri.POD),
                seccomp=_profile(flags.seccomp),
                apparmor=_profile(flags.apparmor),
            )
        ),
    )
    if flags.dns_servers or flags.dns_searches:
        config.dns_config.CopyFrom(cri.DNSConfig(servers=flags.dns_servers, searches=flags.dns_searches))
    return config


def joined_config(status: cri.PodSandboxStatus, info: Mapping[str, Any]) -> cri.PodSandboxConfig:
    """The config of an existing pod, which CreateContainer requires again.

    Taken from the daemon's verbose status ("config", or "info" → "config" as in containerd). For a runtime without
    it, built from the plain status, with log_directory by our own convention.
    """
    nested = info.get("info")
    reported = info.get("config") or (nested.get("config") if isinstance(nested, Mapping) else None)
    if isinstance(reported, Mapping):
        try:
            return json_format.ParseDict(dict(reported), cri.PodSandboxConfig(), ignore_unknown_fields=True)
        except json_format.ParseError:
            pass  # another runtime's format: the plain status is good enough
    meta = status.metadata
    options = status.linux.namespaces.options
    return cri.PodSandboxConfig(
        metadata=meta,
        hostname="" if options.network == cri.NODE else meta.name,
        log_directory=f"{LOG_ROOT}/{meta.namespace}_{meta.name}_{meta.uid}",
        labels=status.labels,
        annotations=status.annotations,
        linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options)),
    )


def container_config(flags: ContainerFlags, pod: cri.PodSandboxConfig) -> cri.ContainerConfig:
    """The container's config: in its pod's namespaces, with its log below the pod's log directory."""
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=flags.memory)
    if flags.cpu:
        resources.cpu_period = parse.CPU_PERIOD
        resources.cpu_quota = flags.cpu.quota
        resources.cpu_shares = flags.cpu.shares
    security = cri.LinuxContainerSecurityContext(
        namespace_options=pod.linux.security_context.namespace_options,
        seccomp=_profile(flags.seccomp),
        apparmor=_profile(flags.apparmor),
    )
    if flags.user:
        security.run_as_username = flags.user.name
        if flags.user.uid is not None:
            security.run_as_user.value = flags.user.uid
        if flags.user.gid is not None:
            security.run_as_group.value = flags.user.gid
    own = {
        "io.kubernetes.container.name": flags.name,
        "io.kubernetes.pod.name": pod.metadata.name,
        "io.kubernetes.pod.namespace": pod.metadata.namespace,
        "io.kubernetes.pod.uid": pod.metadata.uid,
    }
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=flags.name),
        image=cri.ImageSpec(image=flags.image, user_specified_image=flags.image_as_typed or flags.image),
        command=[flags.entrypoint] if flags.entrypoint else [],
        args=flags.args,
        working_dir=flags.workdir,
        envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in flags.envs],
        mounts=[
            cri.Mount(host_path=each.source, container_path=each.target, readonly=each.readonly)
            for each in flags.mounts
        ],
        labels={**own, **dict(flags.labels)},
        annotations=dict(flags.annotations),
        log_path=f"{flags.name}/0.log",
        tty=flags.tty,
        linux=cri.LinuxContainerConfig(resources=resources, security_context=security),
    )


def _profile(flag: str) -> cri.SecurityProfile:
    """The profile for a flag, RuntimeDefault without one: in CRI, no seccomp profile would mean unconfined.

    On a machine without AppArmor, its RuntimeDefault means no profile.
    """
    if not flag:
        return cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    if flag == parse.UNCONFINED:
        return cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)
    return cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=flag)


def from_file(text: str, message: M, source: str) -> M:
    """Fill `message` from JSON or YAML, with field names as in the .proto file or in camelCase.

    Raises ValueError for text that is not JSON or YAML or not a mapping, and for a field that is unknown or of
    another type; the message begins with `source`.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    except Exception as error:  # whatever PyYAML's constructors stumble over
        raise ValueError(f"{source} is not YAML: a value is not what its tag says, or it nests too deeply") from error
    if not isinstance(data, dict):
        raise ValueError(f"{source} must be a mapping of fields, like crictl's files")
    if isinstance(message, cri.ContainerConfig):
        data = _with_env_as_text(data)
    try:
        return json_format.ParseDict(data, message)
    except RecursionError as error:
        raise ValueError(f"{source} nests too deeply, or contains itself") from error
    except json_format.ParseError as error:
        raise ValueError(f"{source}: {_explain(str(error))}") from error


def _with_env_as_text(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with base64 in envs[].value, where crictl's files have plain text.

    The field is bytes since cri-api 0.36.6 (it was a string before), which protobuf's JSON encodes in base64.
    """
    envs = data.get("envs")
    if not isinstance(envs, list):
        return data
    return {**data, "envs": [_env_as_text(env) for env in envs]}


def _env_as_text(env: Any) -> Any:
    if not isinstance(env, dict) or not isinstance(env.get("value"), str):
        return env
    return {**env, "value": base64.b64encode(env["value"].encode()).decode()}


def _explain(text: str) -> str:
    unknown = _UNKNOWN_FIELD.search(text)
    if not unknown:
        return " ".join(text.split())
    where = f" in {unknown['where']}" if unknown["where"] else ""
    fields = _KNOWN_FIELDS.search(text)
    names = ", ".join(re.findall(r"\w+", fields["fields"])) if fields else ""
    return f'unknown field "{unknown["field"]}"{where}' + (f"; the fields are: {names}" if names else "")

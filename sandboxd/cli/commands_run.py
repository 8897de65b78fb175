"""`run`, `runp` and `create`: creating pods and containers."""

from __future__ import annotations

import functools
import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TypeVar

import click
import grpc
from google.protobuf.message import Message

from sandboxd.cli import configs, names, parse, pulling, render
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.session import (
    PAIR,
    Parsed,
    Session,
    emit,
    named,
    note,
    output_option,
    pass_session,
    quiet_option,
    show,
    working,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri

F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M", bound=Message)

# Flags of `run` that describe a new pod, and are invalid for an existing one.
_POD_FLAGS = ("ports", "hostname", "dns_servers", "dns_searches", "host_network", "handler", "record_changes")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pod:
    """The pod of the container."""

    id: str
    config: cri.PodSandboxConfig
    ours: bool  # created by this command, and removed if the container does not start


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("image")
@click.argument("args", nargs=-1, metavar="[-- CMD...]")
@click.option("--name", default="", help="Of the container, and of the pod if --pod is not given.")
@click.option("--pod", "pod_ref", default="", metavar="NAME|ID", help="Join this pod, or give the new one this name.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of the pod.")
@click.option(
    "-p",
    "--port",
    "ports",
    multiple=True,
    type=Parsed("[IP:]HOST:CONTAINER[/udp]", parse.port),
    help="Forward a port of this host to the pod. Repeatable, like the next ones.",
)
@click.option("-e", "--env", "envs", multiple=True, type=PAIR, help="Set an environment variable.")
@click.option(
    "-v",
    "--mount",
    "mounts",
    multiple=True,
    type=Parsed("SRC:DST[:ro]", parse.mount),
    help="Mount a file or directory of this host in the container.",
)
@click.option("--label", "labels", multiple=True, type=PAIR, help="Label the container, and a new pod.")
@click.option("--annotation", "annotations", multiple=True, type=PAIR, help="Annotate them.")
@click.option("--cpu", type=Parsed("NUMBER", parse.cpu), help="Limit of CPUs, like 0.5.")
@click.option("--memory", type=Parsed("SIZE", parse.size), default=0, help="Limit of memory, like 256M.")
@click.option("--hostname", default="", help="Of the pod; its name by default.")
@click.option("--dns", "dns_servers", multiple=True, metavar="IP", help="A name server; the host's by default.")
@click.option("--dns-search", "dns_searches", multiple=True, metavar="DOMAIN", help="A domain to search names in.")
@click.option("--host-network", is_flag=True, help="Use the host's network: the pod has no address of its own.")
@click.option("--record-changes", is_flag=True, help="Record what the pod's network changes: explain --changes.")
@click.option("--handler", default="", help="The runtime handler; the daemon's default by default.")
@click.option(
    "-u", "--user", type=Parsed("UID|NAME[:GID]", parse.user), help="User to run as; the image's by default."
)
@click.option("-w", "--workdir", default="", help="Working directory; the image's by default.")
@click.option("--entrypoint", default="", metavar="PROGRAM", help="Replace the image's; CMD are its arguments.")
@click.option(
    "--security-opt",
    "security",
    multiple=True,
    type=Parsed("seccomp|apparmor=PROFILE", parse.security),
    help="Instead of the runtime's default: seccomp=unconfined or a profile's file, apparmor=unconfined or a"
    " loaded profile's name.",
)
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option(
    "--pull",
    type=click.Choice(("missing", "always", "never")),
    default="missing",
    show_default=True,
    help="When to fetch the image from its registry.",
)
@quiet_option
@output_option
@pass_session
@click.pass_context
def run(
    ctx: click.Context,
    session: Session,
    image: str,
    args: tuple[str, ...],
    name: str,
    pod_ref: str,
    namespace: str,
    ports: tuple[cri.PortMapping, ...],
    envs: tuple[tuple[str, str], ...],
    mounts: tuple[parse.MountFlag, ...],
    labels: tuple[tuple[str, str], ...],
    annotations: tuple[tuple[str, str], ...],
    cpu: parse.CpuFlag | None,
    memory: int,
    hostname: str,
    dns_servers: tuple[str, ...],
    dns_searches: tuple[str, ...],
    host_network: bool,
    record_changes: bool,
    handler: str,
    user: parse.UserFlag | None,
    workdir: str,
    entrypoint: str,
    security: tuple[parse.SecurityFlag, ...],
    tty: bool,
    pull: str,
    quiet: bool,
    form: str | None,
) -> None:
    """Start a container, in a pod of its own or in the one that --pod names.

    \b
        sandboxctl run nginx --name web --port 8080:80
        sandboxctl run busybox --pod web -- wget -qO- 127.0.0.1
    """
    if ports and host_network:
        raise click.UsageError("--port and --host-network exclude each other: such a container uses the host's ports")
    seccomp, apparmor = _profile_of("seccomp", security), _profile_of("apparmor", security)
    image_id = _image_id(session, image, pull, quiet=quiet)
    joined = _joined(session, pod_ref, namespace)
    base = name or configs.image_name(image)
    if joined:
        own = [each for each in _POD_FLAGS if ctx.params[each]]
        if own:
            raise click.UsageError(_belongs_to_pod(ctx, own[0], joined.config.metadata.name))
        pod, container_name = joined, name or _free_name(session, joined.id, base)
    else:
        space, slash, pod_name = pod_ref.rpartition("/")
        flags = configs.PodFlags(
            name=pod_name or name or f"{base}-{secrets.token_hex(3)}",
            namespace=space if slash else namespace,
            uid=str(uuid.uuid4()),
            hostname=hostname,
            ports=ports,
            dns_servers=dns_servers,
            dns_searches=dns_searches,
            host_network=host_network,
            # A profile applies to the container only; unconfined applies to the pod too, for machines without any.
            seccomp=seccomp if seccomp == parse.UNCONFINED else "",
            apparmor=apparmor if apparmor == parse.UNCONFINED else "",
            labels=labels,
            annotations=(*annotations, *([configs.RECORD_CHANGES] if record_changes else [])),
        )
        if name and not pod_ref:
            _require_free(session, flags)
        pod, container_name = _run_pod(session, configs.pod_config(flags), handler, ours=True), base
    flags_of_container = configs.ContainerFlags(
        name=container_name,
        image=image_id,
        image_as_typed=image,
        entrypoint=entrypoint,
        args=args,
        envs=envs,
        mounts=[replace(each, source=os.path.abspath(each.source)) for each in mounts],
        cpu=cpu,
        memory=memory,
        user=user,
        workdir=workdir,
        tty=tty,
        seccomp=seccomp if seccomp in ("", parse.UNCONFINED) else os.path.abspath(seccomp),
        apparmor=apparmor,
        labels=labels,
        annotations=annotations,
    )
    container_id = _start_in(session, pod, configs.container_config(flags_of_container, pod.config))
    if quiet:
        click.echo(container_id)
        return
    status = session.pod_statuses([pod.id]).get(pod.id, cri.PodSandboxStatus())
    meta = pod.config.metadata
    if form:
        emit(
            {
                "podSandboxId": pod.id,
                "pod": meta.name,
                "namespace": meta.namespace,
                "containerId": container_id,
                "container": container_name,
                "network": render.as_dict(status.network),
            },
            form,
        )
        return
    mapped = ", ".join(render.port(each) for each in pod.config.port_mappings)
    show(
        render.facts(
            [
                ("pod", f"{meta.namespace}/{meta.name}  {pod.id[: names.SHORT_ID]}"),
                ("container", f"{container_name}  {container_id[: names.SHORT_ID]}"),
                ("ip", ", ".join(render.addresses(status)) or render.address(status)),
                *([("ports", mapped)] if mapped else []),
            ]
        )
    )


@click.command()
@click.option("-r", "--runtime", "handler", default="", help="The runtime handler; the daemon's default by default.")
@click.argument("pod_file", metavar="POD.JSON", type=click.File(encoding="utf-8"))
@pass_session
def runp(session: Session, handler: str, pod_file: IO[str]) -> None:
    """Create a pod from crictl's JSON or YAML file; "-" is stdin. Prints its id."""
    config = _read(pod_file, cri.PodSandboxConfig())
    click.echo(_run_pod(session, config, handler, ours=False).id)


@click.command()
@click.argument("pod", metavar="POD")
@click.argument("container_file", metavar="CONTAINER.JSON", type=click.File(encoding="utf-8"))
@click.argument("pod_file", metavar="POD.JSON", type=click.File(encoding="utf-8"))
@pass_session
def create(session: Session, pod: str, container_file: IO[str], pod_file: IO[str]) -> None:
    """Create a container in a pod from crictl's two JSON or YAML files, without starting it. Prints its id."""
    config = _read(container_file, cri.ContainerConfig())
    pod_config = _read(pod_file, cri.PodSandboxConfig())
    sandbox = session.pod(pod)
    click.echo(_create(session, sandbox.id, names.pod_name(sandbox), config, pod_config))


def _image_id(session: Session, image: str, pull: str, *, quiet: bool) -> str:
    """The id of the image, pulled as `pull` says."""
    present = session.image(image) if pull != "always" else None
    if present is not None:
        return present.id
    if pull != "never":
        return pulling.pull(session, image, None, quiet=quiet).image_id
    hint = "`sandboxctl images` lists the images here; `sandboxctl pull` and `sandboxctl load FILE` add more"
    raise Failure(f"image {image} is not on this machine", exit_code=Exit.NOT_FOUND, hint=hint)


def _profile_of(module: str, flags: tuple[parse.SecurityFlag, ...]) -> str:
    """The profile that --security-opt gives for "seccomp" or "apparmor", "" without one."""
    profiles = [flag.profile for flag in flags if flag.module == module]
    if len(profiles) > 1:
        raise click.UsageError(f"--security-opt gives {module} twice")
    return profiles[0] if profiles else ""


def _read(file: IO[str], message: M) -> M:
    try:
        return configs.from_file(file.read(), message, file.name)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error


def _joined(session: Session, reference: str, namespace: str) -> _Pod | None:
    """The pod that --pod names, or None if there is none; a reference that is clearly an id must exist."""
    if not reference:
        return None
    try:
        with named():
            pod = names.find_pod(reference, session.pods(), namespace)
    except Failure as failure:
        if failure.exit_code == Exit.NOT_FOUND and not names.looks_like_id(reference):
            return None
        raise
    answer = session.daemon.call(
        session.daemon.runtime.PodSandboxStatus,
        cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True),
        f"look at pod {names.pod_name(pod)}",
    )
    config = configs.joined_config(answer.status, render.info_dict(answer.info))
    return _Pod(id=pod.id, config=config, ours=False)


def _belongs_to_pod(ctx: click.Context, param_name: str, pod: str) -> str:
    flag = next(param for param in ctx.command.params if param.name == param_name).opts[-1]
    shown = render.printable(pod)
    return f"{flag} describes a new pod, and pod {shown} exists: leave it out, or choose another name for --pod"


def _free_name(session: Session, pod_id: str, base: str) -> str:
    """A name that is unique in the pod, so that `run` can be repeated."""
    containers = session.containers(cri.ContainerFilter(pod_sandbox_id=pod_id))
    return f"{base}-{secrets.token_hex(3)}" if base in {item.metadata.name for item in containers} else base


def _require_free(session: Session, flags: configs.PodFlags) -> None:
    """Raise Failure if the name is taken: CRI allows two pods of one name, but for a person it is a mistake."""
    for pod in session.pods():
        if (pod.metadata.namespace, pod.metadata.name) == (flags.namespace, flags.name):
            full = names.pod_name(pod)
            hint = f"`sandboxctl rm -f {full}` removes it; --pod {full} puts the container into it"
            raise Failure(f"pod {full} already exists", hint=hint)


def _run_pod(session: Session, config: cri.PodSandboxConfig, handler: str, *, ours: bool) -> _Pod:
    full = f"{config.metadata.namespace}/{config.metadata.name}"
    unfinished = (
        f"the daemon may still be creating pod {full}: see `sandboxctl pods`; `sandboxctl rm -f {full}` removes it"
    )
    try:
        with working(f"Creating pod {full}"):
            answer = session.daemon.call(
                session.daemon.runtime.RunPodSandbox,
                cri.RunPodSandboxRequest(config=config, runtime_handler=handler),
                f"create pod {full}",
            )
    except KeyboardInterrupt:
        note(unfinished)
        raise
    except Failure as failure:
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            failure.hint = unfinished
        raise
    return _Pod(id=answer.pod_sandbox_id, config=config, ours=ours)


def _create(
    session: Session, pod_id: str, pod: str, config: cri.ContainerConfig, pod_config: cri.PodSandboxConfig
) -> str:
    answer = session.daemon.call(
        session.daemon.runtime.CreateContainer,
        cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod_config),
        f"create container {config.metadata.name} in pod {pod}",
    )
    return answer.container_id


def _start_in(session: Session, pod: _Pod, config: cri.ContainerConfig) -> str:
    """Create and start the container; on a failure, remove what this command created."""
    container_id = ""
    full = f"{pod.config.metadata.namespace}/{pod.config.metadata.name}"
    name = f"{pod.config.metadata.name}/{config.metadata.name}"
    try:
        with working(f"Starting {name}"):
            container_id = _create(session, pod.id, full, config, pod.config)
            session.daemon.call(
                session.daemon.runtime.StartContainer,
                cri.StartContainerRequest(container_id=container_id),
                f"start container {name}",
            )
    except (Failure, KeyboardInterrupt):
        if pod.ours:
            _undo(f"pod {full}", pod.id, functools.partial(session.remove_pod, pod.id, full, running=True))
        elif container_id:
            remove = functools.partial(session.remove_container, container_id, name, running=False)
            _undo(f"container {name}", container_id, remove)
        raise
    return container_id


def _undo(what: str, identity: str, remove: Callable[[], None]) -> None:
    try:
        remove()
    except Failure as failure:
        note(f"sandboxctl: {what} was created, and could not be removed: {failure.message}")
        note(f"  `sandboxctl rm -f {identity[: names.SHORT_ID]}` tries again")
    else:
        note(f"sandboxctl: {what} was created, and has been removed")

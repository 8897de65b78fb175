"""What every command shares: the connection, lookups by name, the terminal, and the flags that recur.

stdout carries the answer and nothing else; progress and remarks go to stderr, progress only to a terminal.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console, RenderableType
from rich.text import Text

from sandboxd.cli import names, parse, render
from sandboxd.cli.client import Daemon, Exit, Failure
from sandboxd.pb.cri.v1 import api_pb2 as cri

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_WIDE = 4000  # columns when nobody's terminal limits them: a pipe must get whole values


class Session:
    """One run of sandboxctl."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    # ---- What there is

    def pods(self, selected: cri.PodSandboxFilter | None = None) -> list[cri.PodSandbox]:
        """The pods that the filter lets through, newest first."""
        answer = self.daemon.call(
            self.daemon.runtime.ListPodSandbox, cri.ListPodSandboxRequest(filter=selected), "list the pods"
        )
        return sorted(answer.items, key=lambda pod: (-pod.created_at, pod.id))

    def containers(self, selected: cri.ContainerFilter | None = None) -> list[cri.Container]:
        """The containers that the filter lets through, newest first."""
        answer = self.daemon.call(
            self.daemon.runtime.ListContainers,
            cri.ListContainersRequest(filter=selected),
            "list the containers",
        )
        return sorted(answer.containers, key=lambda each: (-each.created_at, each.id))

    def pod_statuses(self, ids: Iterable[str]) -> dict[str, cri.PodSandboxStatus]:
        """Statuses by id, asked for side by side; a pod that has gone meanwhile is left out."""
        requests = [cri.PodSandboxStatusRequest(pod_sandbox_id=each) for each in dict.fromkeys(ids)]
        answers = self.daemon.each(self.daemon.runtime.PodSandboxStatus, requests, "look at the pods")
        return {answer.status.id: answer.status for answer in answers if answer is not None}

    def container_statuses(self, ids: Iterable[str]) -> dict[str, cri.ContainerStatus]:
        """The same for containers."""
        requests = [cri.ContainerStatusRequest(container_id=each) for each in ids]
        answers = self.daemon.each(self.daemon.runtime.ContainerStatus, requests, "look at the containers")
        return {answer.status.id: answer.status for answer in answers if answer is not None}

    def image(self, reference: str) -> cri.Image | None:
        """The image that goes by this name or id; None when there is none."""
        answer = self.daemon.call(
            self.daemon.images.ImageStatus,
            cri.ImageStatusRequest(image=cri.ImageSpec(image=reference)),
            f"look for image {reference}",
        )
        return answer.image if answer.HasField("image") else None

    # ---- What is meant

    def pod(self, reference: str) -> cri.PodSandbox:
        """The pod that is meant. Raises Failure, as the next two do, when it is none or several."""
        with named():
            return names.find_pod(reference, self.pods())

    def container(self, reference: str) -> cri.Container:
        """The container that is meant."""
        with named():
            return names.find_container(reference, self.containers(), self.pods())

    def pod_or_container(self, reference: str) -> cri.PodSandbox | cri.Container:
        """The pod or container that is meant."""
        with named():
            return names.find(reference, self.pods(), self.containers())

    # ---- What more than one command does. `label` is what messages call the object.

    def stop_pod(self, pod_id: str, label: str) -> None:
        """Stop all that runs in the pod, and free its network."""
        with working(f"Stopping {label}"):
            request = cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)
            self.daemon.call(self.daemon.runtime.StopPodSandbox, request, f"stop pod {label}")

    def remove_pod(self, pod_id: str, label: str, *, running: bool) -> None:
        """Remove the pod and its containers, stopping it first when it runs."""
        if running:
            self.stop_pod(pod_id, label)
        with working(f"Removing {label}"):
            request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
            self.daemon.call(self.daemon.runtime.RemovePodSandbox, request, f"remove pod {label}")

    def stop_container(self, container_id: str, label: str, grace: int) -> None:
        """Stop the container; it has `grace` seconds to end by itself."""
        with working(f"Stopping {label}"):
            request = cri.StopContainerRequest(container_id=container_id, timeout=grace)
            doing = f"stop container {label}"
            self.daemon.call(self.daemon.runtime.StopContainer, request, doing, extra=grace)

    def remove_container(self, container_id: str, label: str, *, running: bool) -> None:
        """Remove the container, killing it first when it runs."""
        if running:
            self.stop_container(container_id, label, grace=0)
        with working(f"Removing {label}"):
            request = cri.RemoveContainerRequest(container_id=container_id)
            self.daemon.call(self.daemon.runtime.RemoveContainer, request, f"remove container {label}")


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Turn a failed lookup by name into a Failure."""
    try:
        yield
    except names.NoMatch as error:
        hint = "`sandboxctl pods` and `sandboxctl ps -a` list what there is"
        raise Failure(str(error), exit_code=Exit.NOT_FOUND, hint=hint) from error
    except names.SeveralMatch as error:
        raise Failure(str(error)) from error


def for_each(things: Sequence[T], action: Callable[[T], str]) -> None:
    """Do it to each, print what it gives, go on past failures, and end with the first failure's exit code."""
    first: Failure | None = None
    for thing in things:
        try:
            done = action(thing)
        except Failure as failure:
            failure.show()
            first = first or failure
            if failure.exit_code == Exit.UNREACHABLE:
                break
        else:
            click.echo(render.printable(done))
    if first:
        raise click.exceptions.Exit(first.exit_code)


# ---- Talking to people and programs


def now() -> int:
    """Unix nanoseconds."""
    return time.time_ns()


def emit(data: Any, form: str) -> None:
    """Print an answer for programs."""
    click.echo(render.dump(data, form), nl=False)


def show(what: RenderableType) -> None:
    """Print an answer for people: fitted to the terminal, or whole when there is none."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what, soft_wrap=isinstance(what, Text))
        return
    plain = io.StringIO()
    Console(file=plain, width=_WIDE, highlight=False, color_system=None).print(what, soft_wrap=isinstance(what, Text))
    for line in plain.getvalue().splitlines():
        click.echo(line.rstrip())


def note(text: str) -> None:
    """A remark beside the answer."""
    click.echo(render.printable(text), err=True)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something is going on, while it is, if somebody watches."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(Text(render.printable(text))):
        yield


# ---- Flags

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]  # generic in the stubs of click 8.4, and not at run time before
else:
    _ParamType = click.ParamType


class Parsed(_ParamType):
    """A flag whose text one of parse.py's functions reads."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PAIR = Parsed("KEY=VALUE", parse.pair)

pass_session = click.make_pass_decorator(Session)


def output_option(command: F) -> F:
    """-o json|yaml."""
    text = "For programs: everything, as JSON or YAML."
    return click.option("-o", "--output", "form", type=click.Choice(("json", "yaml")), help=text)(command)


def quiet_option(command: F) -> F:
    """-q."""
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only.")(command)


def with_network(message: cri.PodSandbox | cri.Container, status: cri.PodSandboxStatus | None) -> Mapping[str, Any]:
    """The JSON of a listed pod or container, and the pod's network as its status has it."""
    network = status.network if status is not None else cri.PodSandboxNetworkStatus()
    return {**render.as_dict(message), "network": render.as_dict(network)}

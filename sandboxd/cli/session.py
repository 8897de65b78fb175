"""Shared by all commands: the connection, lookups by name, the terminal, and common flags.

stdout gets the answer and nothing else; progress and remarks go to stderr, progress only to a terminal.
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
from sandboxd.pb.host.v1 import host_pb2 as host

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_PIPE_COLUMNS = 4000  # when stdout is not a terminal: a pipe must get whole values


class Session:
    """One run of sandboxctl."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    # --- lists and statuses ------------------------------------------------------------------------------------

    def pods(self, selected: cri.PodSandboxFilter | None = None) -> list[cri.PodSandbox]:
        """The pods that match the filter, newest first."""
        answer = self.daemon.call(
            self.daemon.runtime.ListPodSandbox, cri.ListPodSandboxRequest(filter=selected), "list the pods"
        )
        return sorted(answer.items, key=lambda pod: (-pod.created_at, pod.id))

    def containers(self, selected: cri.ContainerFilter | None = None) -> list[cri.Container]:
        """The containers that match the filter, newest first."""
        answer = self.daemon.call(
            self.daemon.runtime.ListContainers,
            cri.ListContainersRequest(filter=selected),
            "list the containers",
        )
        return sorted(answer.containers, key=lambda container: (-container.created_at, container.id))

    def pod_statuses(self, ids: Iterable[str]) -> dict[str, cri.PodSandboxStatus]:
        """Statuses by id, requested concurrently; a pod that no longer exists is omitted."""
        requests = [cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id) for pod_id in dict.fromkeys(ids)]
        answers = self.daemon.each(self.daemon.runtime.PodSandboxStatus, requests, "look at the pods")
        return {answer.status.id: answer.status for answer in answers if answer is not None}

    def container_statuses(self, ids: Iterable[str]) -> dict[str, cri.ContainerStatus]:
        """The same for containers."""
        requests = [cri.ContainerStatusRequest(container_id=container_id) for container_id in ids]
        answers = self.daemon.each(self.daemon.runtime.ContainerStatus, requests, "look at the containers")
        return {answer.status.id: answer.status for answer in answers if answer is not None}

    def debts(self) -> list[host.Debt]:
        """What stopped and removed pods owe their networks, oldest first."""
        return list(self.daemon.call(self.daemon.host.ListDebts, host.ListDebtsRequest(), "list the debts").debts)

    def operations(self) -> host.ListOperationsResponse:
        """The requests under way, and those that failed."""
        request = host.ListOperationsRequest()
        return self.daemon.call(self.daemon.host.ListOperations, request, "list the operations")

    def image(self, reference: str) -> cri.Image | None:
        """The image with this name or id; None if there is none."""
        answer = self.daemon.call(
            self.daemon.images.ImageStatus,
            cri.ImageStatusRequest(image=cri.ImageSpec(image=reference)),
            f"look for image {reference}",
        )
        return answer.image if answer.HasField("image") else None

    # --- lookups by reference ----------------------------------------------------------------------------------

    def pod(self, reference: str) -> cri.PodSandbox:
        """The pod that `reference` means. Raises Failure, as the next two do, if it is none or several."""
        with named():
            return names.find_pod(reference, self.pods())

    def container(self, reference: str) -> cri.Container:
        """The container that `reference` means."""
        with named():
            return names.find_container(reference, self.containers(), self.pods())

    def pod_or_container(self, reference: str) -> cri.PodSandbox | cri.Container:
        """The pod or container that `reference` means."""
        with named():
            return names.find(reference, self.pods(), self.containers())

    # --- shared operations; `label` names the object in messages -----------------------------------------------

    def stop_pod(self, pod_id: str, label: str) -> None:
        """Stop the pod's containers and release its network."""
        with working(f"Stopping {label}"):
            request = cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)
            self.daemon.call(self.daemon.runtime.StopPodSandbox, request, f"stop pod {label}")

    def remove_pod(self, pod_id: str, label: str, *, running: bool) -> None:
        """Remove the pod and its containers; stop it first if it is running."""
        if running:
            self.stop_pod(pod_id, label)
        with working(f"Removing {label}"):
            request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
            self.daemon.call(self.daemon.runtime.RemovePodSandbox, request, f"remove pod {label}")

    def stop_container(self, container_id: str, label: str, grace: int) -> None:
        """Stop the container; it has `grace` seconds to stop by itself."""
        with working(f"Stopping {label}"):
            request = cri.StopContainerRequest(container_id=container_id, timeout=grace)
            doing = f"stop container {label}"
            self.daemon.call(self.daemon.runtime.StopContainer, request, doing, extra=grace)

    def remove_container(self, container_id: str, label: str, *, running: bool) -> None:
        """Remove the container; kill it first if it is running."""
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
        hint = "`sandboxctl pods` and `sandboxctl ps -a` list pods and containers"
        raise Failure(str(error), exit_code=Exit.NOT_FOUND, hint=hint) from error
    except names.SeveralMatch as error:
        raise Failure(str(error)) from error


def for_each(things: Sequence[T], action: Callable[[T], str]) -> None:
    """Run the action on each and print its result; continue after failures, and exit with the first one's code."""
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


# --- output ----------------------------------------------------------------------------------------------------


def now() -> int:
    """Unix nanoseconds."""
    return time.time_ns()


def emit(data: Any, form: str) -> None:
    """Print an answer for programs."""
    click.echo(render.dump(data, form), nl=False)


def show(what: RenderableType) -> None:
    """Print an answer for people, fitted to the terminal; without a terminal, at full width."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what, soft_wrap=isinstance(what, Text))
        return
    plain = io.StringIO()
    Console(file=plain, width=_PIPE_COLUMNS, highlight=False, color_system=None).print(
        what, soft_wrap=isinstance(what, Text)
    )
    for line in plain.getvalue().splitlines():
        click.echo(line.rstrip())


def note(text: str) -> None:
    """Print a remark to stderr."""
    click.echo(render.printable(text), err=True)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show `text` with a spinner during the block, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(Text(render.printable(text))):
        yield


# --- flags -----------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]  # generic in the stubs of click 8.4, but not at run time before
else:
    _ParamType = click.ParamType


class Parsed(_ParamType):
    """A flag that one of parse.py's functions parses."""

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
    text = "Print everything as JSON or YAML, for programs."
    return click.option("-o", "--output", "form", type=click.Choice(("json", "yaml")), help=text)(command)


def quiet_option(command: F) -> F:
    """-q."""
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only.")(command)


def with_network(message: cri.PodSandbox | cri.Container, status: cri.PodSandboxStatus | None) -> Mapping[str, Any]:
    """The JSON of a listed pod or container, with the network from the pod's status."""
    network = status.network if status is not None else cri.PodSandboxNetworkStatus()
    return {**render.as_dict(message), "network": render.as_dict(network)}

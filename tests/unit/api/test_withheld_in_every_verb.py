"""Something breaks inside each verb while it has a secret in its hands; nobody but the client gets to see that.

The servicers are the daemon's, behind its edge; the resources that they need raise whatever the test says. What is
private is in the requests (values of variables, credentials, commands) and in the objects that they name. Looked
through is everything that others may read: the log in each of its formats, the timelines, what `explain` and a
verbose status show, and the errors.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.message import Message

from sandboxd import complaints, disclosure, steps, syscalls
from sandboxd import config as configuration
from sandboxd.__main__ import _configure_logging
from sandboxd.api import services, views, withheld
from sandboxd.api.edge import Edge
from sandboxd.daemon import _log_step
from sandboxd.errors import NotReady
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.insight.audit import Auditor
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.machine import facts as machine
from sandboxd.model import ContainerRecord, ImageRecord, SandboxRecord
from sandboxd.node import Load, Machine, Network, Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc as cri_grpc
from sandboxd.pb.host.v1 import host_pb2, host_pb2_grpc
from sandboxd.places import Places
from sandboxd.registry.client import Registries

SECRET = "hunter2-" + "s3cr3t"  # never in this form in a source line that a traceback could show
SECONDS = 20  # after which a call without an answer is a failed test
POD, MADE, RUNNING, ENDED = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)

AUTH = cri.AuthConfig(username="me", password=SECRET, identity_token=SECRET + "-i", registry_token=SECRET + "-r")
CONFIG = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="new"),
    image=cri.ImageSpec(image="busybox"),
    envs=[cri.KeyValue(key="PASSWORD", value=SECRET.encode())],
    command=["mysql", f"-p{SECRET}"],
    args=[SECRET],
)
POD_CONFIG = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="new", namespace="n", uid="u"))
NETWORK = SimpleNamespace(config=SimpleNamespace(name="net", source="net.conflist", plugins=()), problems=())
LIMITS = cri.LinuxContainerResources(cpu_shares=512)

# One request for each verb that can fail; the others have nothing to fail at.
REQUESTS: dict[str, Message] = {
    "Status": cri.StatusRequest(verbose=True),
    "RunPodSandbox": cri.RunPodSandboxRequest(config=POD_CONFIG),
    "StopPodSandbox": cri.StopPodSandboxRequest(pod_sandbox_id=POD),
    "RemovePodSandbox": cri.RemovePodSandboxRequest(pod_sandbox_id=POD),
    "PodSandboxStatus": cri.PodSandboxStatusRequest(pod_sandbox_id=POD, verbose=True),
    "ListPodSandbox": cri.ListPodSandboxRequest(),
    "StreamPodSandboxes": cri.StreamPodSandboxesRequest(),
    "CreateContainer": cri.CreateContainerRequest(pod_sandbox_id=POD, config=CONFIG, sandbox_config=POD_CONFIG),
    "StartContainer": cri.StartContainerRequest(container_id=MADE),
    "StopContainer": cri.StopContainerRequest(container_id=RUNNING),
    "RemoveContainer": cri.RemoveContainerRequest(container_id=ENDED),
    "ListContainers": cri.ListContainersRequest(),
    "StreamContainers": cri.StreamContainersRequest(),
    "ContainerStatus": cri.ContainerStatusRequest(container_id=RUNNING, verbose=True),
    "UpdateContainerResources": cri.UpdateContainerResourcesRequest(container_id=RUNNING, linux=LIMITS),
    "ReopenContainerLog": cri.ReopenContainerLogRequest(container_id=RUNNING),
    "ExecSync": cri.ExecSyncRequest(container_id=RUNNING, cmd=["mysql", f"-p{SECRET}"]),
    "Exec": cri.ExecRequest(container_id=RUNNING, cmd=["mysql", f"-p{SECRET}"], stdout=True),
    "Attach": cri.AttachRequest(container_id=RUNNING, stdout=True),
    "PortForward": cri.PortForwardRequest(pod_sandbox_id=POD, port=[80]),
    "ContainerStats": cri.ContainerStatsRequest(container_id=RUNNING),
    "ListContainerStats": cri.ListContainerStatsRequest(),
    "StreamContainerStats": cri.StreamContainerStatsRequest(),
    "PodSandboxStats": cri.PodSandboxStatsRequest(pod_sandbox_id=POD),
    "ListPodSandboxStats": cri.ListPodSandboxStatsRequest(),
    "StreamPodSandboxStats": cri.StreamPodSandboxStatsRequest(),
    "UpdateRuntimeConfig": cri.UpdateRuntimeConfigRequest(
        runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.0.0.0/24"))
    ),
    "CheckpointContainer": cri.CheckpointContainerRequest(container_id=RUNNING, location="/var/lib/x/y.tar"),
    "GetContainerEvents": cri.GetEventsRequest(),
    "ListPodSandboxMetrics": cri.ListPodSandboxMetricsRequest(),
    "StreamPodSandboxMetrics": cri.StreamPodSandboxMetricsRequest(),
    "RuntimeConfig": cri.RuntimeConfigRequest(),
    "UpdatePodSandboxResources": cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=POD, resources=LIMITS),
    "ListImages": cri.ListImagesRequest(),
    "StreamImages": cri.StreamImagesRequest(),
    "ImageStatus": cri.ImageStatusRequest(image=cri.ImageSpec(image="busybox"), verbose=True),
    "PullImage": cri.PullImageRequest(image=cri.ImageSpec(image="busybox"), auth=AUTH),
    "RemoveImage": cri.RemoveImageRequest(image=cri.ImageSpec(image="busybox")),
    "ImageFsInfo": cri.ImageFsInfoRequest(),
    "Host.PullImage": host_pb2.PullImageRequest(image="busybox", auth=AUTH),
    "Host.SaveImage": host_pb2.SaveImageRequest(images=["busybox"]),
    "Host.Explain": host_pb2.ExplainRequest(pod_sandbox_id=POD),
    "Host.ListOperations": host_pb2.ListOperationsRequest(),
    "Host.ReadLogs": host_pb2.ReadLogsRequest(container_id=RUNNING, follow=True),
    "Host.Metrics": host_pb2.MetricsRequest(),
    "Host.ListDebts": host_pb2.ListDebtsRequest(),
    "Host.RetryDebt": host_pb2.RetryDebtRequest(pod_sandbox_id=POD),
    "Host.ForgiveDebt": host_pb2.ForgiveDebtRequest(pod_sandbox_id=POD),
    "Host.Audit": host_pb2.AuditRequest(),
    "Host.PodNetwork": host_pb2.PodNetworkRequest(pod_sandbox_id=POD),
    "Host.Replay": host_pb2.ReplayRequest(pod_sandbox_id=POD, name="cni.add", started_at=1),
    "Host.Doctor": host_pb2.DoctorRequest(pod_sandbox_id=POD),
}
NOTHING_TO_FAIL_AT = {"Version", "ListMetricDescriptors", "Host.LoadImage"}  # the last takes archives, no secrets
NOTHING_BREAKS = {"RuntimeConfig", "UpdateRuntimeConfig"}


# What breaks, in how many ways.


def _plain(request: object) -> Exception:
    return RuntimeError("boom")


def _key(request: object) -> Exception:
    return KeyError(SECRET)


def _number(request: object) -> Exception:
    try:
        int(SECRET)
    except ValueError as exc:
        return exc
    raise AssertionError


def _request(request: object) -> Exception:
    return TypeError(f"unexpected {request!r} {request}")


def _deep(request: object) -> Exception:
    def deeper(password: str) -> None:
        deeper(password)

    try:
        deeper(SECRET)
    except RecursionError as exc:
        return exc
    raise AssertionError


def _caused(request: object) -> Exception:
    error = NotReady("refused")
    error.__cause__ = KeyError(SECRET)
    return error


def _group(request: object) -> Exception:
    error = ExceptionGroup("some", [KeyError(SECRET), ValueError(SECRET)])
    error.add_note(f"with {SECRET}")
    return error


FAULTS = (_plain, _key, _number, _request, _deep, _caused, _group)


class Breaking:
    """A resource of which everything breaks that is not given."""

    def __init__(self, fault: Callable[[], Exception], **given: Any) -> None:
        self._fault = fault
        self._given = given

    def __getattr__(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]

        def use(*args: Any, **kwargs: Any) -> Any:
            password = [SECRET, args, kwargs]
            assert password
            raise self._fault()

        return use


class BreakingAtOnce(Breaking):
    """The same, of what is read rather than called."""

    def __getattr__(self, name: str) -> Any:
        password = [SECRET, name]
        assert password
        raise self._fault()


# What everybody may read.


class Output(io.StringIO):
    """Standard error, which is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Output]]:
    """The log as `sandboxd serve` writes it at its most talkative, in every format; "auto" finds a terminal."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    made = {form: Output(terminal=form == "auto") for form in ("console", "json", "auto")}
    chains = {form: _configured(form, output, monkeypatch) for form, output in made.items()}
    monkeypatch.setattr(sys, "stderr", made["auto"])  # for whoever does not use the log

    def write(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        for form, chain in chains.items():
            event_or_line: Any = dict(event)
            for processor in chain:
                event_or_line = processor(logger, method, event_or_line)
            made[form].write(f"{event_or_line}\n")
        raise structlog.DropEvent

    # Loggers are the modules', and outlive this test.
    structlog.configure(processors=[write], cache_logger_on_first_use=False)
    try:
        yield made
    finally:
        structlog.reset_defaults()
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


def _configured(form: str, output: Output, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the daemon does to an event on its way to this output, the line last."""
    sections = {"daemon": {"log_format": form, "log_level": "debug"}}
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", output)
        _configure_logging(configuration.merge(sections, origin="the test", flags={}))
    return list(structlog.get_config()["processors"])


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pod mounts before something breaks would be mounted on this machine."""
    monkeypatch.setattr(syscalls, "mount", lambda *args: None)


@dataclass(slots=True)
class Site:
    """The services behind the edge, and a client."""

    ledger: Ledger
    channel: grpc.aio.Channel
    jobs: Jobs

    async def call(self, verb: str, request: Message) -> str:
        """Make a call to its end; the status and words of its error, "" for none."""
        service, _, name = verb.rpartition(".")
        stubs = (
            (host_pb2_grpc.HostStub(self.channel),)
            if service
            else (cri_grpc.RuntimeServiceStub(self.channel), cri_grpc.ImageServiceStub(self.channel))
        )
        method = next(getattr(stub, name) for stub in stubs if hasattr(stub, name))
        try:
            made = method(request, timeout=SECONDS)
            if hasattr(made, "read"):
                async for _ in made:
                    if verb == "GetContainerEvents":
                        break
            else:
                await made
        except grpc.aio.AioRpcError as exc:
            return f"{exc.code().name} {exc.details()}"
        return ""

    async def shown(self) -> str:
        """What others are shown of the pods: their timelines, and why they failed."""
        explain = host_pb2_grpc.HostStub(self.channel).Explain
        found: list[object] = [[r.failure, views.timeline(self.ledger.timeline(r.id))] for r in self._pods()]
        for record in self._pods():
            try:
                found.append(await explain(host_pb2.ExplainRequest(pod_sandbox_id=record.id), timeout=SECONDS))
            except grpc.aio.AioRpcError as exc:
                found.append(exc.details())
        found += self.ledger.stories()
        return str(found)

    def _pods(self) -> list[SandboxRecord]:
        return list(self.ledger.sandboxes.values())


@asynccontextmanager
async def serving(tmp_path: Path, fault: Callable[[], Exception], ledger_too: bool) -> AsyncIterator[Site]:
    """Everything breaks but what leads to the real work; with `ledger_too` that, too."""
    # Nobody listens on these; where they belong, below the state, their paths would be too long for sockets.
    sockets = {"api": {"socket": "/nowhere/sandboxd.sock"}, "containerd": {"socket": "/nowhere/containerd.sock"}}
    places = {"daemon": {"root": str(tmp_path / "root"), "state": str(tmp_path / "state")}}
    config = configuration.merge({**places, **sockets}, origin="the test", flags={})
    (tmp_path / "root").mkdir()
    ledger, jobs = Ledger(":memory:"), Jobs()
    _records(ledger)
    image = SimpleNamespace(
        id="sha256:1", repo_digests=(), repo_tags=("busybox:latest",), config={}, digest="sha256:2", size=1
    )
    broken: dict[str, Any] = {"leases": Breaking(fault)}
    known: dict[str, Any] = {} if ledger_too else {"resolve": lambda name: image, "images": Breaking(fault)}
    images = Breaking(fault, **broken, **known)
    node = Node(
        config=config,
        jobs=jobs,
        ledger=cast(Any, BreakingAtOnce(fault)) if ledger_too else ledger,
        netns=cast(Any, Breaking(fault, exists=lambda path: True, inode=lambda path: 1)),
        network=Network(
            conf=cast(Any, Breaking(fault) if ledger_too else Breaking(fault, current=lambda: NETWORK)),
            cni=cast(Any, Breaking(fault, prepare=_prepared)),
        ),
        runtime=cast(Any, Breaking(fault, processes=Breaking(fault))),
        images=cast(Any, images),
        logs=cast(Any, Breaking(fault)),
        machine=Machine(facts=machine.facts(config), cgroups=cast(Any, Breaking(fault)), load=Load(config)),
        places=Places.of(config),
    )
    pulls = Pulls(cast(ImageStore, images), jobs, cast(Registries, Breaking(fault)))
    stop = [
        steps.subscribe(ledger.append_step),
        steps.subscribe(_log_step),
        steps.subscribe_failures(ledger.keep_story),
    ]
    edge = Edge(lambda: "", private=withheld.private(lambda: ledger.containers.values()))
    server = grpc.aio.server(interceptors=(edge,))
    other = cast(Any, Breaking(fault))

    async def pause_image() -> ImageRecord:
        return cast(ImageRecord, image)

    runtime = services.runtime_service(
        node, pause_image, other, other, other, other.trouble if ledger_too else lambda: ""
    )
    cri_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    cri_grpc.add_ImageServiceServicer_to_server(services.image_service(cast(ImageStore, images), pulls, jobs), server)
    auditor = Auditor(node, cast(ImageStore, images), str(tmp_path))
    own = services.host_service(
        node, cast(ImageStore, images), pulls, auditor, Breaking(fault).exposition, other.version
    )
    host_pb2_grpc.add_HostServicer_to_server(own, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            yield Site(ledger, channel, jobs)
    finally:
        await pulls.stop()
        await jobs.drain(SECONDS)
        await server.stop(None)
        for each in stop:
            each()


async def _prepared(network: Any, directories: Any) -> Any:
    return network


def _records(ledger: Ledger) -> None:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="there", namespace="n", uid="u"))
    ledger.add_sandbox(
        SandboxRecord(
            id=POD, config=config, runtime_handler="", netns_path="/run/netns/x", created_at=1, started_at=1, pid=1
        )
    )
    for number, container in enumerate((MADE, RUNNING, ENDED)):
        own = cri.ContainerConfig()
        own.CopyFrom(CONFIG)
        own.metadata.name = f"container-{number}"
        ledger.add_container(
            ContainerRecord(
                id=container,
                sandbox_id=POD,
                config=own,
                sandbox_name="there",
                image_ref="sha256:1",
                image_id="sha256:1",
                log_path="/var/log/there.log",
                created_at=1,
                started_at=int(container != MADE),
                finished_at=int(container == ENDED),
            )
        )


def leaks(text: str) -> list[str]:
    """What is around the secret, at the first places where it is. (pytest's own comparison would take minutes.)"""
    return [text[max(0, found.start() - 80) : found.end() + 20] for found in re.finditer(SECRET, text)][:5]


def test_every_verb_is_asked() -> None:
    calls = {
        *(method.name for name in ("RuntimeService", "ImageService") for method in _service(cri, name)),
        *(f"Host.{method.name}" for method in _service(host_pb2, "Host")),
    }

    assert set(REQUESTS) | NOTHING_TO_FAIL_AT == calls


def _service(module: Any, name: str) -> Any:
    return module.DESCRIPTOR.services_by_name[name].methods


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "asyncio debug"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
async def test_what_is_private_stays_so_whatever_breaks(
    tmp_path: Path, outputs: dict[str, Output], fault: Callable[[object], Exception], debug: bool
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(complaints.of_loop)
    loop.set_debug(debug)
    if debug:
        loop.slow_callback_duration = 0.0  # everything is slow, and asyncio says so
    made: list[Exception] = []

    def break_() -> Exception:
        made.append(fault(CONFIG))
        return made[-1]

    harmless = set(REQUESTS)
    for ledger_too in (False, True):
        place = tmp_path / str(ledger_too)
        place.mkdir()
        async with serving(place, break_, ledger_too) as site:
            for verb, request in REQUESTS.items():
                before = len(made)
                words = await site.call(verb, request)
                if len(made) > before:
                    harmless.discard(verb)

                assert not leaks(words), verb
            assert not leaks(await site.shown())
    loop.slow_callback_duration = 60.0

    assert not harmless - NOTHING_BREAKS
    for form, output in outputs.items():
        log = output.getvalue()
        assert not leaks(log), form
        if fault is not _caused:
            assert "Traceback (most recent call last)" in log, form
            assert ("[withheld]" in log) == (fault not in (_plain, _deep)), form


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
async def test_a_job_that_nobody_waits_for_tells_no_more(
    outputs: dict[str, Output], fault: Callable[[object], Exception]
) -> None:
    """What a request has started keeps the request's secrets, also when the request has ended."""
    jobs = Jobs()

    async def call() -> None:
        disclosure.withhold(lambda: withheld.in_message(CONFIG))

        async def work() -> None:
            raise fault(CONFIG)

        jobs.start(("CreateContainer", POD, CONFIG.SerializeToString()), work)

    await asyncio.create_task(call())
    await jobs.drain(SECONDS)

    for form, output in outputs.items():
        assert "job failed" in output.getvalue(), form
        assert not leaks(output.getvalue()), form

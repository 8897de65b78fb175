"""The composition root: build each object once, serve, recover, notify, drain.

The socket answers from the first moment: with UNAVAILABLE and the reason, until records and reality have been
brought together. On a machine without containerd the daemon runs and says so.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import grp
import os
import signal
import socket
import ssl
import stat
import sys
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog

import sandboxd
from sandboxd import disclosure, environment, netns, private, steps, vocabulary
from sandboxd.announce import Announcer
from sandboxd.api import services, withheld
from sandboxd.api.edge import Edge
from sandboxd.cni.conf_dir import ConfDir
from sandboxd.cni.invoker import Invoker
from sandboxd.config import Config, host_and_port
from sandboxd.containerd import bundles, managed
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.runtime import ContainerdRuntime
from sandboxd.errors import InvalidRequest, NotReady, SandboxdError, Unavailable
from sandboxd.images import leftovers, uploads
from sandboxd.images.pause import PauseImage
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.insight import tracing
from sandboxd.insight.addresses import Addresses
from sandboxd.insight.audit import Auditor
from sandboxd.insight.figures import Figures, Sources
from sandboxd.insight.metrics import CONTENT_TYPE, Metrics
from sandboxd.jobs import Jobs, described
from sandboxd.ledger import Ledger
from sandboxd.logs.client import Logs
from sandboxd.logs.process import LoggerPaths
from sandboxd.machine import facts as machine
from sandboxd.machine import handlers, room
from sandboxd.node import Load, Machine, Network, Node
from sandboxd.pb.cri.v1 import api_pb2_grpc
from sandboxd.pb.host.v1 import host_pb2_grpc
from sandboxd.places import Places
from sandboxd.pods import debts, follow, refill
from sandboxd.pods.recover import compare_forever, recover
from sandboxd.registry import credential_helper
from sandboxd.registry.client import Registries
from sandboxd.registry.docker_config import DockerConfig
from sandboxd.registry.hosts_dir import HostsDir
from sandboxd.registry.patience import Limits as PullLimits
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.ranges import Ranges
from sandboxd.reserve import Reserve
from sandboxd.streaming.link import Limits as StreamLimits
from sandboxd.streaming.server import StreamingServer
from sandboxd.timelines import Limits
from sandboxd.usage.stats import Stats
from sandboxd.usage.written import Layers

log = structlog.get_logger(__name__)

MESSAGE_BYTES = 16 << 20  # as kubelet's and crictl's own limit
RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS = 0.5, 10.0  # seconds between attempts to start
SERVER_SECONDS = 1.0  # that calls without a job get to end at shutdown
LEAVING_SECONDS = 1.0  # that closing everything may take after that
LOOK_SECONDS = 1.0  # for a containerd that is not ours to answer; then it is retried


@dataclass(slots=True)
class _Condition:
    """Why requests cannot be taken; "" when they can."""

    trouble: str = "sandboxd is starting"


async def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT. Raises NotReady when another daemon has the directories or the socket."""
    async with AsyncExitStack() as stack:
        tracing.begin(config.tracing, sandboxd.__version__, stack)
        os.umask(private.UMASK)
        places = Places.of(config)
        private.prepare(places.root, places.state, closed=places.closed)
        _lock(stack, places.lock_file)
        kept = Limits(
            number=config.failures.kept, seconds=config.failures.days * 86400, bytes=config.failures.mebibytes << 20
        )
        reserve = Reserve(places.reserve_file)
        ledger = Ledger(places.ledger_file, reserve.give_up, kept)
        stack.callback(ledger.close)
        stack.callback(steps.subscribe_failures(lambda story: _keep(ledger, story)))
        if config.insight.timeline:
            stack.callback(steps.subscribe(ledger.append_step))
        stack.callback(steps.subscribe(_log_step if config.daemon.log_level == "debug" else _log_milestone))
        client = Containerd(config.containerd_socket, config.containerd.namespace, places.owner)
        stack.push_async_callback(client.close)
        jobs = Jobs()
        logs = Logs(
            places=LoggerPaths(state=config.daemon.state),
            max_line_bytes=config.logs.max_line_bytes,
            idle_seconds=config.logs.idle_seconds,
            env=environment.child_environment(),
        )
        stack.push_async_callback(logs.leave)
        images = ImageStore(client, config.containerd.snapshotter)
        node = Node(
            config=config,
            jobs=jobs,
            ledger=ledger,
            netns=netns,
            network=Network(
                conf=ConfDir(config.network.conf_dir),
                cni=(
                    cni := Invoker(
                        config.network.plugin_seconds,
                        path=environment.plugin_path(config.network.plugin_path),
                        in_process=config.network.in_process_of,
                    )
                ),
            ),
            runtime=ContainerdRuntime(client, containerd_state(config)),
            images=images,
            logs=logs,
            machine=Machine(facts=machine.facts(config), boot=machine.boot_id(), load=Load(config), reserve=reserve),
            places=places,
        )
        condition = _Condition()
        streaming = _streaming(config, jobs)
        pulls = Pulls(images, jobs, _registries(config), layers_at_once=config.images.layers_at_once)
        pause = PauseImage(images, pulls, jobs, config.runtime)
        auditor = Auditor(node, images, bundles.directory(containerd_state(config), config.containerd.namespace))
        announcer = Announcer(node.ledger)
        edge = Edge(lambda: condition.trouble, private=withheld.private(lambda: node.ledger.containers.values()))
        sources = Sources(
            node=node,
            pulls=pulls,
            images=images.list,
            addresses=(addresses := Addresses(lambda: node.network.conf.current().config)),
            announcer=announcer,
            logs=logs,
            rpcs=edge.in_flight,
            plugins=cni.running,
            debts=lambda: debts.failed(node),
            findings=lambda: len(auditor.found),
            trouble=lambda: condition.trouble,
        )
        metrics = Metrics(sandboxd.__version__, Figures(sources))
        stack.callback(steps.subscribe_rpcs(metrics.rpc))
        stack.callback(steps.subscribe(metrics.step))
        stack.callback(steps.subscribe_operations(metrics.operation))
        stack.callback(steps.subscribe_failures(metrics.story))
        jobs.watch("addresses", addresses.watch)
        server = _server(config, node, edge, images, pause, pulls, client, streaming, announcer, metrics, auditor)
        await server.start()
        await streaming.start()
        if config.metrics.address:
            # Here and not above: most have none, and its HTTP takes its time to load.
            from sandboxd.insight.metrics_server import MetricsServer

            scraped = MetricsServer(metrics.exposition, CONTENT_TYPE)
            stack.push_async_callback(scraped.close)
            await scraped.start(*host_and_port(config.metrics.address))
        log.info("listening", socket=config.socket, root=config.daemon.root)
        stop = _stop_signals()
        jobs.start("start-up", lambda: _start_up(config, node, client, images, pause, auditor, condition, stop))
        await stop.wait()
        _last_resort(config.daemon.drain_seconds)
        _notify("STOPPING=1")
        condition.trouble = "sandboxd is shutting down"
        node.machine.load.dismiss(Unavailable(condition.trouble))
        log.info("shutting down; pods keep running", jobs=len(jobs.in_flight()))
        clock = asyncio.get_running_loop().time
        deadline = clock() + config.daemon.drain_seconds
        try:
            async with asyncio.timeout_at(deadline):
                await streaming.close()
                await pulls.stop()
        except TimeoutError:
            log.warning("streams or pulls did not end in time and were interrupted")
        left = await jobs.drain(max(0.0, deadline - clock()))
        if left:
            log.warning(
                "operations were interrupted; they are cleaned up at the next start",
                jobs=[described(k) for k in left],
            )
        await server.stop(grace=SERVER_SECONDS)
        Path(config.socket).unlink(missing_ok=True)


def _keep(ledger: Ledger, story: steps.Story) -> None:
    """Keep a failed request; what fails again and again without one (a repair, a probe's exec) is told elsewhere."""
    if story.operation not in ("recover", "Exec", refill.VERB):
        ledger.keep_story(story)


def _last_resort(drain_seconds: float) -> None:
    """Make sure that the process ends soon after the time that operations are given, whatever is still running.

    A thread in a system call or in C code cannot be stopped, and both asyncio and the interpreter wait for their
    threads without a bound. Exiting by force loses nothing: the ledger's commits are synchronous, unfinished
    operations are cleaned up at the next start as after a crash, and pods keep running.
    """

    def leave() -> None:
        log.warning("something did not end in time, exiting without it")
        sys.stderr.flush()
        os._exit(0)

    seconds = drain_seconds + SERVER_SECONDS + LEAVING_SECONDS
    timer = threading.Timer(seconds, leave)
    timer.daemon = True  # a normal exit does not wait for it
    timer.start()
    # The timer is a thread too, and does not run while another one holds the interpreter's lock. This signal's
    # default action ends the process without its help.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + LEAVING_SECONDS)


async def _start_up(
    config: Config,
    node: Node,
    client: Containerd,
    images: ImageStore,
    pause: PauseImage,
    auditor: Auditor,
    condition: _Condition,
    stop: asyncio.Event,
) -> None:
    """Bring everything up; retry until it works or `stop` is set."""
    delay = RETRY_FIRST_SECONDS
    while not stop.is_set():
        try:
            netns.prepare_directory(config.network.netns_dir)
            version = await _reach_containerd(config, client)
            await images.refresh()
            await pause.prepare()
            await node.logs.connect()
            await recover(node)
            await node.logs.retain(node.ledger.containers)
            break
        except Exception as exc:  # any error: a daemon that says why it is not ready is better than none
            expected = isinstance(exc, SandboxdError | OSError)
            words = str(exc) if expected else disclosure.sentence(exc)
            condition.trouble = f"sandboxd is starting: {words}"
            log.error("not ready yet, retrying", in_seconds=delay, error=words, exc_info=None if expected else exc)
        try:
            async with asyncio.timeout(delay):
                await stop.wait()
        except TimeoutError:
            delay = min(delay * 2, RETRY_MAX_SECONDS)
    else:
        return

    _keep_working(config, node, client, images, pause, auditor)
    condition.trouble = ""
    # What exists now lives as long as the daemon: exclude it from collections. (A full one takes 50 ms.)
    gc.collect()
    gc.freeze()
    pods = sum(each.is_shown for each in node.ledger.sandboxes.values())
    log.info("ready", containerd=version, pods=pods, containers=len(node.ledger.containers))
    _notify("READY=1")


def _keep_working(
    config: Config, node: Node, client: Containerd, images: ImageStore, pause: PauseImage, auditor: Auditor
) -> None:
    """Start what goes on for as long as the daemon runs."""

    async def keep_up() -> None:
        if config.containerd.managed:
            try:
                await _reach_containerd(config, client)
            except SandboxdError as exc:
                client.absence = str(exc)  # for Status; the watch logs it
                raise
            client.absence = ""
        else:
            await client.wait_until_serving(None)
        node.jobs.came_up("containerd")
        await follow.follow(node, client, images)

    # No archive is taken before this daemon is ready: what is there now was left.
    archives = uploads.left(node.places.uploads)
    node.jobs.background("uploads", lambda: uploads.remove(archives))
    every = config.daemon.reconcile_seconds
    node.jobs.watch("image leftovers", lambda: leftovers.clear_forever(images, node.jobs, every))
    node.jobs.start("features", lambda: handlers.ask_all(node))
    node.jobs.watch("containerd", keep_up)
    node.jobs.watch("containerd answers", lambda: follow.look(node, client))
    node.jobs.watch("logger", node.logs.keep_up)
    node.jobs.watch("audit", auditor.watch)
    node.jobs.watch("room", lambda: room.keep(node))
    node.jobs.watch("compare", lambda: compare_forever(node, every))
    if refill.is_needed(node):
        node.jobs.watch("pool", lambda: refill.keep(node, pause.get))


async def _reach_containerd(config: Config, client: Containerd) -> str:
    if config.containerd.managed:
        places = managed_places(config)
        version = await managed.ensure_running(
            client, config.containerd.binary, places, config.containerd.start_seconds, environment.child_environment()
        )
    else:
        version = await client.wait_until_serving(LOOK_SECONDS)
    return version.version


def containerd_state(config: Config) -> str:
    """containerd's state directory: that of one which is not ours is, unless it was told otherwise, its socket's."""
    return (
        managed_places(config).own_state if config.containerd.managed else str(Path(config.containerd_socket).parent)
    )


def managed_places(config: Config) -> managed.ManagedPaths:
    """Where the managed containerd keeps its things."""
    places = Places.of(config)
    return managed.ManagedPaths(
        root=places.managed_root,
        state=places.managed_state,
        socket=config.containerd_socket,
    )


def _server(
    config: Config,
    node: Node,
    edge: Edge,
    images: ImageStore,
    pause: PauseImage,
    pulls: Pulls,
    client: Containerd,
    streaming: StreamingServer,
    announcer: Announcer,
    metrics: Metrics,
    auditor: Auditor,
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=(edge,),
        options=(
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
        ),
    )
    stats = Stats(node, Layers(node))
    runtime = services.runtime_service(node, pause.get, streaming, announcer, stats, client.trouble)
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    api_pb2_grpc.add_ImageServiceServicer_to_server(services.image_service(images, pulls, node.jobs), server)

    async def containerd_version() -> str:
        return (await client.version()).version

    host = services.host_service(node, images, pulls, auditor, metrics.exposition, containerd_version)
    host_pb2_grpc.add_HostServicer_to_server(host, server)
    _bind(server, config.socket, config.api.socket_group)
    return server


def _registries(config: Config) -> Registries:
    http, https, none = environment.proxy_variables()
    return Registries(
        hosts=HostsDir(config.images.certs_dir),
        docker_config=DockerConfig(config.images.docker_config, credential_helper.run),
        proxies=Proxies(http=http, https=https, no_proxy=none),
        limits=PullLimits(progress_seconds=config.images.progress_seconds),
        ranges=Ranges(count=config.images.range_connections),
        user_agent=f"sandboxd/{sandboxd.__version__}",
    )


def _streaming(config: Config, jobs: Jobs) -> StreamingServer:
    wanted = config.streaming
    tls = None
    if wanted.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(wanted.tls_cert, wanted.tls_key)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidRequest(f"streaming.tls_cert, streaming.tls_key: cannot be used: {exc}") from exc
    limits = StreamLimits(idle=wanted.idle_seconds)
    return StreamingServer(jobs=jobs, host=wanted.address, port=wanted.port, tls=tls, limits=limits)


def _bind(server: grpc.aio.Server, path: str, group: str) -> None:
    """Listen on `path`, for root only, or for the members of `group` too."""
    gid = -1
    if group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError as exc:
            raise InvalidRequest(f"api.socket_group: there is no group {group!r}") from exc
    private.make(str(Path(path).parent), private.PASSABLE)
    _clear_stale(path)
    # Never open to others, not even for an instant.
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix://{path}")
    except RuntimeError as exc:
        raise NotReady(f"cannot listen on {path}: {exc}") from exc
    finally:
        os.umask(before)
    if group:
        os.chown(path, -1, gid)
        os.chmod(path, 0o660)


def _clear_stale(path: str) -> None:
    """Remove a socket without a listener; raises NotReady if there is one, or if it is not a socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NotReady(f"cannot listen on {path}: something that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise NotReady(f"cannot listen on {path}: another process does")


def _lock(stack: AsyncExitStack, path: str) -> None:
    """Lock the root directory for this process; the kernel releases the lock when the process ends."""
    file = stack.enter_context(open(path, "a+b", opener=private.opener))  # noqa: SIM115 - the stack closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise NotReady(f"another sandboxd is running on {Path(path).parent} (it holds {path})") from exc


def _stop_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); silently nothing when it did not start us."""
    path = environment.notify_socket()
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode(), address)
        except OSError as exc:
            log.warning("systemd could not be notified", error=str(exc))


def _log_milestone(record: steps.StepRecord) -> None:
    """What `_log_step` logs above `debug`; nothing is put together for the others, which are most."""
    if record.error or record.name in vocabulary.MILESTONES:
        _log_step(record)


def _log_step(record: steps.StepRecord) -> None:
    """A pod's life is a few lines at `info`; the steps in between are `debug`. One that fails is a warning."""
    fields = {
        "operation": record.operation or None,
        "sandbox": record.sandbox_id[:12] or None,
        "container": record.container_id[:12] or None,
        "ms": round(record.duration / 1e6, 2),
        **record.detail,
    }
    fields = {key: value for key, value in fields.items() if value is not None}
    if record.error:
        log.warning(record.name, error=record.error, **fields)
    elif record.name in vocabulary.MILESTONES:
        log.info(record.name, **fields)
    else:
        log.debug(record.name, **fields)

"""The daemon's configuration: every default and every directory in one place.

`load` merges flags over the TOML file over the defaults below and is strict: an unknown key is an error that
names the nearest known one, and the error for a wrong type says what was expected. The result is frozen and records
where each value came from (`Config.sources`), which `sandboxd config` prints.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from sandboxd.errors import InvalidRequest

DEFAULT_FILE = "/etc/sandboxd/config.toml"

MOST_PREPARED = 1000  # each has processes, a network namespace and an address of its own
_MAX_NUMBER = 2**31 - 1  # TOML has infinity and huge integers, which timers and buffers do not accept


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """[daemon]"""

    root: str = "/var/lib/sandboxd"  # survives a reboot: the ledger, pods' files, the managed containerd's content
    state: str = "/run/sandboxd"  # lost at a reboot: sockets, FIFOs, pods' shared memory
    log_level: str = field(default="info", metadata={"choices": ("debug", "info", "warning", "error")})
    log_format: str = field(default="auto", metadata={"choices": ("auto", "console", "json")})
    drain_seconds: float = 30.0  # how long SIGTERM waits for running operations
    reconcile_seconds: float = 30.0  # how often records are compared with what exists, in addition to events


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """[api]"""

    socket: str = ""  # "" is <daemon.state>/sandboxd.sock
    socket_group: str = ""  # members may connect; "" is root only


@dataclass(frozen=True, slots=True, kw_only=True)
class Containerd:
    """[containerd]"""

    managed: bool = True  # run a private containerd as a child that outlives daemon restarts
    socket: str = ""  # "" is the managed one's, or /run/containerd/containerd.sock
    binary: str = "containerd"  # of the managed one: a path, or a name looked up in PATH
    namespace: str = "sandboxd"
    snapshotter: str = "overlayfs"
    start_seconds: float = 30.0  # how long the managed one may take to answer


IN_PROCESS = ("auto", "always", "never")
PAUSE, PINNED = "pause", "pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """[network]"""

    conf_dir: str = "/etc/cni/net.d"
    conf_template: str = ""  # rendered to a .conflist when UpdateRuntimeConfig gives this machine its pod CIDR
    plugin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
    netns_dir: str = "/run/netns"
    plugin_path: str = ""  # PATH of the plugins, which look up iptables and the like by name; "" is the daemon's own
    # For one ADD, as long as a kubelet waits; then its process group is killed. A DEL has half, or all up to 120.
    plugin_seconds: float = 240.0
    # Whether the daemon itself does what `bridge` with `host-local`, and `portmap`, would do: "auto" where it does
    # exactly the same, "always" (other networks are refused), "never". One network's: [network.in_process_networks].
    in_process: str = field(default="auto", metadata={"choices": IN_PROCESS})
    # When a DEL fails: "lenient" stops the pod and keeps the DEL as a debt, "strict" makes the request fail.
    teardown: str = field(default="lenient", metadata={"choices": ("lenient", "strict")})
    in_process_networks: Mapping[str, str] = field(default_factory=dict, metadata={"choices": IN_PROCESS})

    def in_process_of(self, network: str) -> str:
        """The choice for one network, by its name: one of IN_PROCESS."""
        return self.in_process_networks.get(network, self.in_process)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """[runtime.handlers.NAME]: one way to run a pod"""

    type: str = "io.containerd.runc.v2"  # the containerd shim
    binary: str = ""  # the OCI runtime; "" is the shim's default, runc
    root: str = ""  # where the OCI runtime keeps its state; "" is the shim's default
    annotations: tuple[str, ...] = ()  # globs: these annotations of pods and containers reach the runtime's spec
    # What holds a pod's namespaces: "pause", a container, or "pinned", mounts, for pods that need no such container.
    sandbox_mode: str = field(default=PAUSE, metadata={"choices": (PAUSE, PINNED)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """[runtime]"""

    default_handler: str = "runc"
    pause_image: str = "builtin"  # or a reference, fetched at start-up
    pause_binary: str = "/usr/bin/catatonit"  # static; the builtin image is made from it
    cgroup_driver: str = field(default="cgroupfs", metadata={"choices": ("cgroupfs", "systemd")})
    cgroup_parent: str = "/sandboxd"  # of pods that name none (cgroupfs driver)
    seccomp_dir: str = "/etc/sandboxd/seccomp"  # of Localhost profiles with a relative path
    apparmor_default: str = ""  # the loaded profile for RuntimeDefault; "" confines nothing
    # Pods, and containers, made at once; others wait for their turn. 0 is four for each processor, 8 at least.
    builds_at_once: int = field(default=0, metadata={"zero": True})
    execs_per_pod: int = 24  # processes exec'd into one pod at once; the shim of containerd 1.6 is stuck at 32
    cdi_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")  # later directories take precedence
    handlers: Mapping[str, Handler] = field(default_factory=lambda: {"runc": Handler()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """[pool]: pods of the default handler that are prepared ahead, and handed out when a client asks for one"""

    size: int = field(default=0, metadata={"zero": True})  # so many are kept ready; 0 is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """[images]: how PullImage reaches registries"""

    certs_dir: str = "/etc/containerd/certs.d"  # <host>/hosts.toml: mirrors, authorities, plain HTTP
    docker_config: str = "/root/.docker/config.json"  # the machine's credentials and credential helpers
    layers_at_once: int = 3  # of one pull
    range_connections: int = 4  # for one large layer; 1 turns ranges off
    progress_seconds: float = 60.0  # without a byte, after which a pull fails; its total time has no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """[streaming]: where the URLs of Exec, Attach and PortForward lead"""

    address: str = "127.0.0.1"  # the token in the URL is a client's only credential: keep it local
    port: int = field(default=0, metadata={"zero": True})  # 0 is any free port
    tls_cert: str = ""  # PEM files; both or none
    tls_key: str = ""
    idle_seconds: float = 4 * 3600.0  # without a byte in either direction, after which a stream is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """[logs]"""

    max_line_bytes: int = 16384  # longer lines are split into partial entries
    drain_seconds: float = 5.0  # how long to wait for the rest of a dead container's output
    idle_seconds: float = 10.0  # after which a logger with nothing to log and no daemon exits


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """[metrics]"""

    address: str = ""  # HOST:PORT where /metrics is served over plain HTTP; "" is nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """[tracing]: OpenTelemetry spans, which need `pip install 'sandboxd[otel]'`"""

    endpoint: str = ""  # of a collector: OTLP over gRPC, http://HOST:PORT or https://HOST:PORT; "" is off
    sample_ratio: float = field(default=1.0, metadata={"zero": True})  # of traces that no client has begun, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """[failures]"""

    kept: int = 200  # failed operations that `explain` can tell of
    days: float = 7.0  # how long
    mebibytes: int = 16  # how much they may take in the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """[insight]"""

    timeline: bool = True  # keep the steps of each pod for `explain`; what fails is kept all the same
    record_changes: bool = False  # what each CNI plugin changes on the machine, for `explain --changes`: slower pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration. `sources` maps "section.key" to "default", a file or a flag."""

    daemon: Daemon = field(default_factory=Daemon)
    api: Api = field(default_factory=Api)
    containerd: Containerd = field(default_factory=Containerd)
    network: Network = field(default_factory=Network)
    runtime: Runtime = field(default_factory=Runtime)
    pool: Pool = field(default_factory=Pool)
    images: Images = field(default_factory=Images)
    streaming: Streaming = field(default_factory=Streaming)
    logs: Logs = field(default_factory=Logs)
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    failures: Failures = field(default_factory=Failures)
    insight: Insight = field(default_factory=Insight)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def socket(self) -> str:
        """Where CRI and the host API are served."""
        return self.api.socket or f"{self.daemon.state}/sandboxd.sock"

    @property
    def containerd_socket(self) -> str:
        """Where containerd is expected to answer."""
        if self.containerd.socket:
            return self.containerd.socket
        if self.containerd.managed:
            return f"{self.daemon.state}/containerd/containerd.sock"
        return "/run/containerd/containerd.sock"


SECTIONS: tuple[str, ...] = tuple(f.name for f in fields(Config) if f.name != "sources")


def load(
    file: str | None = None,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration.

    Without `file`, the default file is read if it exists; a `file` that does not exist is an error. `flags` maps
    "section.key" to the text given on the command line. Raises InvalidRequest with every problem found.
    """
    path = Path(file or DEFAULT_FILE)
    tables: dict[str, Any] = {}
    if path.is_file():
        try:
            tables = parse(path.read_bytes(), str(path))
        except OSError as exc:
            raise InvalidRequest(f"{path}: cannot be read: {exc.strerror}") from exc
    elif file is not None:
        raise InvalidRequest(f"{path}: no such configuration file")
    return merge(tables, origin=str(path), flags=flags or {})


def parse(data: bytes, origin: str) -> dict[str, Any]:
    """The tables of a file; raises InvalidRequest when it is not TOML."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits, tables in tables in tables
        raise InvalidRequest(f"{origin}: not valid TOML: {exc}") from exc


def merge(tables: Mapping[str, Any], *, origin: str, flags: Mapping[str, str]) -> Config:
    """Build a Config from parsed TOML and flags. Pure; raises InvalidRequest listing every problem."""
    problems: list[str] = []
    sources: dict[str, str] = {}
    config = Config()
    for name, table in tables.items():
        if name not in SECTIONS:
            problems.append(f"{origin}: unknown section [{name}]{_nearest(name, SECTIONS)}")
        elif not isinstance(table, dict):
            problems.append(f"{origin}: [{name}] must be a table")
        else:
            section = getattr(config, name)
            changes = _read_table(section, table, name, origin, problems)
            sources |= {f"{name}.{key}": origin for key in changes}
            config = replace(config, **{name: replace(section, **changes)})
    for flag, text in flags.items():
        section_name, _, key = flag.partition(".")
        settings = [f"{s}.{f.name}" for s in SECTIONS for f in fields(getattr(config, s))]
        if flag not in settings:
            problems.append(f"--set {flag}: unknown setting{_nearest(flag, settings)}")
            continue
        section = getattr(config, section_name)
        value, problem = _from_text(section, key, text)
        if problem:
            problems.append(f"--set {flag}: {problem}")
        else:
            config = replace(config, **{section_name: replace(section, **{key: value})})
            sources[flag] = "flag"
    problems += _cross_checks(config)
    if problems:
        raise InvalidRequest("configuration: " + "; ".join(problems))
    return replace(config, sources=sources)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _read_table(
    section: Any, table: Mapping[str, Any], where: str, origin: str, problems: list[str]
) -> dict[str, Any]:
    hints = typing.get_type_hints(type(section))
    keys = {f.name: f for f in fields(section)}
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in keys:
            problems.append(f"{origin}: unknown key {where}.{key}{_nearest(key, list(keys))}")
        elif key == "handlers":
            changes[key] = _read_handlers(value, origin, problems)
        else:
            checked, problem = _typed(hints[key], keys[key].metadata, value)
            if problem:
                problems.append(f"{origin}: {where}.{key}: {problem}")
            else:
                changes[key] = checked
    return changes


def _read_handlers(tables: Any, origin: str, problems: list[str]) -> dict[str, Handler]:
    # Added to the default ones: a configuration that adds crun does not have to repeat runc.
    handlers = dict(Runtime().handlers)
    if not isinstance(tables, dict):
        problems.append(f"{origin}: [runtime.handlers] must hold one table per handler")
        return handlers
    for name, table in tables.items():
        if not isinstance(table, dict):
            problems.append(f"{origin}: [runtime.handlers.{name}] must be a table")
            continue
        where = f"runtime.handlers.{name}"
        handlers[name] = replace(Handler(), **_read_table(Handler(), table, where, origin, problems))
    return handlers


def _typed(hint: Any, metadata: Mapping[str, Any], value: Any) -> tuple[Any, str]:
    """The value in the field's type, or what is wrong with it."""
    if hint is bool:
        return (value, "") if isinstance(value, bool) else (None, f"expected true or false, got {value!r}")
    if hint is float or hint is int:
        if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
            return None, f"expected a number, got {value!r}"
        if not (0 < value <= _MAX_NUMBER or (value == 0 and metadata.get("zero"))):
            least = "at least 0" if metadata.get("zero") else "greater than 0"
            return None, f"must be {least} and at most {_MAX_NUMBER}, got {value!r}"
        return hint(value), ""
    if hint is str:
        if not isinstance(value, str):
            return None, f"expected a string, got {value!r}"
        choices = metadata.get("choices")
        if choices and value not in choices:
            return None, f"must be one of {', '.join(choices)}, got {value!r}"
        return value, ""
    if hint == Mapping[str, str]:
        choices = metadata["choices"]
        if not isinstance(value, dict):
            return None, f"must be a table, got {value!r}"
        wrong = next(((name, item) for name, item in value.items() if item not in choices), None)
        return (None, f"{wrong[0]} must be one of {', '.join(choices)}, got {wrong[1]!r}") if wrong else (value, "")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value), ""
    return None, f"expected a list of strings, got {value!r}"


def _from_text(section: Any, key: str, text: str) -> tuple[Any, str]:
    """The flag's text in the field's type, or what is wrong with it."""
    if key in ("handlers", "in_process_networks"):
        return None, "can be set in the file only"
    hint = typing.get_type_hints(type(section))[key]
    value: Any = text
    if hint is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif hint is float or hint is int:
        try:
            value = hint(text)
        except ValueError:
            pass
    elif hint is not str:
        value = text.split(":")
    metadata = next(f for f in fields(section) if f.name == key).metadata
    return _typed(hint, metadata, value)


def _cross_checks(config: Config) -> list[str]:
    """Problems that no single value shows."""
    problems = _check_handlers(config.runtime)
    paths = {
        "daemon.root": config.daemon.root,
        "daemon.state": config.daemon.state,
        "network.conf_dir": config.network.conf_dir,
        "network.conf_template": config.network.conf_template or "/",
        "network.netns_dir": config.network.netns_dir,
        "runtime.pause_binary": config.runtime.pause_binary,
        "runtime.seccomp_dir": config.runtime.seccomp_dir,
        **{f"runtime.cdi_dirs[{i}]": d for i, d in enumerate(config.runtime.cdi_dirs)},
        **{f"runtime.handlers.{name}.root": h.root or "/" for name, h in config.runtime.handlers.items()},
        "api.socket": config.api.socket or "/",
        "containerd.socket": config.containerd.socket or "/",
        **{f"network.plugin_dirs[{i}]": d for i, d in enumerate(config.network.plugin_dirs)},
        **{f"network.plugin_path[{i}]": d for i, d in enumerate((config.network.plugin_path or "/").split(":"))},
    }
    problems += [f"{key}: {path!r} is not an absolute path" for key, path in paths.items() if path[:1] != "/"]
    if bool(config.streaming.tls_cert) != bool(config.streaming.tls_key):
        problems.append("streaming.tls_cert and streaming.tls_key belong together: give both or none")
    if config.pool.size > MOST_PREPARED:
        problems.append(f"pool.size: {config.pool.size} is more than {MOST_PREPARED}")
    if config.streaming.port > 65535:
        problems.append(f"streaming.port: {config.streaming.port} is not a port (0 to 65535)")
    try:
        host_and_port(config.metrics.address or "localhost:1")
    except InvalidRequest as exc:
        problems.append(f"metrics.address: {exc}")
    problems += _check_tracing(config.tracing)
    if not config.network.plugin_dirs:
        problems.append("network.plugin_dirs: at least one directory is needed")
    # sun_path holds 108 bytes with its terminator (unix(7)).
    for key, path in (("api.socket", config.socket), ("containerd.socket", config.containerd_socket)):
        if len(os.fsencode(path)) > 107:
            problems.append(f"{key}: {path!r} is too long for a unix socket (107 bytes at most)")
    return problems


def _check_handlers(runtime: Runtime) -> list[str]:
    pinned = [name for name, each in runtime.handlers.items() if each.sandbox_mode == PINNED]
    others = [name for name in pinned if runtime.handlers[name].type != Handler().type]
    why = f"pinned is for {Handler().type}, other shims may need a pause process"
    problems = [f"runtime.handlers.{name}.sandbox_mode: {why}" for name in others]
    if runtime.default_handler not in runtime.handlers:
        known = ", ".join(sorted(runtime.handlers)) or "none"
        problems.append(f"runtime.default_handler {runtime.default_handler!r} is not configured (known: {known})")
    return problems


def _check_tracing(tracing: Tracing) -> list[str]:
    problems = []
    scheme, _, address = tracing.endpoint.partition("://")
    if tracing.endpoint and scheme not in ("http", "https"):
        problems.append(f"tracing.endpoint: {tracing.endpoint!r} is not a URL, like http://127.0.0.1:4317")
    elif tracing.endpoint:
        try:
            host_and_port(address.removesuffix("/"))
        except InvalidRequest as exc:
            problems.append(f"tracing.endpoint: {exc}")
    if tracing.sample_ratio > 1:
        problems.append(f"tracing.sample_ratio: {tracing.sample_ratio} is not from 0 to 1")
    return problems


def host_and_port(address: str) -> tuple[str, int]:
    """Split HOST:PORT, an IPv6 host in brackets. Raises InvalidRequest."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or (":" in host) != bracketed or not (port.isascii() and port.isdigit()):
        raise InvalidRequest(f"{address!r} is not HOST:PORT, like 127.0.0.1:9477 or [::1]:9477")
    if not 0 < int(port) <= 65535:
        raise InvalidRequest(f"{address!r}: {port} is not a port (1 to 65535)")
    return host, int(port)


def effective(config: Config) -> list[tuple[str, Any, str]]:
    """Every setting as (section.key, value, where it came from), in the order of this file."""
    rows = []
    for section_name in SECTIONS:
        section = getattr(config, section_name)
        for f in fields(section):
            value = getattr(section, f.name)
            name = f"{section_name}.{f.name}"
            origin = config.sources.get(name, "default")
            if isinstance(value, Mapping):
                rows += [
                    (f"{name}.{item}", text, origin) for item, text in sorted(value.items()) if isinstance(text, str)
                ]
                rows += [
                    (f"{name}.{item}.{g.name}", getattr(entry, g.name), origin)
                    for item, entry in sorted(value.items())
                    if is_dataclass(entry)
                    for g in fields(entry)
                ]
            else:
                rows.append((name, value, origin))
    return rows

"""The configuration is strict, says everything that is wrong at once, and knows where each value came from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import config
from sandboxd.config import SECTIONS, Config, Handler, effective, load, merge
from sandboxd.errors import InvalidRequest

HUGE = int("9" * 400)  # TOML integers have no limit in Python, floats do

HANDLER_KEYS = ("type", "binary", "root", "annotations", "sandbox_mode")


def merged(tables: dict[str, Any] | None = None, flags: dict[str, str] | None = None) -> Config:
    return merge(tables or {}, origin="x.toml", flags=flags or {})


def refusal(tables: dict[str, Any] | None = None, flags: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        merged(tables, flags)
    return str(caught.value)


def test_no_file_and_no_flags_give_the_defaults() -> None:
    assert merged() == Config()


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"demon": {}}, "x.toml: unknown section [demon]; did you mean 'daemon'?"),
        ({"zzzzzz": {}}, "x.toml: unknown section [zzzzzz]; known: api, containerd"),
        ({"sources": {}}, "unknown section [sources]"),
        ({"daemon": {"rooot": "/x"}}, "x.toml: unknown key daemon.rooot; did you mean 'root'?"),
        ({"runtime": {"handlers": {"runc": {"bin": "x"}}}}, "unknown key runtime.handlers.runc.bin; did you mean"),
        ({"daemon": "x"}, "x.toml: [daemon] must be a table"),
        ({"daemon": [{}]}, "x.toml: [daemon] must be a table"),
        ({"runtime": {"handlers": []}}, "[runtime.handlers] must hold one table per handler"),
        ({"network": {"in_process": "yes"}}, "network.in_process: must be one of auto, always, never, got 'yes'"),
        ({"network": {"in_process_networks": "never"}}, "network.in_process_networks: must be a table"),
        (
            {"network": {"in_process_networks": {"mesh": "no"}}},
            "network.in_process_networks: mesh must be one of auto, always, never, got 'no'",
        ),
        ({"runtime": {"handlers": {"runc": 1}}}, "[runtime.handlers.runc] must be a table"),
    ],
)
def test_an_unknown_or_misshapen_name_is_refused_and_the_nearest_is_named(
    tables: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(tables)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("containerd", "managed", "yes", "containerd.managed: expected true or false, got 'yes'"),
        ("containerd", "managed", 1, "expected true or false"),
        ("pool", "size", -1, "pool.size: must be at least 0"),
        ("pool", "size", 1001, "pool.size: 1001 is more than 1000"),
        ("daemon", "drain_seconds", "5", "daemon.drain_seconds: expected a number, got '5'"),
        ("daemon", "drain_seconds", True, "expected a number, got True"),
        ("daemon", "drain_seconds", 0, "must be greater than 0"),
        ("streaming", "port", -1, "must be at least 0"),
        ("daemon", "drain_seconds", -1.5, "must be greater than 0"),
        ("daemon", "drain_seconds", float("nan"), "must be"),
        ("daemon", "drain_seconds", float("inf"), "must be"),
        ("daemon", "drain_seconds", HUGE, "must be"),
        ("logs", "max_line_bytes", 1.5, "logs.max_line_bytes: expected a number, got 1.5"),
        ("daemon", "root", 3, "daemon.root: expected a string, got 3"),
        ("daemon", "log_level", "loud", "daemon.log_level: must be one of debug, info, warning, error, got 'loud'"),
        ("network", "plugin_dirs", "/opt", "network.plugin_dirs: expected a list of strings, got '/opt'"),
        ("network", "plugin_dirs", ["/opt", 1], "expected a list of strings"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_expected(
    section: str, key: str, value: object, expected: str
) -> None:
    assert expected in refusal({section: {key: value}})


def test_an_integer_is_taken_where_seconds_are_wanted() -> None:
    seconds = merged({"daemon": {"drain_seconds": 5}}).daemon.drain_seconds

    assert (seconds, type(seconds)) == (5.0, float)


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("daemon.log_level", "debug", "debug"),
        ("containerd.managed", "False", False),
        ("daemon.drain_seconds", "2.5", 2.5),
        ("logs.max_line_bytes", "100", 100),
        ("network.plugin_dirs", "/a:/b", ("/a", "/b")),
    ],
)
def test_a_flag_is_read_as_its_field_wants(flag: str, text: str, expected: object) -> None:
    section, _, key = flag.partition(".")

    assert getattr(getattr(merged({}, {flag: text}), section), key) == expected


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("daemon.rot", "/x", "--set daemon.rot: unknown setting; did you mean 'daemon.root'?"),
        ("rooot", "/x", "--set rooot: unknown setting"),
        ("containerd.managed", "maybe", "--set containerd.managed: expected true or false, got 'maybe'"),
        ("daemon.drain_seconds", "soon", "--set daemon.drain_seconds: expected a number, got 'soon'"),
        ("logs.max_line_bytes", "1.5", "--set logs.max_line_bytes: expected a number"),
        ("runtime.cgroup_driver", "v2", "--set runtime.cgroup_driver: must be one of cgroupfs, systemd"),
        ("runtime.handlers", "runc", "--set runtime.handlers: can be set in the file only"),
    ],
)
def test_a_wrong_flag_is_named_whole(flag: str, text: str, expected: str) -> None:
    assert expected in refusal({}, {flag: text})


def test_every_problem_is_reported_at_once() -> None:
    problems = refusal(
        {"demon": {}, "daemon": {"rooot": "/x", "root": 3, "state": "relative"}},
        {"daemon.log_level": "loud", "what.ever": "x"},
    )

    for expected in ("[demon]", "daemon.rooot", "expected a string, got 3", "'relative'", "'loud'", "what.ever"):
        assert expected in problems


def test_flags_beat_the_file_and_the_file_beats_the_defaults() -> None:
    tables = {"daemon": {"root": "/file", "log_level": "error"}, "logs": {"drain_seconds": 1}}

    result = merged(tables, {"daemon.root": "/flag"})

    assert (result.daemon.root, result.daemon.log_level) == ("/flag", "error")
    assert result.sources == {"daemon.root": "flag", "daemon.log_level": "x.toml", "logs.drain_seconds": "x.toml"}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"daemon": {"root": "lib"}}, "daemon.root: 'lib' is not an absolute path"),
        ({"daemon": {"root": ""}}, "daemon.root: '' is not an absolute path"),
        ({"network": {"conf_dir": "./net.d"}}, "network.conf_dir: './net.d' is not an absolute path"),
        ({"network": {"netns_dir": "netns"}}, "network.netns_dir"),
        ({"network": {"plugin_dirs": ["/a", "b"]}}, "network.plugin_dirs[1]: 'b' is not an absolute path"),
        ({"network": {"plugin_dirs": []}}, "network.plugin_dirs: at least one directory is needed"),
        ({"network": {"plugin_path": "/bin:bin"}}, "network.plugin_path[1]: 'bin' is not an absolute path"),
        ({"network": {"plugin_path": "/bin:"}}, "network.plugin_path[1]: '' is not an absolute path"),
        ({"runtime": {"pause_binary": "catatonit"}}, "runtime.pause_binary"),
        ({"api": {"socket": "x.sock"}}, "api.socket: 'x.sock' is not an absolute path"),
        ({"containerd": {"socket": "x.sock"}}, "containerd.socket"),
        ({"api": {"socket": "/" + "x" * 107}}, "api.socket: '/xxx"),
        ({"daemon": {"state": "/" + "é" * 50}}, "is too long for a unix socket (107 bytes at most)"),
        ({"runtime": {"default_handler": "kata"}}, "runtime.default_handler 'kata' is not configured (known: runc)"),
    ],
)
def test_what_single_values_cannot_tell_is_checked_too(tables: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tables)


def test_a_socket_path_of_exactly_107_bytes_is_taken() -> None:
    path = "/" + "x" * 106

    assert merged({"api": {"socket": path}}).socket == path


def test_handlers_in_the_file_are_added_to_the_default_one() -> None:
    handlers = {"crun": {"binary": "/usr/bin/crun"}, "kata": {"type": "io.containerd.kata.v2"}}

    result = merged({"runtime": {"default_handler": "crun", "handlers": handlers}}).runtime

    assert set(result.handlers) == {"runc", "crun", "kata"}
    assert result.handlers["crun"] == config.Handler(binary="/usr/bin/crun")
    assert result.handlers["kata"] == config.Handler(type="io.containerd.kata.v2")


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, "/run/sandboxd/containerd/containerd.sock"),
        ({"daemon": {"state": "/s"}}, "/s/containerd/containerd.sock"),
        ({"containerd": {"managed": False}}, "/run/containerd/containerd.sock"),
        ({"containerd": {"managed": False, "socket": "/c.sock"}}, "/c.sock"),
        ({"containerd": {"managed": True, "socket": "/c.sock"}}, "/c.sock"),
    ],
)
def test_where_containerd_is_expected(tables: dict[str, Any], expected: str) -> None:
    assert merged(tables).containerd_socket == expected


def test_the_socket_is_in_the_state_directory() -> None:
    assert merged({"daemon": {"root": "/r", "state": "/s"}}).socket == "/s/sandboxd.sock"


def test_effective_lists_every_setting_in_the_order_of_the_module() -> None:
    result = merged({"runtime": {"handlers": {"runc": {}, "crun": {}}}}, {"daemon.root": "/flag"})

    rows = effective(result)

    names = [name for name, _, _ in rows]
    assert names[:2] == ["daemon.root", "daemon.state"]
    handlers = [f"runtime.handlers.{h}.{key}" for h in ("crun", "runc") for key in HANDLER_KEYS]
    assert [name for name in names if name.startswith("runtime.handlers")] == handlers
    expected = [
        name
        for section in SECTIONS
        for f in fields(getattr(result, section))
        if f.name != "in_process_networks"  # a table, which is empty
        for name in (handlers if f.name == "handlers" else [f"{section}.{f.name}"])
    ]
    assert names == expected
    assert ("daemon.root", "/flag", "flag") in rows
    assert ("daemon.state", "/run/sandboxd", "default") in rows
    assert ("runtime.handlers.crun.binary", "", "x.toml") in rows


def test_the_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[daemon]\nroot = "/x"\n')

    result = load(str(file))

    assert (result.daemon.root, result.sources) == ("/x", {"daemon.root": str(file)})


def test_a_missing_default_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", str(tmp_path / "none.toml"))

    assert load() == Config()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such configuration file"),
        (b"[daemon\n", "not valid TOML"),
        (b"[daemon]\nroot = '\xff'\n", "not valid TOML"),
    ],
)
def test_a_file_that_was_named_must_be_there_and_readable(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(InvalidRequest, match=expected) as caught:
        load(str(file))

    assert str(file) in str(caught.value)


def test_the_shipped_example_shows_every_setting_with_its_default() -> None:
    text = (Path(__file__).resolve().parents[2] / "deploy" / "config" / "config.toml").read_text()
    settings = re.sub(r"(?m)^# (?=\w+ = |\[)", "", text)

    tables = tomllib.loads(settings)
    crun = tables["runtime"].pop("handlers")["crun"]
    assert Handler(**{**crun, "binary": "", "annotations": ()}) == Handler()
    assert set(crun) == {each.name for each in fields(Handler)}
    assert tables["network"].pop("in_process_networks") == {"mesh": "never"}
    result = merge(tables, origin="x.toml", flags={})

    assert replace(result, sources={}) == Config()
    every = {f"{section}.{each.name}" for section in SECTIONS for each in fields(getattr(Config(), section))}
    assert every - {"runtime.handlers", "network.in_process_networks"} == {
        f"{name}.{key}" for name, table in tables.items() for key in table
    }


_KEYS = sorted({f.name for section in SECTIONS for f in fields(getattr(Config(), section))} | {"runc", "type"})
_NAMES = st.sampled_from([*SECTIONS, *_KEYS]) | st.text(max_size=8)
_VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.just(HUGE)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["/x", "info", "runc", "cgroupfs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=8,
)


@given(
    tables=st.dictionaries(_NAMES, _VALUES | st.dictionaries(_NAMES, _VALUES, max_size=4), max_size=4),
    flags=st.dictionaries(
        st.text(max_size=8) | st.sampled_from([f"{s}.{k}" for s in SECTIONS for k in _KEYS]),
        st.text(max_size=12) | st.just("9" * 400) | st.just("inf"),
        max_size=4,
    ),
)
def test_whatever_is_written_merge_gives_a_config_or_a_refusal(tables: dict[str, Any], flags: dict[str, str]) -> None:
    try:
        result = merge(tables, origin="x.toml", flags=flags)
    except InvalidRequest as refused:
        assert str(refused).startswith("configuration: ")
    else:
        assert set(result.sources.values()) <= {"x.toml", "flag"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9477", ("127.0.0.1", 9477)),
        ("[::1]:1", ("::1", 1)),
        ("metrics.example:65535", ("metrics.example", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    assert config.host_and_port(address) == expected
    assert merged({"metrics": {"address": address}}).metrics.address == address


@pytest.mark.parametrize(
    "address", ["9477", ":9477", "::1:9477", "[::1]", "[x]:1", "host:", "host:0", "host:65536", "h:²"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert f"metrics.address: {address!r}" in refusal({"metrics": {"address": address}})


@pytest.mark.parametrize(
    "endpoint", ["", "http://127.0.0.1:4317", "https://[::1]:4317/", "http://collector.example:1"]
)
def test_a_collector_is_a_url(endpoint: str) -> None:
    assert merged({"tracing": {"endpoint": endpoint, "sample_ratio": 0}}).tracing.endpoint == endpoint


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://x:1", "http://x", "http://x:1/v1/traces", "http://"])
def test_what_is_no_url_of_a_collector_is_refused(endpoint: str) -> None:
    assert "tracing.endpoint: " in refusal({"tracing": {"endpoint": endpoint}})


def test_a_ratio_is_at_most_one() -> None:
    assert "tracing.sample_ratio: 1.5 is not from 0 to 1" in refusal({"tracing": {"sample_ratio": 1.5}})


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 10_000, "a = \xff", "a ="])
def test_a_file_that_is_not_toml_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"config\.toml: not valid TOML"):
        load(str(file))


def test_a_network_can_have_a_choice_of_its_own() -> None:
    tables = {"network": {"in_process": "always", "in_process_networks": {"mesh": "never"}}}
    config = merge(tables, origin="f", flags={})

    assert config.network.in_process_of("mesh") == "never"
    assert config.network.in_process_of("pods") == "always"
    assert ("network.in_process_networks.mesh", "never", "f") in effective(config)


def test_pods_are_pinned_where_the_shim_is_known_to_need_no_pause_container() -> None:
    handlers = {"plain": {"sandbox_mode": "pinned"}, "vm": {"type": "io.containerd.vm.v2", "sandbox_mode": "pinned"}}
    assert "runtime.handlers.vm.sandbox_mode: pinned is for io.containerd.runc.v2" in refusal(
        {"runtime": {"handlers": handlers}}
    )
    del handlers["vm"]
    assert merged({"runtime": {"handlers": handlers}}).runtime.handlers["plain"].sandbox_mode == config.PINNED
    assert "must be one of pause, pinned" in refusal({"runtime": {"handlers": {"x": {"sandbox_mode": "none"}}}})

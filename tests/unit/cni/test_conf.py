"""Configuration files in, NetworkConfig or InvalidRequest out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxd.cni import conf
from sandboxd.cni.conf import Choice, NetworkConfig, Problem, choose, config_json, from_json, parse
from sandboxd.errors import InvalidRequest


def document(**changes: Any) -> bytes:
    base = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}
    return json.dumps({key: value for key, value in (base | changes).items() if value is not ...}).encode()


BRIDGE = {"type": "bridge", "bridge": "cni0", "unknownKey": {"kept": [1, None, "x"]}}


def test_a_conflist_keeps_its_plugins_in_order_and_their_unknown_keys() -> None:
    parsed = parse("/etc/10.conflist", document(plugins=[BRIDGE, {"type": "portmap"}], alsoUnknown=1))

    assert parsed == NetworkConfig(
        name="pods", versions=("1.0.0",), plugins=(BRIDGE, {"type": "portmap"}), source="/etc/10.conflist"
    )


def test_a_conf_becomes_a_list_of_one_plugin() -> None:
    single = {"cniVersion": "0.4.0", "name": "old", **BRIDGE}

    parsed = parse("/etc/10.conf", json.dumps(single).encode())

    assert (parsed.name, parsed.cni_version, parsed.plugins) == ("old", "0.4.0", (single,))


@pytest.mark.parametrize(
    ("data", "plugins"),
    [
        (document(), ("bridge",)),
        (document(plugins=..., type="ptp"), ("ptp",)),
    ],
)
def test_a_json_file_is_a_list_when_it_has_plugins(data: bytes, plugins: tuple[str, ...]) -> None:
    assert tuple(plugin["type"] for plugin in parse("x.json", data).plugins) == plugins


@pytest.mark.parametrize(
    ("single", "several", "versions"),
    [
        ("1.1.0", ..., ("1.1.0",)),
        ("0.3.1", ["1.0.0", "0.4.0"], ("1.0.0", "0.4.0", "0.3.1")),
        ("2.0.0", ["1.0.0"], ("1.0.0",)),
        (..., ["0.4.0"], ("0.4.0",)),
        (..., ..., ("0.1.0",)),
        ("", ..., ("0.1.0",)),
        ("1.0.0", [], ("1.0.0",)),
    ],
)
def test_the_highest_version_that_both_sides_speak_is_taken(
    single: Any, several: Any, versions: tuple[str, ...]
) -> None:
    parsed = parse("x.conflist", document(cniVersion=single, cniVersions=several))

    assert (parsed.versions, parsed.cni_version) == (versions, versions[0])


def test_no_common_version_names_what_was_asked_and_what_is_supported() -> None:
    with pytest.raises(InvalidRequest, match=r"'pods' asks for '2\.0\.0', '3\.0\.0'; supported: 0\.1\.0, .*1\.1\.0"):
        parse("x.conflist", document(cniVersion="2.0.0", cniVersions=["3.0.0"]))


@pytest.mark.parametrize(
    ("file_name", "data", "wrong"),
    [
        ("x.conflist", b"", "x.conflist: empty"),
        ("x.conflist", b"{", "x.conflist: not valid JSON"),
        ("x.conflist", document(name=...), "name: expected letters.* got nothing"),
        ("x.conflist", document(name="-x"), "name: .*got '-x'"),
        ("x.conflist", document(name="a/b"), "name: .*got 'a/b'"),
        ("x.conflist", document(name="x\n"), "name: "),
        ("x.conflist", document(name=["x"]), "name: .*got a list"),
        ("x.conflist", document(plugins=[]), "plugins: network 'pods' needs at least one plugin"),
        ("x.conflist", document(plugins=...), "plugins: network 'pods' needs at least one plugin"),
        ("x.conflist", document(plugins={}), "plugins: expected a list, got an object"),
        ("x.conflist", document(plugins=["bridge"]), r"plugins\[0\]: expected an object, got a string"),
        ("x.conflist", document(plugins=[{}]), r"plugins\[0\]\.type: expected the file name"),
        ("x.conflist", document(plugins=[{"type": "../sh"}]), r"plugins\[0\]\.type: .*got '\.\./sh'"),
        ("x.conflist", document(plugins=[{"type": ".."}]), r"plugins\[0\]\.type: "),
        ("x.conflist", document(plugins=[{"type": "a\0b"}]), r"plugins\[0\]\.type: "),
        ("x.conflist", document(plugins=[{"type": 7}]), r"plugins\[0\]\.type: .*got a number"),
        ("x.conflist", document(plugins=[{"type": "x", "capabilities": ["dns"]}]), r"plugins\[0\]\.capabilities"),
        ("x.conflist", document(plugins=[{"type": "x", "capabilities": {"dns": 1}}]), "capabilities"),
        ("x.conflist", document(plugins=[{"type": "x", "ipam": {"type": "a/b"}}]), r"\.ipam\.type: .*'a/b'"),
        ("x.conflist", document(cniVersion=1.0), "cniVersion: expected a string such as"),
        ("x.conflist", document(cniVersions="1.0.0"), "cniVersions: expected a list of strings"),
        ("x.conflist", document(disableCheck="maybe"), "disableCheck: expected true or false, got 'maybe'"),
        ("x.conflist", document(disableGC=1), "disableGC: expected true or false, got a number"),
        ("x.conflist", document(disableGC=[]), "disableGC: expected true or false, got a list"),
        ("x.conf", document(), "plugins: this is a list; name the file .conflist"),
        ("x.conf", document(plugins=...), "x.conf: type: expected the file name"),
    ],
)
def test_what_the_spec_demands_is_demanded(file_name: str, data: bytes, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=wrong):
        parse(file_name, data)


NULLS = {"capabilities": None, "ipam": None, "dns": None, "args": None, "runtimeConfig": None, "prevResult": None}


@pytest.mark.parametrize(
    ("file_name", "data"),
    [
        ("x.conflist", document(plugins=[{"type": "bridge", **NULLS}])),
        ("x.conflist", document(plugins=[{"type": "bridge", "capabilities": {"dns": None}, "ipam": {"type": None}}])),
        ("x.conflist", document(plugins=[{"type": "bridge", "ipam": {}, "capabilities": {}}])),
        ("x.conflist", document(plugins=[{"Type": "bridge", "CAPABILITIES": None, "IPAM": {"type": "x"}}])),
        ("x.conflist", document(cniVersions=None, disableCheck=None, disableGC=None, loadOnlyInlinedPlugins=None)),
        ("x.json", document(cniVersions=None)),
        ("x.conf", document(plugins=..., type="bridge", **NULLS)),
        ("x.json", document(plugins=..., type="bridge", cniVersions=None, **NULLS)),
        ("x.conflist", document(comment="caf").replace(b"caf", b"caf\xe9")),
    ],
)
def test_null_is_an_absent_key_and_a_plugins_keys_are_in_any_case(file_name: str, data: bytes) -> None:
    parsed = parse(file_name, data)

    assert [plugin["type"] for plugin in parsed.plugins] == ["bridge"]
    assert (parsed.cni_version, parsed.disable_check, parsed.disable_gc) == ("1.0.0", False, False)
    assert from_json(config_json(parsed), file_name) == parsed


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_version_of_null_is_none(nothing: object) -> None:
    assert parse("x.conflist", document(cniVersion=nothing)).cni_version == "0.1.0"


def test_plugins_of_null_leave_the_network_to_its_drop_ins() -> None:
    assert [plugin["type"] for plugin in parse("/d/x.conflist", document(plugins=None), DROP_INS).plugins] == [
        "portmap",
        "tuning",
    ]


@pytest.mark.parametrize(
    ("value", "read"),
    [(True, True), ("true", True), ("True", True), ("false", False), ("FALSE", False), (False, False)],
)
def test_flags_are_read_in_both_spellings(value: object, read: bool) -> None:
    parsed = parse("x.conflist", document(disableCheck=value, disableGC=value))

    assert (parsed.disable_check, parsed.disable_gc) == (read, read)


DROP_INS: conf.DropIns = {
    "pods": {"/d/pods/20-b.conf": b'{"type": "tuning"}', "/d/pods/10-a.conf": b'{"type": "portmap"}'},
    "other": {"/d/other/1.conf": b'{"type": "vrf"}'},
}


@pytest.mark.parametrize(
    ("changes", "types"),
    [
        ({}, ["bridge", "portmap", "tuning"]),
        ({"plugins": ...}, ["portmap", "tuning"]),
        ({"loadOnlyInlinedPlugins": True}, ["bridge"]),
        ({"name": "alone"}, ["bridge"]),
    ],
)
def test_drop_in_plugins_follow_the_inlined_ones_in_the_order_of_their_names(
    changes: dict[str, Any], types: list[str]
) -> None:
    parsed = parse("/d/x.conflist", document(**changes), DROP_INS)

    assert [plugin["type"] for plugin in parsed.plugins] == types


@pytest.mark.parametrize("content", [b"{", b"{}", PermissionError(13, "Permission denied")])
def test_a_broken_drop_in_breaks_the_network_and_is_named(content: bytes | OSError) -> None:
    with pytest.raises(InvalidRequest, match=r"^/d/pods/1\.conf: "):
        parse("/d/x.conflist", document(), {"pods": {"/d/pods/1.conf": content}})


def test_the_first_valid_file_wins_and_the_broken_ones_are_reported() -> None:
    choice = choose(
        {
            "/d/30-c.conflist": document(name="third"),
            "/d/20-b.conf": document(name="second", plugins=..., type="ptp"),
            "/d/10-a.json": b"{",
            "/d/15-x.conflist": PermissionError(13, "Permission denied"),
            "/d/00-readme.txt": b"not looked at",
        }
    )

    assert choice.config is not None
    assert choice.config.source == "/d/20-b.conf"
    assert [problem.path for problem in choice.problems] == ["/d/10-a.json", "/d/15-x.conflist"]
    assert choice.problems[1] == Problem(path="/d/15-x.conflist", text="cannot be read: Permission denied")
    assert not choice.problems[0].text.startswith("/d/")


def test_no_file_is_no_network_and_no_problem() -> None:
    assert choose({}) == Choice(config=None)


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z")
plugins = st.fixed_dictionaries(
    {"type": names}, optional={"capabilities": st.dictionaries(st.text(), st.booleans()), "mtu": st.integers()}
)
configs = st.builds(
    NetworkConfig,
    name=names,
    versions=st.sets(st.sampled_from(conf.SUPPORTED), min_size=1).map(lambda v: tuple(sorted(v, reverse=True))),
    plugins=st.lists(plugins, min_size=1, max_size=3).map(tuple),
    disable_check=st.booleans(),
    disable_gc=st.booleans(),
    source=st.text(),
)


@given(configs)
def test_the_json_form_reads_back_as_it_was(config: NetworkConfig) -> None:
    assert from_json(config_json(config), config.source) == config


def test_the_json_form_is_a_conflist_whose_drop_ins_are_not_appended_again() -> None:
    whole = parse("/d/x.conflist", document(), DROP_INS)

    again = parse("/d/x.conflist", config_json(whole), DROP_INS)

    assert again == whole


def test_a_limited_configuration_stays_limited_in_the_json_form() -> None:
    config = parse("x.conflist", document(cniVersions=["1.1.0", "0.4.0"])).limited_to(frozenset({"0.4.0", "1.0.0"}))

    assert from_json(config_json(config)).cni_version == "1.0.0"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"name": "x"}'])
def test_a_damaged_record_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        from_json(data)


KEYS = ("cniVersion", "cniVersions", "name", "plugins", "type", "ipam", "capabilities", "disableCheck", "disableGC")
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["bridge", "1.0.0", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(
    st.sampled_from(["x.conf", "x.conflist", "x.json"]),
    st.binary() | json_like.map(lambda value: json.dumps(value).encode()),
)
@example("x.conflist", b"[" * 100_000)
@example("x.conflist", document(name=[[[]]]))
@example("x.conflist", document(cniVersion="\ud800"))
def test_any_bytes_give_a_configuration_or_an_invalid_request(file_name: str, data: bytes) -> None:
    try:
        parsed = parse(file_name, data)
    except InvalidRequest as exc:
        str(exc).encode()  # it can be sent to a client
    else:
        assert from_json(config_json(parsed), file_name) == parsed

"""What plugins answer, in every version of the spec, and what failures mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxd.cni.conf import SUPPORTED
from sandboxd.cni.result import (
    OUTPUT_LIMIT,
    Address,
    Dns,
    Interface,
    Result,
    Route,
    parse_result,
    pod_ips,
    supported_versions,
)
from sandboxd.errors import PluginFailed

OLD = {
    "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
    "ip6": {"ip": "fd00::5/64"},
    "dns": {"nameservers": ["10.1.0.1"], "domain": "x", "search": ["a"], "options": ["ndots:5"]},
}
OLD_IPS = (Address(address="10.1.0.5/16", gateway="10.1.0.1"), Address(address="fd00::5/64"))
DEFAULT_ROUTE = Route(dst="0.0.0.0/0", gw="10.1.0.1")
DNS = Dns(nameservers=("10.1.0.1",), domain="x", search=("a",), options=("ndots:5",))

INTERFACES = [{"name": "cni0", "mac": "02:00:00:00:00:02"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
NEW = {
    "interfaces": INTERFACES,
    "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {},
}
NEW_INTERFACES = (Interface(name="cni0", mac="02:00:00:00:00:02"), Interface(name="eth0", sandbox="/run/netns/x"))


def with_family(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "ips": [{"version": "4", **ip} for ip in document["ips"]]}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_oldest_versions_have_ip4_and_ip6(version: str) -> None:
    raw = {**OLD, "cniVersion": version}

    assert parse_result(json.dumps(raw).encode(), "bridge") == Result(
        cni_version=version, ips=OLD_IPS, routes=(DEFAULT_ROUTE,), dns=DNS, raw=raw
    )


@pytest.mark.parametrize("version", SUPPORTED[2:])
def test_newer_versions_have_lists(version: str) -> None:
    raw = {**(with_family(NEW) if version.startswith("0.") else NEW), "cniVersion": version, "unknown": [1]}

    assert parse_result(json.dumps(raw).encode(), "bridge") == Result(
        cni_version=version,
        interfaces=NEW_INTERFACES,
        ips=(Address(address="10.1.0.5/16", gateway="10.1.0.1", interface=1),),
        routes=(Route(dst="0.0.0.0/0"),),
        raw=raw,
    )


@pytest.mark.parametrize("stated", [{}, {"cniVersion": ""}])
def test_a_result_without_a_version_has_the_one_in_which_the_plugin_was_asked(stated: dict[str, str]) -> None:
    parsed = parse_result(json.dumps({**NEW, **stated}).encode(), "bridge", version="1.0.0")

    assert (parsed.cni_version, parsed.raw["cniVersion"]) == ("1.0.0", "1.0.0")


def test_null_is_an_empty_list_and_no_gateway() -> None:
    document = {"interfaces": None, "ips": [{"address": "10.1.0.5/16", "gateway": None}], "routes": None, "dns": None}

    assert parse_result(json.dumps(document).encode(), "x", version="1.1.0").ips == (Address(address="10.1.0.5/16"),)


def ip(**fields: Any) -> dict[str, Any]:
    return {"interfaces": INTERFACES, "ips": [{"address": "10.1.0.5/16", **fields}]}


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        (ip(address=None), r"ips\[0\]\.address: expected .*got nothing"),
        (ip(address="10.1.0.5"), r"ips\[0\]\.address: expected .*got '10\.1\.0\.5'"),
        (ip(address="10.1.0.5/99"), r"ips\[0\]\.address: "),
        (ip(address=5), r"ips\[0\]\.address: expected .*got a number"),
        (ip(gateway="router"), r"ips\[0\]\.gateway: expected an IP address, got 'router'"),
        (ip(gateway=[]), r"ips\[0\]\.gateway: expected an IP address, got a list"),
        (ip(interface="1"), r"ips\[0\]\.interface: expected an index"),
        (ip(interface=True), r"ips\[0\]\.interface: expected an index"),
        ({"ips": {}}, "ips: not a list of objects"),
        ({"ips": ["10.1.0.5/16"]}, "ips: not a list of objects"),
        ({"interfaces": [{"name": 1}]}, r"interfaces\[0\]\.name: expected a string, got a number"),
        ({"interfaces": [{"name": "x", "sandbox": 1}]}, r"interfaces\[0\]\.sandbox: expected a string"),
        ({"routes": [{"dst": ""}]}, r"routes\[0\]\.dst: expected an address"),
        ({"routes": [{"dst": None}]}, r"routes\[0\]\.dst: expected an address"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, r"routes\[0\]\.gw: expected an IP address"),
        ({"dns": []}, "dns: not an object"),
        ({"dns": {"search": "x"}}, "dns.search: not a list of strings"),
        ({"dns": {"domain": 1}}, "dns.domain: expected a string"),
        ({"cniVersion": "9.9.9"}, "cniVersion '9.9.9' is not one of"),
        ({"cniVersion": "0.2.0", "ip4": []}, "ip4: not an object"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8", "routes": [{"dst": "x"}]}}, r"ip4\.routes\[0\]\.dst"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8", "routes": 1}}, "ip4.routes: not a list"),
    ],
)
def test_a_malformed_result_is_refused_at_the_place_that_is_wrong(document: dict[str, Any], wrong: str) -> None:
    data = json.dumps(document).encode()

    with pytest.raises(PluginFailed, match=f"CNI plugin bridge failed on ADD: malformed result: .*{wrong}"):
        parse_result(data, "bridge", version="1.0.0")


ADDRESS = Address(address="10.1.0.5/16")


@pytest.mark.parametrize(
    "document",
    [
        {"ips": [{"address": "10.1.0.5/16", "gateway": ""}]},
        {"ips": [{"address": "10.1.0.5/16", "interface": None, "gateway": None, "version": None}]},
        {"ips": [{"address": "10.1.0.5/16", "version": "6"}]},
        {"ips": [{"address": "10.1.0.5/16", "version": "IPv4"}]},
        {"ips": [{"address": "10.1.0.5/16", "version": 4, "comment": {"x": [1.5, None]}}]},
        {"IPs": [{"Address": "10.1.0.5/16", "GATEWAY": ""}], "Routes": [{"DST": "0.0.0.0/0", "Gw": None}]},
        {"ips": [{"address": "10.1.0.5/16"}], "interfaces": None, "routes": None, "dns": None},
        {"ips": [{"address": "10.1.0.5/16"}], "interfaces": [], "routes": [], "dns": {}, "code": 0, "msg": ""},
        {"ips": [{"address": "10.1.0.5/16"}], "interfaces": [{}, {"name": None, "mac": None, "sandbox": None}, None]},
        {"ips": [{"address": "10.1.0.5/16"}], "interfaces": [{"name": "eth0", "mtu": 1500.5, "socketPath": None}]},
        {"ips": [{"address": "10.1.0.5/16"}], "routes": [{}, None, {"gw": None, "mtu": None}]},
        {"ips": [{"address": "10.1.0.5/16"}], "dns": {"nameservers": None, "domain": None, "search": None}},
        {"ips": [{"address": "10.1.0.5/16"}], "dns": {"nameservers": [None, ""], "options": None}},
        {"ips": [{"address": "10.1.0.5/16"}], "cniVersion": None},
        {"ips": [{"address": "10.1.0.5/16"}], "cniVersion": 1},
        {"ips": [{"address": "10.1.0.5/16"}], "CNIVersion": "0.3.1"},
        {"ips": [{"address": "10.1.0.5/16"}], "cniVersion": "0.3.0"},
        {"ips": [{"address": "10.1.0.5/16"}], "cniVersion": "1.1.0"},
        {"ip4": {"ip": "10.1.0.5/16"}, "ip6": None, "cniVersion": "0.2.0"},
        {"IP4": {"IP": "10.1.0.5/16", "gateway": "", "routes": None}, "cniVersion": "0.1.0"},
        {"ip6": {"ip": "10.1.0.5/16", "routes": [{}]}, "cniVersion": "0.2.0"},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("asked", ["0.4.0", "1.0.0"])
def test_what_libcni_takes_for_a_result_is_one(document: dict[str, Any], asked: str) -> None:
    data = b"\n  " + json.dumps(document, indent=2).encode() + b"\n\n"

    parsed = parse_result(data, "bridge", version=asked)

    assert parsed.ips == (ADDRESS,)
    assert not parsed.remarks
    assert None not in parsed.raw.values()
    assert set(parsed.raw) <= {"cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6", "code", "msg"}


@pytest.mark.parametrize("interfaces", [[], INTERFACES, None])
@pytest.mark.parametrize("index", [2, -1])
def test_an_index_into_interfaces_that_are_not_listed_is_remarked_and_names_none(
    index: int, interfaces: list[dict[str, str]] | None
) -> None:
    document = {"interfaces": interfaces, "ips": [{"address": "10.1.0.5/16", "interface": index}]}

    parsed = parse_result(json.dumps(document).encode(), "bridge", version="1.0.0")

    assert (parsed.ips, pod_ips(parsed, "eth0")) == ((ADDRESS,), ("10.1.0.5",))
    assert f"ips[0].interface: {index} points to none of the {len(interfaces or [])} interfaces" in parsed.remarks


def test_bytes_that_are_not_text_and_keys_written_twice_are_read_as_go_reads_them() -> None:
    data = b'{"ips": null, "comment": "caf\xe9", "ips": [{"address": "10.9.9.9/8", "address": "10.1.0.5/16"}]}'

    assert parse_result(data, "bridge", version="1.0.0").ips == (ADDRESS,)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "nothing was printed on stdout"),
        (b"ready\n", "not valid JSON.*: ready"),
        (b"[]", "expected a JSON object"),
        (b'{"ips": [NaN]}', "NaN"),
        (b" " * OUTPUT_LIMIT, f"more than {OUTPUT_LIMIT} bytes on stdout"),
    ],
)
def test_what_is_not_a_result_at_all_is_refused_and_shown(data: bytes, wrong: str) -> None:
    with pytest.raises(PluginFailed, match=wrong):
        parse_result(data, "bridge")


KEYS = ("name", "mac", "sandbox", "address", "gateway", "interface", "version", "dst", "gw", "ip", "routes", "domain")
result_like = st.dictionaries(
    st.sampled_from(["cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from(["10.0.0.1/8", "1.0.0"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=5,
            )
        ),
        max_leaves=15,
    ),
)


@given(
    st.binary() | result_like.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(SUPPORTED),
)
@example(b'{"cniVersion": "\\ud800"}', "1.0.0")
@example(b'{"ips": [{"address": "\\ud800/8"}]}', "1.0.0")
@example(b"[" * 100_000, "1.0.0")
def test_any_bytes_give_a_result_or_the_plugins_failure(data: bytes, version: str) -> None:
    try:
        parsed = parse_result(data, "bridge", version=version)
    except PluginFailed as exc:
        str(exc).encode()  # it can be sent to a client
    else:
        assert parse_result(json.dumps(parsed.raw).encode(), "bridge") == parsed
        pod_ips(parsed, "eth0")


HOST = Interface(name="veth1")
POD = Interface(name="eth0", sandbox="/run/netns/x")


@pytest.mark.parametrize(
    ("interfaces", "ips", "own"),
    [
        ((HOST, POD), [("10.0.0.2/8", 1), ("fd00::2/64", 1)], ("10.0.0.2", "fd00::2")),
        ((HOST, POD), [("10.0.0.1/8", 0), ("10.0.0.2/8", 1)], ("10.0.0.2",)),
        ((), [("10.0.0.2/8", None)], ("10.0.0.2",)),
        ((HOST,), [("10.0.0.2/8", None)], ("10.0.0.2",)),
        ((Interface(name="eth0"), POD), [("10.0.0.1/8", 0), ("10.0.0.2/8", 1)], ("10.0.0.2",)),
        ((Interface(name="eth0"),), [("10.0.0.2/8", 0)], ("10.0.0.2",)),
        ((POD, Interface(name="net1", sandbox="/run/netns/x")), [("10.9.0.2/8", 1)], ()),
        ((POD,), [("10.0.0.2/8", 0), ("10.0.0.2/16", None)], ("10.0.0.2",)),
        ((POD,), [], ()),
        ((), [("FD00:0::2/64", None), ("fd00::2/64", None)], ("fd00::2",)),
        ((), [("::ffff:10.0.0.2/120", None)], ("10.0.0.2",)),
    ],
)
def test_the_pods_addresses_are_those_of_its_interface(
    interfaces: tuple[Interface, ...], ips: list[tuple[str, int | None]], own: tuple[str, ...]
) -> None:
    result = Result(
        cni_version="1.0.0",
        interfaces=interfaces,
        ips=tuple(Address(address=address, interface=index) for address, index in ips),
        raw={},
    )

    assert pod_ips(result, "eth0") == own


@pytest.mark.parametrize(
    ("data", "versions"),
    [
        (b'{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}', {"0.4.0", "1.0.0"}),
        (b'{"cniVersion": "0.2.0"}', {"0.1.0", "0.2.0"}),
        (b'{"cniVersion": "0.2.0", "supportedVersions": null}', {"0.1.0", "0.2.0"}),
        (b'{"supportedVersions": ["1.0.0", null, 2]}', {"1.0.0"}),
        (b'{"SupportedVersions": ["1.0.0"]}', {"1.0.0"}),
    ],
)
def test_version_answers_are_read(data: bytes, versions: set[str]) -> None:
    assert supported_versions(data, "bridge") == versions


@pytest.mark.parametrize("data", [
    b"", b"ok", b"{}", b'{"cniVersion": "1.0.0"}', b'{"supportedVersions": "1.0.0"}', b'{"supportedVersions": [1]}',
    b'{"cniVersion": "1.0.0", "supportedVersions": null}', b'{"cniVersion": "1.0.0", "supportedVersions": []}',
])  # fmt: skip
def test_a_malformed_version_answer_is_the_plugins_failure(data: bytes) -> None:
    with pytest.raises(PluginFailed, match="failed on VERSION: malformed answer"):
        supported_versions(data, "bridge")

"""Results in the version of the configuration, whatever version the plugin printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cni.conf import SUPPORTED
from sandboxd.cni.convert import in_version, read
from sandboxd.cni.result import parse_result, pod_ips
from sandboxd.errors import PluginFailed

ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.0.0/16"}]
OLD: dict[str, Any] = {
    "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": ROUTES},
    "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0"}]},
    "dns": {"domain": "x"},
}
BARE: dict[str, Any] = {
    "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
    "routes": [*ROUTES, {"dst": "::/0"}],
    "dns": {"domain": "x"},
}
LISTS = {**BARE, "ips": [{**ip, "version": version} for ip, version in zip(BARE["ips"], "46", strict=True)]}
FORMS = {version: OLD if version < "0.3.0" else LISTS if version < "1.0.0" else BARE for version in SUPPORTED}


def converted(document: dict[str, Any], stated: str, version: str) -> dict[str, Any]:
    return dict(in_version(parse_result(json.dumps({**document, "cniVersion": stated}).encode(), "x"), version))


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("stated", SUPPORTED)
def test_a_result_has_the_form_of_its_version(stated: str, version: str) -> None:
    assert converted(FORMS[stated], stated, version) == {**FORMS[version], "cniVersion": version}


def test_interfaces_indexes_and_keys_that_we_do_not_know_are_kept() -> None:
    document: dict[str, Any] = {
        "interfaces": [{"name": "eth0", "sandbox": "/n", "mtu": 1400}],
        "ips": [{"address": "10.1.0.5/16", "interface": 0, "note": 1}],
        "extra": [1],
    }

    expected = {**document, "ips": [{**document["ips"][0], "version": "4"}], "cniVersion": "0.4.0"}
    assert converted(document, "1.0.0", "0.4.0") == expected
    assert converted(expected, "0.4.0", "1.1.0") == {**document, "cniVersion": "1.1.0"}


def test_a_family_that_the_plugin_left_out_or_got_wrong_is_that_of_the_address() -> None:
    assert converted({"ips": [{"address": "fd00::1/64"}]}, "0.4.0", "0.4.0")["ips"][0]["version"] == "6"
    wrong = {"ips": [{"address": "::ffff:10.0.0.1/120", "version": 4}, {"address": "fd00::1/64", "version": "4"}]}
    assert [ip["version"] for ip in converted(wrong, "0.3.1", "0.4.0")["ips"]] == ["4", "6"]


def test_the_oldest_form_has_the_first_address_of_each_family() -> None:
    many = {"ips": [{"address": f"10.1.0.{i}/16"} for i in (5, 6)], "interfaces": [{"name": "eth0"}]}

    assert converted(many, "1.0.0", "0.2.0") == {"ip4": {"ip": "10.1.0.5/16"}, "cniVersion": "0.2.0"}


def test_a_result_without_addresses_stays_one() -> None:
    assert converted({}, "1.0.0", "0.2.0") == {"cniVersion": "0.2.0"}
    assert converted({}, "0.2.0", "1.0.0") == {"ips": [], "routes": [], "cniVersion": "1.0.0"}


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_was_recorded_can_be_read_in_every_version(version: str) -> None:
    recorded = json.dumps({**FORMS["0.4.0"], "cniVersion": "0.4.0"}).encode()

    again = parse_result(json.dumps(read(recorded, version)).encode(), "x")

    assert (again.cni_version, pod_ips(again, "eth0")) == (version, ("10.1.0.5", "fd00::5"))


def test_a_damaged_record_is_said() -> None:
    with pytest.raises(PluginFailed):
        read(b"{", "1.0.0")

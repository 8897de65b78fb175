"""In what the plugins' versions differ."""

from __future__ import annotations

from sandboxd.cni.in_process import dialects

RESULT = {"cniVersion": "1.0.0", "interfaces": [{"name": "cni0", "mac": "m"}], "dns": {}}


def test_the_version_is_told_by_what_of_the_spec_it_speaks() -> None:
    assert dialects.of(frozenset({"0.4.0", "1.0.0"})) is dialects.OLD
    assert dialects.of(frozenset({"0.4.0", "1.0.0", "1.1.0"})) is dialects.NEW


def test_results_are_printed_as_the_version_prints_them() -> None:
    assert dialects.OLD.printed(RESULT) == (
        b'{\n    "cniVersion": "1.0.0",\n    "interfaces": [\n        {\n            "name": "cni0",\n'
        b'            "mac": "m"\n        }\n    ],\n    "dns": {}\n}'
    )
    assert dialects.NEW.printed(RESULT) == (
        b'{\n    "cniVersion": "1.0.0",\n    "interfaces": [\n        {\n            "mac": "m",\n'
        b'            "name": "cni0"\n        }\n    ]\n}'
    )
    older = {**RESULT, "cniVersion": "0.4.0"}
    assert dialects.NEW.printed(older) == dialects.OLD.printed(older)


def test_an_interface_that_is_there_is_told_in_the_versions_words() -> None:
    assert dialects.OLD.pair_exists("eth0", "veth1") == "container veth name provided (eth0) already exists"
    assert dialects.NEW.pair_exists("eth0", "veth1") == (
        'container veth name ("eth0") peer provided ("veth1") already exists'
    )
    assert dialects.NEW.no_pair("eth0", "veth1", "no space") == "failed to make veth pair: no space"

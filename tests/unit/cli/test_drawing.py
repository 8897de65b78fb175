"""The drawing of a pod's network."""

from __future__ import annotations

import pytest

from sandboxd.cli.drawing import drawing, in_words
from sandboxd.cli.topology import Link, Part, State, Topology, topology
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli import told
from tests.unit.cli.told import Elements

POD = {"namespace": State.THERE, "netns_path": "/run/netns/a"}


def drawn(answer: host.ExplainResponse) -> Elements:
    found = topology(answer)
    assert found is not None
    return Elements(drawing(found, "default/web"))


def link(**fields: object) -> Link:
    return Link(**{"network": "n", "kind": "bridge", "state": State.THERE, "inside": Part("eth0"), **fields})  # type: ignore[arg-type]


def test_a_healthy_network_is_there_in_every_part() -> None:
    found = drawn(told.running_pod())
    for text in ("sbx0", "veth1", "eth0", "10.0.0.2/24", "default via 10.0.0.1", ":8080/tcp → 80", "masquerade"):
        assert text in found.text
    assert len(found.all("rect", class_="node there")) == 3
    assert len(found.all("line", class_="wire there")) == 3
    assert not found.all("rect", class_="missing") and not found.all("rect", class_="undone")


def test_what_was_not_made_is_dashed_and_says_so_in_the_words() -> None:
    found = drawn(told.failed_pod())
    assert len(found.all("rect", class_="node missing")) == 3 and len(found.all("line", class_="wire missing")) == 3
    assert found.all("rect", class_="box pod undone")
    assert "✗ ADD bridge failed: exit status 1" in found.text
    assert "eth0 (not made)" in found.text and "no address" in found.text


def test_its_words_are_its_description() -> None:
    found = drawn(told.running_pod())
    (svg,) = found.all("svg")
    assert svg["role"] == "img" and svg["aria-labelledby"] == "drawing-title drawing-words"
    assert found.all("title", id="drawing-title") and found.all("desc", id="drawing-words")
    network = topology(told.running_pod())
    assert network is not None
    assert in_words(network, "default/web") == [
        "The network namespace of default/web is /run/netns/sandboxd-a.",
        "Network net: the pod's eth0 is connected by the host's sbx0 and veth1.",
        "eth0 has 10.0.0.2/24, MAC 0a:00:00:00:00:01.",
        "sbx0 has 10.0.0.1, the pod's gateway.",
        "Route: default via 10.0.0.1.",
        "Route: 10.9.0.0/16 via 10.0.0.9.",
        "On the host: masquerade.",
        "On the host: :8080/tcp → 80.",
    ]


def test_a_pod_of_the_hosts_network_is_inside_of_the_host() -> None:
    found = Elements(drawing(Topology(namespace=State.MISSING, of_host=True), "default/web"))
    assert "no network of its own" in found.text and not found.all("line", class_="wire")


@pytest.mark.parametrize("text", ["x" * 5000, "漢" * 5000])
def test_long_texts_are_shortened_and_whole_in_the_words(text: str) -> None:
    long = link(inside=Part(text), on=Part(text), rules=[Part(text)], addresses=[text], trouble=text)
    network = Topology(**POD, links=[long])  # type: ignore[arg-type]
    shown = [line for line in Elements(drawing(network, text)).text.split(text) if "…" in line]
    assert shown and max(len(part) for line in shown for part in line.split("…")) < 100
    assert any(text in line for line in in_words(network, "w"))


def test_of_very_many_lines_the_first_are_drawn_and_the_rest_counted() -> None:
    many = [f"10.0.0.{number}/24" for number in range(100)]
    rules = [Part(f":{number}/tcp") for number in range(50)]
    found = Elements(drawing(Topology(**POD, links=[link(addresses=many, rules=rules)]), "w"))  # type: ignore[arg-type]
    assert len(found.all("text", class_="address")) == 12 and "and 89 more" in found.text
    assert len(found.all("text", class_="host-rule")) == 12 and "and 39 more" in found.text


def test_each_network_has_a_row_of_its_own() -> None:
    found = Elements(drawing(Topology(**POD, links=[link(), link(network="m", inside=Part("eth1"))]), "w"))  # type: ignore[arg-type]
    rows = [float(each["y"] or 0) for each in found.all("rect", class_="node")]
    assert len(rows) == 2 and rows[1] - rows[0] > 60

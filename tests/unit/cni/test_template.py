"""Templates of network configurations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cni.template import cidrs, render
from sandboxd.errors import InvalidRequest

BOTH = ("10.1.0.0/24", "fd00::/64")


def template(ipam: Any) -> bytes:
    document = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": ipam}]}
    return json.dumps(document).encode()


def ipam(rendered: bytes) -> Any:
    return json.loads(rendered)["plugins"][0]["ipam"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.1.0.0/24", BOTH[:1]), ("10.1.0.0/24,fd00::/64", BOTH), (" 10.1.0.0/24 , fd00:0::/64", BOTH)],
)
def test_one_cidr_or_several(text: str, expected: tuple[str, ...]) -> None:
    assert cidrs(text) == expected


@pytest.mark.parametrize("text", ["10.1.0.1/24", "10.1.0.0/33", "10.1.0.0", "pods", "10.1.0.0/24,", ""])
def test_what_is_no_cidr_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="pod_cidr"):
        cidrs(text)


@pytest.mark.parametrize(
    ("pods", "written", "expected"),
    [
        (BOTH, {"subnet": "{{.PodCIDR}}"}, {"subnet": "10.1.0.0/24"}),
        (
            BOTH,
            {"ranges": "{{.PodCIDRRanges}}", "routes": "{{.Routes}}"},
            {
                "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        ),
        (BOTH[1:], {"routes": "{{.Routes}}"}, {"routes": [{"dst": "::/0"}]}),
        (BOTH, {"ranges": [[{"subnet": "{{.PodCIDR}}"}]], "x": 1}, {"ranges": [[{"subnet": "10.1.0.0/24"}]], "x": 1}),
    ],
)
def test_marks_become_values_wherever_they_are(pods: tuple[str, ...], written: Any, expected: Any) -> None:
    assert ipam(render(template(written), pods, "net.template")) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (template({"subnet": "{{.PodCidr}}"}), "not a known placeholder; use one of"),
        (template({"subnet": "net {{.PodCIDR}}"}), "not a known placeholder; use one of"),
        (b'{"name": "n", "ranges": [{{range .PodCIDRRanges}}1{{end}}]}', "entire quoted string"),
        (b"{", "net.template"),
        (b'{"cniVersion": "1.0.0", "name": "net", "plugins": []}', "at least one plugin"),
    ],
)
def test_a_template_that_is_none_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        render(data, BOTH, "net.template")

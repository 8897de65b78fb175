"""Who answers a pod, and who else has its address."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandboxd.insight import diagnose_reach
from sandboxd.insight.evidence import Answer, Severity
from sandboxd.links import View
from tests.unit.insight.seen import ETH0, LO, answer, findings, only, well

SILENT = answer("10.0.0.1", "no answer in 2 s", answered=False)


def packets(**changes: Any) -> dict[str, Any]:
    return {"packets": replace(well().packets, **changes)}


def test_a_gateway_that_is_silent_is_an_error() -> None:
    check = only(well(**packets(gateways=(SILENT,))))

    assert (check.name, check.severity, check.evidence) == ("gateway", Severity.ERROR, "10.0.0.1: no answer in 2 s")


def test_one_other_pod_that_answers_is_enough() -> None:
    first, second = replace(SILENT, to="10.0.0.3", whose="default/a"), answer("10.0.0.4", whose="default/b")

    assert findings(well(**packets(neighbours=(first, second)))) == []
    check = only(well(**packets(neighbours=(first,))))
    assert (check.name, check.evidence) == ("other-pod", "10.0.0.3 (pod default/a): no answer in 2 s")


def test_without_another_pod_nobody_is_asked() -> None:
    (check,) = diagnose_reach.neighbour(well(**packets(neighbours=())))

    assert check.severity is Severity.INFO


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        (packets(owners=("02:00:00:00:00:09",)), "answered by 02:00:00:00:00:09"),
        ({"sharing": {"10.0.0.2": "default/other"}}, "10.0.0.2 is pod default/other's too"),
        (
            {"inside": replace(well().inside, links=(LO, replace(ETH0, duplicates=("fd00::2",))))},
            "the kernel found fd00::2 to be another's",
        ),
    ],
)
def test_an_address_that_is_somebody_elses_too_names_whose(changes: dict[str, Any], evidence: str) -> None:
    check = only(well(**changes))

    assert check.name == "duplicate-address"
    assert evidence in check.evidence


@pytest.mark.parametrize(
    ("resolv_conf", "answers", "severity", "says"),
    [
        (b"search x\n", (), Severity.ERROR, "the pod has no name server"),
        (
            b"nameserver 127.0.0.53\n",
            (answer("127.0.0.53", "refused", answered=False),),
            Severity.ERROR,
            "names 127.0.0.53, its own loopback, where nothing answers",
        ),
        (
            b"nameserver 192.0.2.1\nnameserver 192.0.2.2\n",
            (answer("192.0.2.1"), answer("192.0.2.2", "no answer", answered=False)),
            Severity.WARNING,
            "not every name server answers",
        ),
        (
            b"nameserver 192.0.2.1\n",
            (answer("192.0.2.1", "no answer", answered=False),),
            Severity.ERROR,
            "no name server answers",
        ),
        (None, (), Severity.UNKNOWN, "cannot be read"),
        (b"nameserver example\n", (), Severity.UNKNOWN, "no name server was asked"),
    ],
)
def test_name_servers_are_asked(
    resolv_conf: bytes | None, answers: tuple[Answer, ...], severity: Severity, says: str
) -> None:
    check = only(well(resolv_conf=resolv_conf, **packets(resolvers=answers)))

    assert (check.name, check.severity) == ("dns", severity)
    assert says in check.says


def test_a_server_on_the_pods_own_loopback_that_answers_is_well() -> None:
    assert findings(well(resolv_conf=b"nameserver 127.0.0.1\n", **packets(resolvers=(answer("127.0.0.1"),)))) == []


def test_a_pod_without_any_interface_is_no_crash() -> None:
    assert findings(well(inside=View()))

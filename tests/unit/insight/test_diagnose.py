"""The table of checks as a whole, and what CNI CHECK says."""

from __future__ import annotations

import pytest

from sandboxd.insight import diagnose
from sandboxd.insight.evidence import Checked, Severity
from sandboxd.links import View
from tests.unit.insight.seen import findings, well


def test_of_a_healthy_pod_each_check_says_that_it_is_well_once() -> None:
    checks = diagnose.diagnose(well())

    assert {check.severity for check in checks} == {Severity.OK}
    assert len({check.name for check in checks}) == len(checks) == 16


def test_whatever_is_wrong_names_evidence_and_remedy() -> None:
    seen = well(
        inside=View(), peer=None, bridge=None, sysctls={}, ways={}, resolv_conf=b"", checked=Checked(error="x")
    )

    for check in findings(seen):
        assert check.severity is Severity.UNKNOWN or (check.evidence and check.remedy), check


@pytest.mark.parametrize(
    ("checked", "severity", "says"),
    [
        (Checked(ran=True, error="bridge: no"), Severity.ERROR, "not attached as ADD left it"),
        (Checked(trouble="it hangs"), Severity.UNKNOWN, "could not be asked: it hangs"),
        (Checked(), Severity.INFO, "rules it out"),
        (
            Checked(ran=True, error="could not check ipv6 dnat: chain CNI-DN-1 not found"),
            Severity.INFO,
            "a fault of a plugin: portmap looks for rules of IPv6",
        ),
        (
            Checked(ran=True, error="could not check ipv4 dnat: rule -j DNAT --to-destination fd00::2:80 not found"),
            Severity.INFO,
            "a fault of a plugin: portmap looks for rules of IPv4",
        ),
        (
            Checked(ran=True, error="could not check ipv4 dnat: rule -j DNAT --to-destination 10.0.0.2:80 not found"),
            Severity.ERROR,
            "as ADD left",
        ),
        (
            Checked(ran=True, error="could not check ipv4 dnat: chain CNI-DN-1 not found"),
            Severity.ERROR,
            "as ADD left",
        ),
    ],
)
def test_what_the_plugins_say_is_told(checked: Checked, severity: Severity, says: str) -> None:
    (check,) = [each for each in diagnose.diagnose(well(checked=checked)) if each.name == "cni-check"]

    assert check.severity is severity
    assert says in check.says
    assert checked.error in check.evidence

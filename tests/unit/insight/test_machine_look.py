"""What is said of the machine, as far as it depends on the daemon's own records and configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path

import pytest

from sandboxd.errors import Unavailable
from sandboxd.insight import machine_look
from sandboxd.insight.evidence import Check, Severity
from sandboxd.machine import rules
from sandboxd.machine.rules import Listing
from tests.fakes.bundle import Bundle

LEGACY = Listing(backend="iptables-legacy", text="*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n")
NFT = Listing(backend="ip6tables-nft", text="*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n")


async def version() -> str:
    return "1.6.20"


async def silent() -> str:
    raise Unavailable("containerd: connection refused")


async def named(fakes: Bundle, name: str, *, ask: object = version) -> list[Check]:
    assert callable(ask)
    return [check for check in await machine_look.examined(fakes.node, ask) if check.name == name]


def network(fakes: Bundle, tmp_path: Path, *, subnet: str, taken: int) -> None:
    data = tmp_path / "networks"
    (data / "small").mkdir(parents=True)
    for number in range(2, 2 + taken):
        (data / "small" / f"10.0.0.{number}").write_text("somebody\r\neth0")
    ipam = {"type": "host-local", "dataDir": str(data), "ranges": [[{"subnet": subnet}]]}
    plugin = {"type": "bridge", "ipam": ipam}
    conf = {"cniVersion": "1.0.0", "name": "small", "plugins": [plugin]}
    Path(fakes.config.network.conf_dir, "05-small.conflist").write_text(json.dumps(conf))


async def test_containerd_tells_its_version_or_is_an_error(fakes: Bundle) -> None:
    (well,) = await named(fakes, "containerd-version")
    (ill,) = await named(fakes, "containerd-version", ask=silent)

    assert (well.severity, well.says) == (Severity.OK, "containerd 1.6.20")
    assert ill.severity is Severity.ERROR and "connection refused" in ill.says


@pytest.mark.parametrize(
    ("subnet", "taken", "severity", "says"),
    [
        ("10.0.0.0/24", 0, Severity.OK, "253 of 253"),
        ("10.0.0.0/24", 250, Severity.WARNING, "3 of 253"),
        ("10.0.0.0/29", 5, Severity.ERROR, "0 of 5"),
        ("fd00::/64", 0, Severity.OK, "more than 4 billion"),
    ],
)
async def test_ranges_say_what_is_left(
    fakes: Bundle, tmp_path: Path, subnet: str, taken: int, severity: Severity, says: str
) -> None:
    network(fakes, tmp_path, subnet=subnet, taken=taken)

    (check,) = await named(fakes, "addresses")

    assert check.severity is severity
    assert f"network 'small': {says} addresses are left" in check.says
    assert f"{taken} reserved" in check.evidence


async def test_every_file_of_the_directory_says_why_it_is_or_is_not_in_force(fakes: Bundle) -> None:
    directory = Path(fakes.config.network.conf_dir)
    (directory / "20-broken.conflist").write_text("{")
    (directory / "30-later.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "later", "plugins": [{"type": "bridge"}]})
    )

    checks = await named(fakes, "conf-file")

    assert [check.severity for check in checks] == [Severity.OK, Severity.WARNING, Severity.INFO]
    for name, check in zip(("10-pods", "20-broken", "30-later"), checks, strict=True):
        assert f"{directory}/{name}.conflist" in check.says
    assert "comes after" in checks[2].says


async def test_rules_of_both_backends_of_iptables_are_a_warning(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def everything() -> list[Listing]:
        return [LEGACY, NFT, Listing(backend="nft", trouble="nft: permission denied")]

    monkeypatch.setattr(rules, "everything", everything)
    both, unread = await named(fakes, "packet-filter")

    assert both.severity is Severity.WARNING
    assert both.evidence == "rules of iptables-legacy, ip6tables-nft"
    assert (unread.severity, unread.evidence) == (Severity.UNKNOWN, "nft: permission denied")


async def test_nothing_that_is_owed_is_said_too(fakes: Bundle) -> None:
    (check,) = await named(fakes, "debts")

    assert check.severity is Severity.OK


async def test_what_takes_too_long_to_look_at_is_unknown_and_the_rest_is_told(
    fakes: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network(fakes, tmp_path, subnet="10.0.0.0/24", taken=0)

    async def hanging(node: object) -> list[Check]:
        return await asyncio.Future[list[Check]]()

    async def within(name: str, looking: Awaitable[list[Check]]) -> list[Check]:
        monkeypatch.setattr(machine_look, "SECONDS", 0.01 if name == "plugins" else 60.0)
        return await whole(name, looking)

    whole = machine_look._within
    monkeypatch.setattr(machine_look, "_within", within)
    monkeypatch.setattr(machine_look, "_plugins", hanging)

    checks = {check.name: check for check in await machine_look.examined(fakes.node, version)}

    assert checks["plugins"].severity is Severity.UNKNOWN and "could not be looked at" in checks["plugins"].says
    assert checks["addresses"].severity is Severity.OK

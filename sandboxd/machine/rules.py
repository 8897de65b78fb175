"""The iptables rules that masquerade a pod's traffic, as the CNI plugins `bridge` and `ptp` make them.

    -A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \\"NETWORK\\" id: \\"ID\\"" -j CNI-HASH
    -A CNI-HASH …

in the table nat of IPv4 and of IPv6. The chain is the pod's own, named by network and id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxd.cni.in_process.rules import masquerade_chain
from sandboxd.errors import CleanupIncomplete
from sandboxd.machine import programs

FAMILIES = ("iptables", "ip6tables")
_SECONDS = 10.0
_LOOK_SECONDS = 5.0
_MOST_BYTES = 1 << 26  # of a table; one of 2,000 pods has 1.5 MB


async def saved(family: str) -> Sequence[str]:
    """The lines that iptables-save prints of the table nat; none where that cannot be asked, or has no such table."""
    try:
        status, output, _ = await programs.ask((f"{family}-save", "-t", "nat"), _SECONDS, most=_MOST_BYTES)
    except (OSError, TimeoutError):
        return ()
    return () if status else output.decode("utf-8", "surrogateescape").splitlines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one command prints of the packet filter's rules."""

    backend: str  # the command that changes them: "iptables-nft", "ip6tables-legacy", "nft"
    text: str = ""
    trouble: str = ""  # why it cannot be read
    missing: bool = False  # the command is not installed


async def everything() -> list[Listing]:
    """All tables of all backends that this machine has the commands for. Makes no table that is not there.

    iptables has two backends with tables of their own, and a machine may use both; nft has the tables of one of them
    too, and those that others made with it.
    """
    listings = await asyncio.gather(
        *(_listed(f"{family}-{kind}", f"{family}-{kind}-save") for family in FAMILIES for kind in ("nft", "legacy")),
        _listed("nft", "nft", "-j", "list", "ruleset"),
    )
    if not all(each.missing for each in listings[:-1]):
        return listings
    # An iptables from before it had two.
    return [*await asyncio.gather(*(_listed(family, f"{family}-save") for family in FAMILIES)), listings[-1]]


async def _listed(backend: str, *command: str) -> Listing:
    try:
        status, output, words = await programs.ask(command, _LOOK_SECONDS, most=_MOST_BYTES)
    except FileNotFoundError:
        return Listing(backend=backend, missing=True)
    except (OSError, TimeoutError) as exc:
        said = f"no answer in {_LOOK_SECONDS:g} s" if isinstance(exc, TimeoutError) else str(exc)
        return Listing(backend=backend, trouble=f"{command[0]}: {said}")
    text = output.decode("utf-8", "surrogateescape")
    if status:
        return Listing(backend=backend, trouble=f"{command[0]}: {words.decode('utf-8', 'replace').strip()}")
    return Listing(backend=backend, text=text)


async def remove(network: str, pod_id: str) -> int:
    """Remove the pod's rules, and return how many there were. Raises CleanupIncomplete when iptables refuses."""
    removed = 0
    for family in FAMILIES:
        changes = removal(await saved(family), network, pod_id)
        if not changes:
            continue
        text = "\n".join(("*nat", *changes, "COMMIT", "")).encode("utf-8", "surrogateescape")
        command = f"{family}-restore", "--noflush", "--wait", "5"
        try:
            status, _, words = await programs.ask(command, _SECONDS, stdin=text)
        except (OSError, TimeoutError) as exc:
            raise CleanupIncomplete(f"{command[0]} cannot be executed: {exc!r}") from exc
        if status:
            said = words.decode("utf-8", "replace").strip()
            raise CleanupIncomplete(f"rules that masquerade the pod's traffic stay: {command[0]}: {said}")
        removed += len(changes)
    return removed


def removal(lines: Sequence[str], network: str, pod_id: str) -> list[str]:
    """What iptables-restore is told, so that of these lines of a table the pod's are gone. Pure."""
    chain = masquerade_chain(network, pod_id)
    comment = rf'--comment "name: \"{network}\" id: \"{pod_id}\"" '
    jumps = [line for line in lines if comment in line and line.endswith(f" -j {chain}")]
    changes = [f"-D {line.removeprefix('-A ')}" for line in jumps if line.startswith("-A ")]
    if any(line.startswith(f":{chain} ") for line in lines):
        changes += [f"-F {chain}", f"-X {chain}"]
    return changes

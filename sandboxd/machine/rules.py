"""The iptables rules that masquerade a pod's traffic, as the CNI plugins `bridge` and `ptp` make them.

    -A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \\"NETWORK\\" id: \\"ID\\"" -j CNI-HASH
    -A CNI-HASH …

in the table nat of IPv4 and of IPv6. The chain is the pod's own, named by network and id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sandboxd.errors import CleanupIncomplete
from sandboxd.machine import programs

FAMILIES = ("iptables", "ip6tables")
_SECONDS = 10.0
_MOST_BYTES = 1 << 26  # of a table; one of 2,000 pods has 1.5 MB


async def saved(family: str) -> Sequence[str]:
    """The lines that iptables-save prints of the table nat; none where that cannot be asked, or has no such table."""
    try:
        status, output, _ = await programs.ask((f"{family}-save", "-t", "nat"), _SECONDS, most=_MOST_BYTES)
    except (OSError, TimeoutError):
        return ()
    return () if status else output.decode("utf-8", "surrogateescape").splitlines()


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
    chain = f"CNI-{hashlib.sha512(f'{network}{pod_id}'.encode()).hexdigest()[:24]}"
    comment = rf'--comment "name: \"{network}\" id: \"{pod_id}\"" '
    jumps = [line for line in lines if comment in line and line.endswith(f" -j {chain}")]
    changes = [f"-D {line.removeprefix('-A ')}" for line in jumps if line.startswith("-A ")]
    if any(line.startswith(f":{chain} ") for line in lines):
        changes += [f"-F {chain}", f"-X {chain}"]
    return changes

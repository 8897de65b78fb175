"""From what was seen of a pod's network to what is wrong with it: a table of checks. Pure.

A check says something in every case to which it applies, so that what is well is seen to have been looked at.
`diagnose_links` has those of interfaces, `diagnose_filters` those of the packet filter, `diagnose_reach` those of who
answers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from sandboxd.insight import diagnose_filters, diagnose_links, diagnose_reach
from sandboxd.insight.evidence import Check, Seen, Severity


def diagnose(seen: Seen) -> list[Check]:
    """What each check says, in the order of the table."""
    return [finding for check in TABLE for finding in check(seen)]


def cni_check(seen: Seen) -> Iterator[Check]:
    checked = seen.checked
    if checked.trouble:
        yield Check(
            name="cni-check", severity=Severity.UNKNOWN, says=f"CNI CHECK could not be asked: {checked.trouble}"
        )
    elif checked.error and (why := _known(seen)):
        says = f"CNI CHECK fails by a fault of a plugin: {why}"
        yield Check(name="cni-check", severity=Severity.INFO, says=says, evidence=checked.error)
    elif checked.error:
        yield Check(
            name="cni-check",
            severity=Severity.ERROR,
            says="the network's plugins say that the pod is not attached as ADD left it",
            evidence=f"CNI CHECK: {checked.error}",
            remedy="see the other findings; if there are none, remove the pod and run it again",
        )
    elif checked.ran:
        yield Check(name="cni-check", severity=Severity.OK, says="CNI CHECK of every plugin succeeds")
    else:
        says = "CNI CHECK is not asked: the configuration rules it out, by disableCheck or a version before 0.4.0"
        yield Check(name="cni-check", severity=Severity.INFO, says=says)


def _known(seen: Seen) -> str:
    """Why a failed CHECK says nothing about the pod; "" when it does.

    portmap 1.1 looks for the rules of the pod's first address among those of IPv4 and of IPv6; `host-port` looks for
    the right ones.
    """
    error = seen.checked.error
    for version, words in ((4, "could not check ipv4 dnat"), (6, "could not check ipv6 dnat")):
        own = [ip for ip in seen.ips if ipaddress.ip_address(ip).version == version]
        others = "--to-destination" in error and not any(ip in error for ip in own)
        if words in error and (not own or others):
            return f"portmap looks for rules of IPv{version} of an address that is not one"
    return ""


TABLE: tuple[Callable[[Seen], Iterator[Check]], ...] = (
    cni_check,
    diagnose_links.loopback,
    diagnose_links.interface,
    diagnose_links.default_route,
    diagnose_links.host_end,
    diagnose_links.bridge,
    diagnose_links.hairpin,
    diagnose_links.mtu,
    diagnose_links.way_back,
    diagnose_filters.forwarding,
    diagnose_filters.forward_policy,
    diagnose_filters.bridge_netfilter,
    diagnose_filters.masquerade,
    diagnose_filters.host_ports,
    diagnose_reach.duplicates,
    diagnose_reach.gateway,
    diagnose_reach.neighbour,
    diagnose_reach.dns,
)

"""Whether a pod is answered by its gateway, other pods, name servers; and who else has its address. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from sandboxd.insight.evidence import Answer, Check, Seen, Severity
from sandboxd.oci import files

OK, INFO, WARNING, ERROR, UNKNOWN = Severity


def duplicates(seen: Seen) -> Iterator[Check]:
    link = seen.link
    others = [
        *(f"{ip} is pod {whose}'s too, by sandboxd's records" for ip, whose in seen.sharing.items()),
        *(f"ARP for the pod's address is answered by {mac} as well" for mac in seen.packets.owners),
        *(f"the kernel found {ip} to be another's (IPv6 DAD)" for ip in (link.duplicates if link else ())),
    ]
    if not others:
        yield Check(name="duplicate-address", severity=OK, says="nobody else has an address of the pod")
        return
    yield Check(
        name="duplicate-address",
        severity=ERROR,
        says="somebody else has an address of the pod: each gets packets of the other",
        evidence="; ".join(others),
        remedy="find that interface (`ip link`, also in other namespaces) and take the address from it",
    )


def gateway(seen: Seen) -> Iterator[Check]:
    yield from _reached(
        seen.packets.gateways,
        name="gateway",
        well="the gateway answers the pod",
        wrong="the gateway does not answer the pod: it reaches nothing beyond its own network",
        remedy="see the other findings; if there are none, look for rules that drop it (`nft list ruleset`)",
    )


def neighbour(seen: Seen) -> Iterator[Check]:
    answers = seen.packets.neighbours
    if not answers:
        yield Check(name="other-pod", severity=INFO, says="there is no other running pod on this network to ask")
        return
    answered = [each for each in answers if each.answered]
    yield from _reached(
        answered[:1] or answers,
        name="other-pod",
        well="another pod of the network answers the pod",
        wrong="no other pod of the network answers the pod",
        remedy="see the other findings, and those of these pods; and if bridge ports are isolated (`bridge -d link`)",
    )


def _reached(answers: Sequence[Answer], *, name: str, well: str, wrong: str, remedy: str) -> Iterator[Check]:
    silent = [each for each in answers if not each.answered]
    if silent:
        yield Check(name=name, severity=ERROR, says=wrong, evidence=_answers(silent), remedy=remedy)
    elif answers:
        yield Check(name=name, severity=OK, says=f"{well} ({_answers(answers)})")


def dns(seen: Seen) -> Iterator[Check]:
    if seen.resolv_conf is None:
        yield Check(name="dns", severity=UNKNOWN, says="the pod's resolv.conf cannot be read")
        return
    servers = files.name_servers(seen.resolv_conf)
    if not servers:
        yield Check(
            name="dns",
            severity=ERROR,
            says="the pod has no name server: no name is resolved in it",
            evidence="no line `nameserver` in its /etc/resolv.conf",
            remedy="name some in dns_config (`sandboxctl run --dns`), or in the machine's /etc/resolv.conf",
        )
        return
    silent = [answer for answer in seen.packets.resolvers if not answer.answered]
    if not silent:
        says = f"every name server answers ({', '.join(servers)})"
        severity = OK if seen.packets.resolvers else UNKNOWN
        yield Check(name="dns", severity=severity, says=says if severity is OK else "no name server was asked")
        return
    stubs = [each.to for each in silent if ipaddress.ip_address(each.to).is_loopback]
    every = len(silent) == len(seen.packets.resolvers)
    yield Check(
        name="dns",
        severity=ERROR if every else WARNING,
        says=(
            f"the pod's resolv.conf names {', '.join(stubs)}, its own loopback, where nothing answers"
            if stubs
            else f"{'no' if every else 'not every'} name server answers"
        ),
        evidence=_answers(silent),
        remedy=(
            "name a server that the pod reaches in dns_config (`sandboxctl run --dns`): a cache of the machine, such"
            " as systemd-resolved's, is not in the pod"
            if stubs
            else "check the server and the way to it, or name another one in dns_config (`sandboxctl run --dns`)"
        ),
    )


def _answers(answers: Sequence[Answer]) -> str:
    return "; ".join(f"{each.to}{f' (pod {each.whose})' if each.whose else ''}: {each.how}" for each in answers)

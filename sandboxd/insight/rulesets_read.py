"""Rules as iptables-save and `nft -j list ruleset` print them, as `rulesets` follows them. Pure.

Sources: iptables(8), iptables-extensions(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from sandboxd.insight.rulesets import Base, Rule
from sandboxd.machine.rules import Listing

_HOOKS = {"FORWARD": "forward", "POSTROUTING": "postrouting", "PREROUTING": "prerouting", "OUTPUT": "output"}
_SILENT = frozenset({"comment", "tcp", "udp", "sctp", "conntrack", "state", "multiport", "addrtype"})
_KEYS = {
    "-s": "source",
    "-d": "destination",
    "-i": "iif",
    "-o": "oif",
    "-p": "protocol",
    "--dport": "port",
    "--dports": "port",
    "--ctstate": "state",
    "--state": "state",
    "--dst-type": "type",
}
_TARGETS = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "RETURN": "return",
    "MASQUERADE": "snat",
    "SNAT": "snat",
    "DNAT": "dnat",
}
_PASSING = frozenset({"MARK", "CONNMARK", "LOG", "NFLOG", "TCPMSS", "CT", "TRACE", "CLASSIFY", "DSCP", "TOS"})


def of_listings(listings: Sequence[Listing]) -> list[Base]:
    """The chains that the kernel calls, of all backends, each once. Raises ValueError for what nft prints."""
    found: list[Base] = []
    told: set[tuple[str, str]] = set()
    for listing in listings:
        if not listing.text.strip() or listing.backend == "nft":
            continue
        family = 6 if listing.backend.startswith("ip6") else 4
        bases = of_iptables(listing.backend, family, listing.text.splitlines())
        found += bases
        if not listing.backend.endswith("-legacy"):  # nft lists these too, less legibly
            told |= {("ip6" if family == 6 else "ip", base.table) for base in bases}
    for listing in listings:
        if listing.text.strip() and listing.backend == "nft":
            found += of_nft(listing.text, without=frozenset(told))
    return found


# --- iptables ----------------------------------------------------------------------------------------------------


def of_iptables(backend: str, family: int, lines: Sequence[str]) -> list[Base]:
    """The chains that the kernel calls, as iptables-save prints them. `backend` is the command to change them."""
    found: list[Base] = []
    table, chains, policies = "", dict[str, list[Rule]](), dict[str, str]()
    for line in lines:
        if line.startswith("*"):
            table, chains, policies = line[1:].strip(), {}, {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains.setdefault(name, [])
            policies[name] = policy.lower()
        elif line.startswith("-A "):
            name, rule = _iptables_rule(line)
            chains.setdefault(name, []).append(rule)
        elif line.strip() == "COMMIT":
            found += [
                Base(
                    backend=backend,
                    family=family,
                    table=table,
                    name=name,
                    hook=_HOOKS[name],
                    type=table,
                    policy=policies.get(name, "accept"),
                    chains=chains,
                )
                for name in chains
                if name in _HOOKS and table in ("filter", "nat")
            ]
    return found


def _iptables_rule(line: str) -> tuple[str, Rule]:
    try:
        words = shlex.split(line)
    except ValueError:
        return line.split()[1], Rule(text=line, vague=True, action="any")
    wants: list[tuple[str, tuple[str, ...], bool]] = []
    vague, negated, at = False, False, 2
    rule = Rule(text=line)
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word == "!":
            negated, at = True, at - 1
            continue
        if word in ("-j", "-g"):
            rule = _with_target(rule, word, value, words[at:])
            break
        if word in _KEYS:
            wants.append((_KEYS[word], tuple(value.split(",")), negated))
        elif word != "--comment" and not (word == "-m" and value in _SILENT):
            # Who knows how many values it has: none of them begins like an option.
            vague, at = True, at - (word != "-m")
        negated = False
    return words[1], replace(rule, wants=tuple(wants), vague=vague)


def _with_target(rule: Rule, how: str, target: str, options: Sequence[str]) -> Rule:
    if target in _PASSING:
        return rule
    if action := _TARGETS.get(target):
        to = dict(pairwise(options)).get("--to-destination", "")
        return replace(rule, action=action, target=to)
    if target.isupper() and target in ("NFQUEUE", "QUEUE", "NETMAP", "REDIRECT", "TPROXY"):
        return replace(rule, action="any")
    return replace(rule, action="goto" if how == "-g" else "jump", target=target)


# --- nft ---------------------------------------------------------------------------------------------------------


def of_nft(text: str, *, without: frozenset[tuple[str, str]] = frozenset()) -> list[Base]:
    """The same of `nft -j list ruleset`. `without` are tables, (family, name), that iptables has told of.

    Raises ValueError when it is not that.
    """
    document = json.loads(text)
    entries = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no ruleset")
    chains: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    bases: list[Mapping[str, Any]] = []
    for entry in entries:
        if isinstance(chain := entry.get("chain"), dict):
            chains.setdefault((chain["family"], chain["table"]), {}).setdefault(chain["name"], [])
            if "hook" in chain and chain["family"] in ("ip", "ip6", "inet"):
                bases.append(chain)
        elif isinstance(rule := entry.get("rule"), dict):
            of_table = chains.setdefault((rule["family"], rule["table"]), {})
            of_table.setdefault(rule["chain"], []).append(_nft_rule(rule))
    return [
        Base(
            backend="nft",
            family={"ip": 4, "ip6": 6}.get(each["family"], 0),
            table=f"{each['family']} {each['table']}",
            name=each["name"],
            hook=each["hook"],
            type=each.get("type", "filter"),
            policy=each.get("policy", "accept"),
            chains=chains[each["family"], each["table"]],
        )
        for each in bases
        if (each["family"], each["table"]) not in without
    ]


def _nft_rule(rule: Mapping[str, Any]) -> Rule:
    made = Rule(text=f"{rule['chain']}: {json.dumps(rule.get('expr', []))[:200]}")
    wants: list[tuple[str, tuple[str, ...], bool]] = []
    for expression in rule.get("expr", ()):
        for kind, value in expression.items():
            if kind == "match":
                read = list(_nft_match(value))
                wants += read
                made = made if read else replace(made, vague=True)
            else:
                made = _with_nft_statement(made, kind, value)
    return replace(made, wants=tuple(wants))


def _with_nft_statement(rule: Rule, kind: str, value: Any) -> Rule:
    if kind in ("accept", "drop", "return"):
        return replace(rule, action=kind)
    if kind == "reject":
        return replace(rule, action="drop")
    if kind in ("jump", "goto"):
        return replace(rule, action=kind, target=value["target"])
    if kind in ("masquerade", "snat"):
        return replace(rule, action="snat")
    if kind == "dnat":
        address, port = (value or {}).get("addr"), (value or {}).get("port")
        plain = isinstance(address, str) and isinstance(port, int | str | None)
        return replace(rule, action="dnat" if plain else "any", target=f"{address}:{port}" if port else f"{address}")
    if kind in ("vmap", "queue", "redirect", "tproxy"):
        return replace(rule, action="any")
    if kind == "xt":
        target = _TARGETS.get(value.get("name", "")) if value.get("type") == "target" else None
        return replace(rule, action=target or rule.action, vague=rule.vague or value.get("type") == "match")
    return rule  # counters, logs, marks: the packet goes on


def _nft_match(match: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """What a match asks for; nothing when it is not understood."""
    left, values = match.get("left"), _nft_values(match.get("right"))
    if match.get("op") not in ("==", "!=", "in") or not isinstance(left, dict) or not values:
        return
    negated = match["op"] == "!="
    payload, meta = left.get("payload") or {}, left.get("meta") or {}
    where = payload.get("protocol"), payload.get("field")
    if where in (("ip", "saddr"), ("ip6", "saddr")):
        yield "source", values, negated
    elif where in (("ip", "daddr"), ("ip6", "daddr")):
        yield "destination", values, negated
    elif where[1] == "dport":
        if where[0] != "th":
            yield "protocol", (str(where[0]),), False
        yield "port", values, negated
    elif meta.get("key") in ("iifname", "oifname", "l4proto"):
        yield {"iifname": "iif", "oifname": "oif", "l4proto": "protocol"}[meta["key"]], values, negated
    elif meta.get("key") == "nfproto":
        yield "family", tuple(value.removeprefix("ipv") for value in values), negated
    elif (left.get("ct") or {}).get("key") == "state":
        yield "state", values, negated
    elif (left.get("fib") or {}).get("result") == "type" and values == ("local",):
        yield "type", values, negated


def _nft_values(right: Any) -> tuple[str, ...]:
    """Alternatives; () when they are not understood, as a named set is not."""
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        several = [_nft_values(each) for each in right["set"]]
        return tuple(value for each in several for value in each) if all(several) else ()
    if isinstance(right, list):
        return tuple(str(each) for each in right)
    if isinstance(right, dict) and isinstance(prefix := right.get("prefix"), dict):
        return (f"{prefix['addr']}/{prefix['len']}",)
    if isinstance(right, dict) and isinstance(span := right.get("range"), list):
        return (f"{span[0]}-{span[1]}",)
    if isinstance(right, str | int) and not str(right).startswith("@"):
        return (str(right),)
    return ()

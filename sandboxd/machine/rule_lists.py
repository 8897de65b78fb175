"""What iptables-save and `nft list ruleset` print, as chains and rules. Pure.

Counters are left out: they change with every packet. So is the order of rules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from sandboxd.network_state import CHAIN, RULE, Thing

_NFT_BACKEND = "(nf_tables)"  # in the head of what iptables-save prints
_TABLE = re.compile(r"table (\S+) (\S+)")
_COUNTER = re.compile(r"counter packets \d+ bytes \d+")
_COUNTS = re.compile(r" ?\[\d+:\d+\]")


def saved(text: str, family: str, place: str) -> list[Thing]:
    """The chains and rules that `<family>-save` prints: a rule is "iptables nat POSTROUTING -s …"."""
    found, table = [], ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = (*_COUNTS.sub("", line[1:]).split(" "), "-")[:2]
            fields = {} if policy == "-" else {"policy": policy}
            found.append(Thing(place=place, kind=CHAIN, name=f"{family} {table} {name}", fields=fields))
        elif line.startswith("-A "):
            found.append(Thing(place=place, kind=RULE, name=f"{family} {table} {line[3:]}"))
    return found


def kept_in_nft(text: str, family: str) -> frozenset[tuple[str, str]]:
    """The nft tables, as (family, name), that are what `<family>-save` has printed."""
    if _NFT_BACKEND not in text:
        return frozenset()
    nft_family = "ip" if family == "iptables" else "ip6"
    return frozenset((nft_family, line[1:]) for line in text.splitlines() if line.startswith("*"))


def ruleset(text: str, place: str, *, without: Collection[tuple[str, str]] = ()) -> list[Thing]:
    """The same of what `nft --stateless list ruleset` prints, except for some tables.

    A chain is "nft inet filter input", a rule that and its words; sets, maps and their elements are told as rules.
    """
    found: list[Thing] = []
    where: list[str] = []
    for line in _statements(text):
        if line == "}":
            del where[-1:]
        elif line.endswith("{") and (match := _TABLE.match(line)):
            where = [f"{match[1]} {match[2]}"]
        elif not where or tuple(where[0].split(" ")) in without:
            where += [line] if line.endswith("{") else []
        elif line.endswith("{"):
            kind, _, name = line.removesuffix("{").strip().partition(" ")
            where.append(name if kind == "chain" else f"{kind} {name}")
            found.append(Thing(place=place, kind=CHAIN, name=f"nft {' '.join(where)}"))
        else:
            words = _COUNTER.sub("counter", line)
            found.append(Thing(place=place, kind=RULE, name=f"nft {' '.join(where)} {words}"))
    return found


def _statements(text: str) -> Iterator[str]:
    """The lines; what is in braces within a line is one with it, however many lines it takes."""
    held: list[str] = []
    for line in text.splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        held.append(words)
        whole = " ".join(held)
        if _is_open(held, whole):
            continue
        yield whole
        held = []
    yield from held


def _is_open(held: Sequence[str], whole: str) -> bool:
    # A block opens at the end of its own line; a list of elements has words before the brace and an equals sign.
    listing = "{" in whole and not (len(held) == 1 and held[0].endswith("{") and "=" not in held[0])
    return listing and whole.count("{") > whole.count("}")

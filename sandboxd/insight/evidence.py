"""What doctor has seen of a pod's network, and what it says about it: records only. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.cni.result import Result
from sandboxd.insight.rulesets import Base
from sandboxd.links import Link, View


class Severity(enum.StrEnum):
    """How bad it is; the values are part of the host API."""

    OK = "ok"
    INFO = "info"  # a fact, or something that may be meant
    WARNING = "warning"  # something may not work
    ERROR = "error"  # something does not work
    UNKNOWN = "unknown"  # it could not be looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What came of one check."""

    name: str  # one of a fixed vocabulary: `diagnose.NAMES`
    severity: Severity
    says: str
    evidence: str = ""  # what was read, and where
    remedy: str = ""
    commands: tuple[str, ...] = ()  # the remedy, for a shell on the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of packets to one address."""

    to: str  # the address, or "address:port"
    answered: bool
    how: str  # "in 0.3 ms", "refused", "no answer in 2 s", or an error's words
    whose: str = ""  # the pod that has the address, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class PortAnswer:
    """The same of a host port, and, for comparison, of the pod's own port."""

    port: str  # "8080/tcp"
    through: Answer
    direct: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Packets:
    """What came of real packets. None was sent where the list is empty or the value is None."""

    owners: Sequence[str] = ()  # MAC addresses, not the pod's, that answered ARP for an address of the pod
    gateways: Sequence[Answer] = ()
    neighbours: Sequence[Answer] = ()
    resolvers: Sequence[Answer] = ()
    ports: Sequence[PortAnswer] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A host port that leads to the pod."""

    protocol: str
    number: int
    inside: int
    host_ip: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The packet filter's rules."""

    bases: Sequence[Base] = ()
    trouble: str = ""  # of a backend that could not be read
    none: bool = False  # no command to read rules with is installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What CNI CHECK said."""

    ran: bool = False
    error: str = ""
    trouble: str = ""  # why it could not be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was seen of a pod's network."""

    pod_id: str
    netns_path: str
    network: str
    ifname: str
    plugins: Sequence[Mapping[str, Any]]  # of the recorded configuration
    result: Result
    ips: Sequence[str]  # the pod's addresses, without prefix lengths
    inside: View
    host: Sequence[Link] = ()  # the interface's other end, its bridge, and where the machine's packets go out
    peer: Link | None = None
    bridge: Link | None = None
    uplink: Link | None = None
    ways: Mapping[str, str] = field(
        default_factory=dict
    )  # address of the pod → interface that the machine uses for it
    sysctls: Mapping[str, str] = field(default_factory=dict)
    chain: str = ""  # the iptables chain in which bridge and ptp masquerade the pod
    filters: Filters = field(default_factory=Filters)
    resolv_conf: bytes | None = None
    ports: Sequence[Port] = ()
    sharing: Mapping[str, str] = field(
        default_factory=dict
    )  # address of the pod → another pod that records have it of
    checked: Checked = field(default_factory=Checked)
    packets: Packets = field(default_factory=Packets)

    @property
    def link(self) -> Link | None:
        """The pod's interface."""
        return next((link for link in self.inside.links if link.name == self.ifname), None)

    def plugin(self, *types: str) -> Mapping[str, Any] | None:
        """The first plugin of one of these types."""
        return next((plugin for plugin in self.plugins if plugin.get("type") in types), None)

    def inside_command(self, command: str) -> str:
        """A command to run in the pod's namespace."""
        return f"nsenter --net={self.netns_path} {command}"

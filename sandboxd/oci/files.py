"""The contents of /etc/hosts, /etc/hostname and /etc/resolv.conf in a pod's containers.

A pod in the host's network gets copies of the host's files instead; the caller decides that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from sandboxd.pb.cri.v1 import api_pb2 as cri

NAMES = ("hosts", "hostname", "resolv.conf")

_LOOPBACK = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def hosts_file(hostname: str, ips: Sequence[str]) -> bytes:
    """/etc/hosts (hosts(5)): the loopback names, then the pod's own name at each of its addresses."""
    own = [(ip, hostname) for ip in ips] if hostname else []
    return "".join(f"{address}\t{names}\n" for address, names in (*_LOOPBACK, *own)).encode()


def hostname_file(hostname: str) -> bytes:
    """/etc/hostname (hostname(5))."""
    return f"{hostname}\n".encode()


def resolv_conf(dns: cri.DNSConfig, host: bytes) -> bytes:
    """/etc/resolv.conf (resolv.conf(5)): the pod's DNS config, or the host's file if that config is empty.

    A config without name servers is asked of the host's: what it leaves out, the host's file says. One with name
    servers is complete. `host` is the content of the host's file, empty when it has none.
    """
    asked = [
        *([f"search {' '.join(dns.searches)}"] if dns.searches else []),
        *(f"nameserver {server}" for server in dns.servers),
        *([f"options {' '.join(dns.options)}"] if dns.options else []),
    ]
    if not asked:
        return host
    lines = [line.encode() for line in asked]
    if not dns.servers:
        given = {b"search": dns.searches, b"domain": dns.searches, b"options": dns.options}
        lines += [line for line in host.splitlines() if (words := line.split()) and not given.get(words[0])]
    return b"".join(line + b"\n" for line in lines)


def name_servers(content: bytes) -> list[str]:
    """The name servers of a resolv.conf."""
    lines = (line.split() for line in content.splitlines())
    return [words[1].decode("latin-1") for words in lines if len(words) > 1 and words[0] == b"nameserver"]


def seen_from_a_pod(content: bytes) -> bytes:
    """A host's resolv.conf without the name servers that do not answer in another network namespace.

    Those are on the host's loopback (local caches listen there), or need an interface of the host.
    """
    lines = content.splitlines(keepends=True)
    return b"".join(line for line in lines if all(map(_answers_elsewhere, name_servers(line))))


def _answers_elsewhere(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return True  # resolvers ignore it as well
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return False
        address = address.ipv4_mapped or address
    return not (address.is_loopback or address.is_unspecified)

"""The contents of /etc/hosts, /etc/hostname and /etc/resolv.conf in a pod's containers.

A pod in the host's network gets copies of the host's files instead; the caller decides that.
"""

from __future__ import annotations

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


def resolv_conf(dns: cri.DNSConfig, host: bytes | None) -> bytes:
    """/etc/resolv.conf (resolv.conf(5)): the pod's DNS config, or the host's file if that config is empty.

    `host` is the content of the host's file, or None when it does not exist: then the pod's is empty.
    """
    lines = [
        *([f"search {' '.join(dns.searches)}"] if dns.searches else []),
        *(f"nameserver {server}" for server in dns.servers),
        *([f"options {' '.join(dns.options)}"] if dns.options else []),
    ]
    if lines:
        return "".join(f"{line}\n" for line in lines).encode()
    return host or b""

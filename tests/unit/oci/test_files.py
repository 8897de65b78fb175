"""The texts of a pod's own files."""

from __future__ import annotations

import pytest

from sandboxd.oci import files
from sandboxd.pb.cri.v1 import api_pb2 as cri


def test_hosts_names_the_pod_at_each_address_after_the_loopback_names() -> None:
    lines = files.hosts_file("web-0", ["10.1.0.5", "fd00::5"]).decode().splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[1].startswith("::1\tlocalhost ")
    assert lines[-2:] == ["10.1.0.5\tweb-0", "fd00::5\tweb-0"]


@pytest.mark.parametrize(("hostname", "ips"), [("", ["10.1.0.5"]), ("web-0", [])])
def test_hosts_needs_a_name_and_an_address_for_the_pods_line(hostname: str, ips: list[str]) -> None:
    assert files.hosts_file("", []) == files.hosts_file(hostname, ips)


def test_hostname_is_one_line() -> None:
    assert files.hostname_file("web-0") == b"web-0\n"


@pytest.mark.parametrize(
    ("dns", "host", "expected"),
    [
        (
            cri.DNSConfig(servers=["10.0.0.10", "10.0.0.11"], searches=["a.local", "local"], options=["ndots:5"]),
            b"nameserver 1.1.1.1\n",
            b"search a.local local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n",
        ),
        (cri.DNSConfig(options=["ndots:1", "trust-ad"]), b"nameserver 1.1.1.1\n", b"options ndots:1 trust-ad\n"),
        (cri.DNSConfig(), b"nameserver 1.1.1.1\n", b"nameserver 1.1.1.1\n"),
        (cri.DNSConfig(), None, b""),
    ],
)
def test_the_pods_dns_config_replaces_the_hosts_file_as_a_whole(
    dns: cri.DNSConfig, host: bytes | None, expected: bytes
) -> None:
    assert expected == files.resolv_conf(dns, host)

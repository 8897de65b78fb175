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
        (
            cri.DNSConfig(searches=["a.local"]),
            b"# by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch host\ndomain host\noptions rotate\n",
            b"search a.local\n# by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n",
        ),
        (
            cri.DNSConfig(options=["ndots:1", "trust-ad"]),
            b"search host\noptions rotate\nnameserver 192.0.2.1",
            b"options ndots:1 trust-ad\nsearch host\nnameserver 192.0.2.1\n",
        ),
        (cri.DNSConfig(searches=["."]), b"nameserver 192.0.2.1\n", b"search .\nnameserver 192.0.2.1\n"),
        (cri.DNSConfig(searches=["a.local"]), b"", b"search a.local\n"),
        (cri.DNSConfig(servers=["127.0.0.1"]), b"search host\n", b"nameserver 127.0.0.1\n"),
        (cri.DNSConfig(), b"nameserver 1.1.1.1\n", b"nameserver 1.1.1.1\n"),
        (cri.DNSConfig(), b"", b""),
    ],
)
def test_a_dns_config_with_servers_is_complete_and_what_another_leaves_out_is_the_hosts(
    dns: cri.DNSConfig, host: bytes, expected: bytes
) -> None:
    assert expected == files.resolv_conf(dns, host)


def test_name_servers_on_the_hosts_loopback_or_of_its_interfaces_do_not_answer_in_a_pod() -> None:
    content = (
        b"nameserver 127.0.0.53\nnameserver 127.1.2.3\n; a comment\nnameserver 192.0.2.1 # the real one\n"
        b"nameserver ::1\nnameserver ::ffff:127.0.0.1\nnameserver 0.0.0.0\nnameserver fe80::1%eth0\n"
        b"nameserver 2001:db8::1\noptions edns0 trust-ad\nnameserver\nnameserver not-an-address\nsearch ."
    )

    assert files.seen_from_a_pod(content) == (
        b"; a comment\nnameserver 192.0.2.1 # the real one\nnameserver 2001:db8::1\noptions edns0 trust-ad\n"
        b"nameserver\nnameserver not-an-address\nsearch ."
    )
    assert files.name_servers(b"nameserver 192.0.2.1 # x\n#nameserver 192.0.2.2\nnameserver\n") == ["192.0.2.1"]

"""A certificate for 127.0.0.1 that only these tests trust; its key protects nothing."""

from __future__ import annotations

import ssl
import tempfile

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBrzCCAVSgAwIBAgIUfiGpzWWPpUUJVrwE/u/GSiLY5VYwCgYIKoZIzj0EAwIw
IzEhMB8GA1UEAwwYc2FuZGJveGQgc3RyZWFtaW5nIHRlc3RzMCAXDTI2MTEyNDA0
MzMwNFoYDzIxMjYxMDMxMDQzMzA0WjAjMSEwHwYDVQQDDBhzYW5kYm94ZCBzdHJl
YW1pbmcgdGVzdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATRXUkxO/8plb8Z
KPRCp6mGne/MCf+ktfq93PA6tMhEhxKu/EgHLu4AF25N6qqQf/2EnnMyjXHihEap
IpFwHVQ6o2QwYjAdBgNVHQ4EFgQUFKYV9FR/ZoDFkpNaZK8E9K3yJsEwHwYDVR0j
BBgwFoAUFKYV9FR/ZoDFkpNaZK8E9K3yJsEwDwYDVR0TAQH/BAUwAwEB/zAPBgNV
HREECDAGhwR/AAABMAoGCCqGSM49BAMCA0kAMEYCIQCdxexw3dgVwJ9myNm66xIc
ENP27lV3gO7eKwyRtWfQSwIhANrVFWVGNkVDiS566RUgEtlqDMHuiMSRRxM9aGbn
7jM+
-----END CERTIFICATE-----
"""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSsUi4Ub4d0Llj+Bp
gMLizJ4WaCpbFpWjo9Eu8BvzPeKhRANCAATRXUkxO/8plb8ZKPRCp6mGne/MCf+k
tfq93PA6tMhEhxKu/EgHLu4AF25N6qqQf/2EnnMyjXHihEapIpFwHVQ6
-----END PRIVATE KEY-----
"""


def server_context() -> ssl.SSLContext:
    """Presents the certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(CERTIFICATE + KEY)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def client_context() -> ssl.SSLContext:
    """Trusts it and nothing else."""
    return ssl.create_default_context(cadata=CERTIFICATE)

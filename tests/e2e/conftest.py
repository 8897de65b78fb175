"""What several modules of end-to-end tests need besides a bed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pulling import CERTS, DOCKER_CONFIG, QUICK, Site
from tests.registry_server import start_proxy, start_registry
from tests.testbed import Testbed


@pytest.fixture(scope="module")
def site(containerd_bin: Path | None) -> Iterator[Site]:
    """One bed for the tests of this module."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        # A name server that refuses at once, where the machine's own is out of reach and waited for.
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        registry = start_registry(bed, 5000)
        proxy = start_proxy(bed, 5001, registry.host)
        bed.start_daemon(images=QUICK)
        yield Site(bed=bed, registry=registry, proxy=proxy)


@pytest.fixture(autouse=True)
def honest(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a proxy that changes nothing and a machine without credentials and mirrors."""
    if "site" in request.fixturenames:
        site: Site = request.getfixturevalue("site")
        site.proxy.rules()
        site.bed.run(["rm", "-rf", CERTS, DOCKER_CONFIG])
    yield

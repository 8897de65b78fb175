"""The tests of `make test-tools`: what sandboxd gives to other tools and takes from them; images above all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_sandboxctl import Ctl
from tests.pods import run_pod
from tests.pulling import PATIENT
from tests.registry_server import start_proxy, start_registry
from tests.testbed import Testbed
from tests.tools.source import Source, make_source
from tests.tools.workshop import ENVIRONMENT, POLICY, REGISTRIES, STORAGE, Workshop

TOOLS = ("skopeo", "buildah", "podman", "umoci", "gzip", "pigz", "zstd", "pzstd", "bzip2", "xz", "openssl")


@pytest.fixture(scope="session")
def tools() -> None:
    """Every tool must be there: a test that was skipped would look like one that passed."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.fail(f"{', '.join(missing)}: not installed; `make test-tools` installs it", pytrace=False)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def shop(tools: None, source: Source, containerd_bin: Path | None) -> Iterator[Workshop]:
    """One workshop for the tests of a module."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        for directory in (ENVIRONMENT["TMPDIR"], ENVIRONMENT["XDG_RUNTIME_DIR"]):
            bed.path(directory).mkdir(parents=True)
        configuration = {"storage.conf": STORAGE, "registries.conf": REGISTRIES, "policy.json": POLICY}
        for name, text in configuration.items():
            bed.write(f"/etc/containers/{name}", text)
        registry = start_registry(bed, 5000)
        proxy = start_proxy(bed, 5001, registry.host)
        bed.start_daemon(images=PATIENT)
        place = bed.base / "shop"
        place.mkdir()
        pod = run_pod(bed)
        yield Workshop(bed=bed, registry=registry, proxy=proxy, ctl=Ctl(bed), source=source, place=place, pod=pod)

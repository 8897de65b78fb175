"""The fixtures of the tests that drive the daemon with the genuine crictl."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.build import OUT, TARGETS, toolchain, wanted
from tests.conformance.crictl import CONFIG, Crictl
from tests.testbed import Testbed


@pytest.fixture(scope="session")
def crictl_built() -> None:
    """crictl must be there wherever it can be built."""
    if (OUT / "crictl").is_file():
        return
    needed, version = wanted(TARGETS["crictl"])
    go = toolchain()
    if go is None or go < needed:
        found = "too old" if go else "missing"
        pytest.skip(f"crictl {version} is not built: the Go toolchain is {found} (its source needs {needed})")
    pytest.fail("crictl is not built: run `python tests/conformance/build.py crictl`", pytrace=False)


@pytest.fixture
def crictl(crictl_built: None, bed: Testbed, images: tuple[str, ...]) -> Iterator[Crictl]:
    """crictl with a configuration of its own, and no pods left when the test ends."""
    endpoint = "unix:///run/sandboxd/sandboxd.sock"
    lines = [f"runtime-endpoint: {endpoint}", f"image-endpoint: {endpoint}", "timeout: 30", "debug: false"]
    bed.write(CONFIG, "\n".join([*lines, "pull-image-on-create: false", "disable-pull-on-run: true"]) + "\n")
    command = Crictl(bed=bed)
    yield command
    command.remove_all()

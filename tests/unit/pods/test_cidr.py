"""UpdateRuntimeConfig writes a configuration, or has a reason not to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sandboxd.cni.conf_dir import ConfDir
from sandboxd.config import Config, Network
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.pods.cidr import FILE_NAME, set_pod_cidr
from tests.fakes.bundle import Bundle

TEMPLATE = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "x", "ipam": {"subnet": "{{.PodCIDR}}"}}]}


class Machine:
    """A configuration directory and a template."""

    def __init__(self, fakes: Bundle) -> None:
        self._fakes = fakes
        self.directory = fakes.directory / "empty.d"
        self.template = fakes.directory / "net.template"
        self.template.write_text(json.dumps(TEMPLATE))
        self.conf = ConfDir(str(self.directory))

    def set(self, cidr: str, *, configured: bool = True) -> None:
        network = Network(conf_dir=str(self.directory), conf_template=str(self.template) if configured else "")
        node = self._fakes.node
        set_pod_cidr(
            replace(node, config=Config(network=network), network=replace(node.network, conf=self.conf)), cidr
        )

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []

    @property
    def subnet(self) -> str:
        config = self.conf.current().config
        assert config is not None
        return str(config.plugins[0]["ipam"]["subnet"])


@pytest.fixture
def machine(fakes: Bundle) -> Machine:
    return Machine(fakes)


def test_the_network_follows_the_cidr(machine: Machine) -> None:
    machine.set("10.1.0.0/24")
    assert (machine.files, machine.subnet) == ([FILE_NAME], "10.1.0.0/24")
    machine.set("10.2.0.0/24")
    assert (machine.files, machine.subnet) == ([FILE_NAME], "10.2.0.0/24")


def test_the_same_cidr_again_does_not_touch_the_file(machine: Machine) -> None:
    machine.set("10.1.0.0/24")
    before = (machine.directory / FILE_NAME).stat()
    machine.set("10.1.0.0/24")
    assert (machine.directory / FILE_NAME).stat().st_ino == before.st_ino


@pytest.mark.parametrize(("cidr", "configured"), [("", True), ("10.1.0.0/24", False)])
def test_nothing_to_say_or_nobody_to_tell_is_no_error(machine: Machine, cidr: str, configured: bool) -> None:
    machine.set(cidr, configured=configured)
    assert machine.files == []


def test_a_configuration_of_somebody_else_stays_in_force(machine: Machine) -> None:
    machine.directory.mkdir()
    (machine.directory / "99-other.conflist").write_text(json.dumps(TEMPLATE))
    machine.set("10.1.0.0/24")
    assert machine.files == ["99-other.conflist"]


def test_what_is_wrong_with_the_request_and_with_the_machine_is_told_apart(machine: Machine) -> None:
    with pytest.raises(InvalidRequest, match="pod_cidr"):
        machine.set("10.1.0.1/24")
    with pytest.raises(InvalidRequest, match="pod_cidr"):
        machine.set("everywhere", configured=False)
    machine.template.write_text("{")
    with pytest.raises(NotReady, match="conf_template"):
        machine.set("10.1.0.0/24")
    machine.template.unlink()
    with pytest.raises(NotReady, match="cannot be read"):
        machine.set("10.1.0.0/24")
    assert machine.files == []

"""Stand-ins for IPAM plugins that were uninstalled are there for one DEL."""

from __future__ import annotations

import os
import subprocess

from sandboxd.cni import stand_ins
from sandboxd.environment import DEFAULT_PATH


def test_they_succeed_whatever_they_are_asked_and_leave_nothing() -> None:
    with stand_ins.directory(["whereabouts", "calico-ipam"], DEFAULT_PATH) as directory:
        assert sorted(os.listdir(directory)) == ["calico-ipam", "whereabouts"]
        done = subprocess.run([f"{directory}/whereabouts"], input=b"{}", env={"CNI_COMMAND": "DEL"}, check=True)
        assert not done.stdout
    assert not os.path.exists(directory)


def test_a_type_that_is_no_file_name_has_none() -> None:
    with stand_ins.directory(["../x", "a/b", ""], DEFAULT_PATH) as directory:
        assert os.listdir(directory) == []


def test_a_machine_without_the_program_has_none() -> None:
    with stand_ins.directory(["whereabouts"], "/nonexistent") as directory:
        assert os.listdir(directory) == []

"""What metrics need beside the measurements: names of devices, the file system below the layers."""

from __future__ import annotations

import os

import pytest

from sandboxd.cgroups.sample import Device, Sample
from sandboxd.usage.cadvisor import device_names, filesystem


def test_the_file_system_of_a_directory_that_is_not_there_is_unknown() -> None:
    assert filesystem("/no/such/directory") is None
    assert filesystem("") is None
    found = filesystem("/proc")
    assert found is not None and found.device


def test_a_device_that_sysfs_does_not_know_has_no_name() -> None:
    assert device_names(Sample(at=1, devices=(Device(major=0, minor=0),))) == {}
    assert device_names(None) == {}


def test_a_device_is_named_as_in_dev() -> None:
    block = "/sys/dev/block"
    if not os.path.isdir(block) or not os.listdir(block):
        pytest.skip("this machine shows no block devices")
    major, minor = (int(part) for part in os.listdir(block)[0].split(":"))
    names = device_names(Sample(at=1, devices=(Device(major=major, minor=minor),)))
    assert names[major, minor].startswith("/dev/")

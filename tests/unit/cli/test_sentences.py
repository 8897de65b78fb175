"""Steps in words."""

from __future__ import annotations

import pytest

from sandboxd import vocabulary
from sandboxd.cli import sentences
from sandboxd.pb.host.v1 import host_pb2 as host

LONG = "0123456789ab" + "c" * 52


def test_every_step_of_the_vocabulary_has_a_sentence_and_no_other() -> None:
    assert sentences.SENTENCES.keys() == vocabulary.NAMES.keys()


def test_what_makes_a_line_whole_is_a_step() -> None:
    assert {name for name in vocabulary.NAMES if sentences.may_hold(name, "x")} - {
        "pod.adopt"
    } <= vocabulary.MILESTONES
    assert all(outer in vocabulary.NAMES for outer in sentences._INSIDE)
    assert all(
        any(name.startswith(each) for name in vocabulary.NAMES)
        for inner in sentences._INSIDE.values()
        for each in inner
    )


@pytest.mark.parametrize(
    ("name", "detail", "told"),
    [
        (
            "pod.netns.create",
            {"path": f"/run/netns/sandboxd-{LONG}", "inode": "7"},
            "The network namespace is created, its loopback up: /run/netns/sandboxd-0123456789ab…, inode 7",
        ),
        ("pod.netns.create", {}, "The network namespace is created, its loopback up"),
        (
            "pod.network.attach",
            {"network": "n", "conf": "/etc/cni/net.d/10-n.conflist", "ips": "10.0.0.2,fd00::2"},
            "The pod is attached to network n, with 10.0.0.2 and fd00::2, from 10-n.conflist",
        ),
        ("pod.network.detach", {"network": "n", "attempt": "1"}, "The pod is detached from network n"),
        ("pod.network.detach", {"network": "n", "attempt": "2"}, "The pod is detached from network n, attempt 2"),
        (
            "container.create",
            {"container": "web", "image": "nginx"},
            "The container is created, up to its stored spec: web, from image nginx",
        ),
        (
            "pod.pause.rootfs",
            {"image": f"sha256:{LONG}"},
            "The pause container gets a root file system, from image 0123456789ab",
        ),
        ("cni.add", {"plugin": "bridge", "network": "n"}, "ADD bridge"),
        ("cni.version", {"plugin": "bridge"}, "bridge is asked which versions it speaks"),
        ("cni.leftovers", {"groups": "7,8"}, "Plugins that outlived an earlier daemon are ended: process groups 7,8"),
        ("cni.prepare", {"plugin": "", "network": "n"}, "What precedes the first plugin has failed: n"),
        ("cni.prepare", {"plugin": "", "network": ""}, "What precedes the first plugin has failed"),
        (
            "cni.rules",
            {"network": "n"},
            "Rules for masquerading that a DEL may have missed are looked for, of network n",
        ),
        ("pod.of.tomorrow", {}, "pod.of.tomorrow"),
    ],
)
def test_a_sentence_has_the_particulars_that_tell_most(name: str, detail: dict[str, str], told: str) -> None:
    assert sentences.sentence(host.Step(name=name, detail=detail)) == told


def test_what_nobody_should_miss_is_remarked_and_each_file_has_a_line() -> None:
    detail = {
        "passed_over": "/a.conf: not JSON; at 1; /b.conf: comes after; and 3 more",
        "warning": "no server",
        "x": "y",
    }
    assert sentences.remarks(host.Step(detail=detail)) == [
        "warning: no server",
        "passed over: /a.conf: not JSON; at 1",
        "passed over: /b.conf: comes after",
        "passed over: and 3 more",
    ]

"""AppArmor profiles and SELinux labels: honoured or refused; labels are ignored where the kernel has none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import lsm
from sandboxd.oci.linux import SelinuxContexts
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import HOST, in_context, pause, pod_context, workload

Profile = cri.SecurityProfile
UNCONFINED = Profile(profile_type=Profile.Unconfined)
DEFAULT = Profile(profile_type=Profile.RuntimeDefault)
WEB = Profile(profile_type=Profile.Localhost, localhost_ref="web")
ARMED = replace(HOST, apparmor=True, apparmor_loaded=frozenset({"web", "usual"}))
WITH_DEFAULT = replace(ARMED, apparmor_default="usual")
LABELLED = replace(
    HOST, selinux=SelinuxContexts(process="system_u:system_r:container_t:s0", file="system_u:object_r:files_t:s0")
)
NONE = cri.SELinuxOption()


def context(**members: Any) -> cri.LinuxContainerSecurityContext:
    return cri.LinuxContainerSecurityContext(**members)


@pytest.mark.parametrize(
    ("members", "plain", "armed", "with_default"),
    [
        ({}, "", "", "usual"),
        ({"apparmor": DEFAULT}, "", "", "usual"),
        ({"apparmor_profile": "runtime/default"}, "", "", "usual"),
        ({"apparmor": DEFAULT, "privileged": True}, "", "", ""),
        ({"apparmor": UNCONFINED}, "", "unconfined", "unconfined"),
        ({"apparmor_profile": "unconfined"}, "", "unconfined", "unconfined"),
        ({"apparmor": WEB}, None, "web", "web"),
        ({"apparmor": WEB, "privileged": True}, None, "web", "web"),
        ({"apparmor_profile": "localhost/web"}, None, "web", "web"),
        ({"apparmor": UNCONFINED, "apparmor_profile": "localhost/web"}, "", "unconfined", "unconfined"),
    ],
)
def test_a_profile_is_given_where_there_is_apparmor(
    members: dict[str, Any], plain: str | None, armed: str, with_default: str
) -> None:
    asked = context(**members)
    if plain is None:
        with pytest.raises(Unsupported, match="does not run AppArmor"):
            lsm.apparmor(asked, HOST)
    else:
        assert lsm.apparmor(asked, HOST) == plain
    assert lsm.apparmor(asked, ARMED) == armed
    assert lsm.apparmor(asked, WITH_DEFAULT) == with_default


@pytest.mark.parametrize(
    ("members", "host"),
    [
        ({"apparmor": Profile(profile_type=Profile.Localhost, localhost_ref="other")}, ARMED),
        ({"apparmor_profile": "localhost/other"}, ARMED),
        ({}, replace(ARMED, apparmor_default="other")),
    ],
)
def test_a_profile_that_is_not_loaded_is_refused(members: dict[str, Any], host: Any) -> None:
    with pytest.raises(InvalidRequest, match="'other' is not loaded"):
        lsm.apparmor(context(**members), host)


@pytest.mark.parametrize("text", ["web", "localhost/", "/", "runtime/other", "unconfined/x"])
def test_an_unknown_spelling_of_a_profile_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="apparmor_profile"):
        lsm.apparmor_requested(context(apparmor_profile=text))


def test_the_profile_reaches_the_spec() -> None:
    assert "apparmorProfile" not in workload()["process"]
    assert workload(in_context(apparmor=WEB), host=ARMED)["process"]["apparmorProfile"] == "web"


@pytest.mark.parametrize("level", ["s0", "s0:c1,c2", "s0-s0:c0.c1023", "s15:c0", ""])
def test_levels_are_accepted(level: str) -> None:
    lsm.check_options(cri.SELinuxOption(level=level))


@pytest.mark.parametrize("level", ["s0,c4,c5", "c1", "s", "s0:", "s0:c1,", "s0:c1 c2", "s0:c1\n"])
def test_what_is_no_level_is_refused(level: str) -> None:
    with pytest.raises(InvalidRequest, match="level"):
        lsm.check_options(cri.SELinuxOption(level=level))


@pytest.mark.parametrize("part", ["user", "role", "type"])
def test_a_part_of_a_label_holds_no_separator(part: str) -> None:
    with pytest.raises(InvalidRequest, match=part):
        lsm.check_options(cri.SELinuxOption(**{part: "a:b"}))


@pytest.mark.parametrize("option", [{"user": "u"}, {"role": "r"}, {"type": "t"}, {"level": "s0"}])
def test_a_label_on_a_machine_without_selinux_is_ignored(option: dict[str, str]) -> None:
    asked = cri.SELinuxOption(**option)
    for own, pod in ((asked, NONE), (NONE, asked), (NONE, NONE)):
        assert lsm.selinux(own, pod, "id", HOST, privileged=False) == lsm.Labels()


@pytest.mark.parametrize("option", [{"user": "u"}, {"role": "r"}, {"type": "t"}, {"level": "s0"}])
def test_a_label_is_refused_where_selinux_runs_and_has_none_for_containers(option: dict[str, str]) -> None:
    host, asked = replace(HOST, selinux_runs=True), cri.SELinuxOption(**option)
    for own, pod in ((asked, NONE), (NONE, asked)):
        with pytest.raises(Unsupported, match="no contexts for containers"):
            lsm.selinux(own, pod, "id", host, privileged=False)
    assert lsm.selinux(NONE, NONE, "id", host, privileged=False) == lsm.Labels()


def test_a_level_reaches_no_spec_where_there_is_no_selinux() -> None:
    options = cri.SELinuxOption(level="s0")
    pod = pod_context(selinux_options=options)
    for spec in (workload(in_context(selinux_options=options), pod=pod), pause(pod)):
        assert "selinuxLabel" not in spec["process"]
        assert "mountLabel" not in spec["linux"]


def test_parts_that_are_not_asked_for_are_the_pods_and_then_the_policys() -> None:
    pod = cri.SELinuxOption(role="pod_r", level="s0:c1,c2")
    found = lsm.selinux(cri.SELinuxOption(type="own_t"), pod, "id", LABELLED, privileged=False)
    assert found == lsm.Labels(process="system_u:pod_r:own_t:s0:c1,c2", mount="system_u:object_r:files_t:s0:c1,c2")


def test_a_privileged_process_is_not_labelled_but_its_files_are() -> None:
    found = lsm.selinux(NONE, cri.SELinuxOption(level="s0:c1"), "id", LABELLED, privileged=True)
    assert found == lsm.Labels(process="", mount="system_u:object_r:files_t:s0:c1")


@given(st.text(max_size=64))
def test_a_pod_has_two_categories_that_its_id_gives(sandbox_id: str) -> None:
    first = lsm.selinux(NONE, NONE, sandbox_id, LABELLED, privileged=False)
    assert first == lsm.selinux(NONE, NONE, sandbox_id, LABELLED, privileged=False)
    match = re.fullmatch(r"system_u:system_r:container_t:s0:c(\d+),c(\d+)", first.process)
    assert match is not None
    assert 0 <= int(match[1]) < int(match[2]) < 1024


def test_containers_of_a_pod_have_its_label() -> None:
    pod = pod_context()
    specs = [workload(pod=pod, host=LABELLED), workload(in_context(), pod=pod, host=LABELLED)]
    assert len({spec["process"]["selinuxLabel"] for spec in specs}) == 1
    assert len({spec["linux"]["mountLabel"] for spec in specs}) == 1

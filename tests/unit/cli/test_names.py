"""Which pod or container a name means."""

from __future__ import annotations

import pytest

from sandboxd.cli import names
from sandboxd.pb.cri.v1 import api_pb2 as cri


def pod(identity: str, name: str, namespace: str = "default") -> cri.PodSandbox:
    return cri.PodSandbox(id=identity, metadata=cri.PodSandboxMetadata(name=name, namespace=namespace))


def container(identity: str, name: str, pod_id: str) -> cri.Container:
    return cri.Container(id=identity, metadata=cri.ContainerMetadata(name=name), pod_sandbox_id=pod_id)


WEB, DB, DB2, CAFE = pod("aa01", "web"), pod("aa02", "db"), pod("bb03", "db", "prod"), pod("cc04", "aa0")
PODS = [WEB, DB, DB2, CAFE]
WEB_WEB, WEB_LOG = container("d001", "web", "aa01"), container("d002", "log", "aa01")
DB_LOG, LOST = container("aa03", "log", "aa02"), container("e004", "lost", "ffff")
CONTAINERS = [WEB_WEB, WEB_LOG, DB_LOG, LOST]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("web", WEB),
        ("default/db", DB),
        ("prod/db", DB2),
        ("bb", DB2),
        ("aa02", DB),
        ("aa0", CAFE),  # a name, though three ids begin so
    ],
)
def test_a_pod_goes_by_name_namespace_and_name_or_beginning_of_id(reference: str, expected: cri.PodSandbox) -> None:
    assert names.find_pod(reference, PODS) == expected


def test_a_namespace_narrows_a_bare_name() -> None:
    assert names.find_pod("db", PODS, "prod") == DB2


@pytest.mark.parametrize("reference", ["", "nothing", "default/nothing", "d001"])
def test_no_pod_goes_by_another_name(reference: str) -> None:
    with pytest.raises(names.NoMatch, match="there is no pod"):
        names.find_pod(reference, PODS)


@pytest.mark.parametrize("reference", ["db", "a"])
def test_several_pods_are_listed_with_their_ids(reference: str) -> None:
    with pytest.raises(names.SeveralMatch, match="more than one pod") as caught:
        names.find_pod(reference, PODS)
    assert "aa02  pod default/db  ready" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("web/log", WEB_LOG),
        ("default/web/log", WEB_LOG),
        ("db/log", DB_LOG),
        ("lost", LOST),
        ("d002", WEB_LOG),
        ("web", WEB_WEB),
        ("e", LOST),
        ("default/db", DB_LOG),  # the only container of its pod
    ],
)
def test_a_container_goes_by_name_pod_and_name_or_beginning_of_id(reference: str, expected: cri.Container) -> None:
    assert names.find_container(reference, CONTAINERS, PODS) == expected


@pytest.mark.parametrize("reference", ["log", "d0", "default/web"])
def test_several_containers_are_listed_with_their_ids(reference: str) -> None:
    with pytest.raises(names.SeveralMatch, match="more than one container") as caught:
        names.find_container(reference, CONTAINERS, PODS)
    assert "d002  container web/log  created" in str(caught.value)


def test_a_pod_without_containers_is_no_container() -> None:
    with pytest.raises(names.NoMatch, match="pod prod/db has no containers"):
        names.find_container("prod/db", CONTAINERS, PODS)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("web", WEB), ("web/web", WEB_WEB), ("aa01", WEB), ("aa03", DB_LOG), ("lost", LOST), ("cc", CAFE)],
)
def test_a_pods_name_comes_before_a_containers(reference: str, expected: cri.PodSandbox | cri.Container) -> None:
    assert names.find(reference, PODS, CONTAINERS) == expected


def test_an_id_that_pods_and_containers_share_the_beginning_of_is_not_guessed() -> None:
    with pytest.raises(names.SeveralMatch) as caught:
        names.find("aa", PODS, CONTAINERS)
    assert "aa01  pod default/web" in str(caught.value)
    assert "aa03  container db/log" in str(caught.value)


def test_nothing_found_is_said() -> None:
    with pytest.raises(names.NoMatch, match="no pod or container 'zz'"):
        names.find("zz", PODS, CONTAINERS)


@pytest.mark.parametrize(("text", "expected"), [("0123456789ab", True), ("cafe", False), ("web-0123456789ab", False)])
def test_only_long_hex_looks_like_an_id(text: str, expected: bool) -> None:
    assert names.looks_like_id(text) is expected

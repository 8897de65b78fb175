"""A pod's user namespace in each of its three spellings."""

from __future__ import annotations

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.oci import userns
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import pod_config, pod_context

UIDS, GIDS = cri.IDMapping(host_id=100000, length=1000), cri.IDMapping(host_id=200000, length=10)
IDS = userns.IdMap(uids=userns.Range(host=100000, length=1000), gids=userns.Range(host=200000, length=10))


def pod(mode: cri.NamespaceMode.ValueType) -> cri.PodSandboxConfig:
    options = cri.UserNamespace(mode=mode, uids=[UIDS], gids=[GIDS])
    return pod_context(namespace_options=cri.NamespaceOption(userns_options=options))


def test_a_pod_has_a_map_when_it_asks_for_a_namespace() -> None:
    assert userns.of(pod(cri.POD)) == IDS
    assert userns.of(pod(cri.NODE)) is None
    assert userns.of(pod_config()) is None


def test_the_kernel_and_the_runtime_are_told_the_same() -> None:
    assert IDS.uids.kernel == "0 100000 1000\n"
    assert IDS.gids.spec == [{"containerID": 0, "hostID": 200000, "size": 10}]


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (User(uid=999, gid=9, additional_gids=(9, 0)), ""),
        (User(uid=1000, gid=0, additional_gids=()), "user 1000 does not exist in the pod's user namespace"),
        (User(uid=0, gid=10, additional_gids=()), "group 10 does not exist"),
        (User(uid=0, gid=0, additional_gids=(0, 11)), "group 11 does not exist"),
    ],
)
def test_a_user_must_exist_in_the_namespace(user: User, words: str) -> None:
    userns.check_user(user, None)
    if not words:
        userns.check_user(user, IDS)
        return
    with pytest.raises(InvalidRequest, match=words):
        userns.check_user(user, IDS)

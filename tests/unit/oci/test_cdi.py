"""CDI files in, edits of runtime specs out."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.oci import cdi
from sandboxd.oci.linux import DeviceNode
from tests.unit.oci.golden.cases import workload

NODE = DeviceNode(path="/dev/real0", kind="c", major=10, minor=7, mode=0o640, uid=0, gid=44)


def spec(*, source: str = "/etc/cdi/a.json", **changes: Any) -> cdi.Spec:
    document = {
        "cdiVersion": "0.6.0",
        "kind": "v.example/gpu",
        "devices": [{"name": "0", "containerEdits": {}}],
        **changes,
    }
    return cdi.parse(json.dumps(document).encode(), source)


def injected(*wanted: str, host: dict[str, DeviceNode] | None = None, specs: list[cdi.Spec]) -> dict[str, Any]:
    result = workload()
    cdi.inject(result, cdi.resolve(wanted, [specs], []), host or {})
    return result


def device(name: str = "0", **edits: Any) -> dict[str, Any]:
    return {"devices": [{"name": name, "containerEdits": edits}]}


@pytest.mark.parametrize("name", ["v.example/gpu=0", "v/c=d", "vendor.com/net_if-x=eth0:1.2", "a/b=0"])
def test_a_device_is_named_by_vendor_class_and_device(name: str) -> None:
    assert cdi.names([name], {}) == (name,)


@pytest.mark.parametrize(
    "name", ["", "gpu", "v.example/gpu", "v.example=0", "/gpu=0", "v/c=", "1v/c=d", "v/c=d\n", "v/c=-"]
)
def test_what_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not of the form"):
        cdi.names([name], {})


def test_devices_of_the_field_and_of_annotations_count_once() -> None:
    annotations = {"cdi.k8s.io/b": "v/c=2,v/c=1", "cdi.k8s.io/a": "v/c=3", "other/x": "no device"}
    assert cdi.names(["v/c=1"], annotations) == ("v/c=1", "v/c=3", "v/c=2")


def test_json_and_yaml_say_the_same() -> None:
    yaml = b"cdiVersion: 0.6.0\nkind: v.example/gpu\ndevices:\n- name: '0'\n  containerEdits: {}\n"
    assert cdi.parse(yaml, "/etc/cdi/a.yaml").devices == spec().devices


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cdiVersion": "9.0.0"}, "cdiVersion: '9.0.0'"),
    ({"kind": "gpu"}, "kind: 'gpu'"),
    ({"extra": 1}, "extra: is not a known member"),
    ({"devices": {}}, "devices: an object is not of type list"),
    ({"devices": [1]}, "devices[0]: must be an object"),
    ({"devices": [{"name": "a b"}]}, "devices[0].name: 'a b'"),
    ({"devices": [{"name": "0"}, {"name": "0"}]}, "devices[1].name: '0' is listed twice"),
    (device(intelRdt={}), "devices[0].containerEdits.intelRdt: is not a known member"),
    (device(env=["A"]), "env[0]: 'A' is not NAME=value"),
    (device(env=[1]), "env[0]: 1 is not NAME=value"),
    (device(additionalGids=[-1]), "additionalGids[0]: -1 is not a group id"),
    (device(deviceNodes=[{"path": "dev/x"}]), "deviceNodes[0].path: 'dev/x' is not an absolute path"),
    (device(deviceNodes=[{"path": "/dev/x", "major": "1"}]), "deviceNodes[0].major: '1' is not of type int"),
    (device(deviceNodes=[{"path": "/dev/x", "major": True}]), "deviceNodes[0].major: True is not of type int"),
    (device(mounts=[{"hostPath": "/a"}]), "mounts[0].containerPath: '' is not an absolute path"),
    (device(hooks=[{"path": "/h", "hookName": "never"}]), "hooks[0].hookName: 'never' is not a hook"),
    (device(hooks=[{"hookName": "prestart"}]), "hooks[0].path: '' is not an absolute path"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words for _, words in BAD])
def test_what_is_not_understood_of_a_file_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        spec(**changes)
    assert str(raised.value).startswith("/etc/cdi/a.json: ")
    assert words in str(raised.value)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_specification_or_refused(data: bytes) -> None:
    for source in ("/a.json", "/a.yaml"):
        with pytest.raises(InvalidRequest, match="/a"):
            cdi.parse(data, source)


@pytest.mark.parametrize("source", ["/a.json", "/a.yaml"])
def test_a_specification_of_great_depth_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"nested deeper than 100 levels"):
        cdi.parse(b"[" * 20_000, source)


def test_a_device_that_nothing_describes_is_not_found_and_problems_are_told() -> None:
    with pytest.raises(NotFound, match=r"v\.example/gpu=1: no specification .* \(/etc/cdi/b\.json: broken\)"):
        cdi.resolve(["v.example/gpu=1"], [[spec()]], ["/etc/cdi/b.json: broken"])


def test_of_two_directories_the_later_one_wins_and_of_two_files_none() -> None:
    early, late = spec(**device(env=["A=early"])), spec(source="/var/run/cdi/a.json", **device(env=["A=late"]))
    assert cdi.resolve(["v.example/gpu=0"], [[early], [late]], []).parts[-1]["env"] == ["A=late"]
    assert cdi.resolve(["v.example/gpu=0"], [[early], []], []).parts[-1]["env"] == ["A=early"]
    with pytest.raises(InvalidRequest, match=r"described twice, in /etc/cdi/a\.json and /var/run/cdi/a\.json"):
        cdi.resolve(["v.example/gpu=0"], [[early, late]], [])


def test_nothing_asked_for_changes_nothing() -> None:
    result = workload()
    before = copy.deepcopy(result)
    cdi.inject(result, cdi.Edits(), {})
    assert result == before


def test_what_is_common_is_done_once_and_first() -> None:
    gids: dict[str, Any] = {"containerEdits": {"env": ["A=common", "B=common"], "additionalGids": [7]}}
    both = [{"name": n, "containerEdits": {"env": [f"A={n}"], "additionalGids": [7, 8]}} for n in "01"]
    result = injected("v.example/gpu=0", "v.example/gpu=1", specs=[spec(devices=both, **gids)])
    assert result["process"]["env"][-2:] == ["A=1", "B=common"]
    assert result["process"]["user"]["additionalGids"] == [0, 7, 8]


def test_a_device_node_is_completed_from_the_host() -> None:
    node = {"path": "/dev/gpu", "hostPath": "/dev/real0", "permissions": "r", "uid": 5}
    result = injected("v.example/gpu=0", host={"/dev/real0": NODE}, specs=[spec(**device(deviceNodes=[node]))])
    assert result["linux"]["devices"] == [
        {"path": "/dev/gpu", "type": "c", "major": 10, "minor": 7, "fileMode": 0o640, "uid": 5, "gid": 44}
    ]
    assert result["linux"]["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 10,
        "minor": 7,
        "access": "r",
    }


def test_a_device_node_that_is_described_need_not_exist() -> None:
    nodes = [{"path": "/dev/gpu", "type": "b", "major": 1, "minor": 0}, {"path": "/dev/pipe", "type": "p"}]
    result = injected("v.example/gpu=0", specs=[spec(**device(deviceNodes=nodes))])
    assert result["linux"]["devices"] == [
        {"path": "/dev/gpu", "type": "b", "major": 1, "minor": 0},
        {"path": "/dev/pipe", "type": "p"},
    ]
    assert [rule["access"] for rule in result["linux"]["resources"]["devices"]] == ["rwm", "rwm"]


def test_a_device_node_that_is_neither_there_nor_described_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="CDI device node /dev/gpu is not on this machine"):
        injected("v.example/gpu=0", specs=[spec(**device(deviceNodes=[{"path": "/dev/gpu", "major": 1}]))])


def test_mounts_take_the_place_of_others_and_parents_come_first() -> None:
    mounts = [
        {"hostPath": "/vendor/hosts", "containerPath": "/etc/hosts", "options": ["ro", "bind"]},
        {"hostPath": "/vendor", "containerPath": "/opt", "type": "tmpfs"},
    ]
    result = injected("v.example/gpu=0", specs=[spec(**device(mounts=mounts))])["mounts"]
    assert [m for m in result if m["destination"] == "/etc/hosts"] == [
        {"destination": "/etc/hosts", "type": "bind", "source": "/vendor/hosts", "options": ["ro", "bind"]}
    ]
    assert [m["type"] for m in result if m["destination"] == "/opt"] == ["tmpfs"]
    depths = [m["destination"].count("/") for m in result]
    assert depths == sorted(depths)


def test_hooks_are_added_in_order() -> None:
    hooks = [
        {"hookName": "prestart", "path": "/a", "args": ["a"]},
        {"hookName": "prestart", "path": "/b", "timeout": 3},
        {"hookName": "poststop", "path": "/c", "env": ["X=1"]},
    ]
    result = injected("v.example/gpu=0", specs=[spec(**device(hooks=hooks))])
    assert result["hooks"] == {
        "prestart": [{"path": "/a", "args": ["a"]}, {"path": "/b", "timeout": 3}],
        "poststop": [{"path": "/c", "env": ["X=1"]}],
    }


def test_aliases_that_stand_for_a_huge_document_are_refused_in_a_short_message() -> None:
    lines = [b"l0: &l0 [x,x,x,x,x,x,x,x,x]"]
    lines += [b"l%d: &l%d [%s]" % (n, n, b",".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 12)]
    for last in (b"kind: *l11", b"cdiVersion: *l11", b"kind: &x [*x]"):
        with pytest.raises(InvalidRequest) as error:
            cdi.parse(b"\n".join([last]) if b"&x" in last else b"\n".join([*lines, last]), "x.yaml")
        assert len(str(error.value)) < 300
    bomb = b"\n".join([b"devices: &l0 [x,x]", b"kind: [*l0, *l0]"])
    with pytest.raises(InvalidRequest, match=r"kind: a list is not of type str"):
        cdi.parse(bomb, "x.yaml")

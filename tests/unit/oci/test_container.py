"""A workload's runtime spec: request over image, inside its pod."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import linux
from sandboxd.oci.container import image_volumes
from sandboxd.oci.linux import MountSource
from sandboxd.oci.users import User
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden import cases
from tests.unit.oci.golden.cases import HOST, V2_HOST, in_context, pod_context, userns_pod, workload


@pytest.mark.parametrize("case", [name for name in cases.CASES if name.startswith("container")])
def test_golden(case: str) -> None:
    """`python -m tests.unit.oci.golden.cases` rewrites the files."""
    expected = (cases.DIRECTORY / f"{case}.json").read_text(encoding="utf-8")
    assert json.loads(expected) == json.loads(cases.text(case))


def test_no_golden_file_is_without_a_case() -> None:
    assert set(cases.CASES) == {path.stem for path in cases.DIRECTORY.glob("*.json")}


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["/entry", "cmd", "1"]),
        ([], ["a"], ["/entry", "a"]),
        (["/c"], [], ["/c"]),
        (["/c"], ["a"], ["/c", "a"]),
    ],
)
def test_command_replaces_the_images_and_args_the_images_cmd(
    command: list[str], args: list[str], expected: list[str]
) -> None:
    config = cri.ContainerConfig(command=command, args=args)
    image = {"Entrypoint": ["/entry"], "Cmd": ["cmd", "1"]}
    assert expected == workload(config, image=image)["process"]["args"]


@pytest.mark.parametrize(
    "image", [{"Entrypoint": None, "Cmd": []}, {"Entrypoint": [""]}, {"Entrypoint": [""], "Cmd": []}, {}]
)
def test_nothing_to_run_is_refused(image: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"config\.command"):
        workload(image=image)


@pytest.mark.parametrize(
    ("entrypoint", "args", "expected"),
    [([""], [], ["cmd"]), ([""], ["a"], ["a"]), (["", "x"], [], ["", "x", "cmd"]), ([], [], ["cmd"])],
)
def test_an_entrypoint_of_one_empty_word_is_none(entrypoint: list[str], args: list[str], expected: list[str]) -> None:
    image = {"Entrypoint": entrypoint, "Cmd": ["cmd"]}
    assert expected == workload(cri.ContainerConfig(args=args), image=image)["process"]["args"]


def test_environment_is_default_then_image_then_request() -> None:
    config = cri.ContainerConfig(tty=True, envs=[cri.KeyValue(key="B", value="€".encode())])
    env = workload(config, image={"Cmd": ["x"], "Env": ["A=1", "B=2", "TERM=dumb"]})["process"]["env"]
    assert env == [linux.DEFAULT_PATH, "TERM=dumb", "HOSTNAME=web-0", "A=1", "B=€"]


def test_a_pod_without_a_hostname_shows_the_nodes() -> None:
    pod = pod_context()
    pod.hostname = ""
    assert "HOSTNAME=node-1" in workload(pod=pod)["process"]["env"]


@pytest.mark.parametrize(
    ("asked", "image", "expected"), [("", "", "/"), ("", "/srv", "/srv"), ("/w", "/srv", "/w"), ("", "rel", "/rel")]
)
def test_working_directory(asked: str, image: str, expected: str) -> None:
    config = cri.ContainerConfig(working_dir=asked)
    assert expected == workload(config, image={"Cmd": ["x"], "WorkingDir": image})["process"]["cwd"]


def kinds(spec: dict[str, Any]) -> dict[str, str]:
    """Namespace kind -> path."""
    return {entry["type"]: entry.get("path", "") for entry in spec["linux"]["namespaces"]}


@pytest.mark.parametrize(
    ("sandbox", "container", "expected"),
    [
        (cri.POD, cri.POD, "/proc/4242/ns/pid"),
        (cri.CONTAINER, cri.POD, "/proc/4242/ns/pid"),
        (cri.CONTAINER, cri.CONTAINER, ""),
        (cri.NODE, cri.CONTAINER, ""),
        (cri.NODE, cri.NODE, None),
        (cri.NODE, cri.POD, None),
        (cri.POD, cri.TARGET, "/proc/77/ns/pid"),
    ],
)
def test_pid_namespace(
    sandbox: cri.NamespaceMode.ValueType, container: cri.NamespaceMode.ValueType, expected: str | None
) -> None:
    config = in_context(namespace_options=cri.NamespaceOption(pid=container))
    pod = pod_context(namespace_options=cri.NamespaceOption(pid=sandbox))
    assert expected == kinds(workload(config, pod=pod, target_pid=77)).get("pid")


def test_joining_the_namespace_of_no_process_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="pid 0"):
        workload(in_context(namespace_options=cri.NamespaceOption(pid=cri.TARGET)))


def test_a_pod_in_the_hosts_namespaces_has_its_containers_there() -> None:
    modes = cri.NamespaceOption(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE)
    spec = workload(pod=pod_context(namespace_options=modes))
    assert kinds(spec) == {"mount": ""}
    assert mounts(spec)["/dev/shm"]["source"] == "/dev/shm"


@pytest.mark.parametrize(
    ("v2", "privileged", "own"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_cgroup_namespace_on_v2_unless_privileged(v2: bool, privileged: bool, own: bool) -> None:
    pod = pod_context(privileged=privileged)
    spec = workload(in_context(privileged=privileged), pod=pod, host=V2_HOST if v2 else HOST)
    assert own == ("cgroup" in kinds(spec))
    # Without the namespace the mount is the machine's own, which must keep its options.
    assert (v2 and not own) == ("nsdelegate" in mounts(spec)["/sys/fs/cgroup"]["options"])


def mounts(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Destination -> mount; no two for one place."""
    by_destination = {mount["destination"]: mount for mount in spec["mounts"]}
    assert len(spec["mounts"]) == len(by_destination)
    return by_destination


def mounting(*requested: cri.Mount) -> cri.ContainerConfig:
    """A container's config with these mounts."""
    return cri.ContainerConfig(mounts=requested)


def test_parents_are_mounted_before_children() -> None:
    spec = workload(
        mounting(
            cri.Mount(container_path="/a/b/c", host_path="/1"),
            cri.Mount(container_path="/a", host_path="/2"),
            cri.Mount(container_path="/a/b", host_path="/3"),
        )
    )
    order = [mount["destination"] for mount in spec["mounts"]]
    assert sorted(order, key=linux.depth) == order
    assert order.index("/a") < order.index("/a/b") < order.index("/a/b/c")


def test_a_request_replaces_the_default_mount_of_the_same_place() -> None:
    paths = ("/etc/hosts", "/dev/shm", "/proc", "/sys/fs/cgroup", "/var/lib/app/")
    config = mounting(*(cri.Mount(container_path=path, host_path="/mine") for path in paths))
    found = mounts(workload(config, volumes={"/var/lib/app": "/vol"}))
    assert {"/mine"} == {found[linux.clean(path)]["source"] for path in paths}


def test_a_requested_dev_is_not_covered_by_ours() -> None:
    found = mounts(workload(mounting(cri.Mount(container_path="/dev", host_path="/dev"))))
    assert "/dev/pts" not in found
    assert "/dev/mqueue" not in found
    assert f"{cases.SANDBOX_DIR}/shm" == found["/dev/shm"]["source"]


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        (cri.Mount(), ["rbind", "rprivate", "rw"]),
        (cri.Mount(readonly=True), ["rbind", "rprivate", "ro"]),
        (cri.Mount(readonly=True, recursive_read_only=True), ["rbind", "rprivate", "rro"]),
        (cri.Mount(propagation=cri.PROPAGATION_HOST_TO_CONTAINER), ["rbind", "rslave", "rw"]),
        (cri.Mount(propagation=cri.PROPAGATION_BIDIRECTIONAL, readonly=True), ["rbind", "rshared", "ro"]),
    ],
)
def test_mount_options(mount: cri.Mount, options: list[str]) -> None:
    mount.container_path, mount.host_path = "/m", "/link"
    host = replace(V2_HOST, mount_sources={"/link": MountSource(path="/real", shared=True)})
    made = mounts(workload(mounting(mount), host=host))["/m"]
    assert ("/real", options) == (made["source"], made["options"])


@pytest.mark.parametrize(
    ("propagation", "source", "refused"),
    [
        (cri.PROPAGATION_BIDIRECTIONAL, MountSource(path="/s"), True),
        (cri.PROPAGATION_BIDIRECTIONAL, MountSource(path="/s", slave=True), True),
        (cri.PROPAGATION_BIDIRECTIONAL, MountSource(path="/s", shared=True), False),
        (cri.PROPAGATION_HOST_TO_CONTAINER, MountSource(path="/s"), True),
        (cri.PROPAGATION_HOST_TO_CONTAINER, MountSource(path="/s", slave=True), False),
        (cri.PROPAGATION_PRIVATE, MountSource(path="/s"), False),
    ],
)
def test_propagation_needs_a_source_that_propagates(
    propagation: cri.MountPropagation.ValueType, source: MountSource, refused: bool
) -> None:
    config = mounting(cri.Mount(container_path="/m", host_path="/s", propagation=propagation))
    host = replace(HOST, mount_sources={"/s": source})
    if refused:
        with pytest.raises(InvalidRequest, match=r"/s: .* propagation"):
            workload(config, host=host)
    else:
        assert workload(config, host=host)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([cri.PROPAGATION_PRIVATE], None),
        ([cri.PROPAGATION_PRIVATE, cri.PROPAGATION_HOST_TO_CONTAINER], "rslave"),
        ([cri.PROPAGATION_BIDIRECTIONAL, cri.PROPAGATION_HOST_TO_CONTAINER], "rshared"),
    ],
)
def test_the_root_propagates_as_far_as_the_furthest_mount(
    asked: list[cri.MountPropagation.ValueType], expected: str | None
) -> None:
    config = mounting(
        *(cri.Mount(container_path=f"/m{i}", host_path="/s", propagation=mode) for i, mode in enumerate(asked))
    )
    host = replace(HOST, mount_sources={"/s": MountSource(path="/s", shared=True)})
    assert expected == workload(config, host=host)["linux"].get("rootfsPropagation")


def test_recursive_read_only_needs_a_runtime_that_has_it() -> None:
    config = mounting(cri.Mount(container_path="/m", host_path="/s", readonly=True, recursive_read_only=True))
    with pytest.raises(Unsupported, match="/m: recursive_read_only"):
        workload(config, host=HOST)


def test_a_readonly_rootfs_makes_the_pods_files_readonly_too() -> None:
    for readonly, access in ((False, "rw"), (True, "ro")):
        spec = workload(in_context(readonly_rootfs=readonly))
        assert readonly == spec["root"]["readonly"]
        assert access in mounts(spec)["/etc/hosts"]["options"]
        assert "rw" in mounts(spec)["/dev/shm"]["options"]


@pytest.mark.parametrize(
    ("context", "masked", "readonly"),
    [
        ({}, list(linux.DEFAULT_MASKED_PATHS), list(linux.DEFAULT_READONLY_PATHS)),
        ({"masked_paths": ["/bin/ls"]}, ["/bin/ls"], []),
        ({"readonly_paths": ["/tmp"]}, [], ["/tmp"]),
        ({"privileged": True, "masked_paths": ["/bin/ls"]}, [], []),
    ],
)
def test_guarded_paths_are_exactly_the_requests_once_it_names_any(
    context: dict[str, Any], masked: list[str], readonly: list[str]
) -> None:
    made = workload(in_context(**context), pod=pod_context(privileged=True))["linux"]
    assert (masked, readonly) == (made["maskedPaths"], made["readonlyPaths"])


def test_privileged_opens_everything() -> None:
    context = in_context(privileged=True, capabilities=cri.Capability(drop_capabilities=["ALL"]))
    spec = workload(context, pod=pod_context(privileged=True))
    assert list(linux.ALL_CAPABILITIES) == spec["process"]["capabilities"]["bounding"]
    assert "rw" in mounts(spec)["/sys"]["options"]
    assert "rw" in mounts(spec)["/sys/fs/cgroup"]["options"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


def test_no_new_privileges_only_when_asked() -> None:
    assert not workload()["process"]["noNewPrivileges"]
    assert workload(in_context(no_new_privs=True))["process"]["noNewPrivileges"]


def test_volumes_of_the_image_are_listed_unless_mounted() -> None:
    image: dict[str, Any] = {"Volumes": {"/data/": {}, "/log": {}, "/": {}, "//log": {}}}
    assert image_volumes(cri.ContainerConfig(), image) == ("/data", "/log")
    assert image_volumes(mounting(cri.Mount(container_path="/log/")), image) == ("/data",)
    assert image_volumes(cri.ContainerConfig(), {}) == ()


def test_a_container_in_a_user_namespace_joins_its_pods() -> None:
    spec = workload(pod=userns_pod())
    assert kinds(spec)["user"] == f"{cases.SANDBOX_DIR}/userns"
    assert spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert "uidMappings" not in workload()["linux"]


def test_a_user_that_the_namespace_lacks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="user 65536 does not exist"):
        workload(pod=userns_pod(), user=User(uid=65536, gid=0, additional_gids=()))


def test_nothing_is_guarded_in_a_user_namespace_unless_asked() -> None:
    """This is how kubelet says `procMount: Unmasked`."""
    assert workload(pod=userns_pod())["linux"]["maskedPaths"] == []
    config = in_context(masked_paths=["/proc/kcore"])
    assert workload(config, pod=userns_pod())["linux"]["maskedPaths"] == ["/proc/kcore"]


def test_a_mapped_mount_is_bound_from_its_mapped_copy_and_an_image_from_its_directory() -> None:
    config = mounting(
        cri.Mount(container_path="/a", host_path="/srv/a"),
        cri.Mount(container_path="/b", host_path="/srv/a"),
        cri.Mount(container_path="/i", readonly=True, image=cri.ImageSpec(image="i")),
    )
    host = replace(HOST, mapped_mounts={1: "/mapped/1"}, image_volumes={2: "/images/2/etc"})
    found = mounts(workload(config, host=host))
    assert [found[path]["source"] for path in ("/a", "/b", "/i")] == ["/srv/a", "/mapped/1", "/images/2/etc"]
    assert "ro" in found["/i"]["options"]


def test_ambient_capabilities_are_held_unless_dropped() -> None:
    asked = cri.Capability(add_ambient_capabilities=["NET_ADMIN", "KILL"], drop_capabilities=["KILL"])
    held = workload(in_context(capabilities=asked))["process"]["capabilities"]
    assert held["ambient"] == held["inheritable"] == ["CAP_NET_ADMIN"]
    assert "CAP_NET_ADMIN" in held["bounding"]
    assert "CAP_KILL" not in held["bounding"]

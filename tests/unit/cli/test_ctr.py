"""A pod's containers as commands of ctr. What these do is tests/e2e/test_explain_commands.py's."""

from __future__ import annotations

import copy
import shlex
from typing import Any

from sandboxd.cli import by_hand, ctr
from tests.unit.cli.test_by_hand import PATH, POD, executed

FILES = {"/var/f/a/hosts": "127.0.0.1\tlocalhost\n", "/var/f/a/resolv.conf": ""}


def spec(**process: Any) -> dict[str, Any]:
    return {
        "annotations": {"io.kubernetes.cri.sandbox-id": "a"},
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [7]},
            "args": ["/bin/server", "-x", "it's"],
            "env": ["PATH=/bin"],
            "cwd": "/srv",
            "capabilities": {"bounding": sorted(ctr._CAPABILITIES)},
            **process,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/a/shm", "options": ["rbind", "rw"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/f/a/hosts", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "mount"},
                {"type": "pid"},
                {"type": "uts", "path": "/proc/42/ns/uts"},
                {"type": "ipc", "path": "/proc/42/ns/ipc"},
                {"type": "network", "path": PATH},
            ],
            "sysctl": {"net.ipv4.ping_group_range": "0 9", "kernel.shmmax": "1"},
            "cgroupsPath": "/pods/a",
        },
    }


def info(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    config = {"metadata": {"name": "server"}}
    return {"pid": 43, "imageName": "docker.io/library/nginx:latest", "config": config, "runtimeSpec": made, **more}


CONTAINERD = {
    "address": "/run/containerd/containerd.sock", "namespace": "sandboxd", "snapshotter": "overlayfs",
    "runtimeType": "io.containerd.runc.v2", "runtimeBinary": "",
}  # fmt: skip


def pod(container: dict[str, Any] | None = None, **changes: Any) -> ctr.Pod:
    pause = spec(args=["/pause"])
    pause["hostname"] = "web"
    pause["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "pid", "uts", "ipc")]
    pause["linux"]["namespaces"].append({"type": "network", "path": PATH})
    told = {"containerd": CONTAINERD, "files": FILES, **info(pause, pid=42, imageName="localhost/pause:1"), **changes}
    made = ctr.pod(told, [("c1", "/logs/c1.log", container)] if container else [])
    assert made is not None
    return made


def runs(lines: list[str]) -> list[list[str]]:
    """The words of each `ctr run`."""
    found = []
    for begin, line in enumerate(lines):
        if line.endswith(" run --detach \\"):
            end = next(n for n in range(begin, len(lines)) if not lines[n].endswith("\\"))
            found.append(shlex.split("\n".join(lines[begin : end + 1])))
    return found


def test_the_pause_container_comes_first_and_the_others_join_its_namespaces() -> None:
    pause, server = runs(list(ctr.up(pod(info(spec())))))
    assert pause[:5] == ["ctr", "-n", "sandboxd", "run", "--detach"] and pause[-3:] == [
        "localhost/pause:1",
        "a",
        "/pause",
    ]
    assert server[-5:] == ["docker.io/library/nginx:latest", "c1", "/bin/server", "-x", "it's"]
    joined = [server[at + 1] for at, word in enumerate(server) if word == "--with-ns"]
    assert joined == ["uts:/proc/$(pid_of a)/ns/uts", "ipc:/proc/$(pid_of a)/ns/ipc", f"network:{PATH}"]
    assert [pause[at + 1] for at, word in enumerate(pause) if word == "--with-ns"] == [f"network:{PATH}"]
    assert "type=bind,src=/var/f/a/hosts,dst=/etc/hosts,options=rbind:ro" in server
    assert server[server.index("--cwd") :][:2] == ["--cwd", "/srv"] and "file:///logs/c1.log" in server
    assert "--allow-new-privs" in server and "--cap-add" not in server and "--cap-drop" not in server


def test_the_commands_of_a_pod_that_runs_have_its_sysctls_after_the_plugins_and_then_its_containers() -> None:
    lines = executed(by_hand.commands(POD, "default/web", pod(info(spec()))))
    order = [
        next(n for n, line in enumerate(lines) if line.startswith(part) or line.endswith(part))
        for part in (
            "/usr/lib/cni/portmap <<'EOF'",
            "ip netns exec sandboxd-a sysctl -w 'net.ipv4.ping_group_range=0 9'",
            "cat >/var/f/a/hosts <<'EOF'",
            "localhost/pause:1 a /pause",
            "--uts hostname web",
        )
    ]
    order.append(next(n for n, line in enumerate(lines) if " c1 /bin/server -x " in line))
    assert order == sorted(order)
    assert any(line.endswith("--ipc sysctl -w kernel.shmmax=1") for line in lines)
    assert not any("net." in line and "--ipc" in line for line in lines)


def test_what_was_made_last_is_undone_first() -> None:
    lines = executed(by_hand.undoing(POD, "default/web", pod(info(spec()))))
    assert [line.split(" 2>")[0] for line in lines[:6]] == [
        "ctr -n sandboxd tasks rm --force c1",
        "ctr -n sandboxd containers rm c1",
        "ctr -n sandboxd tasks rm --force a",
        "ctr -n sandboxd containers rm a",
        "umount /run/a/shm && rmdir /run/a/shm",
        "rm -r /var/f/a",
    ]
    assert lines[-1].startswith("ip netns del")


def test_namespaces_of_the_host_and_rights_beyond_the_usual_are_given() -> None:
    held = sorted(ctr._CAPABILITIES - {"CAP_MKNOD"} | {"CAP_SYS_TIME"})
    odd = spec(noNewPrivileges=True, capabilities={"bounding": held})
    odd["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]
    odd["linux"]["resources"] = {"memory": {"limit": 1024}, "cpu": {"shares": 2, "quota": -1}}
    odd["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO"}
    odd["root"]["readonly"] = True
    (_, words) = runs(list(ctr.up(pod(info(odd)))))
    text = " ".join(word for word in words if word != "\n")
    for part in (
        "--net-host", "--with-ns pid:/proc/1/ns/pid", "--cap-add CAP_SYS_TIME --cap-drop CAP_MKNOD", "--read-only",
        "--memory-limit 1024", "--cpu-shares 2", "--seccomp", "--cgroup /pods/a",
    ):  # fmt: skip
        assert part in text
    assert "--allow-new-privs" not in text and "--cpu-quota" not in text and "uts:/proc/1" not in text


def test_a_mount_whose_path_has_a_comma_is_one_field() -> None:
    made = spec()
    made["mounts"].append({"destination": '/a,"b', "type": "bind", "source": "/s", "options": ["ro"]})
    asked = {"metadata": {"name": "x"}, "mounts": [{"container_path": '/a,"b', "host_path": "/s"}]}
    (_, words) = runs(list(ctr.up(pod(info(made, config=asked)))))
    assert 'type=bind,src=/s,"dst=/a,""b",options=ro' in words


def test_volumes_that_images_declare_are_made_and_removed() -> None:
    made = spec()
    made["mounts"].append({"destination": "/data", "type": "bind", "source": "/var/v/0", "options": ["rw"]})
    assert any(line.startswith("mkdir -p /var/v/0") for line in ctr.up(pod(info(made))))
    assert "rm -r /var/v/0" in list(ctr.down(pod(info(made))))


def test_what_ctr_has_no_option_for_is_said() -> None:
    made = spec(terminal=True, user={"uid": 5, "gid": 6, "additionalGids": [7]})
    made["linux"]["seccomp"] = {}
    context = {"run_as_user": {"value": "5"}, "supplemental_groups": ["7"]}
    config = {
        "metadata": {"name": "x"},
        "linux": {"security_context": context, "resources": {"cpu_shares": "2", "cpuset_cpus": "0"}},
        "devices": [{"host_path": "/dev/fuse", "container_path": "/dev/f"}],
    }
    told = list(ctr.up(pod(info(made, config=config))))
    said = [line for line in told if line.startswith("# ctr run cannot give it")]
    assert any("user 5 and group 6" in line for line in said) and any("groups 7" in line for line in said)
    for words in ("a terminal", "a device by another path", "its cpuset_cpus"):
        assert any(words in line for line in said)
    assert not any("cpu_shares" in line for line in said)
    assert any("--device /dev/fuse" in line for line in told)


def test_containerd_elsewhere_and_another_runtime_are_named() -> None:
    other = {**CONTAINERD, "address": "/run/x.sock", "snapshotter": "native", "runtimeBinary": "/usr/bin/crun"}
    (pause,) = runs(list(ctr.up(pod(containerd=other))))
    assert pause[:4] == ["ctr", "-a", "/run/x.sock", "-n"]
    assert (
        pause[pause.index("--snapshotter") + 1] == "native"
        and pause[pause.index("--runc-binary") + 1] == "/usr/bin/crun"
    )


def test_only_an_image_of_a_registry_is_pulled() -> None:
    lines = list(ctr.up(pod(info(spec()))))
    assert any(line.endswith("images pull docker.io/library/nginx:latest") for line in lines)
    assert not any("pull localhost/pause" in line for line in lines)


def test_the_containers_of_a_pod_with_a_user_namespace_are_left_out_and_said_so() -> None:
    made = pod()
    owned = copy.deepcopy(dict(made.pause.spec))
    owned["linux"]["namespaces"].append({"type": "user", "path": "/u"})
    changed = pod(runtimeSpec=owned)
    assert [line[:1] for line in ctr.up(changed)] == ["#"] and list(ctr.down(changed)) == []


def test_of_a_pod_that_does_not_run_or_an_older_daemon_there_is_nothing() -> None:
    assert ctr.pod({"pid": 0, "runtimeSpec": spec(), "imageName": "x", "containerd": CONTAINERD}, []) is None
    assert ctr.pod({"pid": 42, "config": {}}, []) is None

"""`run`, `runp` and `create`, against a fake daemon."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


@pytest.fixture(autouse=True)
def images(daemon: FakeDaemon) -> None:
    daemon.add_image("nginx", "docker.io/library/nginx:latest")


def test_run_makes_a_pod_starts_the_container_and_prints_the_ip(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("run", "nginx", "--name", "web", "--port", "8080:80", "--label", "app=x", "--handler", "crun")
    assert result.exit_code == 0, result.output
    (pod,), (container,) = daemon.configs.values(), daemon.container_configs.values()
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["pod", "default/web", next(iter(daemon.pods))[:12]],
        ["container", "web", next(iter(daemon.containers))[:12]],
        ["ip", "10.0.10.2"],
        ["ports", "8080→80/tcp"],
    ]
    assert result.stderr == ""
    assert pod.log_directory == f"/var/log/pods/default_web_{pod.metadata.uid}"
    assert [each.host_port for each in pod.port_mappings] == [8080]
    assert pod.labels["app"] == container.labels["app"] == "x"
    assert container.image.image == next(iter(daemon.images))
    assert daemon.requests["RunPodSandbox"].runtime_handler == "crun"
    assert daemon.requests["CreateContainer"].sandbox_config == pod


def test_what_follows_the_dashes_is_the_containers_arguments(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("run", "-q", "nginx", "--env", "A=b", "--", "sh", "-c", "sleep 1", "--name", "x")
    assert result.exit_code == 0, result.output
    (container,) = daemon.container_configs.values()
    assert list(container.args) == ["sh", "-c", "sleep 1", "--name", "x"]
    assert container.metadata.name == "nginx"


def test_quiet_prints_the_container_id_only(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("run", "-q", "nginx")
    assert result.stdout == next(iter(daemon.containers)) + "\n"


def test_a_pod_without_a_name_gets_one_of_its_own_each_time(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("run", "nginx").exit_code == sandboxctl("run", "nginx").exit_code == 0
    pods = {each.metadata.name for each in daemon.configs.values()}
    assert len(pods) == 2
    assert all(name.startswith("nginx-") for name in pods)


def test_json_has_ids_names_and_network(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    data = json.loads(sandboxctl("run", "nginx", "--name", "web", "-n", "prod", "-o", "json").stdout)
    assert data == {
        "podSandboxId": next(iter(daemon.pods)),
        "pod": "web",
        "namespace": "prod",
        "containerId": next(iter(daemon.containers)),
        "container": "web",
        "network": {"ip": "10.0.10.2", "additionalIps": []},
    }


def test_a_pod_in_the_hosts_network_says_so(sandboxctl: Sandboxctl) -> None:
    lines = sandboxctl("run", "nginx", "--host-network").stdout.splitlines()
    assert lines[-1].split() == ["ip", "host"]


def test_changes_are_recorded_by_an_annotation_of_the_pod_alone(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("run", "nginx", "--name", "web", "--record-changes").exit_code == 0
    assert [dict(each.annotations) for each in daemon.configs.values()] == [{"sandboxd.io/record-changes": "true"}]
    assert [dict(each.annotations) for each in daemon.container_configs.values()] == [{}]
    joined = sandboxctl("run", "nginx", "--pod", "web", "--record-changes")
    assert joined.exit_code == 2 and "--record-changes describes a new pod" in joined.stderr


def test_a_relative_mount_source_is_below_the_callers_directory(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sandboxctl("run", "nginx", "--mount", "www:/srv:ro")
    (container,) = daemon.container_configs.values()
    assert [each.host_path for each in container.mounts] == [str(tmp_path / "www")]


def test_what_is_started_by_hand_has_the_runtimes_default_fences(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("run", "nginx", "--name", "web").exit_code == 0
    assert sandboxctl("run", "nginx", "--pod", "web").exit_code == 0
    contexts: list[cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext] = [
        *(pod.linux.security_context for pod in daemon.configs.values()),
        *(container.linux.security_context for container in daemon.container_configs.values()),
    ]
    assert len(contexts) == 3
    for context in contexts:
        assert context.seccomp.profile_type == context.apparmor.profile_type == cri.SecurityProfile.RuntimeDefault
        assert context.HasField("seccomp") and context.HasField("apparmor")


def test_security_options_lift_the_fences_or_name_a_profile(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sandboxctl("run", "nginx", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")
    sandboxctl("run", "nginx", "--security-opt", "seccomp=mine.json", "--security-opt", "apparmor=mine")
    lifted, own = [each.linux.security_context for each in daemon.container_configs.values()]
    lifted_pod, own_pod = [each.linux.security_context for each in daemon.configs.values()]
    for context in (lifted, lifted_pod):
        assert context.seccomp.profile_type == context.apparmor.profile_type == cri.SecurityProfile.Unconfined
    assert own.seccomp.profile_type == own.apparmor.profile_type == cri.SecurityProfile.Localhost
    assert (own.seccomp.localhost_ref, own.apparmor.localhost_ref) == (str(tmp_path / "mine.json"), "mine")
    assert own_pod.seccomp.profile_type == cri.SecurityProfile.RuntimeDefault


@pytest.mark.parametrize(
    "options",
    [["seccomp"], ["label=disable"], ["seccomp=unconfined", "seccomp=unconfined"]],
    ids=["no profile", "unknown", "twice"],
)
def test_a_security_option_that_is_unknown_or_said_twice_is_refused(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, options: list[str]
) -> None:
    result = sandboxctl("run", "nginx", *(each for option in options for each in ("--security-opt", option)))
    assert result.exit_code == 2
    assert "seccomp" in result.stderr
    assert "RunPodSandbox" not in daemon.calls


def test_an_image_that_is_not_there_is_pulled(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("run", "-q", "busybox")
    assert result.exit_code == 0, result.output
    assert daemon.requests["PullImage"].image == "busybox"
    (container,) = daemon.container_configs.values()
    assert daemon.images[container.image.image].repo_tags[0] == "busybox"


def test_an_image_that_is_there_is_pulled_only_if_always_is_said(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    sandboxctl("run", "nginx")
    assert "PullImage" not in daemon.calls
    sandboxctl("run", "nginx", "--pull", "always")
    assert daemon.calls.count("PullImage") == 1


def test_an_image_that_may_not_be_pulled_is_not_found_and_no_pod_is_made(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    result = sandboxctl("run", "--pull", "never", "nosuch")
    assert result.exit_code == 3
    assert "image nosuch is not on this machine" in result.stderr
    assert "sandboxctl load" in result.stderr
    assert not {"PullImage", "RunPodSandbox"} & set(daemon.calls)


def test_a_pull_that_fails_makes_no_pod(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.fail["PullImage"] = (grpc.StatusCode.NOT_FOUND, "the registry has no nosuch:latest")
    result = sandboxctl("run", "nosuch")
    assert result.exit_code == 3
    assert "the registry has no nosuch:latest" in result.stderr
    assert "RunPodSandbox" not in daemon.calls


@pytest.mark.parametrize("reference", ["web", "default/web", "ID"])
def test_pod_joins_the_one_that_exists(daemon: FakeDaemon, sandboxctl: Sandboxctl, reference: str) -> None:
    pod_id = daemon.add_pod("web")
    result = sandboxctl("run", "nginx", "--pod", pod_id[:12] if reference == "ID" else reference)
    assert result.exit_code == 0, result.output
    assert "RunPodSandbox" not in daemon.calls
    assert list(daemon.pod_of.values()) == [pod_id]
    assert daemon.requests["CreateContainer"].sandbox_config.log_directory == "/logs/web"


def test_joining_twice_gives_the_second_container_another_name(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_container(daemon.add_pod("web"), "nginx")
    assert sandboxctl("run", "nginx", "--pod", "web").exit_code == 0
    first, second = (each.metadata.name for each in daemon.container_configs.values())
    assert first == "nginx"
    assert second.startswith("nginx-")


def test_pod_gives_a_new_pod_its_name_when_there_is_none(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("run", "nginx", "--pod", "prod/db", "--name", "server").exit_code == 0
    (pod,), (container,) = daemon.configs.values(), daemon.container_configs.values()
    assert (pod.metadata.namespace, pod.metadata.name, container.metadata.name) == ("prod", "db", "server")


def test_pod_with_an_id_of_nothing_is_not_found(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("run", "nginx", "--pod", "0123456789ab").exit_code == 3
    assert "RunPodSandbox" not in daemon.calls


def test_a_flag_for_a_new_pod_is_refused_for_one_that_exists(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("web")
    result = sandboxctl("run", "nginx", "--pod", "web", "--port", "1:1")
    assert result.exit_code == 2
    assert "--port describes a new pod, and pod web exists" in result.stderr


def test_a_name_that_a_pod_has_is_refused_with_the_two_ways_on(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("web")
    result = sandboxctl("run", "nginx", "--name", "web")
    assert result.exit_code == 1
    assert "pod default/web already exists" in result.stderr
    assert "--pod default/web" in result.stderr


@pytest.mark.parametrize("rpc", ["CreateContainer", "StartContainer"])
def test_a_pod_made_for_a_container_that_fails_is_removed_again(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, rpc: str
) -> None:
    daemon.fail[rpc] = (grpc.StatusCode.INVALID_ARGUMENT, "rpc error: code = X desc = no such command: foo")
    result = sandboxctl("run", "nginx", "--name", "web", "--", "foo")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no such command: foo" in result.stderr
    assert "rpc error" not in result.stderr
    assert "pod default/web was created, and has been removed" in result.stderr
    assert not daemon.pods
    assert daemon.calls[-2:] == ["StopPodSandbox", "RemovePodSandbox"]


def test_a_pod_that_cannot_be_removed_again_is_named(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.fail["CreateContainer"] = (grpc.StatusCode.NOT_FOUND, "mount source is missing")
    daemon.fail["StopPodSandbox"] = (grpc.StatusCode.INTERNAL, "DEL failed")
    result = sandboxctl("run", "nginx", "--name", "web")
    assert result.exit_code == 3
    assert "could not be removed: cannot stop pod default/web: DEL failed" in result.stderr
    assert f"sandboxctl rm -f {next(iter(daemon.pods))[:12]}" in result.stderr


def test_in_a_pod_that_was_there_only_the_container_is_removed_again(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    pod_id = daemon.add_pod("web")
    daemon.fail["StartContainer"] = (grpc.StatusCode.INTERNAL, "runc said no")
    assert sandboxctl("run", "nginx", "--pod", "web").exit_code == 1
    assert list(daemon.pods) == [pod_id]
    assert not daemon.containers


def test_a_pod_that_fails_leaves_nothing_to_remove(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.fail["RunPodSandbox"] = (grpc.StatusCode.INTERNAL, "plugin bridge failed")
    result = sandboxctl("run", "nginx", "--name", "web")
    assert result.exit_code == 1
    assert result.stderr == "sandboxctl: cannot create pod default/web: plugin bridge failed\n"
    assert "RemovePodSandbox" not in daemon.calls


def test_a_pod_that_takes_too_long_may_still_come(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.fail["RunPodSandbox"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    result = sandboxctl("run", "nginx", "--name", "web")
    assert "no answer within 20 s" in result.stderr
    assert "`sandboxctl rm -f default/web` removes it" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--port", "80"), "write HOST:CONTAINER"),
        (("--mount", "/a"), "write SRC:DST"),
        (("--memory", "lots"), "is not a size"),
        (("--cpu", "0"), "too little"),
        (("--env", "A"), "is not KEY=VALUE"),
        (("--user", "a:b"), "must be a number"),
        (("--host-network", "--port", "1:1"), "exclude each other"),
        (("--nosuch",), "No such option"),
    ],
)
def test_wrong_flags_are_usage_errors(sandboxctl: Sandboxctl, args: tuple[str, ...], said: str) -> None:
    result = sandboxctl("run", "nginx", *args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_runp_and_create_take_crictls_files(daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path) -> None:
    pod_file, container_file = tmp_path / "pod.json", tmp_path / "ctr.yaml"
    pod_file.write_text(
        '{"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "log_directory": "/l", "linux": {}}'
    )
    container_file.write_text("metadata: {name: c}\nimage: {image: nginx}\ncommand: [top]\n")
    made = sandboxctl("runp", "--runtime", "crun", str(pod_file))
    assert made.exit_code == 0, made.output
    pod_id = made.stdout.strip()
    assert daemon.pods[pod_id].metadata.uid == "u"
    created = sandboxctl("create", "p", str(container_file), str(pod_file))
    assert created.exit_code == 0, created.output
    assert daemon.pod_of[created.stdout.strip()] == pod_id
    assert "StartContainer" not in daemon.calls


def test_a_file_with_an_unknown_field_is_a_usage_error(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path
) -> None:
    file = tmp_path / "pod.json"
    file.write_text('{"metdata": {}}')
    result = sandboxctl("runp", str(file))
    assert result.exit_code == 2
    assert 'unknown field "metdata"' in result.stderr
    assert daemon.calls == []


def test_a_pod_file_may_come_from_stdin(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("runp", "-", stdin=b"metadata: {name: p}").exit_code == 0
    assert [each.metadata.name for each in daemon.pods.values()] == ["p"]

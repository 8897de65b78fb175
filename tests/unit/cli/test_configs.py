"""The messages that flags and files become."""

from __future__ import annotations

import json

import pytest

from sandboxd.cli import configs, parse
from sandboxd.pb.cri.v1 import api_pb2 as cri


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("nginx", "nginx"),
        ("docker.io/library/nginx:1.27", "nginx"),
        ("localhost:5000/a/My_App@sha256:" + "0" * 64, "my-app"),
        ("sha256:" + "0" * 64, "container"),
        ("0123456789ab", "container"),
        ("___", "container"),
    ],
)
def test_a_container_is_named_after_its_image(reference: str, name: str) -> None:
    assert configs.image_name(reference) == name


def test_a_pod_gets_its_logs_labels_and_namespaces() -> None:
    config = configs.pod_config(configs.PodFlags(name="web", namespace="prod", uid="u1", labels=[("app", "x")]))
    assert config.hostname == "web"
    assert config.log_directory == "/var/log/pods/prod_web_u1"
    assert dict(config.labels) == {
        "app": "x",
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "prod",
        "io.kubernetes.pod.uid": "u1",
    }
    options = config.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (cri.POD, cri.CONTAINER, cri.POD)
    assert not config.HasField("dns_config")


def test_a_pod_in_the_hosts_network_has_no_hostname_of_its_own() -> None:
    config = configs.pod_config(configs.PodFlags(name="web", namespace="default", uid="u", host_network=True))
    assert config.hostname == ""
    assert config.linux.security_context.namespace_options.network == cri.NODE


def test_name_servers_are_set_only_when_given() -> None:
    config = configs.pod_config(configs.PodFlags(name="a", namespace="b", uid="c", dns_servers=["9.9.9.9"]))
    assert list(config.dns_config.servers) == ["9.9.9.9"]


def test_a_container_carries_every_flag() -> None:
    pod = configs.pod_config(configs.PodFlags(name="web", namespace="default", uid="u1", host_network=True))
    config = configs.container_config(
        configs.ContainerFlags(
            name="app",
            image="sha256:1",
            image_as_typed="busybox",
            entrypoint="/bin/sh",
            args=["-c", "true"],
            envs=[("K", "vé")],
            mounts=[parse.MountFlag(source="/a", target="/b", readonly=True)],
            cpu=parse.cpu("0.5"),
            memory=256 * 2**20,
            user=parse.user("33:44"),
            workdir="/srv",
            tty=True,
        ),
        pod,
    )
    resources = config.linux.resources
    assert (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) == (100_000, 50_000, 512)
    assert resources.memory_limit_in_bytes == 268435456
    assert (list(config.command), list(config.args)) == (["/bin/sh"], ["-c", "true"])
    assert [(env.key, env.value) for env in config.envs] == [("K", "vé".encode())]
    assert [(m.host_path, m.container_path, m.readonly) for m in config.mounts] == [("/a", "/b", True)]
    security = config.linux.security_context
    assert (security.run_as_user.value, security.run_as_group.value, security.run_as_username) == (33, 44, "")
    assert security.namespace_options.network == cri.NODE
    assert (config.log_path, config.tty, config.working_dir) == ("app/0.log", True, "/srv")
    assert (config.image.image, config.image.user_specified_image) == ("sha256:1", "busybox")


def test_without_flags_nothing_is_limited_and_the_image_decides_who_runs() -> None:
    pod = configs.pod_config(configs.PodFlags(name="web", namespace="default", uid="u1"))
    config = configs.container_config(configs.ContainerFlags(name="app", image="i"), pod)
    assert config.linux.resources == cri.LinuxContainerResources()
    assert not config.linux.security_context.HasField("run_as_user")
    assert not config.command


DEFAULT = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
UNCONFINED = cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)


def test_pods_and_containers_get_the_runtimes_default_fences() -> None:
    pod = configs.pod_config(configs.PodFlags(name="web", namespace="default", uid="u1"))
    config = configs.container_config(configs.ContainerFlags(name="app", image="i"), pod)
    for context in (pod.linux.security_context, config.linux.security_context):
        assert (context.seccomp, context.apparmor) == (DEFAULT, DEFAULT)
        assert not context.privileged


def test_fences_are_lifted_each_by_itself_or_have_a_profile_of_their_own() -> None:
    pod = configs.pod_config(configs.PodFlags(name="web", namespace="default", uid="u1", seccomp="unconfined"))
    assert pod.linux.security_context.seccomp == UNCONFINED
    assert pod.linux.security_context.apparmor == DEFAULT
    flags = configs.ContainerFlags(name="app", image="i", seccomp="/srv/mine.json", apparmor="unconfined")
    context = configs.container_config(flags, pod).linux.security_context
    assert context.apparmor == UNCONFINED
    assert context.seccomp == cri.SecurityProfile(
        profile_type=cri.SecurityProfile.Localhost, localhost_ref="/srv/mine.json"
    )


def test_a_file_says_itself_what_it_wants() -> None:
    pod = configs.from_file('{"metadata": {"name": "a"}}', cri.PodSandboxConfig(), "f")
    assert pod == cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="a"))


@pytest.mark.parametrize("info", [{"config": {"log_directory": "/x"}}, {"info": {"config": {"logDirectory": "/x"}}}])
def test_the_config_of_a_pod_that_exists_comes_from_its_verbose_status(info: dict[str, object]) -> None:
    assert configs.joined_config(cri.PodSandboxStatus(), info).log_directory == "/x"


def test_without_a_verbose_config_the_plain_status_has_to_do() -> None:
    status = cri.PodSandboxStatus(metadata=cri.PodSandboxMetadata(name="a", namespace="b", uid="c"))
    config = configs.joined_config(status, {"config": {"log_directory": 7}})
    assert config.metadata == status.metadata
    assert config.log_directory == "/var/log/pods/b_a_c"


def test_a_file_may_be_json_or_yaml_with_either_spelling_of_fields() -> None:
    as_json = configs.from_file('{"metadata": {"name": "a"}, "log_directory": "/l"}', cri.PodSandboxConfig(), "f")
    as_yaml = configs.from_file("metadata: {name: a}\nlogDirectory: /l\n", cri.PodSandboxConfig(), "f")
    assert as_json == as_yaml


def test_env_values_in_a_file_are_text() -> None:
    text = json.dumps({"envs": [{"key": "K", "value": "plain text"}, {"key": "E"}]})
    config = configs.from_file(text, cri.ContainerConfig(), "f")
    assert [(env.key, env.value) for env in config.envs] == [("K", b"plain text"), ("E", b"")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "f is neither JSON nor YAML"),
        ("[]", "f must be a mapping"),
        ("", "f must be a mapping"),
        ('{"imagge": {}}', 'f: unknown field "imagge" in ContainerConfig; the fields are: metadata, image, '),
        ('{"image": {"imge": ""}}', 'f: unknown field "imge" in ContainerConfig.image; the fields are: image, '),
        ('{"tty": "maybe"}', "f: "),
        ('{"envs": [{"key": "K", "value": 1}]}', "f: "),
        ('{"envs": "K=1"}', "f: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^f\b") as caught:
        configs.from_file(text, cri.ContainerConfig(), "f")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)

"""What is printed: values, tables, JSON and YAML."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from sandboxd.cli import render
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

SECOND = 10**9
NOW = 10**18


def printed(what: RenderableType) -> list[list[str]]:
    """The lines, split where two or more spaces part the columns."""
    out = io.StringIO()
    Console(file=out, width=300, color_system=None).print(what)
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "now"),
        (1, "1s ago"),
        (59, "59s ago"),
        (60, "1m ago"),
        (3599, "59m ago"),
        (3600, "1h ago"),
        (86400, "1d ago"),
        (86400 * 400, "400d ago"),
        (-5, "now"),
    ],
)
def test_ages_use_the_largest_unit_that_fits(seconds: int, expected: str) -> None:
    assert render.age(NOW - seconds * SECOND, NOW) == expected


def test_a_moment_that_is_not_yet_has_no_age() -> None:
    assert render.age(0, NOW) == "-"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (4_270_000, "4.27MB"),
        (187_000_000, "187MB"),
        (999_900, "1MB"),
        (3 * 10**15, "3PB"),
    ],
)
def test_sizes_have_three_digits(count: int, expected: str) -> None:
    assert render.size(count) == expected


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0 µs"),
        (250_000, "250 µs"),
        (85_300_000, "85.3 ms"),
        (999_900_000, "1 s"),
        (1_240_000_000, "1.24 s"),
        (3600 * SECOND, "3600 s"),
    ],
)
def test_durations_have_three_digits(nanoseconds: int, expected: str) -> None:
    assert render.span(nanoseconds) == expected


@given(st.text())
def test_nothing_printable_can_command_a_terminal(text: str) -> None:
    assert all(each.isprintable() or each in "\n\t" for each in render.printable(text))


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (cri.PortMapping(host_port=8080, container_port=80), "8080→80/tcp"),
        (cri.PortMapping(host_port=53, container_port=53, protocol=cri.UDP, host_ip="::1"), "[::1]:53→53/udp"),
    ],
)
def test_a_port_reads_as_it_was_written(mapping: cri.PortMapping, expected: str) -> None:
    assert render.port(mapping) == expected


def test_addresses_are_host_none_or_the_first() -> None:
    hosted = cri.PodSandboxStatus()
    hosted.linux.namespaces.options.network = cri.NODE
    plain = cri.PodSandboxStatus(
        network=cri.PodSandboxNetworkStatus(ip="10.0.0.2", additional_ips=[cri.PodIP(ip="fd00::2")])
    )
    assert [render.address(each) for each in (hosted, plain, cri.PodSandboxStatus(), None)] == [
        "host",
        "10.0.0.2",
        "-",
        "-",
    ]
    assert render.addresses(plain) == ["10.0.0.2", "fd00::2"]


def test_pods_are_a_table_with_the_ip() -> None:
    pods = [
        cri.PodSandbox(
            id="a" * 64,
            metadata=cri.PodSandboxMetadata(name="web", namespace="default"),
            created_at=NOW - 60 * SECOND,
            state=cri.SANDBOX_NOTREADY,
            runtime_handler="crun",
        )
    ]
    statuses = {"a" * 64: cri.PodSandboxStatus(network=cri.PodSandboxNetworkStatus(ip="10.0.10.2"))}
    assert printed(render.pods_table(pods, statuses, NOW)) == [
        ["POD ID", "NAME", "NAMESPACE", "STATE", "IP", "CREATED", "RUNTIME"],
        ["a" * 12, "web", "default", "NotReady", "10.0.10.2", "1m ago", "crun"],
    ]


def test_containers_are_a_table_with_pod_ip_and_exit_code() -> None:
    containers = [
        cri.Container(
            id="b" * 64,
            pod_sandbox_id="a",
            metadata=cri.ContainerMetadata(name="[red]app"),
            image=cri.ImageSpec(image="sha256:" + "c" * 64),
            state=cri.CONTAINER_EXITED,
            created_at=NOW,
        )
    ]
    pods = {"a": cri.PodSandbox(metadata=cri.PodSandboxMetadata(name="web"))}
    statuses = {"b" * 64: cri.ContainerStatus(exit_code=3)}
    assert printed(render.containers_table(containers, pods, {}, statuses, NOW))[1] == [
        "b" * 12,
        "[red]app",
        "web",
        "c" * 12,
        "Exited (3)",
        "-",
        "now",
    ]


def test_images_have_a_line_for_each_name() -> None:
    images = [
        cri.Image(id="sha256:" + "1" * 64, repo_tags=["host:5000/web:1", "docker.io/library/web:2"], size=10**6),
        cri.Image(id="sha256:" + "2" * 64, repo_digests=["docker.io/library/old@sha256:22"], size=5),
        cri.Image(id="sha256:" + "3" * 64, size=5),
    ]
    assert printed(render.images_table(images))[1:] == [
        ["<none>", "<none>", "3" * 12, "5B"],
        ["docker.io/library/old", "<none>", "2" * 12, "5B"],
        ["docker.io/library/web", "2", "1" * 12, "1MB"],
        ["host:5000/web", "1", "1" * 12, "1MB"],
    ]


def test_images_have_the_digest_of_each_name_if_wanted() -> None:
    image = cri.Image(
        id="sha256:" + "1" * 64, repo_tags=["a/x:1", "b/x:1"], repo_digests=["a/x@sha256:aa", "c/x@sha256:cc"]
    )
    table = render.images_table([image], digests=True)
    assert [str(cell) for cell in table.columns[2].cells] == ["sha256:aa", "-"]


def test_an_image_is_called_by_a_tag_then_a_digest_then_its_id() -> None:
    assert render.image_name(cri.Image(id="i", repo_tags=["t1", "t2"], repo_digests=["d"])) == "t1"
    assert render.image_name(cri.Image(id="i", repo_digests=["d"])) == "d"
    assert render.image_name(cri.Image(id="i")) == "i"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("a/b:c", ("a/b", "c")), ("host:5000/b", ("host:5000/b", "")), ("b", ("b", ""))],
)
def test_a_tag_is_what_follows_the_last_colon_of_the_last_part(reference: str, expected: tuple[str, str]) -> None:
    assert render.split_tag(reference) == expected


def test_json_has_every_field_in_protobufs_spelling_and_sorted() -> None:
    data = json.loads(render.dump(render.as_dict(cri.PodSandbox(id="a", created_at=5)), "json"))
    assert data["createdAt"] == "5"
    assert data["state"] == "SANDBOX_READY"
    assert data["labels"] == {}
    assert list(data) == sorted(data)


def test_yaml_says_the_same_as_json() -> None:
    data = {"b": ["é", 1], "a": {"x": None}}
    assert yaml.safe_load(render.dump(data, "yaml")) == json.loads(render.dump(data, "json")) == data


def test_verbose_info_is_parsed_where_it_is_json() -> None:
    assert render.info_dict({"a": '{"pid": 1}', "b": "words"}) == {"a": {"pid": 1}, "b": "words"}


def test_explain_for_programs_has_plugin_json_in_the_open() -> None:
    answer = host.ExplainResponse(
        steps=[
            host.Step(name="pod.netns.create"),
            host.Step(plugin=host.PluginExecution(stdin=b'{"name": "n"}', stdout=b"oops", stderr=b"\xff")),
        ],
        attachments=[host.Attachment(config=b"{}", result=b"")],
    )
    data = render.explain_dict(answer)
    plugin = data["steps"][1]["plugin"]
    assert (plugin["stdin"], plugin["stdout"], plugin["stderr"]) == ({"name": "n"}, "oops", "\ufffd")
    assert (data["attachments"][0]["config"], data["attachments"][0]["result"]) == ({}, "")
    assert data["steps"][0].get("plugin") is None


def test_name_patterns_are_shell_wildcards_and_any_may_fit() -> None:
    assert render.matches("web-1", ())
    assert render.matches("web-1", ("db", "web*"))
    assert not render.matches("web-1", ("web",))


def test_info_has_a_line_for_each_value() -> None:
    status = cri.StatusResponse(runtime_handlers=[cri.RuntimeHandler(name=""), cri.RuntimeHandler(name="crun")])
    status.status.conditions.add(type="NetworkReady", reason="NoConf", message="none in d")
    status.status.conditions.add(type="RuntimeReady", status=True)
    config = cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS))
    assert render.info_facts(status, config, {"c": {"x": [1], "y": "z"}}) == [
        ("NetworkReady", "no: NoConf none in d"),
        ("RuntimeReady", "yes"),
        ("Handlers", "(default), crun"),
        ("CgroupDriver", "cgroupfs"),
        ("c.x", "[1]"),
        ("c.y", "z"),
    ]

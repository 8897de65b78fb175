"""The genuine crictl, driving the daemon through the life of a pod.

crictl runs inside the bed, because `crictl logs` reads the log file itself. It is built by build.py from the
pinned Go module; where no fitting Go toolchain is present these tests are skipped, and only there.
"""

from __future__ import annotations

import re

import pytest

from tests.audit import assert_no_leaks, observe
from tests.conformance.crictl import Crictl
from tests.processes import until
from tests.testbed import BedFailed, Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.conformance]

ID = re.compile(r"[0-9a-f]{64}")


def test_version_names_the_runtime_and_cri_v1(crictl: Crictl) -> None:
    """Version answers what crictl checks before every command."""
    printed = crictl("version")
    assert re.search(r"^RuntimeName: +sandboxd$", printed, re.MULTILINE), printed
    assert re.search(r"^RuntimeApiVersion: +v1$", printed, re.MULTILINE), printed


def test_info_reports_runtime_and_network_ready(crictl: Crictl) -> None:
    """Both conditions that a kubelet waits for are true."""
    conditions = {c["type"]: c["status"] for c in crictl.json("info")["status"]["conditions"]}
    assert conditions["RuntimeReady"] is True
    assert conditions["NetworkReady"] is True


def test_images_lists_what_was_loaded(crictl: Crictl, images: tuple[str, ...]) -> None:
    """The loaded archives are there under their full names."""
    tags = {tag for image in crictl.json("images")["images"] for tag in image["repoTags"]}
    assert {f"docker.io/library/{name}:latest" for name in images} <= tags
    assert "docker.io/library/nginx" in crictl("images")


def test_a_pod_from_runp_to_rmp(crictl: Crictl, bed: Testbed) -> None:
    """The whole life of a pod with nginx, each step seen through crictl; nothing is left of it."""
    container_file = crictl.container("nginx", "docker.io/library/nginx:latest")
    pod_file = crictl.pod("warm-up")
    warm_up = crictl("runp", pod_file)
    crictl("start", crictl("create", "--no-pull", warm_up, container_file, pod_file))
    crictl("rmp", "--force", warm_up)
    pod_file = crictl.pod("web")
    before = observe(bed)

    pod = crictl("runp", pod_file)
    assert ID.fullmatch(pod), pod
    assert crictl("pods", "--quiet", "--no-trunc").split() == [pod]
    assert crictl("pods", "--name", "web", "--state", "ready", "--quiet", "--no-trunc") == pod
    assert "web" in crictl("pods")
    status = crictl.json("inspectp", pod)["status"]
    assert status["state"] == "SANDBOX_READY"
    assert status["metadata"]["name"] == "web"
    assert status["labels"] == {"app": "web"}
    ip = status["network"]["ip"]

    container = crictl("create", "--no-pull", pod, container_file, pod_file)
    assert ID.fullmatch(container), container
    assert crictl.json("inspect", container)["status"]["state"] == "CONTAINER_CREATED"
    assert crictl("start", container) == container
    assert crictl("ps", "--quiet", "--no-trunc") == container
    assert "Running" in crictl("ps")
    status = crictl.json("inspect", container)["status"]
    assert status["state"] == "CONTAINER_RUNNING"
    assert status["image"]["image"] == "docker.io/library/nginx:latest"

    assert bed.http_get(ip)[0] == 200
    until(lambda: "GET / " in "".join(crictl.streams("logs", container)), what="GET is logged")
    assert len("".join(crictl.streams("logs", "--tail", "1", container)).splitlines()) == 1

    assert crictl("stop", "--timeout", "10", container) == container
    status = crictl.json("inspect", container)["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 0)
    assert crictl("ps", "--quiet") == ""
    assert crictl("ps", "--all", "--quiet", "--no-trunc") == container
    crictl("rm", container)
    assert crictl("ps", "--all", "--quiet") == ""
    assert "Stopped sandbox" in crictl("stopp", pod)
    assert crictl.json("inspectp", pod)["status"]["state"] == "SANDBOX_NOTREADY"
    assert "Removed sandbox" in crictl("rmp", pod)
    assert crictl("pods", "--quiet") == ""
    assert_no_leaks(bed, before)


def test_logs_show_stdout_and_stderr_apart(crictl: Crictl) -> None:
    """Both streams of a container that has ended are read back by crictl."""
    pod_file = crictl.pod("talk")
    script = "echo to stdout; echo to stderr >&2; exit 3"
    container_file = crictl.container("talk", "docker.io/library/busybox:latest", command=["/bin/sh", "-c", script])
    pod = crictl("runp", pod_file)
    container = crictl("create", "--no-pull", pod, container_file, pod_file)
    crictl("start", container)

    def exited() -> bool:
        return bool(crictl("ps", "--all", "--state", "exited", "--quiet"))

    until(exited, what="the container has ended")
    assert crictl.json("inspect", container)["status"]["exitCode"] == 3
    assert crictl.streams("logs", container) == ("to stdout\n", "to stderr\n")


def test_any_unambiguous_prefix_of_an_id_is_accepted(crictl: Crictl) -> None:
    """What crictl's tables print is enough to name a pod."""
    pod_file = crictl.pod("short")
    pod = crictl("runp", pod_file)
    assert crictl.json("inspectp", pod[:13])["status"]["id"] == pod
    crictl("stopp", pod[:13])
    crictl("rmp", pod[:13])
    assert crictl("pods", "--quiet") == ""


def test_an_unknown_pod_is_reported(crictl: Crictl) -> None:
    """Status of what does not exist fails with the id in the message."""
    with pytest.raises(BedFailed, match="0123456789ab"):
        crictl("inspectp", "0123456789ab")

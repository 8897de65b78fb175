"""The genuine crictl's exec, attach and port-forward, over SPDY and over WebSocket."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import termios
from typing import IO

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conformance.crictl import CONFIG, Crictl
from tests.conftest import StartBed
from tests.pods import container_config, container_status, log_lines, pod_config, remove_pod, run_container, run_pod
from tests.processes import Inside, until
from tests.streaming import tls
from tests.testbed import BedFailed, Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.conformance]

TRANSPORTS = pytest.mark.parametrize("transport", ["spdy", "websocket"])
ECHO = 'while read line; do echo "out $line"; echo "err $line" >&2; done; echo over; exec sleep 1000'


def box(bed: Testbed, pod_id: str, script: str = "sleep 1000", **changes: bool) -> str:
    """Run a container whose program is the script; returns its id."""
    return run_container(bed, pod_id, container_config("box", "busybox", ["sh", "-c", script], **changes))


class Terminal:
    """A terminal for a program in the bed, and what it showed."""

    def __init__(self, bed: Testbed, argv: list[str], *, rows: int, columns: int) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.process: Inside = bed.popen(argv, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        os.set_blocking(self._master, False)
        self.shown = b""

    def type(self, text: str) -> None:
        """As on a keyboard."""
        os.write(self._master, text.encode())

    def shows(self, text: str) -> bool:
        """Whether it has shown this so far."""
        try:
            self.shown += os.read(self._master, 65536)
        except (BlockingIOError, OSError):  # nothing new, or nobody writes any more (EIO)
            pass
        return text.encode() in self.shown

    def resize(self, rows: int, columns: int) -> None:
        """Change its size, as the program is told by its terminal emulator."""
        termios.tcsetwinsize(self._master, (rows, columns))
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> int:
        """Wait for the program's end; its exit status."""
        status = self.process.wait(timeout=60)
        os.close(self._master)
        return status


@TRANSPORTS
def test_exec_passes_input_both_outputs_and_the_exit_code(
    crictl: Crictl, bed: Testbed, pod: str, transport: str
) -> None:
    container_id = box(bed, pod)
    words = ["exec", "-r", transport, "-i", container_id, "sh", "-c", "cat; echo err >&2; exit 3"]
    said = "".join(f"line {number}\n" for number in range(200_000))
    finished = bed.run(crictl.argv(*words), stdin=said, check=False, timeout=60)
    assert finished.stdout == said
    assert finished.stderr.startswith("err\n")
    assert "command terminated with exit code 3" in finished.stderr
    assert finished.returncode == 1  # its own way to say that it was not 0
    assert crictl("exec", "-r", transport, container_id, "echo", "hello") == "hello"
    with pytest.raises(BedFailed, match="no-such-command"):
        crictl("exec", "-r", transport, container_id, "no-such-command")


@TRANSPORTS
def test_exec_in_a_terminal_has_its_size_and_follows_it(
    crictl: Crictl, bed: Testbed, pod: str, transport: str
) -> None:
    container_id = box(bed, pod)
    words = ["exec", "-r", transport, "-i", "-t", container_id, "sh"]
    terminal = Terminal(bed, crictl.argv(*words), rows=31, columns=97)

    def sized(rows: int, columns: int) -> None:
        terminal.type(f'until [ "$(stty size)" = "{rows} {columns}" ]; do sleep 0.02; done; echo now $(stty size)\r')
        until(lambda: terminal.shows(f"now {rows} {columns}\r\n"), what="the size is there")

    until(lambda: terminal.shows("# "), what="the shell asks")
    sized(31, 97)
    terminal.resize(45, 133)
    sized(45, 133)
    terminal.type("exit\r")
    assert terminal.close() == 0


@TRANSPORTS
def test_an_interrupted_exec_ends_its_process_and_leaves_nothing(
    crictl: Crictl, bed: Testbed, pod: str, transport: str
) -> None:
    container_id = box(bed, pod)
    crictl("exec", container_id, "true")
    before = observe(bed)
    process = bed.popen(crictl.argv("exec", "-r", transport, container_id, "sleep", "87654321"))
    until(lambda: sleeps(bed), what="it sleeps")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: not sleeps(bed), what="it is ended")
    assert_no_leaks(bed, before)


def sleeps(bed: Testbed) -> bool:
    return bed.run(["pgrep", "-x", "-f", "sleep 87654321"], check=False).returncode == 0


@TRANSPORTS
def test_attach_passes_input_and_both_outputs_until_its_end(
    crictl: Crictl, bed: Testbed, pod: str, transport: str
) -> None:
    container_id = box(bed, pod, ECHO, stdin=True)
    process = bed.popen(crictl.argv("attach", "-r", transport, "-i", container_id), stdin=subprocess.PIPE)
    stdin, stdout, stderr = piped(process)
    stdin.write("one\n")
    stdin.flush()
    assert (stdout.readline(), stderr.readline()) == ("out one\n", "err one\n")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
    assert "over" not in log_lines(bed, container_id)


@TRANSPORTS
def test_attach_in_a_terminal_has_its_size(crictl: Crictl, bed: Testbed, pod: str, transport: str) -> None:
    container_id = box(bed, pod, "exec sh -i", stdin=True, tty=True)
    terminal = Terminal(bed, crictl.argv("attach", "-r", transport, "-i", "-t", container_id), rows=29, columns=88)
    terminal.type('until [ "$(stty size)" = "29 88" ]; do sleep 0.02; done; echo now $(stty size)\r')
    until(lambda: terminal.shows("now 29 88\r\n"), what="the size is there")
    terminal.type("exit\r")
    assert terminal.close() == 0


@TRANSPORTS
@pytest.mark.parametrize("network", [cri.POD, cri.NODE], ids=["pod", "host"])
def test_port_forward_carries_one_request_after_the_other(
    crictl: Crictl, bed: Testbed, images: tuple[str, ...], transport: str, network: int
) -> None:
    namespaces = cri.NamespaceOption(network=network)  # type: ignore[arg-type]
    security = cri.LinuxSandboxSecurityContext(namespace_options=namespaces)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security)))
    run_container(bed, pod_id, container_config("nginx", "nginx"))
    process = bed.popen(crictl.argv("port-forward", "-r", transport, pod_id, ":80"))
    _, stdout, _ = piped(process, stdin=False)
    found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+) -> 80", stdout.readline())
    assert found
    for _ in range(5):
        status, body = bed.http_get("127.0.0.1", int(found[1]))
        assert status == 200 and "nginx" in body
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    remove_pod(bed, pod_id)


@TRANSPORTS
def test_over_tls_crictl_is_served_and_may_check_the_certificate(
    crictl_built: None, fresh_bed: StartBed, transport: str
) -> None:
    bed = fresh_bed(daemon=False)
    bed.write("/etc/cni/tls/cert.pem", tls.CERTIFICATE)
    bed.write("/etc/cni/tls/key.pem", tls.KEY, mode=0o600)
    bed.start_daemon(streaming={"tls_cert": "/etc/cni/tls/cert.pem", "tls_key": "/etc/cni/tls/key.pem"})
    bed.load_image("busybox")
    bed.write(CONFIG, "runtime-endpoint: unix:///run/sandboxd/sandboxd.sock\n")
    crictl = Crictl(bed=bed)
    container_id = box(bed, run_pod(bed))
    # It insists on a certificate of its own, which nobody asks for.
    own = ["--tls-cert", "/etc/cni/tls/cert.pem", "--tls-key", "/etc/cni/tls/key.pem"]
    trusting = ["--tls-ca", "/etc/cni/tls/cert.pem", *own, "--tls-server-name"]
    assert crictl("exec", "-r", transport, *trusting, "127.0.0.1", container_id, "echo", "hello") == "hello"
    with pytest.raises(BedFailed, match="certificate"):
        crictl("exec", "-r", transport, *trusting, "another.example", container_id, "echo", "hello")
    assert (
        crictl("exec", "-r", transport, container_id, "echo", "hello") == "hello"
    )  # without the flags it trusts all


def piped(process: Inside, *, stdin: bool = True) -> tuple[IO[str], IO[str], IO[str]]:
    """The three pipes of a program; stdout in the place of a stdin that is none."""
    assert process.stdout is not None and process.stderr is not None
    if not stdin:
        return process.stdout, process.stdout, process.stderr
    assert process.stdin is not None
    return process.stdin, process.stdout, process.stderr

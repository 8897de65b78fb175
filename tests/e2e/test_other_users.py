"""Other users of the machine reach nothing of the daemon's, of its pods', or of the images'.

The daemon is started with a umask of 000, so that a mode that is left to it shows. Root lists every path that there
is, as pods with all that they can have are running; somebody without any right then tries each.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.images import with_volumes
from tests.pods import IDS, container_config, log_lines, pod_config, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

IMAGE = "docker.io/test/with-volumes:1"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
TREES = ("/run/sandboxd", "/var/lib/sandboxd")

LIST = """
import json, os, stat, sys
found = []
for top in sys.argv[1:]:
    found.append((top, os.lstat(top).st_mode))
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            try:
                found.append((path, os.lstat(path).st_mode))
            except OSError:
                pass
print(json.dumps(found))
"""

# Started as root, since the interpreter may lie where only root can reach it.
BECOME_NOBODY = """
import json, os, socket, stat, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
"""

TRY = f"""{BECOME_NOBODY}
reached = []
for path, mode in json.load(sys.stdin):
    def attempt(what, call):
        try:
            result = call()
        except OSError:
            return
        if result is not False:
            reached.append((what, path))
        if type(result) is int:
            os.close(result)
    if stat.S_ISLNK(mode):
        attempt("read link", lambda: bool(os.readlink(path)))
    elif stat.S_ISDIR(mode):
        attempt("pass", lambda: os.access(path, os.X_OK))
        attempt("list", lambda: os.listdir(path) is not None)
        attempt("write", lambda: os.access(path, os.W_OK))
    elif stat.S_ISSOCK(mode):
        attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect(path) is None)
    else:
        attempt("read", lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        attempt("write", lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        attempt("execute", lambda: os.access(path, os.X_OK))
print(json.dumps(reached))
"""

SPY = f"""{BECOME_NOBODY}
seen, rounds = set(), 0
while not os.path.exists("/tmp/" + sys.argv[1]) and rounds < 2_000_000:
    rounds += 1
    try:
        seen.update(os.listdir("/run/sandboxd/idmapped"))
    except PermissionError:
        continue
    except OSError as exc:
        seen.add(str(exc))
print(sorted(seen))
"""


def layer() -> bytes:
    """/vol with a set-id program and, where the image is mounted, a device node that everybody may open."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directory = tarfile.TarInfo("vol")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(directory)
        program = Path("/usr/bin/id").read_bytes()
        tool = tarfile.TarInfo("vol/id")
        tool.size, tool.mode = len(program), 0o4755
        tar.addfile(tool, io.BytesIO(program))
        device = tarfile.TarInfo("vol/random")
        device.type, device.mode, device.devmajor, device.devminor = tarfile.CHRTYPE, 0o666, 1, 9
        tar.addfile(device)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A daemon that was started with a umask of 000, and two pods: one has a user namespace."""
    with Testbed(containerd_bin=containerd_bin) as made:
        made.default_network()
        made.daemon_argv = ["sh", "-c", 'umask 000; exec "$@"', "sh", sys.executable, "-m", "sandboxd"]
        made.start_daemon()
        archive = tmp_path_factory.mktemp("images") / "image.tar"
        made.load_archive(with_volumes(made.build_image("busybox"), archive, ["/vol"], layer(), IMAGE))
        made.write("/var/lib/closed/secret", "the secret of the volume\n")
        made.path("/var/lib/closed").chmod(0o700)
        mapped = cri.LinuxSandboxSecurityContext(
            namespace_options=cri.NamespaceOption(
                userns_options=cri.UserNamespace(mode=cri.POD, uids=IDS, gids=IDS),
            )
        )
        for linux in (cri.LinuxPodSandboxConfig(), cri.LinuxPodSandboxConfig(security_context=mapped)):
            run(made, run_pod(made, pod_config(linux=linux)), mapped=linux.HasField("security_context"))
        yield made


def run(bed: Testbed, pod_id: str, *, mapped: bool) -> str:
    """A container with everything that is found on the host: volumes, mounted images, shared memory, a log."""
    script = "cp /vol/id /vol/own && chmod 6755 /vol/own && echo s > /dev/shm/x && echo ready && exec sleep 1000"
    mounts = [
        cri.Mount(container_path="/whole", image=cri.ImageSpec(image=IMAGE), readonly=True),
        cri.Mount(
            container_path="/closed",
            host_path="/var/lib/closed",
            uidMappings=IDS if mapped else (),
            gidMappings=IDS if mapped else (),
        ),
    ]
    config = container_config("c", IMAGE, ["sh", "-c", script], mounts=mounts)
    config.envs.add(key="PASSWORD", value=b"hunter2-secret")
    container_id = run_container(bed, pod_id, config)
    until(lambda: log_lines(bed, container_id) == ["ready"], what="the container has written")
    return container_id


def nobody(bed: Testbed, *command: str) -> str:
    """What a program says that runs without any right."""
    return bed.run([*NOBODY, *command], check=False).stdout


def reached(bed: Testbed) -> list[tuple[str, str]]:
    paths = bed.run([sys.executable, "-I", "-c", LIST, *TREES], timeout=60).stdout
    tried = bed.run([sys.executable, "-I", "-c", TRY], stdin=paths, timeout=60).stdout
    found = [(what, path) for what, path in json.loads(tried)]
    assert len(json.loads(paths)) > 500, "the walk has missed what there is"
    # The managed containerd's directories: its bundles are passed by the processes of user namespaces.
    passable = ("/run/sandboxd", "/run/sandboxd/containerd")
    return [
        (what, path)
        for what, path in found
        if not (what == "pass" and (path in passable or path.startswith("/run/sandboxd/containerd/state")))
    ]


def test_nobody_reaches_anything(bed: Testbed) -> None:
    assert reached(bed) == []


def test_what_an_earlier_daemon_left_open_is_closed_by_the_next(bed: Testbed) -> None:
    bed.stop_daemon()
    for path in ("/var/lib/sandboxd", "/run/sandboxd", "/run/sandboxd/containers", "/var/lib/sandboxd/volumes"):
        bed.run(["chmod", "0777", path])
    logs = "/run/sandboxd/*.log /run/sandboxd/containerd/*.log"
    files = "/var/lib/sandboxd/lock /var/lib/sandboxd/ledger.db /var/lib/sandboxd/ledger.db-wal"
    bed.run(["sh", "-c", f"touch {files}; chmod 0666 {files} {logs}"])
    bed.relaunch_daemon()
    modes = bed.run(["sh", "-c", "stat -c '%a %n' /var/lib/sandboxd/lock /var/lib/sandboxd/ledger.db*"]).stdout
    assert {line.split()[0] for line in modes.splitlines()} == {"600"}
    assert reached(bed) == []


def test_no_set_id_program_that_an_image_or_a_container_made_is_run_on_the_host(bed: Testbed) -> None:
    programs = bed.run(["find", *TREES, "-path", "*/vol/id", "-o", "-path", "*/volumes/*/own"]).stdout.split()
    assert len(programs) >= 4, programs
    for program in programs:
        assert nobody(bed, "sh", "-c", f"{program}; true") == ""


def test_mounted_images_are_without_set_id_and_devices(bed: Testbed) -> None:
    lines = [line.split(" ") for line in bed.mountinfo.splitlines() if "/image-volumes/" in line.split(" ")[4]]
    assert len(lines) == 2
    for line in lines:
        assert {"ro", "nosuid", "nodev"} <= set(line[5].split(","))


def test_programs_that_the_daemon_starts_have_the_usual_umask(bed: Testbed) -> None:
    containerd = bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()
    logger = bed.path("/run/sandboxd/logger.pid").read_text().strip()
    for pid in (containerd, logger):
        status = (bed.proc / pid / "status").read_text()
        assert "Umask:\t0022" in status


def test_nobody_can_keep_the_daemon_from_starting(bed: Testbed) -> None:
    bed.stop_daemon()
    assert nobody(bed, "sh", "-c", "flock -n /var/lib/sandboxd/lock echo held") == ""
    bed.relaunch_daemon()


def test_what_is_staged_for_user_namespaces_is_not_seen(bed: Testbed) -> None:
    ids: dict[str, Any] = {"uids": IDS, "gids": IDS}
    options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, **ids))
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    done = f"done-{bed.name}"
    spy = bed.popen([sys.executable, "-I", "-c", SPY, done])
    try:
        pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=context)))
        run(bed, pod_id, mapped=True)
    finally:
        Path("/tmp", done).touch()
        seen, _ = spy.communicate(timeout=60)
        Path("/tmp", done).unlink()
    assert seen == "[]\n"
    assert bed.run(["stat", "-c", "%a %U", "/run/sandboxd/idmapped"]).stdout == "700 root\n"

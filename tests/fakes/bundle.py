"""A node of fakes over a directory: everything that an operation needs, without root and without containerd.

The configuration, the jobs, the ledger, the directories, FIFOs and files are real; containerd, the plugins, the
logger, pinned namespaces and mounts are fakes. All of them share one `Points`, so that any call can be made to fail
or hang.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd import config as settings
from sandboxd import private
from sandboxd.cgroups.kernel import Cgroups
from sandboxd.cni.conf_dir import ConfDir
from sandboxd.config import Config, Daemon, Handler, Runtime
from sandboxd.containers.create import create_container
from sandboxd.containers.start import start_container
from sandboxd.errors import Unavailable
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, ImageRecord, SandboxRecord
from sandboxd.node import Load, Machine, Network, Node
from sandboxd.oci.linux import ALL_CAPABILITIES, HostFacts
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places
from sandboxd.pods import follow
from sandboxd.pods.run import run_sandbox
from tests.fakes import cni, images, kernel, logs, netns, runtime
from tests.fakes.points import Points
from tests.fakes.runtime import Program

POD, CONTAINER = "pod", "container"  # the ids of records that were not made by an operation
NETWORK = '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'
PAUSE = images.record("pause", {"Entrypoint": ["/pause"]}, digit="f")
APP = images.record("app", {"Cmd": ["/bin/app"], "User": "app"}, digit="a")
APP_FILES = {"etc/passwd": "app:x:7:7::/:/bin/sh\n", "etc/group": "app:x:7:\n", "data/file": "from the image"}
FACTS = HostFacts(
    hostname="node",
    machine="x86_64",
    capabilities=frozenset(ALL_CAPABILITIES),
    oom_score_adj=0,
    can_lower_oom_score_adj=True,
    cgroup_v2=False,
    seccomp=False,
)
JOBS_SECONDS = 20.0  # for the jobs that an operation leaves running; they take milliseconds


class Bundle:
    """The node, and each fake behind it. `close` it, or take it as a context manager."""

    def __init__(
        self, directory: Path, patch: pytest.MonkeyPatch, programs: Mapping[tuple[str, ...], Program] | None = None
    ) -> None:
        self.points = Points()
        self.kernel = kernel.Kernel(self.points, directory)
        self.kernel.install(patch)
        self.netns = netns.Netns(self.points)
        self.cni = cni.Cni(self.points, self.netns.exists)
        self.runtime = runtime.Runtime(self.points, programs)
        self.images = images.Images(self.points, directory / "images")
        self.images.add(PAUSE)
        self.images.add(APP, APP_FILES)
        self.logs = logs.Logs(self.points)
        self.directory = directory
        self.patch = patch
        self.config = _config(directory)
        self.places = Places.of(self.config)
        private.prepare(self.places.root, self.places.state, closed=self.places.closed)
        self.runtime.owner = self.places.owner
        self.runtime.on_exit = lambda task_id: follow.exited(self.node, task_id)  # as containerd's event
        self.node = _node(self)

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open, whatever is left."""
        self.runtime.close()
        for container_id in tuple(self.logs.opened):
            self.logs.forget(container_id)
        self.node.ledger.close()

    async def pause_image(self) -> ImageRecord:
        """The image of every pod's first container."""
        async with self.points.at("images.pause", Unavailable):
            return PAUSE

    def with_pinned(self) -> str:
        """Have a handler whose pods are pinned, beside the default one; its name."""
        runtime = self.node.config.runtime
        handler = replace(runtime.handlers["runc"], sandbox_mode=settings.PINNED)
        runtime = replace(runtime, handlers={**runtime.handlers, "pinned": handler})
        self.node = replace(self.node, config=replace(self.node.config, runtime=runtime))
        return "pinned"

    def with_records(self, *, started: bool = True) -> Node:
        """The node, with records of a pod `POD`, of a container in it and of an attachment; nothing of them runs.

        Each has a directory that holds something.
        """
        ledger, netns_path = self.node.ledger, self.places.network_namespace(POD)
        ledger.add_sandbox(
            SandboxRecord(
                id=POD,
                config=pod_config(),
                runtime_handler="",
                netns_path=netns_path,
                created_at=1,
                started_at=2 if started else 0,
            )
        )
        ledger.add_container(
            ContainerRecord(
                id=CONTAINER,
                sandbox_id=POD,
                config=container_config(),
                sandbox_name="",
                image_ref="",
                image_id="",
                log_path="",
                created_at=3,
            )
        )
        ledger.put_attachment(
            Attachment(
                sandbox_id=POD,
                network="pods",
                ifname="eth0",
                netns_path=netns_path,
                state=AttachmentState.ADDED,
                conf_file="10-pods.conflist",
                config=NETWORK.encode(),
                plugin_path="",
                args="",
                capability_args=b"{}",
            )
        )
        for path in (self.places.sandbox(POD), self.places.pod_files(POD), self.places.container(CONTAINER)):
            Path(path, "below").mkdir(parents=True)
        return self.node

    async def ready_pod(self, config: cri.PodSandboxConfig | None = None, handler: str = "") -> str:
        """Run a pod; its id."""
        return await run_sandbox(self.node, self.pause_image, config or pod_config(), handler)

    async def running_container(self, config: cri.ContainerConfig | None = None) -> str:
        """Run a pod and a container in it; the container's id."""
        container_id = await create_container(self.node, await self.ready_pod(), config or container_config())
        await start_container(self.node, container_id)
        await self.settled()
        return container_id

    async def repaired(self) -> None:
        """Return once no job runs any more, repairs in the background included, which `settled` ends."""
        async with asyncio.timeout(JOBS_SECONDS):
            while running := self.node.jobs.tasks():
                await asyncio.wait(running)

    async def settled(self) -> None:
        """Return once no job runs any more, as after an operation that has started some."""
        left = await self.node.jobs.drain(JOBS_SECONDS)
        assert not left, f"jobs that do not end: {left}"
        assert not self.node.jobs.held(), f"locks that are held: {self.node.jobs.held()}"

    def left(self) -> list[str]:
        """Everything that pods and containers have, in the fakes and in the directories."""
        fakes = (self.kernel, self.netns, self.cni, self.runtime, self.images, self.logs)
        return [*(item for fake in fakes for item in fake.left()), *self._files()]

    def records(self) -> list[str]:
        """Everything that the ledger knows."""
        ledger = self.node.ledger
        return [
            *(f"record of pod {record.id}" for record in ledger.sandboxes.values()),
            *(f"record of container {record.id}" for record in ledger.containers.values()),
            *(f"record of attachment {record.sandbox_id}" for record in ledger.attachments),
        ]

    def _files(self) -> Iterator[str]:
        """What is in the directories that have an entry for each pod or container."""
        for place in (*self.places.closed, self.places.netns):
            yield from (f"{place}/{name}" for name in sorted(os.listdir(place)))


def _config(directory: Path) -> Config:
    config = Config(
        daemon=Daemon(root=str(directory / "root"), state=str(directory / "state")),
        network=settings.Network(conf_dir=str(directory / "net.d"), netns_dir=str(directory / "netns")),
        # A runtime that cannot be asked what it can do: no test executes one.
        runtime=Runtime(
            cgroup_parent="/sandboxd-unit-tests",
            handlers={"runc": Handler(binary=str(directory / "no-runtime"))},
        ),
    )
    for path in (config.network.conf_dir, config.network.netns_dir):
        os.mkdir(path)
    Path(config.network.conf_dir, "10-pods.conflist").write_text(NETWORK)
    return config


def _node(fakes: Bundle) -> Node:
    return Node(
        config=fakes.config,
        jobs=Jobs(),
        ledger=Ledger(":memory:"),
        netns=fakes.netns,
        network=Network(conf=ConfDir(fakes.config.network.conf_dir), cni=fakes.cni),
        runtime=fakes.runtime,
        images=fakes.images,
        logs=fakes.logs,
        machine=Machine(facts=FACTS, cgroups=Cgroups(str(fakes.directory / "cgroup")), load=Load(fakes.config)),
        places=fakes.places,
    )


def pod_config(name: str = "web") -> cri.PodSandboxConfig:
    """A pod in the network."""
    return cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name=name, namespace="default", uid=f"uid-{name}"))


def container_config(name: str = "app") -> cri.ContainerConfig:
    """A container from `APP`."""
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name), image=cri.ImageSpec(image="app"))

"""A bed with sandboxd, a registry and the image tools, and the question whether an image arrived as it was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.e2e.test_sandboxctl import Ctl
from tests.pods import container_config, create_container, exited, log_lines, refused, start_container
from tests.processes import until
from tests.pulling import Site
from tests.tools import tree
from tests.tools.source import CONFIG, SAYS, Source, packed_directory

TREE = str(Path(tree.__file__).resolve())
HOME = "/var/lib/tools"  # in the bed: its own
# The tools keep what they store in /var/lib and /run, which are the bed's own; these are the other places.
ENVIRONMENT = {
    "HOME": HOME,
    "TMPDIR": f"{HOME}/tmp",
    "XDG_RUNTIME_DIR": "/run/tools",
    "BUILDAH_ISOLATION": "chroot",
}
STORAGE = (
    '[storage]\ndriver = "overlay"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n'
)
# A name without a domain is docker.io's in sandboxd, so the tools must not complete it otherwise.
REGISTRIES = (
    'unqualified-search-registries = ["docker.io"]\n[[registry]]\nlocation = "127.0.0.1:5000"\ninsecure = true\n'
)
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop(Site):
    """A site with the tools. `place` is a directory that the bed and the tests see by the same name."""

    ctl: Ctl
    source: Source
    place: Path
    pod: str

    def tool(self, *argv: str | Path, stdin: str = "") -> str:
        """Run a tool in the bed to its end; what it prints."""
        setting = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return self.bed.run(["env", *setting, *map(str, argv)], stdin=stdin, timeout=120).stdout

    def shell(self, script: str, *arguments: str | Path) -> str:
        """The same for a script; `$1` is its first argument."""
        return self.tool("sh", "-euc", script, "sh", *arguments)

    def forget(self) -> None:
        """Let the tools forget what which registry has: they would reuse it, as it was compressed then."""
        self.bed.run(["rm", "-rf", "/var/lib/containers/cache"])

    def name(self, repository: str, tag: str = "v1") -> str:
        return f"{self.registry.host}/{repository}:{tag}"

    def new(self, name: str) -> Path:
        """A path below `place` where nothing is yet."""
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists()
        return path

    # What sandboxd has.

    def pulled(self, name: str, **asked: Any) -> dict[str, Any]:
        """PullImage, then what `holds` demands; its config. The image is removed again."""
        self.pull(name)
        return self._held(name, **asked)

    def loaded(self, archive: Path, **asked: Any) -> dict[str, Any]:
        """LoadImage of an archive with one image, or of a layout's directory as a tar; then the same.

        Some tools write all names by which they know the image themselves.
        """
        if archive.is_dir():
            archive = packed_directory(archive, self.new(f"{archive.relative_to(self.place)}.tar"))
        (image,) = self.bed.load_archive(archive)
        return self._held((*image.names, image.image_id)[0], **asked)

    def _held(self, name: str, **asked: Any) -> dict[str, Any]:
        try:
            return self.holds(name, **asked)
        finally:
            self.remove(name)

    def holds(
        self,
        name: str,
        *,
        shown: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] = CONFIG,
        described: bool = True,
        runs: bool = False,
    ) -> dict[str, Any]:
        """Demand that an image that is here has this tree and this config, and that it runs if that is asked.

        A tool may add labels and variables of its own. Where not every directory is `described` in every layer that
        has something in it, the times of directories are nobody's. Returns the image's config.
        """
        found = self.config_of(name)
        own = {"Labels": config.get("Labels", {}), "Env": config.get("Env", [])}
        assert own["Labels"].items() <= found.get("Labels", {}).items()
        assert set(own["Env"]) <= set(found.get("Env", ()))
        assert {**found, **own} == {**config, **own}, found
        with_image = self.container(name, () if "Entrypoint" in config else ("a command",))
        wrong = different(self.tree_of_container(with_image), shown or self.source.both, times=described)
        assert not wrong, f"path: (found, expected): {wrong}"
        if runs:
            start_container(self.bed, with_image)
            until(lambda: exited(self.bed, with_image), what="the container ends")
            assert log_lines(self.bed, with_image) == [SAYS]
        self.remove_container(with_image)
        return found

    def config_of(self, name: str) -> dict[str, Any]:
        """An image's config, as `sandboxctl inspecti` shows it."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=True)
        config: dict[str, Any] = json.loads(self.bed.images.ImageStatus(request).info["info"])["imageSpec"]["config"]
        return config

    def container(self, image: str, command: Sequence[str] = ()) -> str:
        """CreateContainer of this image with the command that it names; the id."""
        config = container_config(f"c-{os.urandom(4).hex()}", image, command)
        return create_container(self.bed, self.pod, config)

    def remove_container(self, container_id: str) -> None:
        self.bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=120)

    def tree_of_container(self, container_id: str) -> dict[str, Any]:
        """The root file system that a container which was not started yet will see."""
        key = next(line.split()[0] for line in self.ctr("snapshots", "ls") if line.startswith(container_id))
        (mount,) = self.ctr("snapshots", "mounts", "/mnt", key)
        return self.tree_in_bed("/mnt", f"{mount} && ")

    def tree_in_bed(self, root: str, before: str = "") -> dict[str, Any]:
        """The tree below a path in the bed; what is mounted `before` is gone afterwards."""
        script = f"{before}exec {sys.executable} -I {TREE} show {root}"
        shown: dict[str, Any] = json.loads(
            self.bed.run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]).stdout
        )
        return shown

    def work(self, verb: str, root: str) -> None:
        """`tree make` or `tree change` in a directory of the bed."""
        self.bed.run([sys.executable, "-I", TREE, verb, root])

    def refuses_archive(self, archive: Path, *words: str) -> str:
        """LoadImage fails as what is wrong with its input, with these words, and nothing is left."""
        before = self.stored()
        with pytest.raises(grpc.RpcError) as caught:
            self.bed.load_archive(archive)
        code, said = refused(caught.value)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, said
        for word in words:
            assert word in said
        assert self.stored() == before
        return said


def different(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, times: bool = True
) -> dict[str, tuple[Any, Any]]:
    """Path to (found, expected) where they differ; without `times`, directories may have any."""
    if not times:
        found, expected = ({path: _timeless(row) for path, row in each.items()} for each in (found, expected))
    paths = sorted({*found, *expected})
    return {path: (found.get(path), expected.get(path)) for path in paths if found.get(path) != expected.get(path)}


def _timeless(row: list[Any]) -> list[Any]:
    return [*row[:3], 0, *row[4:]] if row[0].startswith("0o4") else row

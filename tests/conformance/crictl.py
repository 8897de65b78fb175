"""The genuine crictl, run inside a bed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.conformance.build import OUT
from tests.testbed import Testbed

CONFIG = "/run/crictl/crictl.yaml"
LOGS = "/var/lib/pod-logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crictl:
    """crictl in a bed."""

    bed: Testbed

    def streams(self, *words: str) -> tuple[str, str]:
        """Run one command; returns its stdout and stderr. Raises BedFailed with crictl's own words."""
        finished = self.bed.run(self.argv(*words), timeout=60)
        return finished.stdout, finished.stderr

    def argv(self, *words: str) -> list[str]:
        """The command line."""
        return [str(OUT / "crictl"), "--config", CONFIG, *words]

    def __call__(self, *words: str) -> str:
        """Run one command; returns what it printed."""
        return self.streams(*words)[0].strip()

    def json(self, command: str, *words: str) -> Any:
        """Run one command that can print JSON. crictl takes no flags after the first word that is none."""
        return json.loads(self(command, "--output", "json", *words))

    def pod(self, name: str) -> str:
        """Write the configuration of a pod with a log directory; returns the file."""
        logs = f"{LOGS}/{name}"
        self.bed.path(logs).mkdir(parents=True, exist_ok=True)
        config = {
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "attempt": 0},
            "log_directory": logs,
            "labels": {"app": name},
            "linux": {},
        }
        return self._file(f"{name}-pod", config)

    def container(self, name: str, image: str, **more: Any) -> str:
        """Write the configuration of a container; returns the file."""
        config = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image},
            "log_path": f"{name}.log",
            "linux": {},
        }
        return self._file(f"{name}-container", config | more)

    def _file(self, name: str, config: dict[str, Any]) -> str:
        inside = f"/run/crictl/{name}.json"
        self.bed.write(inside, json.dumps(config))
        return inside

    def remove_all(self) -> None:
        """Stop and remove every pod."""
        for pod in self("pods", "--quiet").split():
            self("rmp", "--force", pod)

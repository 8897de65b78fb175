"""Push every image of an OCI layout to a registry: `push.py LAYOUT HOST:PORT`, over plain HTTP.

The layout's index names each image `repository:tag` in the annotation org.opencontainers.image.ref.name. Only the
standard library is used, because this runs by itself inside a test bed.

Protocol: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#push
"""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

REF_NAME = "org.opencontainers.image.ref.name"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


class PushFailed(Exception):
    """The registry refused; the text says what."""


class Pusher:
    """One connection to a registry, and where in it each blob is already."""

    def __init__(self, layout: Path, host: str) -> None:
        self._layout = layout
        self._connection = http.client.HTTPConnection(host, timeout=60)
        self._places: dict[str, str] = {}  # digest: a repository that has it

    def image(self, reference: str, descriptor: dict[str, Any]) -> None:
        """Push what `descriptor` describes and all that it needs as `repository:tag`."""
        repository, _, tag = reference.rpartition(":")
        self._manifest(repository, tag, descriptor)

    def _manifest(self, repository: str, name: str, descriptor: dict[str, Any]) -> None:
        data = self._read(descriptor["digest"])
        document = json.loads(data)
        if descriptor["mediaType"] in INDEXES:
            for child in document["manifests"]:
                self._manifest(repository, child["digest"], child)
        else:
            for blob in (document["config"], *document["layers"]):
                self._blob(repository, blob["digest"])
        headers = {"Content-Type": descriptor["mediaType"]}
        self._ask("PUT", f"/v2/{repository}/manifests/{name}", 201, body=data, headers=headers)

    def _blob(self, repository: str, digest: str) -> None:
        uploads = f"/v2/{repository}/blobs/uploads/"
        known = self._places.get(digest)
        if known == repository:
            return
        if known:  # mounted from there: 201; a registry that does not do that begins an upload: 202
            query = f"?mount={quote(digest)}&from={quote(known)}"
            status, location = self._ask("POST", uploads + query, 201, 202)
        else:
            status, location = self._ask("POST", uploads, 202)
        if status == 202:
            parts = urlsplit(location)
            query = f"{parts.query}&digest={quote(digest)}" if parts.query else f"digest={quote(digest)}"
            headers = {"Content-Type": "application/octet-stream"}
            self._ask("PUT", f"{parts.path}?{query}", 201, body=self._read(digest), headers=headers)
        self._places.setdefault(digest, repository)

    def _read(self, digest: str) -> bytes:
        return (self._layout / "blobs" / digest.replace(":", "/")).read_bytes()

    def _ask(
        self, method: str, target: str, *wanted: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """One request; returns the status and the Location that came with it."""
        self._connection.request(method, target, body=body, headers=headers or {})
        answer = self._connection.getresponse()
        words = answer.read()
        if answer.status not in wanted:
            raise PushFailed(f"{method} {target}: {answer.status} {words.decode('utf-8', 'replace').strip()}")
        return answer.status, answer.headers.get("Location", "")


def main(arguments: list[str]) -> int:
    """Push the layout arguments[0] to the registry arguments[1]."""
    layout, host = Path(arguments[0]), arguments[1]
    pusher = Pusher(layout, host)
    for descriptor in json.loads((layout / "index.json").read_text(encoding="utf-8"))["manifests"]:
        reference = descriptor["annotations"][REF_NAME]
        try:
            pusher.image(reference, descriptor)
        except (PushFailed, OSError, http.client.HTTPException) as exc:
            print(f"cannot push {reference} to {host}: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

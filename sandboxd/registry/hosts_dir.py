"""The certs.d directory on disk, read anew for every pull: a change counts from the next one on."""

from __future__ import annotations

from pathlib import Path

from sandboxd.errors import InvalidRequest
from sandboxd.registry import hosts
from sandboxd.registry.hosts import Endpoint

MOST_BYTES = 1 << 20


class HostsDir:
    """Where registries are reached, as configured below `path`; "" configures nothing."""

    def __init__(self, path: str) -> None:
        self._path = path

    def endpoints(self, domain: str) -> tuple[Endpoint, ...]:
        """The places to try for the registry `domain`, in order. Raises InvalidRequest for a bad hosts.toml."""
        for name in hosts.directories(domain) if self._path else ():
            directory = Path(self._path) / name
            file = directory / hosts.FILE
            try:
                if file.stat().st_size > MOST_BYTES:
                    raise InvalidRequest(f"{file}: larger than {MOST_BYTES} bytes")
                return hosts.parse(file.read_text(encoding="utf-8"), domain, str(directory))
            except FileNotFoundError:
                pass
            except (OSError, UnicodeDecodeError) as exc:
                raise InvalidRequest(f"{file}: cannot be read: {exc}") from exc
            try:
                names = [entry.name for entry in directory.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                raise InvalidRequest(f"{directory}: cannot be read: {exc.strerror}") from exc
            return hosts.from_certificates(domain, str(directory), names)
        return (hosts.upstream(domain),)

"""The certs.d directory on disk, read again for every pull: a change takes effect with the next one."""

from __future__ import annotations

from pathlib import Path

from sandboxd.errors import InvalidRequest
from sandboxd.registry import hosts
from sandboxd.registry.hosts import Endpoint

MAX_BYTES = 1 << 20


class HostsDir:
    """The endpoints of registries as configured below `path`; "" means nothing is configured."""

    def __init__(self, path: str) -> None:
        self._path = path

    def endpoints(self, domain: str) -> tuple[Endpoint, ...]:
        """The endpoints to try for the registry `domain`, in order. Raises InvalidRequest for a bad hosts.toml."""
        for name in hosts.directories(domain) if self._path else ():
            directory = Path(self._path) / name
            file = directory / hosts.FILE
            try:
                if file.stat().st_size > MAX_BYTES:
                    raise InvalidRequest(f"{file}: larger than {MAX_BYTES} bytes")
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

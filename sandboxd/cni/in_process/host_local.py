"""What the IPAM plugin `host-local` does with its files: the same files, under the same lock.

    NETWORK/lock                 flock(2), for as long as files are read and made
    NETWORK/ADDRESS              the container's id, CR LF, the interface; made with O_EXCL
    NETWORK/last_reserved_ip.N   the address that range set N gave last

Everything here blocks and belongs into a thread. Another process may keep the lock for ever: `Cancelled` is raised
when the caller gives up.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sandboxd.cni.in_process.ranges import RangeSet, candidates, shown
from sandboxd.cni.in_process.words import Failed, of_os
from sandboxd.cni.ranges import Address, Range

_LOOK_SECONDS = 0.001, 0.05  # between two looks at a lock that another process has: the first, the longest
_MAX_BYTES = 4096  # of a file
_LAST = "last_reserved_ip."


class Cancelled(Exception):
    """The caller has given up."""


class Store:
    """The files of one network."""

    def __init__(self, directory: str, mode: int, given_up: threading.Event) -> None:
        """`mode` is that of the files, which differs between the plugin's versions."""
        self._directory = directory
        self._mode = mode
        self._given_up = given_up

    def reserve(self, sets: Sequence[RangeSet], owner: str, ifname: str) -> list[tuple[Address, Range]]:
        """One address of each range set. Raises Failed in the plugin's words; what was reserved is released then."""
        given: list[tuple[Address, Range]] = []
        for number, one in enumerate(sets):
            try:
                with self._locked():
                    given.append(self._reserve(one, number, owner, ifname))
            except (OSError, _Refused) as exc:
                if given:
                    with suppress(Failed):
                        self.release(owner, ifname)
                words = of_os(exc) if isinstance(exc, OSError) else str(exc)
                raise Failed(f"failed to allocate for range {number}: {words}") from exc
        return given

    def _reserve(self, one: RangeSet, number: int, owner: str, ifname: str) -> tuple[Address, Range]:
        for address in self._held_by(owner, ifname):
            if any(each.spans(address) for each in one):
                raise _Refused(f"{address} has been allocated to {owner}, duplicate allocation is not allowed")
        taken = set(os.listdir(self._directory))
        for address, of in candidates(one, self._last(number)):
            if str(address) in taken:
                continue
            try:
                self._write(self._path(str(address)), f"{owner}\r\n{ifname}", os.O_EXCL)
            except FileExistsError:
                continue
            self._write(self._path(f"{_LAST}{number}"), str(address), os.O_TRUNC)
            return address, of
        raise _Refused(f"no IP addresses available in range set: {shown(one)}")

    def release(self, owner: str, ifname: str, expected: Sequence[str] = ()) -> None:
        """Release what the owner has. Idempotent; raises Failed.

        `expected` are the addresses that it was given; when they are all its own, no other file is read.
        """
        try:
            with self._locked():
                if expected and all(self._owner(name) == f"{owner}\r\n{ifname}" for name in expected):
                    names = list(expected)
                else:
                    names = [str(address) for address in self._held_by(owner, ifname)]
                for name in names:
                    with suppress(FileNotFoundError):
                        os.unlink(self._path(name))
        except OSError as exc:
            raise Failed(of_os(exc)) from exc

    def _held_by(self, owner: str, ifname: str) -> list[Address]:
        """Its addresses; those that an old version of the plugin noted without the interface, if it has no others."""
        own, older = [], []
        for name in os.listdir(self._directory):
            try:
                address = ipaddress.ip_address(name)
            except ValueError:
                continue
            content = self._owner(name)
            if content == f"{owner}\r\n{ifname}":
                own.append(address)
            elif content == owner:
                older.append(address)
        return own or older

    def _owner(self, name: str) -> str:
        try:
            with open(self._path(name), "rb") as file:
                return file.read(_MAX_BYTES).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def _last(self, number: int) -> Address | None:
        try:
            return ipaddress.ip_address(self._owner(f"{_LAST}{number}"))
        except ValueError:
            return None

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _write(self, path: str, text: str, flag: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag | os.O_CLOEXEC, self._mode)
        try:
            os.write(fd, text.encode())
        except OSError as exc:
            exc.filename = path
            if flag == os.O_EXCL:
                os.unlink(path)
            raise
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self._directory, 0o755, exist_ok=True)
        lock = os.open(self._path("lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o750)
        try:
            wait, longest = _LOOK_SECONDS
            while not _try(lock):
                if self._given_up.wait(wait):
                    raise Cancelled
                wait = min(2 * wait, longest)
            yield
        finally:
            os.close(lock)


class _Refused(Exception):
    """Says why no address is given."""


def _try(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

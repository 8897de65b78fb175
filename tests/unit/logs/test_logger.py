"""The logger, a turn of its loop at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandboxd
from sandboxd.logs import logger as module
from sandboxd.logs import wire
from sandboxd.logs.fifos import make_fifos
from sandboxd.logs.logger import Logger
from tests.unit.logs.shim import Writer, redirect, remove_chain, texts
from tests.unit.logs.strangers import STRANGERS, Stranger


class Client:
    """A connection to a logger that takes its turns only while the client waits for it."""

    def __init__(self, logger: Logger, path: str) -> None:
        self._logger = logger
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self._frames = wire.Frames()
        self._got: list[tuple[bytes, bytes]] = []

    def send(self, **fields: Any) -> None:
        self.sock.sendall(wire.message(**fields))

    def next(self) -> Any:
        """The next message, or (kind, bytes); None when the logger has hung up."""
        for _ in range(1000):
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                data = None
            if data == b"" and not self._got:
                return None
            self._got += self._frames.feed(data or b"")
            if self._got:
                kind, payload = self._got.pop(0)
                return wire.parse(payload) if kind == wire.MESSAGE else (kind, payload)
            self._logger.turn()
        raise AssertionError("the logger does not answer")

    def ask(self, op: str, **fields: Any) -> Any:
        self.send(op=op, id=1, **fields)
        while "notice" in (answer := self.next()):
            pass
        assert answer.pop("id") == 1
        return answer


class World:
    """A logger and containers for it."""

    def __init__(self, base: Path, idle: float = 1000.0) -> None:
        self.base = base
        self.path = str(base / "logger.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.logger = Logger(self._listener, self.path, idle)
        self.clients: list[Client] = []
        self.writers: list[Writer] = []

    def client(self, *, daemon: bool = True) -> Client:
        made = Client(self.logger, self.path)
        self.clients.append(made)
        if daemon:
            made.ask("hello")
        return made

    def container(self, client: Client, name: str = "c") -> Writer:
        fifos = make_fifos(str(self.base / name), ("stdout",))
        self.writers.append(Writer(fifos["stdout"]))
        assert client.ask("open", **self.opening(name)) == {}
        return self.writers[-1]

    def opening(self, name: str = "c", **changes: Any) -> dict[str, Any]:
        fifos = {"stdout": str(self.base / name / "stdout")}
        fields = {"container": name, "fifos": fifos, "log": self.log(name), "max_line": 100}
        return {**fields, "came_first": [], "must_write": True, **changes}

    def log(self, name: str = "c") -> str:
        return str(self.base / f"{name}.log")

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        for writer in self.writers:
            writer.end()
        for pump in self.logger._pumps.values():
            pump.close()
        for key in tuple(self.logger._sockets.get_map().values()):
            if key.data is not None:
                key.data.close()
        self.logger._fifos.close()
        self.logger._sockets.close()
        self._listener.close()

    @property
    def ending(self) -> bool:
        return self.logger._ending


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_it_says_who_it_is_and_what_it_logs(world: World) -> None:
    client = world.client()
    world.container(client)

    answer = client.ask("hello")

    assert (answer["protocol"], answer["version"]) == (wire.PROTOCOL, sandboxd.__version__)
    fifos = {"stdout": str(world.base / "c" / "stdout")}
    assert answer["containers"] == {"c": {"fifos": fifos, "log": world.log(), "ended": False}}


def test_output_is_logged_and_drained(world: World) -> None:
    client = world.client()
    writer = world.container(client)
    client.send(op="drain", id=1, container="c")
    writer.write(b"one\ntwo")
    writer.end()

    assert client.next() == {"id": 1}
    assert texts(world.log()) == [b"one", b"two"]
    assert client.ask("hello")["containers"] == {}
    assert client.ask("drain", container="c") == {}


def test_it_counts_what_it_reads_and_what_is_lost_of_all_containers_that_were(world: World) -> None:
    client = world.client()
    assert client.ask("count") == {"read": 0, "lost": 0}
    writer = world.container(client)
    client.send(op="drain", id=1, container="c")
    writer.write(b"one\ntwo\n")
    writer.end()
    assert client.next() == {"id": 1}

    assert client.ask("hello")["containers"] == {}
    assert client.ask("count") == {"read": 8, "lost": 0}


def test_answers_may_overtake_each_other(world: World) -> None:
    client = world.client()
    world.container(client)
    client.send(op="drain", id=1, container="c")
    client.send(op="reopen", id=2, container="c")
    client.send(op="close", id=3, container="c")

    assert [client.next()["id"] for _ in range(3)] == [2, 1, 3]


def test_opening_what_is_open_goes_on_with_it(world: World) -> None:
    client = world.client()
    writer = world.container(client)
    assert client.ask("open", **world.opening(must_write=False, came_first=["stdout"])) == {}
    writer.write(b"one\n")
    writer.end()
    client.ask("drain", container="c")

    assert texts(world.log()) == [b"one"]


def test_a_start_after_one_that_was_cut_off_is_logged_anew(world: World) -> None:
    client = world.client()
    world.container(client).end()
    client.ask("hello")
    writer = world.container(client)
    writer.write(b"one\n")
    writer.end()
    client.ask("drain", container="c")

    assert texts(world.log()) == [b"one"]


def test_what_cannot_be_opened_is_an_error_with_its_reason(world: World) -> None:
    client = world.client()
    assert "No such file" in client.ask("open", **world.opening())["error"]
    os.mkdir(world.log("d"))
    make_fifos(str(world.base / "d"), ("stdout",))
    assert "there is a directory" in client.ask("open", **world.opening("d"))["error"]
    assert client.ask("open", **world.opening("d", must_write=False)) == {}


@pytest.mark.parametrize("op", ["reopen", "watch", "attach"])
def test_what_is_not_logged_is_refused(world: World, op: str) -> None:
    assert "c is not being logged" in world.client().ask(op, container="c")["error"]


@pytest.mark.parametrize("request_", [{}, {"op": "dance"}, {"op": "open"}, {"op": "close"}, {"op": ["x"]}])
def test_what_it_does_not_understand_is_an_error_and_it_goes_on(world: World, request_: dict[str, Any]) -> None:
    client = world.client()
    client.send(id=5, **request_)
    assert "does not understand" in client.next()["error"]
    assert client.ask("leave") == {"ending": True}


def test_only_what_is_to_be_retained_stays(world: World) -> None:
    client = world.client()
    world.container(client, "a")
    world.container(client, "b")
    client.ask("retain", containers=["b", "unknown"])

    assert set(client.ask("hello")["containers"]) == {"b"}


def test_it_ends_when_the_daemon_leaves_unless_something_is_logged(world: World) -> None:
    client = world.client()
    world.container(client)
    assert client.ask("leave") == {"ending": False}
    client.ask("close", container="c")
    assert client.ask("leave") == {"ending": True}
    assert world.ending


def test_it_goes_on_without_a_daemon_while_something_is_logged_and_ends_when_it_was_idle(world: World) -> None:
    client = world.client()
    writer = world.container(client)
    world.logger._idle = 0.0
    client.sock.close()
    world.logger.turn()
    assert not world.ending
    writer.write(b"alone\n")
    world.logger.turn()
    assert texts(world.log()) == [b"alone"] and not world.ending
    writer.end()
    world.logger.turn()
    world.logger.turn()

    assert world.ending


def test_a_logger_without_work_waits_a_while_for_a_daemon(world: World) -> None:
    world.client().sock.close()
    world.logger.turn()

    assert not world.ending


def test_a_follower_is_told_of_changes_and_of_the_end(world: World) -> None:
    daemon = world.client()
    writer = world.container(daemon)
    follower = world.client(daemon=False)
    assert follower.ask("watch", container="c") == {}
    writer.write(b"one\n")
    assert follower.next() == {"changed": True}
    writer.end()

    assert follower.next() == {"end": ""}
    assert follower.next() is None


def test_an_attached_client_gets_what_is_written_from_then_on(world: World) -> None:
    daemon = world.client()
    writer = world.container(daemon)
    writer.write(b"before\n")
    daemon.ask("hello")
    attached = world.client(daemon=False)
    attached.ask("attach", container="c")
    writer.write(b"$ ")
    assert attached.next() == (b"O", b"$ ")
    daemon.ask("close", container="c")

    assert attached.next() == {"end": ""}


def test_listening_to_what_has_ended_ends_at_once(world: World) -> None:
    daemon = world.client()
    world.container(daemon).end()
    daemon.ask("hello")
    attached = world.client(daemon=False)
    attached.ask("attach", container="c")

    assert attached.next() == {"end": ""}


def test_a_slow_attached_client_makes_the_container_wait_and_gets_everything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_BYTES", 100_000)
    daemon = world.client()
    writer = world.container(daemon)
    attached = world.client(daemon=False)
    attached.ask("attach", container="c")
    total = 0
    for i in range(64):  # as long as the pipe and whoever empties it have room
        try:
            total += os.write(writer.fd, bytes([i]) * 65536)
        except BlockingIOError:
            break
        daemon.ask("hello")
    (pump,) = world.logger._pumps.values()
    assert pump._paused
    assert max(c.unsent for c in world.logger._daemons) == 0

    received = b""
    while len(received) < total:
        received += attached.next()[1]
    assert b"".join(bytes([i]) for i in sorted(set(received))) == bytes(range(len(set(received))))
    assert received == b"".join(sorted(received[i : i + 1] for i in range(len(received))))
    assert not pump._paused


def test_an_attached_client_that_takes_nothing_at_all_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_BYTES", 100_000)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.0)
    daemon = world.client()
    writer = world.container(daemon)
    attached = world.client(daemon=False)
    attached.ask("attach", container="c")
    notices = []
    for _ in range(64):
        writer.write(b"x" * 65535 + b"\n")
        daemon.send(op="reopen", id=1, container="c")
        while "id" not in (answer := daemon.next()):
            notices.append(answer)
        if notices:
            break

    assert [notice["container"] for notice in notices] == ["c"] and "cut off" in notices[0]["notice"]
    (pump,) = world.logger._pumps.values()
    assert not pump._paused and not pump.listeners


def test_a_client_that_leaves_is_forgotten(world: World) -> None:
    daemon = world.client()
    world.container(daemon)
    for op in ("watch", "attach"):
        client = world.client(daemon=False)
        client.ask(op, container="c")
        client.sock.close()
        daemon.ask("hello")
        daemon.ask("hello")
        (pump,) = world.logger._pumps.values()
        assert not pump.listeners


def test_notices_wait_for_a_daemon(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    daemon = world.client()
    make_fifos(str(world.base / "c"), ("stdout",))
    daemon.ask("open", **world.opening())
    redirect(world.logger._pumps["c"]._file._fd, "/dev/full")
    writer = Writer(world.base / "c" / "stdout")
    daemon.sock.close()
    world.logger.turn()
    writer.write(b"lost\n")
    world.logger.turn()

    later = world.client()
    notice = later.next()

    assert notice["container"] == "c" and "lines are lost" in notice["notice"]
    assert "lines are lost" in capfd.readouterr().err
    writer.end()


def test_trouble_with_one_container_leaves_the_others_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = world.client()
    bad, good = world.container(daemon, "bad"), world.container(daemon, "good")
    monkeypatch.setattr(world.logger._pumps["bad"], "_read", lambda *_: 1 / 0)
    bad.write(b"x\n")
    assert daemon.next()["container"] == "bad"
    good.write(b"y\n")
    good.end()
    daemon.ask("drain", container="good")

    assert texts(world.log("good")) == [b"y"]
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_no_file_costs_one_container_its_log(
    world: World, capfd: pytest.CaptureFixture[str], stranger: Stranger
) -> None:
    daemon = world.client()
    good = world.container(daemon, "good")
    bad = Writer(make_fifos(str(world.base / "bad"), ("stdout",))["stdout"])
    with stranger.at(Path(world.log("bad"))) as words:
        refused = daemon.ask("open", **world.opening("bad"))
        assert words in refused["error"] and world.log("bad") in refused["error"]
        assert daemon.ask("open", **world.opening("bad", must_write=False)) == {}
        for _ in range(50):
            bad.write(b"x\n" * 20_000)
            good.write(b"y\n")
            while daemon.ask("hello") and world.logger._fifos.select(0):
                pass

    assert texts(world.log("good")) == [b"y"] * 50
    assert capfd.readouterr().err.count("lines are lost") == 1
    bad.end()


@pytest.mark.parametrize("parts", [1500, 3000, 100_000])
def test_a_path_of_very_many_parts_does_not_end_the_logger(world: World, parts: int) -> None:
    daemon = world.client()
    make_fifos(str(world.base / "c"), ("stdout",))
    deep = f"{world.base}{'/d' * parts}"
    answer = daemon.ask("open", **world.opening(log=f"{deep}/0.log"))

    assert "error" not in answer or "File name too long" in answer["error"]
    assert "version" in daemon.ask("hello")
    if "error" not in answer:
        daemon.ask("close", container="c")
        os.unlink(f"{deep}/0.log")
        remove_chain(deep, world.base)


def test_a_request_that_fails_unforeseen_is_answered_and_does_not_end_the_logger(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = world.client()

    def deep(*_: Any, **__: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr(module, "ContainerPump", deep)
    assert "RecursionError too deep" in daemon.ask("open", **world.opening())["error"]
    assert "Traceback" in capfd.readouterr().err


def test_a_logger_that_cannot_write_its_own_log_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = world.client()
    writer = world.container(daemon)
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(module.sys, "stderr", full)  # type: ignore[attr-defined]
        monkeypatch.setattr(world.logger._pumps["c"], "_read", lambda *_: 1 / 0)
        writer.write(b"x\n")
        assert "no longer logged" in daemon.next()["notice"]
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert "version" in daemon.ask("hello")

"""What is written is there after a restart; what is damaged is reported and costs nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from sandboxd import timelines
from sandboxd.database import SCHEMA_VERSION
from sandboxd.errors import AlreadyExists, NotFound, NotReady, Unavailable
from sandboxd.ledger import Ledger
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, Owed, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.steps import PluginExecution, StepRecord


def sandbox(id_: str, name: str = "") -> SandboxRecord:
    meta = cri.PodSandboxMetadata(name=name or id_, namespace="shop", uid="ü")
    return SandboxRecord(
        id=id_,
        config=cri.PodSandboxConfig(metadata=meta, labels={"app": "web"}),
        runtime_handler="crun",
        netns_path=f"/run/netns/{id_}",
        created_at=1,
        pid=7,
        failure="größer \x00 \ud800",
        ips=("10.0.0.2", "fd00::2"),
    )


def container(id_: str, sandbox_id: str, name: str = "") -> ContainerRecord:
    return ContainerRecord(
        id=id_,
        sandbox_id=sandbox_id,
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name or id_), log_path="x.log"),
        sandbox_name=f"shop/{sandbox_id}",
        image_ref="ref",
        image_id="sha256:1",
        log_path="/var/log/x.log",
        exit_code=137,
    )


def attachment(sandbox_id: str, network: str = "net", **changes: object) -> Attachment:
    made = Attachment(
        sandbox_id=sandbox_id,
        network=network,
        ifname="eth0",
        netns_path="/n",
        state=AttachmentState.OWED,
        conf_file="/etc/cni/net.d/x",
        config=b'{"a": "\xff\x00"}',
        plugin_path="/a:/b",
        args="K=V",
        capability_args=b"{}",
        result=bytes(range(256)),
        attempts=3,
        tried_at=2**62,
        owed=(Owed(position=1, plugin="portmap", error="no", attempts=2, missing="portmap"),),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def step(sandbox_id: str, name: str = "x", plugin: PluginExecution | None = None) -> StepRecord:
    return StepRecord(
        operation="RunPodSandbox",
        name=name,
        sandbox_id=sandbox_id,
        container_id="c",
        started_at=5,
        duration=6,
        error="",
        detail={"path": "/n"},
        plugin=plugin,
    )


EXECUTION = PluginExecution(
    command="ADD",
    binary="/opt/cni/bin/bridge",
    env={"CNI_COMMAND": "ADD"},
    stdin=b"{}",
    stdout=bytes(range(256)),
    stderr=b"\xff",
    exit_code=-9,
    duration=3,
    timed_out=True,
)

Reopen = Callable[[], Ledger]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "root" / "ledger.db"


@pytest.fixture
def reopen(file: Path) -> Iterator[Reopen]:
    """Open the ledger as a new daemon would; each call closes the one before."""
    opened: list[Ledger] = []

    def open_again() -> Ledger:
        while opened:
            opened.pop().close()
        opened.append(Ledger(str(file)))
        return opened[0]

    yield open_again
    for ledger in opened:
        ledger.close()


def damage(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        for statement in statements:
            db.execute(statement)


def test_everything_is_there_after_a_restart(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.add_container(container("c", "a"))
    ledger.put_attachment(attachment("a"))
    ledger.append_step(step("a", plugin=EXECUTION))
    ledger.append_step(step("a", "y"))

    ledger = reopen()

    assert dict(ledger.sandboxes) == {"a": sandbox("a")}
    assert dict(ledger.containers) == {"c": container("c", "a")}
    assert ledger.attachments == (attachment("a"),)
    assert ledger.timeline("a") == [step("a", plugin=EXECUTION), step("a", "y")]
    assert (ledger.replaced, ledger.quarantined()) == ("", [])


def test_changes_are_there_after_a_restart_too(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.add_container(container("c", "a"))
    ledger.put_attachment(attachment("a", state=AttachmentState.PLANNED))
    limits = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), log_path="y.log")

    first = ledger.update_sandbox("a", started_at=3, ips=())
    second = ledger.update_container("c", config=limits, reason="Completed")
    third = ledger.put_attachment(attachment("a", state=AttachmentState.ADDED))
    ledger = reopen()

    assert ledger.sandboxes["a"] == first == replace(sandbox("a"), started_at=3, ips=())
    assert ledger.containers["c"] == second == replace(container("c", "a"), config=limits, reason="Completed")
    assert ledger.attachments == (third,)


def test_what_was_removed_stays_removed_and_its_name_is_free(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a", "web"))
    ledger.add_container(container("c", "a", "nginx"))
    for _ in range(2):
        ledger.remove_container("c")
        ledger.remove_sandbox("a")

    ledger.add_sandbox(sandbox("b", "web"))
    ledger.add_container(container("d", "a", "nginx"))
    ledger = reopen()

    assert list(ledger.sandboxes) == ["b"]
    assert list(ledger.containers) == ["d"]


def test_a_removed_sandbox_takes_its_timeline_along_and_leaves_its_attachments(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.put_attachment(attachment("a"))
    ledger.append_step(step("a"))

    ledger.remove_sandbox("a")
    ledger.append_step(step("a"))

    assert ledger.timeline("a") == []
    assert ledger.attachments == reopen().attachments == (attachment("a"),)


def test_a_removed_attachment_is_gone_and_others_stay(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.put_attachment(attachment("a", "one"))
    ledger.put_attachment(attachment("a", "two"))
    ledger.put_attachment(attachment("b", "one"))

    for _ in range(2):
        ledger.remove_attachment(attachment("a", "one"))

    assert [a.network for a in ledger.attachments_of("a")] == ["two"]
    assert reopen().attachments == (attachment("a", "two"), attachment("b", "one"))


def test_a_name_has_one_holder(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a", "web"))
    ledger.add_container(container("c", "a", "nginx"))

    with pytest.raises(AlreadyExists, match=r"shop/web/ü/0 is in use"):
        ledger.add_sandbox(sandbox("b", "web"))
    with pytest.raises(AlreadyExists, match="nginx"):
        ledger.add_container(container("d", "a", "nginx"))
    with pytest.raises(AlreadyExists):
        ledger.add_sandbox(sandbox("a", "other"))

    assert ledger.sandbox_named("shop/web/ü/0") == sandbox("a", "web")
    assert ledger.container_named("shop/a/nginx/0") == container("c", "a", "nginx")
    assert ledger.sandbox_named("shop/other/ü/0") is None
    assert list(reopen().sandboxes) == ["a"]


def test_a_pod_gets_another_name_with_its_attachments_or_not_at_all(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a", "prepared"))
    ledger.add_sandbox(sandbox("b", "taken"))
    ledger.put_attachment(attachment("a"))
    named = [replace(attachment("a"), pod="shop/web")]
    before = ledger.sandboxes["a"]

    with pytest.raises(AlreadyExists, match="in use"):
        ledger.hand_over("a", named, config=sandbox("b", "taken").config)
    for known in (ledger, reopen()):
        assert known.sandboxes["a"] == known.sandbox_named(before.name) == before
        assert known.attachments_of("a") == [attachment("a")]

    ledger = reopen()
    after = ledger.hand_over("a", named, config=sandbox("a", "web").config, created_at=9)
    for known in (ledger, reopen()):
        assert known.sandboxes["a"] == known.sandbox_named(after.name) == after
        assert (after.config.metadata.name, after.created_at) == ("web", 9)
        assert known.sandbox_named(before.name) is None
        assert known.attachments_of("a") == named


def test_names_are_known_after_a_restart(reopen: Reopen) -> None:
    reopen().add_sandbox(sandbox("a", "web"))
    ledger = reopen()

    assert ledger.sandbox_named("shop/web/ü/0") is not None
    with pytest.raises(AlreadyExists):
        ledger.add_sandbox(sandbox("b", "web"))


def test_what_is_gone_cannot_be_updated(reopen: Reopen) -> None:
    ledger = reopen()

    with pytest.raises(NotFound, match="a is gone"):
        ledger.update_sandbox("a", pid=1)
    with pytest.raises(NotFound, match="c is gone"):
        ledger.update_container("c", pid=1)


def test_the_views_of_the_memory_cannot_be_written(reopen: Reopen) -> None:
    ledger = reopen()

    with pytest.raises(TypeError):
        ledger.sandboxes["a"] = sandbox("a")  # type: ignore[index]


def test_containers_of_a_sandbox_are_listed_oldest_first(reopen: Reopen) -> None:
    ledger = reopen()
    for id_, owner in (("z", "a"), ("m", "b"), ("c", "a")):
        ledger.add_container(container(id_, owner))

    assert [c.id for c in ledger.containers_of("a")] == ["z", "c"]
    assert [c.id for c in reopen().containers_of("a")] == ["z", "c"]


def test_a_change_that_the_disk_does_not_take_has_not_happened(file: Path, reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger._db.execute("PRAGMA query_only = ON")

    for change in (
        lambda: ledger.add_sandbox(sandbox("b")),
        lambda: ledger.update_sandbox("a", pid=9, started_at=1),
        lambda: ledger.put_attachment(attachment("a", state=AttachmentState.PLANNED)),
        lambda: ledger.put_attachment(attachment("a", state=AttachmentState.ADDED)),
    ):
        with pytest.raises(Unavailable, match="the ledger cannot be written"):
            change()
    ledger.append_step(step("a"))

    assert dict(ledger.sandboxes) == {"a": sandbox("a")}
    assert ledger.attachments == ()
    assert ledger.timeline("a") == []


def test_what_ends_while_the_disk_takes_nothing_has_ended_and_is_written_once_it_can_be(reopen: Reopen) -> None:
    ledger = reopen()
    for id_ in ("a", "b", "c"):
        ledger.add_sandbox(sandbox(id_))
        ledger.add_container(container(f"{id_}1", id_))
        ledger.put_attachment(attachment(id_, state=AttachmentState.ADDED))
    ledger._db.execute("PRAGMA query_only = ON")

    ledger.update_container("a1", finished_at=5, exit_code=3)
    ledger.update_container("a1", reason="Error")
    ledger.remove_container("b1")
    ledger.update_sandbox("b", stopped_at=4)
    ledger.remove_attachment(attachment("b"))
    ledger.remove_sandbox("b")
    ledger.put_attachment(attachment("c", state=AttachmentState.OWED))

    def all_of(it: Ledger) -> object:
        return dict(it.sandboxes), dict(it.containers), {(a.sandbox_id, a.state) for a in it.attachments}

    expected = all_of(ledger)
    assert set(ledger.sandboxes) == {"a", "c"}
    assert ledger.commits.behind and "cannot be written" in ledger.commits.trouble
    ledger._db.execute("PRAGMA query_only = OFF")
    ledger.add_sandbox(sandbox("d", "b"))  # the name of a pod that is gone, though not yet in the file
    assert not ledger.commits.behind and not ledger.commits.trouble
    ledger.remove_sandbox("d")
    assert all_of(ledger) == all_of(reopen()) == expected


def test_a_full_disk_takes_what_ends_from_the_reserve(reopen: Reopen, file: Path) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.close()
    slices = [True, True, False]

    def make_room() -> bool:
        if len(slices) == 2:
            ledger._db.execute("PRAGMA query_only = OFF")
        return slices.pop(0)

    with closing(Ledger(str(file), make_room)) as ledger:
        ledger._db.execute("PRAGMA query_only = ON")
        ledger.update_sandbox("a", stopped_at=4)
        assert slices == [False]
        assert not ledger.commits.behind
    assert reopen().sandboxes["a"].stopped_at == 4


@pytest.mark.parametrize("other_sandboxes", [0, 1, 63])
def test_a_timeline_keeps_the_newest_steps_and_is_bounded(
    other_sandboxes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelines, "STEPS_KEPT", 40)
    with closing(Ledger(":memory:")) as ledger:
        ids = ["a", *(f"b{i}" for i in range(other_sandboxes))]
        for id_ in ids:
            ledger.add_sandbox(sandbox(id_))
        for i in range(200):
            for id_ in ids:
                ledger.append_step(step(id_, str(i)))
        kept = [record.name for record in ledger.timeline("a")]

    assert 40 <= len(kept) < 40 + 64
    assert kept == [str(i) for i in range(200 - len(kept), 200)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sandboxes SET body = 'no json' WHERE id = 'a'",
        "UPDATE sandboxes SET body = '[]' WHERE id = 'a'",
        "UPDATE sandboxes SET body = '{}' WHERE id = 'a'",
        "UPDATE sandboxes SET body = replace(body, 'crun', CAST(x'ff' AS TEXT)) WHERE id = 'a'",
        "UPDATE sandboxes SET config = x'ffffff' WHERE id = 'a'",
    ],
)
def test_a_damaged_row_is_put_aside_and_reported_while_the_others_are_loaded(
    file: Path, reopen: Reopen, statement: str
) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.add_sandbox(sandbox("b"))
    ledger.add_container(container("c", "a"))
    damage(file, statement)

    with structlog.testing.capture_logs() as logged:
        ledger = reopen()

    assert list(ledger.sandboxes) == ["b"]
    assert list(ledger.containers) == ["c"]
    (row,) = ledger.quarantined()
    assert (row.kind, row.id) == ("sandboxes", "a")
    assert row.reason
    assert [entry["id"] for entry in logged] == ["a"]
    ledger.add_sandbox(sandbox("a"))
    assert reopen().quarantined() == [row]


def test_damaged_containers_and_attachments_are_put_aside_too(file: Path, reopen: Reopen) -> None:
    ledger = reopen()
    for id_ in ("c", "d"):
        ledger.add_container(container(id_, "a"))
        ledger.put_attachment(attachment(id_))
    damage(
        file,
        "UPDATE containers SET body = '{\"id\"' WHERE id = 'c'",
        "UPDATE attachments SET body = replace(body, 'owed', 'lost') WHERE sandbox_id = 'c'",
    )

    with structlog.testing.capture_logs():
        ledger = reopen()

    assert list(ledger.containers) == ["d"]
    assert ledger.attachments == (attachment("d"),)
    assert {(row.kind, row.id) for row in ledger.quarantined()} == {("containers", "c"), ("attachments", "c")}


def test_what_is_put_aside_is_kept_whole(file: Path, reopen: Reopen) -> None:
    reopen().add_sandbox(sandbox("a"))
    damage(file, "UPDATE sandboxes SET body = 'no json'")
    with structlog.testing.capture_logs():
        reopen()

    with closing(sqlite3.connect(file)) as db:
        ((content,),) = db.execute("SELECT content FROM quarantine").fetchall()

    assert "no json" in content
    assert repr(sandbox("a").config.SerializeToString()) in content


def test_a_damaged_step_is_left_out_of_the_timeline(file: Path, reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    for name in "xyz":
        ledger.append_step(step("a", name, EXECUTION))
    damage(
        file,
        "UPDATE steps SET body = CAST(x'7bff' AS TEXT) WHERE seq = 1",
        "UPDATE steps SET body = '{}' WHERE seq = 2",
    )

    with structlog.testing.capture_logs():
        assert [record.name for record in reopen().timeline("a")] == ["z"]


def test_fields_of_a_later_version_with_the_same_schema_are_ignored(file: Path, reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.add_container(container("c", "a"))
    ledger.put_attachment(attachment("a"))
    ledger.append_step(step("a", plugin=EXECUTION))
    tables = ("sandboxes", "containers", "attachments", "steps")
    damage(file, *(f"UPDATE {table} SET body = json_set(body, '$.later', 1)" for table in tables))

    ledger = reopen()

    assert ledger.quarantined() == []
    assert dict(ledger.sandboxes) == {"a": sandbox("a")}
    assert list(ledger.containers) == ["c"]
    assert ledger.attachments == (attachment("a"),)
    assert ledger.timeline("a") == [step("a", plugin=EXECUTION)]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_put_aside_and_the_daemon_starts_anew(file: Path, reopen: Reopen, content: bytes) -> None:
    file.parent.mkdir()
    for number in (1, 2):
        file.write_bytes(content)
        with structlog.testing.capture_logs() as logged:
            ledger = reopen()

        aside = f"{file}.damaged-{number}"
        assert ledger.replaced == aside
        assert Path(aside).read_bytes() == content
        assert [entry["kept_as"] for entry in logged] == [aside]
        ledger.add_sandbox(sandbox("a"))
        ledger.close()
    assert list(reopen().sandboxes) == ["a"]


def test_a_page_of_rubbish_in_a_good_file_counts_as_damage(file: Path, reopen: Reopen) -> None:
    ledger = reopen()
    for i in range(200):
        ledger.add_sandbox(sandbox(f"{i:064}"))
    ledger.close()
    content = bytearray(file.read_bytes())
    content[4096 * 4 : 4096 * 8] = b"\xff" * 4096 * 4
    file.write_bytes(content)

    with structlog.testing.capture_logs():
        ledger = reopen()

    assert ledger.replaced
    assert Path(ledger.replaced).read_bytes() == bytes(content)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_a_file_of_another_version_is_refused_and_not_touched(file: Path, reopen: Reopen, version: int) -> None:
    reopen().add_sandbox(sandbox("a"))
    damage(file, f"PRAGMA user_version = {version}")

    with pytest.raises(NotReady, match=f"schema version {version}, this sandboxd supports {SCHEMA_VERSION}"):
        reopen()

    damage(file, f"PRAGMA user_version = {SCHEMA_VERSION}")
    assert list(reopen().sandboxes) == ["a"]


def test_a_file_that_cannot_be_opened_is_not_taken_for_a_damaged_one(file: Path, reopen: Reopen) -> None:
    file.mkdir(parents=True)

    with pytest.raises(NotReady, match="cannot be opened"):
        reopen()

    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_locked_file_is_not_taken_for_a_damaged_one(
    file: Path, reopen: Reopen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks into the file with sqlite3(1) and keeps a lock on it."""
    reopen().close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.01}))

    with closing(connect(file)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NotReady, match="locked"):
            reopen()

    assert reopen().replaced == ""


async def test_the_steps_that_wait_to_be_written_are_written_at_the_end(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.add_sandbox(sandbox("a"))
    ledger.append_step(step("a"))
    assert reopen().timeline("a") == [step("a")]

"""The configuration directory as it changes under the daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandboxd.cni.conf import Choice
from sandboxd.cni.conf_dir import ConfDir

_clock = iter(range(10**6))


def write(path: Path, name: str, text: str | None = None) -> None:
    """Write a configuration with a time stamp of its own, long ago, so that it counts as settled."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}) if text is None else text
    )
    stamp = 10**18 + next(_clock) * 10**9
    os.utime(path, ns=(stamp, stamp))


def network(choice: Choice) -> str | None:
    return choice.config.name if choice.config else None


def said(choice: Choice) -> str:
    return "\n".join(map(str, choice.problems))


def test_the_first_valid_file_is_in_force(tmp_path: Path) -> None:
    write(tmp_path / "20-b.conflist", "b")
    write(tmp_path / "10-a.conflist", "a")
    (tmp_path / "README").write_text("not looked at")

    choice = ConfDir(str(tmp_path)).current()

    assert (network(choice), choice.problems) == ("a", ())


def test_why_the_others_are_not_in_force_is_told_of_each(tmp_path: Path) -> None:
    write(tmp_path / "00-broken.conflist", "", "{")
    write(tmp_path / "10-a.conflist", "a")
    write(tmp_path / "20-b.conflist", "b")
    directory = ConfDir(str(tmp_path))

    broken, second = directory.current().passed_over().split("; /", 1)

    assert broken.startswith(f"{tmp_path}/00-broken.conflist: ")
    assert f"/{second}" == f"{tmp_path}/20-b.conflist: network 'b' comes after {tmp_path}/10-a.conflist"
    write(tmp_path / "10-a.conflist", "a", "{")
    kept = directory.current()
    assert network(kept) == "a"
    assert "20-b.conflist: network 'b' comes after it" in kept.passed_over()


def test_of_very_many_files_some_are_told_and_the_number_of_the_rest(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02}.conflist", "x" * 1000)

    told = ConfDir(str(tmp_path)).current().passed_over()

    assert told.endswith("; and 19 more") and len(told) < 4000


def test_files_are_read_again_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.cni.conf_dir._SETTLED_NS", -1)
    write(tmp_path / "10-a.conflist", "a")
    directory = ConfDir(str(tmp_path))

    first, second = directory.current(), directory.current()
    assert (directory.reads, first) == (1, second)

    write(tmp_path / "10-a.conflist", "c")
    assert (network(directory.current()), directory.reads) == ("c", 2)

    write(tmp_path / "05-b.conflist", "b")
    assert (network(directory.current()), directory.reads) == ("b", 3)


def test_a_file_that_has_not_settled_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second write within the same tick of the kernel's clock leaves every time stamp as it was."""
    monkeypatch.setattr("sandboxd.cni.conf_dir._SETTLED_NS", 2**62)
    write(tmp_path / "10-a.conflist", "a")
    directory = ConfDir(str(tmp_path))

    directory.current()
    directory.current()

    assert directory.reads == 2


def test_a_half_written_file_keeps_the_configuration_that_came_from_it(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a")
    directory = ConfDir(str(tmp_path))
    directory.current()

    write(tmp_path / "10-a.conflist", "a", '{"cniVersion": "1.0')
    broken = directory.current()

    assert network(broken) == "a"
    assert "not valid JSON" in said(broken)
    assert "network 'a' as last read from it stays in force" in said(broken)

    write(tmp_path / "10-a.conflist", "a2")
    assert (network(directory.current()), directory.current().problems) == ("a2", ())


def test_a_half_written_file_does_not_move_pods_to_the_next_files_network(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a")
    write(tmp_path / "20-b.conflist", "b")
    directory = ConfDir(str(tmp_path))
    directory.current()

    write(tmp_path / "10-a.conflist", "a", "")

    assert network(directory.current()) == "a"


def test_a_broken_file_that_was_never_in_force_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a", "{")
    write(tmp_path / "20-b.conflist", "b")

    choice = ConfDir(str(tmp_path)).current()

    assert network(choice) == "b"
    assert [problem.path for problem in choice.problems] == [str(tmp_path / "10-a.conflist")]


def test_only_broken_files_are_no_network(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a", "{")

    choice = ConfDir(str(tmp_path)).current()

    assert network(choice) is None
    assert "not valid JSON" in said(choice)


def test_a_removed_file_is_out_of_force_at_once(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a")
    write(tmp_path / "20-b.conflist", "b", "{")
    directory = ConfDir(str(tmp_path))
    directory.current()

    (tmp_path / "10-a.conflist").unlink()

    assert network(directory.current()) is None


def test_an_empty_directory_is_no_network_and_says_so(tmp_path: Path) -> None:
    choice = ConfDir(str(tmp_path)).current()

    assert network(choice) is None
    assert said(choice) == f"{tmp_path}: contains no .conf, .conflist or .json file"


def test_a_missing_directory_is_no_network_until_it_appears(tmp_path: Path) -> None:
    directory = ConfDir(str(tmp_path / "net.d"))
    assert said(directory.current()) == f"{tmp_path}/net.d: no such directory"

    write(tmp_path / "net.d" / "10-a.conflist", "a")
    assert network(directory.current()) == "a"

    (tmp_path / "net.d" / "10-a.conflist").unlink()
    (tmp_path / "net.d").rmdir()
    assert network(directory.current()) is None


def test_drop_ins_are_read_and_their_changes_seen(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conflist", "a")
    write(tmp_path / "a" / "10-p.conf", "", '{"type": "portmap"}')
    write(tmp_path / "a" / "ignored.conflist", "", "{")
    directory = ConfDir(f"{tmp_path}/")

    config = directory.current().config
    assert config is not None
    assert [plugin["type"] for plugin in config.plugins] == ["bridge", "portmap"]

    write(tmp_path / "a" / "20-t.conf", "", '{"type": "tuning"}')
    config = directory.current().config
    assert config is not None
    assert [plugin["type"] for plugin in config.plugins] == ["bridge", "portmap", "tuning"]


def test_what_is_not_a_regular_file_is_reported_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10-fifo.conf")
    (tmp_path / "20-dangling.conf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "30-large.conf").write_bytes(b" " * (2 << 20))

    choice = ConfDir(str(tmp_path)).current()

    assert network(choice) is None
    assert [problem.text for problem in choice.problems] == [
        "cannot be read: not a regular file",
        "cannot be read: No such file or directory",
        "cannot be read: larger than 1048576 bytes",
    ]

"""iptables-restore and iptables-save, as scripts that note what they are given."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from sandboxd.cni.in_process import rules
from sandboxd.cni.in_process.iptables import Table
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.words import Failed

WANTED = rules.masquerade("net1", "c1", [ipaddress.ip_interface("10.99.0.2/24")])

RESTORE = """#!/bin/sh
echo "$@" >>{0}/arguments
echo "$CNI_CONTAINERID" >>{0}/owners
cat >>{0}/written
[ -e {0}/refuse ] || exit 0
rm {0}/refuse
echo 'line 2 failed' >&2
exit 2
"""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    for name, script in (("restore", RESTORE.format(tmp_path)), ("save", f"#!/bin/sh\ncat {tmp_path}/saved\n")):
        program = tmp_path / f"iptables-{name}"
        program.write_text(script)
        program.chmod(0o755)
    (tmp_path / "saved").write_text("")
    return Table(4, {"PATH": f"{tmp_path}:{os.defpath}", "CNI_CONTAINERID": "c1"})


def test_without_the_programs_it_is_the_plugins(tmp_path: Path) -> None:
    with pytest.raises(Odd, match="iptables-restore"):
        Table(4, {"PATH": str(tmp_path)})


async def test_its_programs_may_be_in_different_directories(table: Table, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "iptables-save").rename(other / "iptables-save")
    (tmp_path / "refuse").touch()

    apart = Table(4, {"PATH": f"{tmp_path}:{other}:{os.defpath}", "CNI_CONTAINERID": "c1"})

    await apart.make(WANTED)  # refused once, and made after a look at what is there


async def test_rules_are_made_by_one_process(table: Table, tmp_path: Path) -> None:
    await table.make(WANTED)

    assert (tmp_path / "written").read_text() == WANTED.quick()
    assert (tmp_path / "arguments").read_text() == "--noflush --wait\n"


async def test_a_process_that_outlives_the_daemon_says_whose_it_is(table: Table, tmp_path: Path) -> None:
    """`leftovers` ends it before the pod's DEL."""
    await table.make(WANTED)

    assert (tmp_path / "owners").read_text() == "c1\n"


async def test_what_is_there_already_is_left_when_the_quick_way_is_refused(table: Table, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    (tmp_path / "saved").write_text("\n".join((f":{WANTED.chain} - [0:0]", *WANTED.own[:2], "")))

    await table.make(WANTED)

    assert (tmp_path / "written").read_text() == f"{WANTED.quick()}*nat\n{WANTED.own[2]}\nCOMMIT\n"


async def test_known_rules_are_removed_without_a_look_at_the_others(table: Table, tmp_path: Path) -> None:
    (tmp_path / "iptables-save").write_text("#!/bin/sh\nexit 1\n")

    await table.remove(WANTED.chain, WANTED)

    assert (tmp_path / "written").read_text() == WANTED.quick_removal()


async def test_nothing_is_wrong_with_rules_that_are_gone(table: Table, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()

    await table.remove(WANTED.chain, WANTED)

    assert (tmp_path / "written").read_text() == WANTED.quick_removal()


async def test_unknown_rules_are_looked_for(table: Table, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("\n".join((f":{WANTED.chain} - [0:0]", *WANTED.own, "")))

    await table.remove(WANTED.chain, None)

    assert (tmp_path / "written").read_text() == WANTED.quick_removal()


async def test_a_refusal_is_told_in_the_programs_words(table: Table, tmp_path: Path) -> None:
    (tmp_path / "iptables-save").write_text("#!/bin/sh\necho 'Could not fetch rule set generation id' >&2\nexit 4\n")
    (tmp_path / "refuse").touch()

    with pytest.raises(Failed, match=r"running \[.*iptables-save\]: exit status 4: Could not fetch rule set"):
        await table.make(WANTED)

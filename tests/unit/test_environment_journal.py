"""How lines for the journal are written, by the program itself: what it sets up it cannot undo in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import structlog
from sandboxd import config
from sandboxd.__main__ import _configure_logging
_configure_logging(config.merge({"daemon": {"log_level": "debug"}}, origin="the test", flags={}))
log = structlog.get_logger()
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(log, level)("as it is")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("as it is")
"""


def logged(path: Path, journal: str) -> list[str]:
    """What the program writes to this file, when systemd says that its journal is `journal`."""
    with path.open("w") as file:
        env = {**os.environ, "JOURNAL_STREAM": journal}
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=file, check=True, env=env, timeout=60)
    return path.read_text().splitlines()


def test_a_line_to_the_journal_begins_with_its_priority(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    found = path.stat()
    lines = logged(path, f"{found.st_dev}:{found.st_ino}")
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert {json.loads(line[3:])["event"] for line in lines} == {"as it is"}


def test_a_line_to_anything_else_does_not_although_systemd_started_what_started_us(tmp_path: Path) -> None:
    lines = logged(tmp_path / "log", "1:1")
    assert {json.loads(line)["event"] for line in lines} == {"as it is"}

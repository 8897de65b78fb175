"""What plugins say when they fail."""

from __future__ import annotations

import errno
import json

from sandboxd.cni.in_process import words


def test_errors_of_the_system_are_as_go_prints_them() -> None:
    assert words.of_os(OSError(errno.ENOSPC, "", "/var/lib/x")) == "open /var/lib/x: no space left on device"
    assert words.of_os(OSError(errno.EPERM, "")) == "operation not permitted"


def test_an_error_object_has_the_code_of_everything() -> None:
    assert json.loads(words.error_object("it failed")) == {"code": 999, "msg": "it failed"}

"""What a plugin says when it fails, and how: the words that people search for and `diagnosis` knows. Pure."""

from __future__ import annotations

import json
import os

INTERNAL = 999  # the code of nearly everything that the reference plugins report


class Failed(Exception):
    """An operation failed; the message is the plugin's."""


def of_os(error: OSError) -> str:
    """An error of the operating system as Go prints it, with the path if there is one."""
    reason = os.strerror(error.errno or 0)
    reason = reason[:1].lower() + reason[1:]
    return f"open {error.filename}: {reason}" if error.filename else reason


def error_object(words: str) -> bytes:
    """What a failed plugin prints."""
    return json.dumps({"code": INTERNAL, "msg": words}, indent=4, ensure_ascii=False).encode()

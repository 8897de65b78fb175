"""Stop signals as images and requests name them, to the numbers that kill(2) takes.

What the docker command line accepts is accepted: names with and without SIG in any case, numbers, and the real-time
signals counted from either end. Source: signal(7), the table for x86 and ARM; OCI image spec, config, "StopSignal".
"""

from __future__ import annotations

import re

DEFAULT = "SIGTERM"

# The C library keeps 32 and 33 to itself, but the kernel sends them, and numbers are the kernel's.
_MOST = 64
_REAL_TIME_LEAST = 34

_NAMES = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM"),
    *("TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF"),
    *("WINCH", "IO", "PWR", "SYS"),
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES, 1)} | {
    "IOT": 6,
    "CLD": 17,
    "POLL": 29,
    "UNUSED": 31,
    "RTMIN": _REAL_TIME_LEAST,
    "RTMAX": _MOST,
}

_SIGNAL = re.compile(r"(?:SIG)?(?P<name>[A-Z]+[12]?)|\+?0*(?P<number>[1-9][0-9]?)", re.IGNORECASE | re.ASCII)
_REAL_TIME = re.compile(r"(?:SIG)?RT(?:MIN\+(?P<up>[0-9]{1,2})|MAX-(?P<down>[0-9]{1,2}))", re.IGNORECASE | re.ASCII)


def number(text: str) -> int | None:
    """The number of a signal named "SIGTERM", "term", "15", "SIGRTMIN+3" or "rtmax-1"; None when it names none."""
    found: int | None = None
    if match := _SIGNAL.fullmatch(text):
        found = int(match["number"]) if match["number"] else _NUMBERS.get(match["name"].upper())
    elif match := _REAL_TIME.fullmatch(text):
        found = _REAL_TIME_LEAST + int(match["up"]) if match["up"] else _MOST - int(match["down"])
        if found < _REAL_TIME_LEAST:
            return None
    return found if found is not None and found <= _MOST else None

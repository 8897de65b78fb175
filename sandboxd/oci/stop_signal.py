"""The numbers of stop signals, from their names in images and requests.

Accepts what the docker command line accepts: names with or without SIG in any case, numbers, and real-time signals
counted from either end. Source: signal(7), the table for x86 and ARM; OCI image spec, config, "StopSignal".
"""

from __future__ import annotations

import re

DEFAULT = "SIGTERM"

# The C library reserves 32 and 33, but the kernel delivers them, and numbers are the kernel's.
_MAX_NUMBER = 64
_MIN_REAL_TIME = 34

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
    "RTMIN": _MIN_REAL_TIME,
    "RTMAX": _MAX_NUMBER,
}

_SIGNAL = re.compile(r"(?:SIG)?(?P<name>[A-Z]+[12]?)|\+?0*(?P<number>[1-9][0-9]?)", re.IGNORECASE | re.ASCII)
_REAL_TIME = re.compile(r"(?:SIG)?RT(?:MIN\+(?P<up>[0-9]{1,2})|MAX-(?P<down>[0-9]{1,2}))", re.IGNORECASE | re.ASCII)


def number(text: str) -> int | None:
    """The number of a signal like "SIGTERM", "term", "15", "SIGRTMIN+3" or "rtmax-1"; None if it is not a signal."""
    signal: int | None = None
    if match := _SIGNAL.fullmatch(text):
        signal = int(match["number"]) if match["number"] else _NUMBERS.get(match["name"].upper())
    elif match := _REAL_TIME.fullmatch(text):
        signal = _MIN_REAL_TIME + int(match["up"]) if match["up"] else _MAX_NUMBER - int(match["down"])
        if signal < _MIN_REAL_TIME:
            return None
    return signal if signal is not None and signal <= _MAX_NUMBER else None

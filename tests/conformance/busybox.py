"""A busybox for the suite, from Debian's source package.

Debian's own binaries do not fit: they lack applets that the specs call (ipcs, pgrep), and their shell runs applets
inside itself, so a spec that hides /bin/ls would not notice. Upstream's default configuration has what is needed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tests.conformance import debian

# What the suite relies on, beside upstream's defaults; None is "not set".
SETTINGS = {
    "STATIC": "y",  # an image needs nothing else
    "FEATURE_PREFER_APPLETS": None,  # a command is the file of that name, which a spec can hide
    "FEATURE_SH_STANDALONE": None,
    "FEATURE_SH_NOFORK": None,
    "TC": None,  # does not compile against kernel headers since 6.8
    "IPCS": "y",
    "PGREP": "y",
    "FEATURE_FANCY_SLEEP": "y",  # `sleep infinity`
}
BUILD_SECONDS = 900.0


def build(program: Path) -> None:
    """Fetch, configure and compile busybox into the file `program`. Raises DebianFailed."""
    with tempfile.TemporaryDirectory(prefix="busybox-") as work:
        tree = debian.source("busybox", Path(work))
        debian.run(["make", "defconfig"], cwd=tree, within=BUILD_SECONDS)
        config = tree / ".config"
        config.write_text(configured(config.read_text(encoding="utf-8")), encoding="utf-8")
        # Questions that the settings raise get their default answers.
        debian.run(["make", "oldconfig"], cwd=tree, within=BUILD_SECONDS, stdin="\n" * 1000)
        wrong = unsettled(config.read_text(encoding="utf-8"))
        if wrong:
            raise debian.DebianFailed(f"busybox's configuration does not take {', '.join(wrong)}")
        debian.run(["nice", "-n", "10", "make", "-j2", "busybox"], cwd=tree, within=BUILD_SECONDS)
        unfinished = program.with_name(f".{program.name}")
        shutil.copyfile(tree / "busybox", unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(program)


def configured(text: str) -> str:
    """A .config with SETTINGS in the place of what it says of them."""
    names = "|".join(SETTINGS)
    others = [
        line for line in text.splitlines() if not re.fullmatch(rf"(?:# )?CONFIG_(?:{names})(?:=.*| is not set)", line)
    ]
    return "\n".join([*others, *(_line(name) for name in SETTINGS)]) + "\n"


def unsettled(text: str) -> list[str]:
    """The settings that a .config does not have as wished; one that it does not know counts as not set."""
    lines = set(text.splitlines())
    return [
        name
        for name, value in SETTINGS.items()
        if (value is not None and _line(name) not in lines)
        or (value is None and any(line.startswith(f"CONFIG_{name}=") for line in lines))
    ]


def _line(name: str) -> str:
    value = SETTINGS[name]
    return f"# CONFIG_{name} is not set" if value is None else f"CONFIG_{name}={value}"

"""`python -m deploy.demo up|down`."""

from __future__ import annotations

import sys

from rich.console import Console

from deploy.demo.down import down
from deploy.demo.places import DemoError
from deploy.demo.up import up

if __name__ == "__main__":
    commands = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit("usage: python -m deploy.demo up|down")
    try:
        commands[sys.argv[1]](Console())
    except DemoError as error:
        sys.exit(f"demo: {error}")

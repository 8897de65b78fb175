"""The logger process; started by `sandboxd.logs.process`."""

from __future__ import annotations

import sys

from sandboxd.logs.logger import main

main(sys.argv[1:])

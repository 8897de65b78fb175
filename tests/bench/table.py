"""Rows as text, columns aligned. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[str]


def aligned(rows: Sequence[Row], *, numbers: bool = False) -> str:
    """Columns two spaces apart; with `numbers`, all but the first are flush right."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def cell(number: int, text: str) -> str:
        return text.rjust(widths[number]) if numbers and number else text.ljust(widths[number])

    return "\n".join("  ".join(cell(n, text) for n, text in enumerate(row)).rstrip() for row in rows)


def milliseconds(seconds: float) -> str:
    """Three digits that mean something."""
    value = seconds * 1e3
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.0f}"


def section(title: str, rows: Sequence[Row]) -> str:
    """A title, its line and the aligned rows; "" when there is only a head."""
    if len(rows) < 2:
        return ""
    return f"{title}\n{'-' * len(title)}\n{aligned(rows, numbers=True)}\n"

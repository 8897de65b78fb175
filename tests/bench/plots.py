"""Plots as SVG. Pure: data in, text out.

They are shown on pages whose background is not known, so each brings its own. Colours are those of Okabe and Ito,
which people with any kind of colour vision can tell apart, and every series has its name beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tests.bench.stats import Ratio

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 46, 46
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_INK, _GRID, _MUTED = "#222222", "#dddddd", "#999999"
_LABELS = 300  # where those of ratios end


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One ratio to show; `bound` is its goal, None without one, and `muted` stands back."""

    label: str
    ratio: Ratio
    bound: float | None = None
    muted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """From values to places: straight, or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def ratios(title: str, bars: Sequence[Bar]) -> str:
    """A line a ratio: a dot, its interval, and a tick at its goal; left of 1 sandboxd is ahead."""
    height = _TOP + 24 * len(bars) + _BOTTOM
    ends = [end for bar in bars for end in (bar.ratio.value, bar.ratio.low, bar.ratio.high, bar.bound)]
    finite = [end for end in ends if end is not None and 0 < end < math.inf]
    low, high = min([0.5, *finite]) * 0.9, max([2.0, *finite]) * 1.1
    axis = _Axis(low=low, high=high, start=_LABELS + 10, end=WIDTH - 30, logarithmic=True)
    bottom = height - _BOTTOM
    parts = [_text(20, 26, title, size=15, weight="bold")]
    for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if low <= tick <= high:
            x = axis.place(tick)
            parts.append(_line(x, _TOP, x, bottom, _INK if tick == 1 else _GRID))
            parts.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle"))
    parts.append(
        _text((_LABELS + 10 + WIDTH - 30) / 2, height - 10, "sandboxd / plugin (log scale)", anchor="middle")
    )
    for number, bar in enumerate(bars):
        y, colour = _TOP + 24 * number + 12, _MUTED if bar.muted else _COLOURS[0]
        parts.append(_text(_LABELS, y + 4, bar.label, anchor="end"))
        if bar.ratio.low is not None and bar.ratio.high is not None:
            parts.append(_line(axis.place(bar.ratio.low), y, axis.place(bar.ratio.high), y, colour, width=3))
        parts.append(f'<circle cx="{axis.place(bar.ratio.value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        if bar.bound is not None:
            x = axis.place(bar.bound)
            parts.append(_line(x, y - 9, x, y + 9, _COLOURS[1], width=3))
    return _document(height, title, parts)


def distributions(title: str, series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Of how many of the values each series is at most so large: one curve each."""
    points = {}
    for name, values in series.items():
        ordered = sorted(values)
        points[name] = [(value, n / len(ordered)) for n, value in enumerate(ordered, 1)]
        points[name][:0] = [(ordered[0], 0.0)]
    return lines(title, points, across=unit, up="part of all", steps=True)


def lines(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, across: str, up: str, steps: bool = False
) -> str:
    """One line a series; with `steps` it goes up where the next value is. The vertical axis begins at nothing."""
    height = 380
    xs = [x for points in series.values() for x, _ in points] or [0.0]
    ys = [y for points in series.values() for _, y in points] or [0.0]
    first, last = min(xs), max(xs)
    horizontal = _Axis(low=first, high=last if last > first else first + 1, start=_LEFT, end=WIDTH - _RIGHT)
    vertical = _Axis(low=0.0, high=max(ys) * (1.0 if steps else 1.1) or 1.0, start=height - _BOTTOM, end=_TOP)
    parts = [_text(20, 26, title, size=15, weight="bold")]
    for tick in ticks(horizontal.low, horizontal.high):
        x = horizontal.place(tick)
        parts += [
            _line(x, _TOP, x, vertical.start, _GRID),
            _text(x, vertical.start + 16, f"{tick:g}", anchor="middle"),
        ]
    for tick in ticks(vertical.low, vertical.high):
        y = vertical.place(tick)
        parts += [_line(_LEFT, y, horizontal.end, y, _GRID), _text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end")]
    parts.append(_text((_LEFT + horizontal.end) / 2, height - 10, across, anchor="middle"))
    parts.append(_text(_LEFT, _TOP - 6, up))
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = _path([(horizontal.place(x), vertical.place(y)) for x, y in points], steps)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 20 * number + 10
        parts += [_line(WIDTH - _RIGHT + 14, y, WIDTH - _RIGHT + 34, y, colour, width=3)]
        parts += [_text(WIDTH - _RIGHT + 40, y + 4, name)]
    return _document(height, title, parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between the two, at most so many and one."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * n for n in (1, 2, 5, 10, 20) if (high - low) / (step * n) <= most)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _path(points: Sequence[tuple[float, float]], steps: bool) -> str:
    words = []
    for number, (x, y) in enumerate(points):
        if not number:
            words.append(f"M{x:.1f} {y:.1f}")
        elif steps:
            words.append(f"H{x:.1f}V{y:.1f}")
        else:
            words.append(f"L{x:.1f} {y:.1f}")
    return "".join(words)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, words: str, *, size: int = 12, weight: str = "normal", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" font-weight="{weight}" fill="{_INK}">{escape(words)}</text>'


def _document(height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])

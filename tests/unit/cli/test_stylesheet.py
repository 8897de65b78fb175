"""The page can be read in both colour schemes and on paper."""

from __future__ import annotations

import re

import pytest

from sandboxd.cli.stylesheet import STYLESHEET


def colours(within: str) -> dict[str, tuple[int, int, int]]:
    """The custom properties of the first `:root` after some words."""
    block = STYLESHEET[STYLESHEET.index(within) :].partition(":root")[2].partition("}")[0]
    found = re.findall(r"--([a-z-]+): #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2});", block)
    return {name: (int(red, 16), int(green, 16), int(blue, 16)) for name, red, green, blue in found}


def luminance(colour: tuple[int, int, int]) -> float:
    parts = [each / 255 for each in colour]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [":root", "prefers-color-scheme: dark", "@media print"])
def test_texts_and_bars_stand_out_as_wcag_asks(scheme: str) -> None:
    found = colours(scheme)
    for text in ("ink", "soft", "bad", "warn"):
        for ground in ("page", "card", "host", "pod", "bad-soft"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for bar in ("network", "container", "files", "bad"):
        assert contrast(found[bar], found["card"]) >= 3, bar


def test_it_loads_nothing() -> None:
    assert "url(" not in STYLESHEET and "@import" not in STYLESHEET and "<" not in STYLESHEET

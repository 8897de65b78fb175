"""HTML and SVG from text that nobody vouches for: everything is escaped here, and nowhere else. Pure.

`tag` makes an element. What is put into it is either `Markup`, which only this module makes, or text, which is
escaped; so a name or a plugin's output can be shown, and cannot become a part of the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from sandboxd.cli.render import printable

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_VOID = frozenset({"meta", "br"})
_EMPTY = frozenset({"rect", "line", "path", "circle"})  # of SVG: may close themselves


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


NOTHING = Markup("")

Content = str | int | Iterable["Content"]


def escaped(text: str) -> Markup:
    """The text as it is to be read: neither markup nor, but for tabs and line ends, control characters."""
    return Markup(html.escape(printable(text)))


def joined(*content: Content) -> Markup:
    """The pieces one after the other, text among them escaped."""
    return Markup("".join(_flat(content)))


def tag(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """An element. An attribute's trailing underscore is dropped and others become hyphens; None leaves it out.

    Raises ValueError for a name that is no plain word: names are the page's own.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            spelled = key.rstrip("_").replace("_", "-")
            words.append(f'{_checked(spelled)}="{escaped(_number(value))}"')
    opening = " ".join((_checked(name), *words[1:]))
    if name in _VOID:
        return Markup(f"<{opening}>")
    if name in _EMPTY and not content:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{joined(*content)}</{name}>")


def _flat(content: Content) -> Iterable[str]:
    if isinstance(content, Markup):
        yield content
    elif isinstance(content, str | int):
        yield escaped(str(content))
    else:
        for each in content:
            yield from _flat(each)


def _number(value: str | float) -> str:
    """Coordinates without the noise of floating point."""
    return f"{round(value, 3):g}" if isinstance(value, float) else str(value)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name in HTML")
    return name

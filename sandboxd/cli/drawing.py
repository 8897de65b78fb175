"""The pod's network as a drawing: host and pod as boxes, what connects them between. SVG. Pure.

One row for each network, from the host's rules on the left over bridge and veth to the pod's interface on the right.
What is there has solid lines, what was undone grey ones, what was not made dashed ones; words say the same. Texts
have a place of a known width and are shortened to it, as they come from configurations and plugins; `in_words` has
them whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from sandboxd.cli.markup import Markup, joined, tag
from sandboxd.cli.render import printable
from sandboxd.cli.topology import Link, Part, State, Topology

_WIDTH = 1120
_HOST = (8.0, 640.0)  # from, to
_POD = (704.0, 1112.0)
_RULES = (24.0, 246.0)
_BRIDGE = (290.0, 430.0)
_VETH = (500.0, 640.0)  # its right end is the host's border
_INSIDE = (704.0, 830.0)  # its left end is the pod's border
_TEXT = 844.0  # where the pod's addresses begin
_HEAD = 64.0  # of a box, above the first row
_LINE = 18.0
_MOST = 12  # lines of one column
_CELL = 7.3  # of a character at 12 units: monospaced ones are 7.2 wide
_SMALL = 6.7  # the same at 11 units
_SMALL_STYLES = ("said", "trouble", "data small")
_STATES = {
    State.THERE: "there",
    State.UNDONE: "undone",
    State.MISSING: "missing",
    State.UNDER_WAY: "missing",
    State.FAILED: "failed",
    State.OWED: "there",
}


def drawing(drawn: Topology, title: str) -> Markup:
    """The drawing; `title` names the pod."""
    rows = list(_heights(drawn.links))
    height = _HEAD + (sum(rows) or 70) + 16
    told = " ".join(in_words(drawn, title))
    content = [
        tag("title", f"The network of {title}", id="drawing-title"),
        tag("desc", told, id="drawing-words"),
        _box(_HOST[0], (_POD if drawn.of_host else _HOST)[1], height, "Host", "its own network namespace", "there"),
    ]
    if drawn.of_host:
        content += _guest(height, title)
    else:
        content.append(_box(*_POD, height, title, _namespace(drawn), f"pod {_STATES[drawn.namespace]}"))
        top = _HEAD
        for link, row in zip(drawn.links, rows, strict=True):
            content += _link(link, top, row)
            top += row
        if not drawn.links:
            content.append(_text(_POD[0] + 16, _HEAD + 32, "no network was attached", _POD[1] - 12, "said"))
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {_WIDTH} {height:g}",
        role="img",
        aria_labelledby="drawing-title drawing-words",
        class_="drawing",
    )


def in_words(drawn: Topology, title: str) -> list[str]:
    """What is drawn, as sentences, nothing shortened."""
    if drawn.of_host:
        return [f"{title} has no network of its own: it uses the host's."]
    where = f" is {drawn.netns_path}" if drawn.netns_path else ""
    told = [f"The network namespace of {title}{where}{_in_brackets(drawn.namespace)}."]
    return told + [sentence for link in drawn.links for sentence in _words(link)]


def _words(link: Link) -> Iterator[str]:
    chain = [_described("the host's", link.on), _described("", link.host_end)]
    way = " and ".join(each for each in chain if each)
    told = f"Network {link.network}: the pod's {link.inside.text}{_in_brackets(link.inside.state)}"
    yield told + (f" is connected by {way}." if way else ".")
    if link.addresses:
        yield f"{link.inside.text} has {', '.join(link.addresses)}" + (f", MAC {link.mac}." if link.mac else ".")
    if link.on_addresses and link.on:
        yield f"{link.on.text} has {', '.join(link.on_addresses)}, the pod's gateway."
    for route in link.routes:
        yield f"Route: {route}."
    for rule in link.rules:
        yield f"On the host: {rule.text}{_in_brackets(rule.state)}."
    if link.trouble:
        yield f"{link.trouble}."


def _described(before: str, part: Part | None) -> str:
    return f"{before} {part.text}{_in_brackets(part.state)}".strip() if part else ""


def _in_brackets(state: State) -> str:
    return f" ({state.value})" if state.value else ""


def _heights(links: Sequence[Link]) -> Iterator[float]:
    """Each row is as high as its longest column, with a line above for its name, and one below for its trouble."""
    for link in links:
        lines = max(
            min(len(link.rules), _MOST), 1 + min(len(link.on_addresses), _MOST), min(len(_pod_lines(link)), _MOST), 2
        )
        trouble = bool(link.trouble) or link.state is not State.THERE
        yield 34 + lines * _LINE + (46 if trouble else 20)


def _link(link: Link, top: float, height: float) -> Iterator[Markup]:
    middle = top + 34 + 19
    caption = f"network {link.network}, by {link.kind}" if link.kind else f"network {link.network}"
    yield tag("line", x1=_HOST[0] + 12, x2=_HOST[1] - 12, y1=top, y2=top, class_="rule")
    yield _text(_RULES[0] + 4, top + 20, caption, _HOST[1] - 12, "said")
    ends: list[float] = []
    if link.rules:
        yield from _rules(link.rules, middle - 15)
        ends.append(_RULES[1])
    if link.on:
        yield from _node(link.on, _BRIDGE, middle, link.on_addresses)
        ends += _BRIDGE
    if link.host_end:
        yield from _node(link.host_end, _VETH, middle, [])
        ends += _VETH
    elif not ends:
        ends.append(_HOST[1])
    yield from _node(link.inside, _INSIDE, middle, [link.mac] if link.mac else [])
    ends.append(_INSIDE[0])
    # The rules are one end, every other column two: what is left between them are the wires.
    wires = ends if link.rules else ends[1:] if len(ends) > 2 else ends
    for left, right in zip(wires[::2], wires[1::2], strict=False):
        yield tag("line", x1=left, x2=right, y1=middle, y2=middle, class_=f"wire {_STATES[link.inside.state]}")
    for number, line in enumerate(_bounded(_pod_lines(link))):
        style = f"data {'address' if number < len(link.addresses) else 'route'} {_STATES[link.inside.state]}"
        yield _text(_TEXT, middle - 8 + number * _LINE, line, _POD[1] - 8, style)
    if not link.addresses:
        yield _text(_TEXT, middle + 4, "no address", _POD[1] - 8, "said")
    said = link.trouble or link.state.value
    if link.trouble or link.state is not State.THERE:
        mark = "✗ " if link.state in (State.FAILED, State.OWED) else ""
        style = "trouble" if mark else "said"
        yield _text(_RULES[0] + 4, top + height - 12, f"{mark}{said}", _HOST[1] - 12, style)


def _pod_lines(link: Link) -> list[str]:
    return [*link.addresses, *link.routes]


def _bounded(lines: Sequence[str]) -> Sequence[str]:
    """The lines, as many as a drawing can have; the words have them all."""
    return lines if len(lines) <= _MOST else (*lines[: _MOST - 1], _more(len(lines)))


def _more(count: int) -> str:
    return f"and {count - _MOST + 1} more"


def _rules(rules: Sequence[Part], top: float) -> Iterator[Markup]:
    """What plugins set up on the host besides interfaces, in a frame of its own."""
    left, right = _RULES
    height = min(len(rules), _MOST) * _LINE + 12
    yield tag("rect", x=left, y=top, width=right - left, height=height, rx=6, class_="rules")
    more = Part(_more(len(rules)))
    for number, rule in enumerate(rules if len(rules) <= _MOST else (*rules[: _MOST - 1], more)):
        mark = {State.FAILED: "✗ ", State.MISSING: "– "}.get(rule.state, "")
        y = top + 19 + number * _LINE
        yield _text(left + 10, y, f"{mark}{rule.text}", right - 6, f"data host-rule {_STATES[rule.state]}")


def _node(part: Part, place: tuple[float, float], middle: float, below: Sequence[str]) -> Iterator[Markup]:
    """A box with its name, and lines of text below it."""
    left, right = place
    yield tag(
        "rect", x=left, y=middle - 15, width=right - left, height=30, rx=6, class_=f"node {_STATES[part.state]}"
    )
    yield _text((left + right) / 2, middle + 4, part.text, right - 4, "data name", middle=True)
    for number, line in enumerate(_bounded(below)):
        yield _text((left + right) / 2, middle + 30 + number * _LINE, line, right + 12, "data small", middle=True)


def _guest(height: float, title: str) -> Iterator[Markup]:
    """A pod that shares the host's network, inside of the host's box."""
    left, right = _POD[0], _POD[1] - 20
    yield tag("rect", x=left, y=28.0, width=right - left, height=height - 56, rx=10, class_="box pod undone")
    yield _text(left + 20, 56, title, right - 12, "heading")
    yield _text(left + 20, 76, "no network of its own: it uses the host's", right - 12, "said")


def _box(left: float, right: float, height: float, name: str, said: str, style: str) -> Markup:
    """A namespace."""
    return joined(
        tag("rect", x=left, y=8.0, width=right - left, height=height - 16, rx=12, class_=f"box {style}"),
        _text(left + 20, 32, name, right - 12, "heading"),
        _text(left + 20, 50, said, right - 12, "said"),
    )


def _namespace(drawn: Topology) -> str:
    told = [f"net namespace {drawn.inode}".rstrip()]
    if drawn.pid:
        told.append(f"pid {drawn.pid}")
    if drawn.namespace.value:
        told.append(drawn.namespace.value)
    return " · ".join(told)


def _text(x: float, y: float, text: str, until: float, style: str, *, middle: bool = False) -> Markup:
    """A line of text that ends before `until`; what is too long is shortened, and whole in a tooltip."""
    room = 2 * (until - x) if middle else until - x
    whole = printable(text, keep="")
    cells = max(1, int(room / (_SMALL if style in _SMALL_STYLES else _CELL)))
    shown = whole if cell_len(whole) <= cells else set_cell_size(whole, cells - 1).rstrip() + "…"
    hint = [tag("title", whole)] if shown != whole else []
    return tag("text", shown, *hint, x=float(x), y=float(y), class_=style, text_anchor="middle" if middle else None)

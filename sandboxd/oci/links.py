"""Where the names of a layer lead, given the symbolic links that the layer created before.

When a directory's entry has the path of a link, some unpackers keep the link and others replace it. Both must be
safe, so as soon as the two views differ, every name is resolved in both. Rules that keep the work linear and the
memory bounded:

1. Resolving a name takes a step for each of its parts and for those of the links on its way: 40 links at most, the
   kernel's own limit.
2. The steps through links are counted over the whole layer: `FREE_STEPS`, plus `STEPS_PER_ENTRY` for each entry.
3. Links take up to `MAX_BYTES` of memory, including those that were replaced.
"""

from __future__ import annotations

import posixpath

from sandboxd.errors import InvalidRequest
from sandboxd.foreign_json import shown
from sandboxd.oci.tar import WHITEOUT

MAX_BYTES = 160 << 20  # of memory for all links of a layer, estimated: some 400,000 links
FREE_STEPS = 1_000_000
STEPS_PER_ENTRY = 64

KEEPING, REPLACING = range(2)  # views: whether a link stays when a directory's entry has its path

_MAX_FOLLOWED = 40
_NODE_BYTES = 256  # of a node and its slot in its parent, without the text
_TEXT_BYTES = 56  # of a string without its characters


class _Node:
    """A path that is a link, or has links below it. `kept` and `other` are the link's target in each view."""

    __slots__ = ("below", "kept", "other")

    def __init__(self) -> None:
        self.below: dict[str, _Node] | None = None
        self.kept: str | None = None
        self.other: str | None = None

    def target(self, view: int) -> str | None:
        return self.kept if view == KEEPING else self.other


class Links:
    """The links of one layer; `what` names it in errors."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._root = _Node()
        self._bytes = 0
        self._steps = 0
        self._entries = 0
        self._differ = False
        # The directory of the previous name: entries mostly come directory by directory.
        self._last: list[tuple[str, str, _Node | None] | None] = [None, None]

    def place(self, name: str, *, symlink: str | None = None, directory: bool = False) -> str:
        """The path of the entry `name` with links resolved, relative to the root, "" for the root itself.

        `symlink` is the target if the entry is a symbolic link. Raises InvalidRequest when the name leads out of
        the root, would delete a directory that it does not name, or exceeds a limit.
        """
        self._entries += 1
        base = posixpath.basename(name.rstrip("/"))
        if base.startswith(WHITEOUT) and base[len(WHITEOUT) :] in ("", ".", ".."):
            raise InvalidRequest(
                f"{self._what}: the entry {shown(name)} would delete a directory that it does not name"
            )
        if symlink is not None:
            self._charge(_bytes(symlink))
        path, node = self._inside(name, KEEPING)
        if not self._differ:
            if directory and node is not None and node.kept is not None:
                self._differ = True
                self._put(path, node, REPLACING, None)
            elif symlink is not None or not directory:
                self._put(path, self._put(path, node, KEEPING, symlink), REPLACING, symlink)
            return path
        if symlink is not None or not directory:
            self._put(path, node, KEEPING, symlink)
        path, node = self._inside(name, REPLACING)
        self._put(path, node, REPLACING, symlink)
        return path

    def target(self, name: str) -> str:
        """The path that the target of a hard link leads to. Raises as `place` does."""
        path, _ = self._inside(name, KEEPING)
        return self._inside(name, REPLACING)[0] if self._differ else path

    def _put(self, path: str, node: _Node | None, view: int, target: str | None) -> _Node | None:
        """Set or, with None, clear the target of the link at `path` in one view; `node` is the path's, if any."""
        if node is None and target is not None:
            node = self._add(path)
        if node is not None and node.target(view) != target:
            if view == KEEPING:
                node.kept = target
            else:
                node.other = target
            self._last = [None, None]
        return node

    def _add(self, path: str) -> _Node:
        node = self._root
        for part in path.split("/") if path else ():
            if node.below is None:
                node.below = {}
            below = node.below.get(part)
            if below is None:
                below = node.below[part] = _Node()
                self._charge(_NODE_BYTES + _bytes(part))
            node = below
        return node

    def _charge(self, count: int) -> None:
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise InvalidRequest(f"{self._what} has more symbolic links than can be examined")

    def _inside(self, name: str, view: int) -> tuple[str, _Node | None]:
        """The path that `name` leads to, and its node. The last part is replaced, not followed."""
        directory, _, last = name.rpartition("/")
        if last in ("", ".", ".."):
            return self._walk(name, view, name, whole=False)
        previous = self._last[view]
        if previous is None or previous[0] != directory:
            previous = self._last[view] = (directory, *self._walk(directory, view, name, whole=True))
        _, path, node = previous
        below = node.below.get(last) if node is not None and node.below is not None else None
        return (f"{path}/{last}" if path else last), below

    def _walk(self, name: str, view: int, entry: str, *, whole: bool) -> tuple[str, _Node | None]:
        """Follow the parts of `name`, including the last one if `whole`. `entry` is the name for errors."""
        todo = [part for part in reversed(name.split("/")) if part not in ("", ".")]
        if self._root.below is None and ".." not in todo:
            return "/".join(reversed(todo)), None if todo else self._root
        done: list[str] = []
        nodes: list[_Node | None] = [self._root]
        followed = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not done:
                    raise InvalidRequest(f"{self._what}: the entry {shown(entry)} climbs out of the root file system")
                done.pop()
                nodes.pop()
                continue
            above = nodes[-1]
            node = above.below.get(part) if above is not None and above.below is not None else None
            target = node.target(view) if node is not None and (todo or whole) else None
            if target is None:
                done.append(part)
                nodes.append(node)
                continue
            followed += 1
            if target.startswith("/") or followed > _MAX_FOLLOWED:
                raise InvalidRequest(
                    f"{self._what}: the entry {shown(entry)} passes through the link"
                    f" {shown('/'.join((*done, part)))} -> {shown(target)}, which leads out"
                )
            steps = target.split("/")
            self._steps += len(steps)
            if self._steps > FREE_STEPS + STEPS_PER_ENTRY * self._entries:
                raise InvalidRequest(f"{self._what} leads through more symbolic links than can be followed")
            todo += [step for step in reversed(steps) if step not in ("", ".")]
        return "/".join(done), nodes[-1]


def _bytes(text: str) -> int:
    """The memory that a string takes, estimated."""
    return _TEXT_BYTES + (len(text) if text.isascii() else 4 * len(text))

"""Where the names of a layer lead, given the symbolic links that the layer created before.

A link that leads out of the root is normal (`/var/run -> /run`, images of Nix and Bazel), and every unpacker of the
field resolves it inside the root. They do not all agree on where a `..` behind another link leads. We unpack some
layers, containerd the others, so this is containerd's way (the path walk of its `continuity/fs`), step by step:

1. A name is cleaned as text first; what is left of a `..` at its beginning stays at the root.
2. The parts of its directory are replaced by their targets from left to right, one link deep, and then again until
   nothing is replaced. A target is appended to the directory as text, so its `..` takes away the part before it.
3. Meanwhile the kernel looks up each part, and follows the links on the way to it. An absolute one leads it out of
   the layer, where containerd sees what this machine has; here there is nothing.
4. The last part is replaced, not followed: also a link, also in a hard link's target.

Rules that keep the work linear and the memory bounded: a name is led by 255 links at most, containerd's own limit;
steps through links are counted over the whole layer, `FREE_STEPS`, plus `STEPS_PER_ENTRY` for each entry; links take
up to `MAX_BYTES` of memory, including those that were replaced.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from sandboxd.errors import InvalidRequest
from sandboxd.foreign_json import shown
from sandboxd.oci.tar import MAX_PATH_BYTES, WHITEOUT

MAX_BYTES = 160 << 20  # of memory for all links of a layer, estimated: some 400,000 links
FREE_STEPS = 1_000_000
STEPS_PER_ENTRY = 64

_MAX_FOLLOWED = 255  # on the way of one name
_MAX_LOOKED_UP = 40  # the kernel's own limit, for a single look-up
_NODE_BYTES = 256  # of a node and its slot in its parent, without the text
_TEXT_BYTES = 56  # of a string without its characters
_NOWHERE = frozenset({"", ".", ".."})


@dataclass(slots=True, eq=False)
class _Node:
    """A path that is a link, or has links below it. `target` is None where there is no link."""

    below: dict[str, _Node] = field(default_factory=dict)
    target: str | None = None


class Links:
    """The links of one layer; `what` names it in errors."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._root = _Node()
        self._bytes = 0
        self._steps = 0
        self._entries = 0
        # The directory of the previous name: entries mostly come directory by directory.
        self._last: tuple[str, str] | None = None

    def place(self, name: str, *, symlink: str | None = None) -> str:
        """The path of the entry `name` with links resolved, relative to the root, "" for the root itself.

        `symlink` is the target if the entry is a symbolic link; any other entry takes a link's place. Raises
        InvalidRequest when the name would delete a directory that it does not name, or exceeds a limit.
        """
        self._entries += 1
        directory, _, last = _clean(name).rpartition("/")
        if last in _NOWHERE:
            return ""
        if last.startswith(WHITEOUT) and last[len(WHITEOUT) :] in _NOWHERE:
            raise InvalidRequest(
                f"{self._what}: the entry {shown(name)} would delete a directory that it does not name"
            )
        path = _joined(self._directory(directory, name), last)
        self._put(path, symlink)
        return path

    def target(self, name: str) -> str:
        """The path that the target of a hard link leads to. Raises as `place` does."""
        directory, _, last = name.rpartition("/")
        path = self._directory(directory, name)
        if last == "..":
            return posixpath.dirname(path)
        return path if last in _NOWHERE else _joined(path, last)

    def _put(self, path: str, target: str | None) -> None:
        """There is a link at `path`, or with None there is none."""
        if target is None and not self._root.below:
            return
        node = self._root
        for part in path.split("/"):
            below = node.below.get(part)
            if below is None:
                if target is None:
                    return
                below = node.below[part] = _Node()
                self._charge(_NODE_BYTES + _bytes(part))
            node = below
        if target is not None:
            self._charge(_bytes(target))
        if node.target != target:
            node.target = target
            self._last = None

    def _charge(self, count: int) -> None:
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise InvalidRequest(f"{self._what} has more symbolic links than can be examined")

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > FREE_STEPS + STEPS_PER_ENTRY * self._entries:
            raise InvalidRequest(f"{self._what} leads through more symbolic links than can be followed")

    def _directory(self, name: str, entry: str) -> str:
        """The path that a directory's name leads to, following its last part too; `entry` is for errors."""
        if self._last is None or self._last[0] != name:
            path = posixpath.normpath(f"/{name}").lstrip("/")
            if self._root.below and self._has_links(name):
                path = self._resolved(name, entry)
            self._last = name, path
        return self._last[1]

    def _has_links(self, name: str) -> bool:
        """Whether a link can be on the way to `name`: a `..` in its midst may lead back to one."""
        node: _Node | None = self._root
        depth = 0
        for part in name.split("/"):
            if part == ".." and depth:
                return True
            if part in _NOWHERE:
                continue
            depth += 1
            node = node.below.get(part) if node is not None else None
            if node is not None and node.target is not None:
                return True
        return False

    def _resolved(self, name: str, entry: str) -> str:
        path, followed = name, 0
        while True:
            before = followed
            path, followed = self._replaced(path, followed, entry)
            if followed == before:
                inside = posixpath.normpath(f"/{path}").replace("//", "/")
                if inside == path:
                    return path[1:]
                path = inside

    def _replaced(self, path: str, followed: int, entry: str) -> tuple[str, int]:
        """`path` with the links on its way replaced by their targets, and how many were followed so far."""
        at = "/" if path.startswith("/") else ""
        # The node of `at`, as long as no link was followed: then its parts need not be looked up again.
        node: _Node | None = self._root
        known = clean = True
        for part in filter(None, path.split("/")):
            self._step()
            if followed > _MAX_FOLLOWED:
                self._too_many(entry)
            candidate = f"{at.rstrip('/')}/{part}"
            if not clean or part in _NOWHERE:
                candidate = _clean(f"/{candidate}")
                self._step(candidate.count("/"))
            if len(candidate) > MAX_PATH_BYTES:
                raise InvalidRequest(f"{self._what}: the entry {shown(entry)} leads to a path that is too long")
            clean = True
            if known and part not in _NOWHERE:
                node = node.below.get(part) if node is not None else None
                target = node.target if node is not None else None
            else:
                known = False
                target = self._looked_up(candidate, entry)
            if target is None:
                at = candidate
                continue
            followed, known, clean = followed + 1, False, False
            at = target if not at or target.startswith("/") else _clean(f"{at}/{target}")
        return at or "/", followed

    def _looked_up(self, path: str, entry: str) -> str | None:
        """The target of the link that the kernel finds at `path`, None if that is no link or not in this layer."""
        todo = [part for part in reversed(path.split("/")) if part]
        nodes: list[_Node | None] = [self._root]
        followed = 0
        while todo:
            self._step()
            part = todo.pop()
            if part == "..":
                nodes.pop()
                if not nodes:
                    return None
                continue
            above = nodes[-1]
            node = above.below.get(part) if above is not None else None
            if node is None or node.target is None:
                nodes.append(node)
            elif not todo:
                return node.target
            elif node.target.startswith("/"):
                return None
            else:
                followed += 1
                if followed > _MAX_LOOKED_UP:
                    self._too_many(entry)
                todo += [step for step in reversed(node.target.split("/")) if step not in ("", ".")]
        return None

    def _too_many(self, entry: str) -> None:
        raise InvalidRequest(f"{self._what}: the entry {shown(entry)} passes through too many symbolic links")


def _clean(path: str) -> str:
    """As Go's path.Clean: normpath, which keeps two slashes at the beginning."""
    return posixpath.normpath(path).replace("//", "/", 1)


def _joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _bytes(text: str) -> int:
    """The memory that a string takes, estimated."""
    return _TEXT_BYTES + (len(text) if text.isascii() else 4 * len(text))

"""Hostile input, from a seed: texts, bytes, documents, messages of any type. The same seed gives the same input."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

LEVELS = 5  # of messages in messages

_NUMBERS = (0, 1, -1, 2, 255, 65535, 65536, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63), 1000, 0o777)
_TEXTS = (
    "", " ", "\0", "\n", "\x7f", "\x1b[2J", "a\nb", "\u202e", "ü" * 40, "\U0001f600", "\ufeff", "..", "../../etc",
    "/", "//", "/.", "~", "%s%n", "{{.PodCIDR}}", "-1", "+", "1e999", "9" * 400, "0x10", "NaN", "null", "true", "[]",
    "{}", "'", '"', "localhost:99999/a", "[::1]:0/a", "a:65536/b", "sha256:", "sha256:" + "0" * 64, "x" * 5000,
    "a@sha256:" + "g" * 64, "١٢", "²", "ⅷ", "10.0.0.1/33", "::/129", "fe80::1%eth0", "http://[", "SIGRTMIN+99",
    "localhost/../x", "a=b=c", ",", ":", "=", "k8s.io/" + "a" * 300, "cdi.k8s.io/x", "vendor.com/class=dev",
    "65536:65536", "0:0:0", "4294967296",
)  # fmt: skip
_BYTES = (
    b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"[", b'"', b"\\ud800", b"\r\n\r\n", b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
)  # fmt: skip
_NESTS = ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b"a.", b""), (b"- ", b""))


class Garbage:
    """A source of it. `texts` are known to whoever is fed: ids of living objects, names of images."""

    def __init__(self, seed: int, texts: Sequence[str] = ()) -> None:
        self.random = random.Random(seed)
        self._known = tuple(texts)

    def text(self) -> str:
        """A text, often a known one."""
        draw = self.random
        kind = draw.random()
        if self._known and kind < 0.5:
            return draw.choice(self._known)
        if kind < 0.85:
            return draw.choice(_TEXTS)
        return "".join(chr(draw.choice((draw.randrange(1, 128), draw.randrange(160, 0xD7FF)))) for _ in range(9))

    def blob(self, most: int = 60) -> bytes:
        """Some bytes."""
        if self.random.random() < 0.4:
            return self.random.choice(_BYTES)
        return self.random.randbytes(self.random.randrange(most))

    def number(self, least: int = -(2**63), most: int = 2**63 - 1) -> int:
        """A number that fits, mostly at a boundary."""
        number = self.random.choice(_NUMBERS) if self.random.random() < 0.8 else self.random.randrange(-300, 300)
        return min(max(number, least), most)

    def deep(self, most: int = 100_000) -> bytes:
        """A document that nests."""
        levels = min(most, self.random.choice((50, 101, 500, 990, 5000, 100_000)))
        opening, closing = self.random.choice(_NESTS)
        inner = self.random.choice((b"1", b"", b"null"))
        return opening * levels + inner + (closing * levels if self.random.random() < 0.8 else b"")

    def changed(self, seeds: Sequence[bytes]) -> bytes:
        """One of the seeds after some accidents."""
        draw = self.random
        data = bytearray(draw.choice(seeds) if seeds else b"")
        for _ in range(draw.choice((1, 1, 2, 3, 8))):
            at = draw.randrange(len(data) + 1)
            end = min(len(data), at + draw.choice((0, 1, 1, 4, 30)))
            match draw.randrange(9):
                case 0:
                    data[at:end] = b""
                case 1:
                    data[at:end] = self.blob()
                case 2:
                    data[at:end] = self.text().encode("utf-8", "replace")
                case 3:
                    data[at:end] = str(self.number()).encode()
                case 4:
                    data[at:end] = self.deep() if draw.random() < 0.1 else b"[[["
                case 5:
                    data[at:at] = data[at:end] * draw.randrange(1, 50)
                case 6:
                    data[:] = data[:at]
                case 7 if data:
                    data[at - 1] ^= 1 << draw.randrange(8)
                case _:
                    data[at:at] = draw.choice(seeds)[: draw.randrange(200)] if seeds else b""
        return bytes(data[: 1 << 18])

    def message(self, kind: Descriptor, tame: Callable[[Message], None] = lambda message: None) -> Message:
        """A message of any type; `tame` makes each harmless that is made."""
        return self._message(kind, LEVELS, tame)

    def _message(self, kind: Descriptor, levels: int, tame: Callable[[Message], None]) -> Message:
        made = GetMessageClass(kind)()
        density = self.random.choice((0.15, 0.4, 0.8))
        for field in kind.fields:
            if self.random.random() < density:
                self._fill(made, field, levels, tame)
        tame(made)
        return made

    def _fill(self, made: Message, field: FieldDescriptor, levels: int, tame: Callable[[Message], None]) -> None:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            entries = getattr(made, field.name)
            key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
            for _ in range(self.random.randrange(3)):
                if value.message_type is None:
                    entries[self._scalar(key)] = self._scalar(value)
                elif levels:
                    entries[self._scalar(key)].CopyFrom(self._message(value.message_type, levels - 1, tame))
        elif inner is not None:
            if levels and field.is_repeated:
                values = [self._message(inner, levels - 1, tame) for _ in range(self.random.randrange(3))]
                getattr(made, field.name).extend(values)
            elif levels:
                getattr(made, field.name).CopyFrom(self._message(inner, levels - 1, tame))
        elif field.is_repeated:
            getattr(made, field.name).extend(self._scalar(field) for _ in range(self.random.choice((1, 1, 2, 40))))
        else:
            setattr(made, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> object:
        limits: Mapping[int, tuple[int, int]] = {
            FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
            FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
            FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
            FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
            FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
        }
        if field.cpp_type in limits:
            return self.number(*limits[field.cpp_type])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return struct.unpack("<d", self.random.randbytes(8))[0]
        return self.blob() if field.type == FieldDescriptor.TYPE_BYTES else self.text()

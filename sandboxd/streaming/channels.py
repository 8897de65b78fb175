"""Channels over one WebSocket: each message begins with the number of its channel.

There are two encodings (the Kubernetes `channel.k8s.io` family): binary, where the first byte is the number, and
`base64.`, where it is an ASCII digit and the rest of the message is base64, so that the message is text.
"""

from __future__ import annotations

import base64
import binascii

CLOSE = 255  # v5: the byte after it is the channel that the client has finished sending on


class BadMessage(ValueError):
    """A message that is not in the agreed form."""


class ChannelReader:
    """Splits messages into channel and data, fragment by fragment. Holds back at most three characters of base64."""

    def __init__(self, *, base64_text: bool) -> None:
        self._base64 = base64_text
        self._channel: int | None = None
        self._rest = b""
        self._first = True

    def read(self, fragment: bytes, *, last: bool) -> tuple[int | None, bytes]:
        """The channel and the data in this fragment; the channel is None until the message's first byte.

        `last`: the message ends here. Raises BadMessage.
        """
        if self._first and fragment:
            self._first = False
            number = fragment[0] - ord("0") if self._base64 else fragment[0]
            if number < 0:
                raise BadMessage(f"a message begins with byte {fragment[0]}, which is not a channel")
            self._channel, fragment = number, fragment[1:]
        channel, data = self._channel, self._decode(fragment, last=last) if self._base64 else fragment
        if last:
            self._channel, self._first = None, True
        return channel, data

    def _decode(self, fragment: bytes, *, last: bool) -> bytes:
        text = self._rest + fragment
        whole = len(text) if last else len(text) - len(text) % 4
        text, self._rest = text[:whole], text[whole:]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as exc:
            raise BadMessage(f"a message is not base64: {exc}") from exc


def message(channel: int, data: bytes, *, base64_text: bool) -> bytes:
    """One message; a base64 one is ASCII text."""
    if base64_text:
        return bytes((ord("0") + channel,)) + base64.b64encode(data)
    return bytes((channel,)) + data

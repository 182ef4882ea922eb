"""Messages that are encoded once and sent to many.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

_LENGTH_DELIMITED = 2


def joined(field: int, messages: Sequence[bytes]) -> bytes:
    """A message whose repeated field ``field`` (of a number below 16) holds ``messages``."""
    return b"".join([part for one in messages for part in (_head(field, len(one)), one)])


@lru_cache(maxsize=1024)
def _head(field: int, length: int) -> bytes:
    """What stands before a message in a field; those of a job are of few lengths."""
    return bytes([field << 3 | _LENGTH_DELIMITED]) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unless_encoded(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A serializer that lets bytes through: a handler may answer with an encoded message.

    None, of a handler whose messages are bytes anyway, stays None.
    """
    if serialize is None:
        return None

    def encode(message: Any) -> bytes:
        return message if isinstance(message, bytes) else serialize(message)

    return encode

"""Messages that cannot be read: the caller's mistake, which gRPC would call UNKNOWN."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError

_UNREADABLE = object()


def reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """The same, for :func:`readable` or :func:`all_readable` to look at the result."""

    def read(data: bytes) -> Any:
        try:
            return data if deserialize is None else deserialize(data)
        except Exception:  # DecodeError, or whatever a slower parser stumbles over
            return _UNREADABLE

    return read


def readable(message: Any) -> Any:
    """The message. Raises INVALID_FIELD if it could not be read."""
    if message is _UNREADABLE:
        raise MultigrainError(
            ErrorKind.INVALID_FIELD,
            "the bytes that arrived are not a message of this call: they are damaged, or the "
            "client has another contract",
        )
    return message


async def all_readable(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same for each message of a stream."""
    async for message in messages:
        yield readable(message)

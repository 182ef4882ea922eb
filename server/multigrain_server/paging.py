"""Pages of a listing: their size, and the tokens that continue it, opaque to callers."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from multigrain.errors import MultigrainError
from multigrain.files import parse_json

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_MAX_TOKEN = 512


@dataclass(frozen=True)
class PageToken:
    """The position of the last entry of the previous page, in the order of the listing.

    A position and not a count: entries that are added meanwhile do not shift the pages.
    """

    position: tuple[str | int, ...]

    def encode(self, query: str) -> str:
        """The token; ``query`` are the other fields of the request, for :meth:`decode`."""
        body = json.dumps([*self.position, _digest(query)])
        return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str, query: str, types: tuple[type[str | int], ...]) -> PageToken | None:
        """The token's content; None for "".

        Args:
            token: as the caller sent it.
            query: the other fields of the request, which must be those of the first page.
            types: of the parts of a position.

        Raises:
            MultigrainError: INVALID_FIELD.
        """
        if not token:
            return None
        try:
            if len(token) > _MAX_TOKEN:
                raise ValueError("too long")
            padded = token + "=" * (-len(token) % 4)
            body = parse_json(base64.b64decode(padded.encode("ascii"), b"-_", validate=True))
            *position, digest = body
            if tuple(map(type, position)) != types:
                raise ValueError("not a position of this listing")
            "".join(map(str, position)).encode()  # half a surrogate pair is no text
        except (ValueError, TypeError, AttributeError):
            raise MultigrainError.field(
                "page_token", "not a token of this server; leave it empty for the first page"
            ) from None
        if digest != _digest(query):
            raise MultigrainError.field(
                "page_token",
                "belongs to a request with other fields; keep them, or leave it empty",
            )
        return cls(tuple(position))


def page_size(requested: int) -> int:
    """The size of a page, 0 meaning DEFAULT_SIZE.

    Raises:
        MultigrainError: INVALID_FIELD above MAX_SIZE.
    """
    if requested > MAX_SIZE:
        raise MultigrainError.field("page_size", f"{requested} is more than {MAX_SIZE}")
    return requested or DEFAULT_SIZE


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]

"""Images that ended an engine: each is refused from then on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from multigrain.errors import ErrorKind, MultigrainError

_REMEMBERED = 1024


class RefusedImages:
    """Remembers the SHA-256 of the newest of them.

    A caller that retries would otherwise end one engine after the other. While there is none,
    which is the usual case, nothing is hashed.
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[str, None] = OrderedDict()

    def add(self, image: bytes) -> str:
        """Returns the hash, in hexadecimal."""
        digest = hashlib.sha256(image).hexdigest()
        self._hashes[digest] = None
        self._hashes.move_to_end(digest)
        if len(self._hashes) > _REMEMBERED:
            self._hashes.popitem(last=False)
        return digest

    def refusal(self, image: bytes) -> MultigrainError | None:
        """The error of an image that is among them."""
        if not self._hashes:
            return None
        digest = hashlib.sha256(image).hexdigest()
        return self.error(digest) if digest in self._hashes else None

    @staticmethod
    def error(digest: str) -> MultigrainError:
        """IMAGE_HARMFUL for the image of that hash."""
        return MultigrainError(
            ErrorKind.IMAGE_HARMFUL,
            f"the image (SHA-256 {digest}) ended the process that computed it and is refused: "
            "do not send it again",
        )

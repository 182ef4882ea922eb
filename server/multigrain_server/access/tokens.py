"""The token file, which has the SHA-256 of each token, never the token itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from multigrain.specs.base import Spec
from multigrain.specs.export import NAME_PATTERN
from multigrain.storage import os_error_hint
from multigrain.strict_yaml import YamlError, parse_yaml
from multigrain_server.access.policy import Role
from multigrain_server.storage_errors import stamp

_log = structlog.get_logger(__name__)
_PREFIX = "mg_"
_RANDOM_BYTES = 32
_CHECK_SECONDS = 1.0


class TokenFileError(Exception):
    """The token file cannot be used; the message says why, and has nothing of its content."""


class TokenEntry(Spec):
    """A token in the file; ``name`` identifies it in logs.

    ``calls_per_second`` (also the size of a burst) and ``concurrent_calls`` (streams included)
    are limits; None = unlimited.
    """

    name: str = Field(pattern=NAME_PATTERN)
    roles: tuple[Role, ...] = Field(min_length=1)
    # A token has 256 random bits: salt or a slow hash would not make it harder to guess.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    calls_per_second: float | None = Field(None, gt=0)
    concurrent_calls: int | None = Field(None, ge=1)


def _unique(tokens: tuple[TokenEntry, ...]) -> tuple[TokenEntry, ...]:
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) < len(values):
            raise ValueError(f"two tokens have the same {field}")
    return tokens


_TOKENS: TypeAdapter[tuple[TokenEntry, ...]] = TypeAdapter(
    Annotated[tuple[TokenEntry, ...], AfterValidator(_unique)]
)


@dataclass(frozen=True)
class NewToken:
    """A new token, which is shown only once, and its entry for the file."""

    token: str
    entry: TokenEntry

    @classmethod
    def make(cls, name: str, roles: tuple[Role, ...]) -> NewToken:
        """Raises ValidationError for an invalid name or no role."""
        token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        digest = hashlib.sha256(token.encode()).hexdigest()
        return cls(token, TokenEntry(name=name, roles=roles, sha256=digest))

    @classmethod
    def parse(cls, text: str) -> NewToken:
        """Makes a token for "NAME:ROLE,ROLE". Raises ValueError, which has the syntax."""
        name, _, roles = text.partition(":")
        try:
            return cls.make(name, tuple(Role(role.strip()) for role in roles.split(",")))
        except ValueError:
            known = ",".join(role.value for role in Role)
            raise ValueError(
                f"{text[:80]!r} is not NAME:ROLE,ROLE with a name of letters, digits, dots, "
                f"dashes or underscores, and roles among {known}"
            ) from None

    @property
    def line(self) -> str:
        """The entry as a line of the file."""
        roles = ", ".join(role.value for role in self.entry.roles)
        # In quotes: some hashes look like numbers.
        return f'- {{name: "{self.entry.name}", roles: [{roles}], sha256: "{self.entry.sha256}"}}'


class TokenFile:
    """Looks up tokens, and reloads the file when it has changed.

    If a reload fails, the previous tokens remain valid and an error is logged.

    Args:
        path: the file.
        check_seconds: least time between two checks for a change.

    Raises:
        TokenFileError: if it cannot be read.
    """

    def __init__(self, path: Path, check_seconds: float = _CHECK_SECONDS) -> None:
        self._path = path
        self._check_seconds = check_seconds
        self._stamp = stamp(path)
        self._entries = read_tokens(path)
        self._checked = time.monotonic()

    def find(self, token: str) -> TokenEntry | None:
        """The entry of a token, in a time that does not depend on how close a guess is."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < self._check_seconds:
            return
        self._checked = now
        found = stamp(self._path)
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._entries = read_tokens(self._path)
        except TokenFileError as error:
            _log.error("token file reload failed; keeping the previous tokens", reason=str(error))
        else:
            _log.info("token file reloaded", tokens=len(self._entries))


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """Reads a token file, a list of ``{name, roles, sha256}``.

    Raises:
        TokenFileError: if it cannot be read or is invalid.
    """
    try:
        body = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        todo = os_error_hint(
            error,
            "read it",
            "create it (multigrain-server --new-token NAME:ROLE makes a "
            "line of it), or correct --access-tokens",
        )
        raise TokenFileError(f"{path}: {error.strerror}; {todo}") from None
    except UnicodeDecodeError:
        raise TokenFileError(f"{path} is not UTF-8 text") from None
    except YamlError as error:
        # The position alone: what stands there may be a token.
        where = str(error).split(": ")[0]
        raise TokenFileError(f"{where}: not YAML, or a key is set twice") from None
    try:
        return _TOKENS.validate_python(() if body is None else body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise TokenFileError(": ".join(filter(None, (str(path), where, message)))) from None

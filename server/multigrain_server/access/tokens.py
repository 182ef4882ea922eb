"""The file of tokens, which holds their SHA-256 and never themselves."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from multigrain.specs.base import Spec
from multigrain.specs.export import NAME_PATTERN
from multigrain.storage import remedy
from multigrain_server.access.policy import Role
from multigrain_server.storage_errors import stamp

_log = structlog.get_logger(__name__)
_PREFIX = "mg_"
_RANDOM_BYTES = 32
_CHECK_SECONDS = 1.0


class TokenFileError(Exception):
    """The file cannot be used; the message says why, and repeats nothing of its content."""


class TokenEntry(Spec):
    """One token. ``name`` is what the log calls its holder.

    ``calls_per_second`` (that many may also come at once) and ``concurrent_calls`` (streams
    included) are limits; None = none.
    """

    name: str = Field(pattern=NAME_PATTERN)
    roles: tuple[Role, ...] = Field(min_length=1)
    # A token has 256 random bits: neither salt nor a slow hash would make it harder to guess.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    calls_per_second: float | None = Field(None, gt=0)
    concurrent_calls: int | None = Field(None, ge=1)


def _unlike(tokens: tuple[TokenEntry, ...]) -> tuple[TokenEntry, ...]:
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) < len(values):
            raise ValueError(f"two tokens have the same {field}")
    return tokens


_TOKENS: TypeAdapter[tuple[TokenEntry, ...]] = TypeAdapter(
    Annotated[tuple[TokenEntry, ...], AfterValidator(_unlike)]
)


@dataclass(frozen=True)
class NewToken:
    """A token, which nobody can be told again, and its entry for the file."""

    token: str
    entry: TokenEntry

    @classmethod
    def make(cls, name: str, roles: tuple[Role, ...]) -> NewToken:
        """Raises pydantic's ValidationError for a wrong name or no role."""
        token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        digest = hashlib.sha256(token.encode()).hexdigest()
        return cls(token, TokenEntry(name=name, roles=roles, sha256=digest))

    @classmethod
    def parse(cls, text: str) -> NewToken:
        """Of "NAME:ROLE,ROLE". Raises ValueError with how to write it."""
        name, _, roles = text.partition(":")
        try:
            return cls.make(name, tuple(Role(role.strip()) for role in roles.split(",")))
        except ValueError:
            known = ",".join(role.value for role in Role)
            raise ValueError(
                f'"{text[:80]}" is not NAME:ROLE,ROLE with a name of letters, digits, dots, '
                f"dashes or underscores, and roles of {known}"
            ) from None

    @property
    def line(self) -> str:
        """The entry as a line of the file's list."""
        roles = ", ".join(role.value for role in self.entry.roles)
        # Quoted: a hash may happen to look like a number.
        return f'- {{name: "{self.entry.name}", roles: [{roles}], sha256: "{self.entry.sha256}"}}'


class TokenFile:
    """Looks at the file at most once a second, and reads it when it has changed.

    One that has become unusable leaves the tokens as they were, and an error in the log.

    Args:
        path: of the file.

    Raises:
        TokenFileError: if it cannot be used at the start.
    """

    def __init__(self, path: Path, check_seconds: float = _CHECK_SECONDS) -> None:
        self._path = path
        self._check_seconds = check_seconds
        self._stamp = stamp(path)
        self._entries = read_tokens(path)
        self._checked = time.monotonic()

    def find(self, token: str) -> TokenEntry | None:
        """The entry of a token. The time it takes tells nothing about how near a guess was."""
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
            _log.error("tokens stay as they were", reason=str(error))
        else:
            _log.info("tokens read anew", tokens=len(self._entries))


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """Reads a list of ``{name, roles, sha256}``. Raises TokenFileError."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        todo = remedy(error, "read it", "give the file of tokens with --access-tokens")
        raise TokenFileError(f"{path}: {error.strerror}; {todo}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise TokenFileError(f"{path} is not YAML") from None
    try:
        return _TOKENS.validate_python(() if body is None else body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise TokenFileError(": ".join(filter(None, (str(path), where, message)))) from None

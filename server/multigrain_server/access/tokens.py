"""The token file, which has the SHA-256 of each token, never the token itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from multigrain.files import read_text
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
_RETRY_SECONDS = 30.0  # of a file that could not be read and has not changed
_MAX_BYTES = 4 << 20
_SMALL_BYTES = 16 << 10  # read at once: some hundred tokens, in some tens of milliseconds


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

    If a reload fails, or the file has become empty (as for a moment while an editor saves it), the
    previous tokens remain valid, an error is logged now and then, and ``stale_seconds`` grows. A
    list without entries, ``[]``, revokes all tokens.

    A large file is read in a thread: it takes seconds, in which calls must be answered.

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
        self._checked = self._tried = time.monotonic()
        self._stale_since: float | None = None
        self._reader: threading.Thread | None = None

    @property
    def stale_seconds(self) -> float:
        """For how long the file could not be read; 0 if the tokens are those of the file."""
        since = self._stale_since
        return 0.0 if since is None else time.monotonic() - since

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
        if self._reader is not None and self._reader.is_alive():
            return
        found = stamp(self._path)
        retry = self._stale_since is not None and now - self._tried >= _RETRY_SECONDS
        if found == self._stamp and not retry:
            return
        self._stamp, self._tried = found, now
        if found is None or found[2] <= _SMALL_BYTES:
            # Its log lines are not about the call that happens to come first.
            Context().run(self._reload)
        else:
            self._reader = threading.Thread(target=self._reload, name="tokens", daemon=True)
            self._reader.start()

    def _reload(self) -> None:
        try:
            self._entries = read_tokens(self._path, may_be_empty=False)
        except TokenFileError as error:
            if self._stale_since is None:
                self._stale_since = time.monotonic()
            _log.error("token file reload failed; keeping the previous tokens", reason=str(error))
        else:
            self._stale_since = None
            _log.info("token file reloaded", tokens=len(self._entries))


def read_tokens(path: Path, *, may_be_empty: bool = True) -> tuple[TokenEntry, ...]:
    """Reads a token file, a list of ``{name, roles, sha256}``.

    Args:
        path: the file.
        may_be_empty: whether a file without any content is a list without entries.

    Raises:
        TokenFileError: if it cannot be read or is invalid.
    """
    try:
        body = parse_yaml(read_text(path, max_bytes=_MAX_BYTES), str(path))
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
    if body is None and not may_be_empty:
        raise TokenFileError(f"{path} is empty; write [] into it to revoke all tokens")
    try:
        return _TOKENS.validate_python(() if body is None else body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise TokenFileError(": ".join(filter(None, (str(path), where, message)))) from None

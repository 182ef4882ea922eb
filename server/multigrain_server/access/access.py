"""Decides whether a call may run."""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.config import AccessConfig
from multigrain_server.access.limits import ClientStreams, TokenLimits
from multigrain_server.access.policy import RULES, Role, Rule, Special, page_rule
from multigrain_server.access.tokens import TokenEntry, TokenFile

_HEADER = "authorization"
_UNLIMITED = nullcontext()
_ANYBODY = nullcontext("")
Metadata = Iterable[tuple[str, str | bytes]]


class Access:
    """Checks the token, role and limits of each call.

    Args:
        config: the settings.

    Raises:
        TokenFileError: if the token file cannot be used.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._tokens = TokenFile(config.tokens) if config.tokens is not None else None
        self._limits: defaultdict[str, TokenLimits] = defaultdict(TokenLimits)
        self._streams = ClientStreams(config)
        self._open: set[Rule] = {
            special
            for special, setting in (
                (Special.HEALTH, config.health),
                (Special.REFLECTION, config.reflection),
                (Special.PAGES, config.pages),
            )
            if setting == "open"
        }

    @property
    def needs_tokens(self) -> bool:
        """Whether there are tokens, so that a call without one is not authorized."""
        return self._tokens is not None

    def tokens_stale_seconds(self) -> float:
        """For how long the token file could not be read; 0 without one."""
        return self._tokens.stale_seconds if self._tokens is not None else 0.0

    def enter(
        self, method: str, metadata: Metadata, *, stream_from: str = ""
    ) -> AbstractContextManager[str]:
        """Surrounds a call that may run; yields the name of its token, or "".

        Errors are raised when the block is entered.

        Args:
            method: ``/package.Service/Method``.
            metadata: the metadata of the call.
            stream_from: the peer as reported by gRPC, if the call is a stream.

        Raises:
            MultigrainError: UNAUTHENTICATED without a known token, FORBIDDEN without a role,
                OVERLOADED beyond the limits of the token or the client.
        """
        if self._tokens is None and not stream_from:
            return _ANYBODY
        return self._enter(method, metadata, stream_from)

    @contextmanager
    def _enter(self, method: str, metadata: Metadata, stream_from: str) -> Iterator[str]:
        entry = self._check(RULES.get(method), metadata)
        name = entry.name if entry is not None else ""
        with (
            self._limits[name].enter(entry) if entry is not None else _UNLIMITED,
            self._streams.enter(method, name, stream_from) if stream_from else _UNLIMITED,
        ):
            yield name

    @contextmanager
    def enter_page(self, path: str, authorization: Iterable[str]) -> Iterator[str]:
        """The same for a path of the HTTP address and the values of its Authorization header."""
        entry = self._check(page_rule(path), [(_HEADER, value) for value in authorization])
        if entry is None:
            yield ""
            return
        with self._limits[entry.name].enter(entry):
            yield entry.name

    def _check(self, rule: Rule | None, metadata: Metadata) -> TokenEntry | None:
        if self._tokens is None:
            return None
        if rule in self._open:
            return None
        entry = self._find(self._tokens, metadata)
        if rule is None:
            raise MultigrainError(ErrorKind.FORBIDDEN, "method is not allowed by the access policy")
        allowed = {Role.ADMIN, *(rule.roles if isinstance(rule, Special) else rule)}
        if allowed & set(entry.roles):
            return entry
        roles = " or ".join(sorted(role.value for role in allowed))
        raise MultigrainError(
            ErrorKind.FORBIDDEN, f"the token of {entry.name} needs the role {roles}"
        )

    def _find(self, tokens: TokenFile, metadata: Metadata) -> TokenEntry:
        values = [value for key, value in metadata if key == _HEADER]
        if not values:
            raise MultigrainError(
                ErrorKind.UNAUTHENTICATED,
                'missing token: send it as metadata "authorization: Bearer TOKEN"',
            )
        value = values[0]
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        entry = tokens.find(_token(text)) if len(values) == 1 else None
        if entry is None:
            raise MultigrainError(ErrorKind.UNAUTHENTICATED, "unknown token")
        return entry


def _token(authorization: str) -> str:
    """The token in the value of the header; "" if it has none."""
    scheme, _, rest = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":  # from browsers: any user name, and the token as the password
            try:
                pair = base64.b64decode(rest.strip(), validate=True).decode("latin-1")
            except (binascii.Error, ValueError):
                return ""
            return pair.partition(":")[2]
    return ""

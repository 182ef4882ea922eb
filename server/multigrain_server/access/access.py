"""The decision about one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.config import AccessConfig
from multigrain_server.access.limits import HolderLimits
from multigrain_server.access.policy import RULES, Rule, Special
from multigrain_server.access.role import Role
from multigrain_server.access.tokens import TokenEntry, TokenFile

_HEADER = "authorization"
_SCHEME = "bearer "
Metadata = Iterable[tuple[str, str | bytes]]


class Access:
    """Lets a call pass, or says why not.

    Raises:
        TokenFileError: if the file of tokens cannot be used.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._tokens = TokenFile(config.tokens) if config.tokens is not None else None
        self._limits: defaultdict[str, HolderLimits] = defaultdict(HolderLimits)
        self._open: set[Rule] = {
            special
            for special, setting in (
                (Special.HEALTH, config.health),
                (Special.REFLECTION, config.reflection),
            )
            if setting == "open"
        }

    @contextmanager
    def enter(self, method: str, metadata: Metadata) -> Iterator[str]:
        """Lets a call of ``/package.Service/Method`` run; the holder's name, or "" for none.

        Raises:
            MultigrainError: UNAUTHENTICATED without a known token, FORBIDDEN without a role,
                OVERLOADED beyond the token's limits.
        """
        entry = self._check(method, metadata)
        if entry is None:
            yield ""
            return
        with self._limits[entry.name].enter(entry):
            yield entry.name

    def _check(self, method: str, metadata: Metadata) -> TokenEntry | None:
        if self._tokens is None:
            return None
        rule = RULES.get(method)
        if rule in self._open:
            return None
        entry = self._holder(self._tokens, metadata)
        if rule is None:
            raise MultigrainError(ErrorKind.FORBIDDEN, "nobody may call this")
        allowed = {Role.ADMIN, *(Role if isinstance(rule, Special) else rule)}
        if allowed & set(entry.roles):
            return entry
        roles = " or ".join(sorted(role.value for role in allowed))
        raise MultigrainError(
            ErrorKind.FORBIDDEN, f"the token of {entry.name} may not call this: it needs {roles}"
        )

    def _holder(self, tokens: TokenFile, metadata: Metadata) -> TokenEntry:
        values = [value for key, value in metadata if key == _HEADER]
        if not values:
            raise MultigrainError(
                ErrorKind.UNAUTHENTICATED,
                'a token is needed: send it as metadata "authorization: Bearer TOKEN"',
            )
        value = values[0]
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        entry = None
        if len(values) == 1 and text[: len(_SCHEME)].lower() == _SCHEME:
            entry = tokens.find(text[len(_SCHEME) :].strip())
        if entry is None:
            raise MultigrainError(ErrorKind.UNAUTHENTICATED, "the token is not known here")
        return entry

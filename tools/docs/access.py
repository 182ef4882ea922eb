"""Which role may make which call."""

from __future__ import annotations

from collections.abc import Iterator

from tools.docs.markdown import code, table
from tools.docs.product import RULES, Role, Special


def render() -> str:
    """Every call with the roles that may make it."""
    rows: list[list[str]] = []
    for path, rule in RULES.items():
        service, _, call = path.removeprefix("/").partition("/")
        rows.append([code(service.rpartition(".")[2]), code(call), ", ".join(_roles(rule))])
    return table(["service", "call", "roles"], rows)


def _roles(rule: frozenset[Role] | Special) -> Iterator[str]:
    if isinstance(rule, Special):
        yield f"see {code(f'access.{rule.value}')}"
    elif rule == frozenset(Role):
        yield "any"
    else:
        yield from sorted(code(role.value) for role in rule | {Role.ADMIN})

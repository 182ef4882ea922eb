"""Kinds of errors, their gRPC status, and the exceptions of the Python client."""

from __future__ import annotations

from tools.docs.markdown import code, prose, table
from tools.docs.product import CLIENT_ERRORS, STATUS_OF, ErrorKind, MultigrainClientError
from tools.docs.protos import enum_comments


def render_kinds() -> str:
    """Each kind with its number, status and meaning."""
    comments = enum_comments("multigrain.v1.ErrorKind")
    rows = []
    for kind in ErrorKind:
        text = comments[f"ERROR_KIND_{kind.name}"].rpartition(" -> ")
        rows.append(
            [f"{code(kind.name)} = {kind.value}\n{STATUS_OF[kind].name}", prose(text[0] or text[2])]
        )
    return table(["kind and gRPC status", "meaning"], rows)


def render_exceptions() -> str:
    """Each exception of the client with the status that it stands for."""
    codes: dict[type[MultigrainClientError], list[str]] = {}
    for status, error in CLIENT_ERRORS.items():
        codes.setdefault(error, []).append(status.name)
    rows = [
        [
            f"[{code(error.__name__)}][multigrain_client.{error.__name__}]",
            ", ".join(code(name) for name in names),
        ]
        for error, names in codes.items()
    ]
    return table(["exception", "gRPC status"], rows)

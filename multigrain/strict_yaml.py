"""Specifications as YAML text, and single fields as ``path=value``.

The scalars are those of YAML 1.2: ``1e-4`` is a number and ``no`` a word, where YAML 1.1
(PyYAML's default) would read a text and a truth value.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from multigrain.errors import ErrorKind, MultigrainError

# A specification is a page of text; a larger file is some other file.
MAX_BYTES = 1 << 20

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 scalars that refuses duplicate keys and aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # An alias inside an alias inside an alias is how a page of YAML fills the memory.
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "aliases (*name) are not allowed in a specification",
                self.get_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(
                None, None, "expected fields here", node.start_mark
            )
        seen: dict[object, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                raise yaml.constructor.ConstructorError(
                    None, None, "a field's name must be a word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"'{key.value}' is set twice, first in line {seen[key.value]}",
                    key.start_mark,
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]{1,400}$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def load_spec_file(path: Path) -> dict[str, Any]:
    """The fields that a user's YAML file sets, for ``multigrain.specs.resolve``.

    Raises:
        MultigrainError: INVALID_FIELD with the line, if the file is not a YAML mapping, sets
            a key twice or is too large; NOT_FOUND if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MultigrainError(
            ErrorKind.NOT_FOUND, f"cannot read {path}: {error.strerror or error}"
        ) from None
    if len(data) > MAX_BYTES:
        raise _refused(path.name, f"has more than {MAX_BYTES} bytes, which no specification has")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(path.name, f"is not UTF-8 text (byte {error.start})") from None
    return parse_mapping(text, path.name)


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping of a YAML text; ``name`` says in errors where the text comes from."""
    value = _load(text, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refused(name, "must hold fields, such as 'preset: digits-demo'")
    return value


def overrides_from_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Nested overrides from texts such as ``schedule.epochs=3``.

    The value is a YAML scalar or a list (``schedule.learning_rate.milestones=[30, 60]``);
    an empty one is the empty text. A later assignment of the same field wins.

    Raises:
        MultigrainError: INVALID_FIELD, naming the assignment that cannot be read.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            raise _refused(f"'{assignment}'", "is not of the form field.path=value")
        value = _load(text, f"'{assignment}'") if text.strip() else ""
        if isinstance(value, dict):
            raise _refused(f"'{assignment}'", "sets a group; set its fields one by one")
        *groups, name = key.removeprefix("spec.").split(".")
        target = overrides
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise _refused(f"'{assignment}'", f"'{group}' was given a value before")
        if isinstance(target.get(name), dict):
            raise _refused(f"'{assignment}'", "is a group whose fields were set before")
        target[name] = value
    return overrides


def _load(text: str, name: str) -> Any:
    try:
        # _Loader is a SafeLoader: it makes plain values only.
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _refused(f"{name}{where}", error.problem or "cannot be read as YAML") from None
    except yaml.YAMLError as error:  # characters that YAML forbids
        raise _refused(name, f"cannot be read as YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError):  # "!!int abc"; brackets nested without end
        raise _refused(name, "cannot be read as YAML: a value is malformed") from None


def _refused(where: str, problem: str) -> MultigrainError:
    return MultigrainError(ErrorKind.INVALID_FIELD, f"{where}: {problem}")

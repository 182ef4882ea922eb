"""YAML for specifications and configuration, with everything ambiguous refused.

Scalars follow YAML 1.2: ``1e-4`` is a number and ``no`` a string, where YAML 1.1 (PyYAML's
default) reads a string and a boolean. Refused are keys that are set twice, anchors and aliases,
tags (``!!float 1:30``), and numbers that YAML versions read differently (``010`` is 8 or 10,
``1_6`` is 16 or a string). So is what is nested deeper than any document of the project.

Needs PyYAML only, so that the client can use it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from multigrain.files import FileTooLargeError, NotRegularError, read_bytes

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
# What a shell or a caller has opened already, such as <(...): it may be a pipe.
_DESCRIPTOR = re.compile(r"/dev/stdin|(/dev|/proc/self)/fd/[0-9]{1,6}")

_AMBIGUOUS = "!ambiguous"
_STRING = "tag:yaml.org,2002:str"


class YamlError(ValueError):
    """The text is refused; the message names the file, the line and the key."""


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 scalars that refuses what is ambiguous."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute
    depth = 0

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        # PyYAML scans ahead of what is composed, in a time quadratic in the number of brackets.
        if self.flow_level >= MAX_DEPTH:
            _refuse(f"nested too deeply, more than {MAX_DEPTH} levels", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Aliases inside aliases inside aliases are how a page of YAML fills the memory.
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            # PyYAML passes the key of a mapping's value, or the position in a list.
            key = f"'{index.value}': " if isinstance(index, yaml.ScalarNode) else ""
            _refuse(f"{key}anchors (&name) and aliases (*name) are not allowed", event.start_mark)
        # PyYAML's constructors read YAML 1.1 and raise any exception for a value that they reject.
        if getattr(event, "tag", None) not in (None, _STRING):
            _refuse("tags (!name, !!name) are not allowed, except !!str", event.start_mark)
        # PyYAML's scanner takes a time quadratic in the depth, and its composer recurses.
        if self.depth >= MAX_DEPTH:
            _refuse(f"nested too deeply, more than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            _refuse("expected fields here", node.start_mark)
        seen: dict[object, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                _refuse("the name of a field must be a string", key.start_mark)
            if key.value in seen:
                _refuse(
                    f"'{key.value}' is set twice, first in line {seen[key.value]}", key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
            if value.tag == _AMBIGUOUS:
                _refuse_number(value, f"'{key.value}': ")
        return super().construct_mapping(node, deep=deep)


def _refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, mark)


def _refuse_number(node: yaml.ScalarNode, key: str = "") -> NoReturn:
    _refuse(
        f"{key}{node.value} is ambiguous; write a number without leading zeros and underscores, or "
        "a string in quotes",
        node.start_mark,
    )


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


def _ambiguous(loader: _Loader, node: yaml.ScalarNode) -> NoReturn:
    _refuse_number(node)


# The first one that matches wins.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver(
    _AMBIGUOUS,
    re.compile(
        r"^[-+]?(0[0-9]+|(?=[^_]*_)([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9_]+)?)$"
    ),
    list("-+0123456789."),
)
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
_Loader.add_constructor(_AMBIGUOUS, _ambiguous)


def load_yaml_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file gives an empty one.

    Raises:
        YamlError: if the file is not a YAML mapping, is ambiguous, or is larger than 1 MiB.
        OSError: if it cannot be read, or is no regular file.
    """
    try:
        if _DESCRIPTOR.fullmatch(str(path)):
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            data = read_bytes(path, max_bytes=MAX_BYTES)
    except NotRegularError as error:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
        raise
    except FileTooLargeError:
        data = b" " * (MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise YamlError(f"{path.name}: is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"{path.name}: is not UTF-8 text (byte {error.start})") from None
    return parse_mapping(text, path.name)


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Args:
        text: the YAML; empty text gives an empty mapping.
        name: where the text comes from, for errors.

    Raises:
        YamlError: as ``load_yaml_file``.
    """
    value = parse_yaml(text, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise YamlError(f"{name}: must hold fields, such as 'key: value'")
    return value


def parse_yaml(text: str, name: str) -> Any:
    """The value in a YAML text, which may be a list or None; otherwise as ``parse_mapping``."""
    try:
        # _Loader is a SafeLoader: it makes plain values only.
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or "cannot be read as YAML"
        if problem.startswith("but ") and error.context:  # "expected a single document ..."
            problem = f"{error.context}, {problem}"
        raise YamlError(f"{name}{where}: {problem}") from None
    except yaml.YAMLError as error:  # characters that YAML forbids
        problem = str(error).splitlines()[0]
        raise YamlError(f"{name}: cannot be read as YAML: {problem}") from None
    except RecursionError:
        raise YamlError(f"{name}: cannot be read as YAML: it is nested too deeply") from None

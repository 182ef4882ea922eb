"""Reads the configuration; a flag wins over the environment, that over the file, that over the
default.

pydantic-settings is not used: with the names of flags, comma-separated lists in the environment and
errors that say where a value was given, what remains of it needs more code than this.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from multigrain.specs.violations import nearest
from multigrain.storage import os_error_hint
from multigrain.strict_yaml import YamlError, load_yaml_file
from multigrain_server.config import ServerConfig

PREFIX = "MULTIGRAIN_"
FILE_VARIABLE = "MULTIGRAIN_CONFIG"


# As in YAML 1.2, without leading zeros and underscores.
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,399})")  # int() refuses thousands of digits
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class ConfigError(Exception):
    """The configuration is wrong; the message says where and how to fix it."""


@dataclass(frozen=True)
class Option:
    """A configuration key, such as ``("grpc", "max_message_mib")``."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + "__".join(self.path).upper()

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.info.annotation) in (tuple, list)

    @property
    def is_switch(self) -> bool:
        return self.info.annotation is bool

    @property
    def metavar(self) -> str:
        if typing.get_origin(self.info.annotation) is Literal:
            return "|".join(str(value) for value in typing.get_args(self.info.annotation))
        return self.path[-1].rpartition("_")[2].upper()


@dataclass(frozen=True)
class CommandLine:
    """The parsed command line."""

    config: ServerConfig
    print_config: bool
    new_token: str = ""
    rebuild_index: bool = False


def options(model: type[BaseModel] = ServerConfig, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every key of the configuration, in order."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from options(kind, (*path, name))
        else:
            yield Option((*path, name), info)


def build_parser() -> argparse.ArgumentParser:
    """The command line, with a flag for each key."""
    parser = argparse.ArgumentParser(
        prog="multigrain-server",
        description="Trains, evaluates, exports and serves MultiGrain models over gRPC. "
        "`multigrain-server doctor`, with the same flags, checks this machine instead and suggests "
        "fixes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"Configuration file (YAML). [{FILE_VARIABLE}]"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="Print the resulting configuration and exit."
    )
    parser.add_argument(
        "--new-token",
        metavar="NAME:ROLE,ROLE",
        default="",
        help="Create a token: print its line for the token file, and the token itself to standard "
        "error, then exit.",
    )
    parser.add_argument(
        "--rebuild-index",
        action="store_true",
        help="Move the index of jobs aside, rebuild it from the job folders and exit; no daemon "
        "may be using the data directory.",
    )
    for option in options():
        default = option.info.get_default()
        text = f"{option.info.description or ''} [{option.variable}; default: {default}]"
        settings: dict[str, Any] = {"dest": option.key, "default": None}
        settings["help"] = text.replace("%", "%%")
        if option.is_switch:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = option.metavar
            if option.is_list:
                settings["action"] = "append"
                settings["help"] = "Repeatable. " + settings["help"]
        parser.add_argument(option.flag, **settings)
    return parser


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> CommandLine:
    """Reads file, environment and flags.

    Args:
        arguments: the command line, without the program's name.
        environment: as ``os.environ``.

    Raises:
        ConfigError: for an unknown key, an unreadable file or an invalid value.
        SystemExit: for ``--help`` and flags without a value.
    """
    parser = build_parser()
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [action for group in parser._actions for action in group.option_strings]
        raise ConfigError(f"unknown argument {unknown[0]}{_hint(unknown[0], known)}")
    values: dict[str, Any] = {}
    _check_variables(environment)
    sources: dict[str, str] = {}
    file = flags.config or environment.get(FILE_VARIABLE)
    if file:
        values = _read_file(Path(file))
    for option in options():
        if option.variable in environment:
            _put(values, option.path, _from_text(option, environment[option.variable]))
            sources[option.key] = option.variable
        flag = getattr(flags, option.key)
        if flag is not None:
            _put(values, option.path, flag)
            sources[option.key] = option.flag
    for option in options():
        _check_number(option, values, sources.get(option.key, file or ""))
    try:
        config = ServerConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, sources, file or "")) from None
    for option in options():
        value = functools.reduce(getattr, option.path, config)
        if isinstance(value, float) and not math.isfinite(value):
            where = sources.get(option.key, file)
            raise ConfigError(f"{option.key}: is {value}: must be a finite number (from {where})")
    return CommandLine(config, flags.print_config, flags.new_token, flags.rebuild_index)


def dump(config: ServerConfig) -> str:
    """The configuration as YAML with a comment for each key; ``--config`` reads it."""
    lines: list[str] = []
    section: tuple[str, ...] = ()
    values = config.model_dump(mode="json")
    for option in options():
        if option.path[:-1] != section:
            section = option.path[:-1]
            lines += ["", f"{section[-1]}:"]
        indent = "  " * len(section)
        value: Any = values
        for name in option.path:
            value = value[name]
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
        text = text.removesuffix("...\n").strip()
        lines += [f"{indent}# {option.info.description}", f"{indent}{option.path[-1]}: {text}"]
    return "\n".join(lines) + "\n"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        body = load_yaml_file(path)
    except OSError as error:
        todo = os_error_hint(error, "read it", "give the configuration file with --config")
        raise ConfigError(f"{path}: {error.strerror}; {todo}") from None
    except YamlError as error:
        raise ConfigError(f"{str(path).removesuffix(path.name)}{error}") from None
    _check_keys(body, ServerConfig, str(path), "")
    return body


def _check_keys(body: dict[Any, Any], model: type[BaseModel], file: str, prefix: str) -> None:
    for key, value in list(body.items()):
        if key not in model.model_fields:
            hint = _hint(str(key), list(model.model_fields))
            raise ConfigError(f"{file}: unknown key {prefix}{key}{hint}")
        kind = model.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if value is None:  # "serving:" and nothing below it: the defaults
                del body[key]
                continue
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {prefix}{key} must contain keys and values")
            _check_keys(value, kind, file, f"{prefix}{key}.")


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuses unknown variables of a section, such as MULTIGRAIN_SERVING__MAX_BTCH.

    Others may belong to something else: Kubernetes sets MULTIGRAIN_SERVING_PORT.
    """
    known = [option.variable for option in options()]
    for name in environment:
        if name.startswith(PREFIX) and "__" in name and name not in known:
            raise ConfigError(f"unknown environment variable {name}{_hint(name, known)}")


def _from_text(option: Option, text: str) -> Any:
    if option.is_list:
        return [part for part in (piece.strip() for piece in text.split(",")) if part]
    return text


def _check_number(option: Option, values: Mapping[str, Any], where: str) -> None:
    """Checks how a number is written, by one rule wherever it was given.

    pydantic would accept "1_000", " 5 ", "010" and true.

    Raises:
        ConfigError: if it is written in another way.
    """
    kind = option.info.annotation
    if kind not in (int, float):
        return
    section = functools.reduce(lambda found, name: found.get(name, {}), option.path[:-1], values)
    value = section.get(option.path[-1])
    whole = kind is int
    if isinstance(value, str):
        wrong = (_WHOLE if whole else _DECIMAL).fullmatch(value) is None
    else:
        wrong = isinstance(value, bool) or (whole and isinstance(value, float))
    if wrong:
        rule = "8, a whole number" if whole else "8, 0.5 or 1e-3, a finite number"
        raise ConfigError(
            f"{option.key}: is {value!r}: must be, in plain digits such as {rule} (from {where})"
        )


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _hint(word: str, known: Sequence[str]) -> str:
    guess = nearest(word, known)
    return f"; did you mean {guess}?" if guess else ""


def _explain(error: ValidationError, sources: Mapping[str, str], file: str) -> str:
    """What is wrong and where it was given: by a flag, a variable or else the file."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
        message = message.removesuffix(" for <class 'pathlib.Path'>")
        # The project's validators name the value; pydantic's do not.
        if not item["type"].startswith("value_error") and isinstance(
            item["input"], (str, int, float)
        ):
            message = f"is {item['input']!r}: {message[:1].lower()}{message[1:]}"
        where = sources.get(key, file)
        parts.append(f"{key}: {message}{f' (from {where})' if where else ''}" if key else message)
    return "; ".join(parts)

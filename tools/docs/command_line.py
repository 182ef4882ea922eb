"""The two programs, from their argument parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from tools.docs.markdown import code, fence, prose, table
from tools.docs.product import client_parser, options, server_parser


def render_commands() -> str:
    """Name and purpose of each command of ``multigrain``."""
    rows = [[f"[{code(name)}](#{name})", prose(text)] for name, text, _ in _commands()]
    return table(["command", "what it does"], rows)


def render_shared() -> str:
    """What every command of ``multigrain`` takes."""
    return _table(_shared())


def render_options() -> str:
    """Usage and arguments of each command of ``multigrain``."""
    shared = {option for action in _shared() for option in action.option_strings}
    parts = []
    for name, _, parser in _commands():
        own = [
            action
            for action in parser._actions
            if not shared.issuperset(action.option_strings or ["positional"])
        ]
        parts += [f"### {name}", fence(_usage(f"multigrain {name}", own), "text"), _table(own)]
    return "\n\n".join(part for part in parts if part)


def render_server() -> str:
    """Arguments of ``multigrain-server`` that are no keys of the configuration."""
    keys = {option.flag for option in options()}
    return _table(
        action
        for action in server_parser()._actions
        if keys.isdisjoint(action.option_strings) and action.dest != "help"
    )


def _commands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in client_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, parser in action.choices.items():
                yield name, texts[name], parser


def _shared() -> list[argparse.Action]:
    return [
        action
        for action in client_parser()._actions
        if action.option_strings and action.dest not in ("help", "version")
    ] + [argparse._HelpAction(["-h", "--help"], help="show a command's arguments and exit")]


def _usage(program: str, actions: Iterable[argparse.Action]) -> str:
    words = [program]
    for action in actions:
        if not action.option_strings:
            value = _value(action)
            words.append(f"[{value}]" if action.nargs in ("?", "*") else value)
    return " ".join([*words, "[OPTIONS]"])


def _table(actions: Iterable[argparse.Action]) -> str:
    rows = []
    for action in actions:
        value = _value(action)
        names = [code(f"{name} {value}".strip()) for name in action.option_strings]
        text = prose((action.help or "").replace("%%", "%"))
        choices = " ".join(code(str(choice)) for choice in action.choices or ())
        meaning = f"{text}; {choices}" if text and choices else text or choices
        rows.append([", ".join(names) or code(value), meaning])
    return table(["argument", "meaning"], rows) if rows else ""


def _value(action: argparse.Action) -> str:
    """What stands for the value of an argument; nothing for a switch."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ""
    name = action.metavar or action.dest.upper().replace("_", "-")
    value = name if isinstance(name, str) else " ".join(name)
    return f"{value}..." if action.nargs in ("+", "*") else value

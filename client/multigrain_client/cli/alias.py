"""multigrain alias"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("alias", help="such as production")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", help="a loaded name@version")
    what.add_argument("--remove", action="store_true", help="remove the alias")


def run(context: Context) -> int:
    arguments = context.arguments
    model = "" if arguments.remove else arguments.model
    with context.connect() as client:
        client.set_alias(arguments.alias, model)
    context.output.data({"alias": arguments.alias, "model": model})
    context.output.line(f"{arguments.alias} -> {model}" if model else f"{arguments.alias}  removed")
    return OK


COMMAND = Command("alias", "point an alias at a loaded model", configure, run, call="SetAlias")

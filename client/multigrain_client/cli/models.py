"""multigrain models"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import MODEL_HEAD, model_row
from multigrain_client.json_format import to_plain


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="only versions of this model")
    parser.add_argument("--loaded", action="store_true", help="only what answers requests")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        found = list(client.models(arguments.name, loaded_only=arguments.loaded))
    context.output.data([to_plain(model) for model in found])
    context.output.table(MODEL_HEAD, [model_row(model) for model in found])
    return OK


COMMAND = Command("models", "list models", configure, run)

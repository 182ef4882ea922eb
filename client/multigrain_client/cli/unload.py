"""multigrain unload"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import model_name


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or name@version")


def run(context: Context) -> int:
    with context.connect() as client:
        model = client.unload_model(context.arguments.model, timeout=context.arguments.timeout)
    context.output.data(model)
    context.output.line(f"{model_name(model)}  unloaded")
    return OK


COMMAND = Command(
    "unload",
    "stop serving a model, after the requests in flight",
    configure,
    run,
    call="UnloadModel",
)

"""multigrain import"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import model_name
from multigrain_client.cli.values import count


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of a bundle, or a tar of it, here")
    parser.add_argument("--name", default="", help="in the registry; default: the bundle's own")
    parser.add_argument(
        "--version", type=count, default=0, metavar="N", help="default: the next free one"
    )


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        model = client.import_model(
            arguments.bundle,
            name=arguments.name,
            version=arguments.version,
            timeout=arguments.timeout,
        )
    context.output.data(model)
    context.output.line(
        f"{model_name(model)}  imported; serve it with: multigrain load {model_name(model)}"
    )
    return OK


COMMAND = Command(
    "import", "send a model bundle to the server's registry", configure, run, call="ImportModel"
)

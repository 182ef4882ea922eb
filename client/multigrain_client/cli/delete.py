"""multigrain delete"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("job", nargs="?", help="id of an ended job")
    what.add_argument("--model", metavar="NAME@VERSION", help="a model that is not loaded")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        if arguments.model:
            client.delete_model(arguments.model)
        else:
            client.delete_job(arguments.job)
    deleted = arguments.model or arguments.job
    context.output.data({"deleted": deleted})
    context.output.line(f"{deleted}  deleted")
    return OK


COMMAND = Command(
    "delete", "remove an ended job and its checkpoints, or a model, from disk", configure, run
)

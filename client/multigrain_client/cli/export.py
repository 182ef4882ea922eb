"""multigrain export"""

from __future__ import annotations

import argparse
import os

from multigrain_client.cli.command import Command, Context
from multigrain_client.cli.follow import started
from multigrain_client.cli.values import add_settings, pairs


def configure(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--job", help="training job whose weights are exported")
    weights.add_argument(
        "--checkpoint-path", metavar="PATH", help="checkpoint or weights file on the server's host"
    )
    parser.add_argument("--checkpoint", help="with --job: last (default), best or a step")
    parser.add_argument("--model-name", help="name in the registry")
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        help="mindir, onnx or air (Ascend only); repeatable; default mindir and onnx",
    )
    add_settings(parser)


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        job = client.export(
            arguments.spec,
            job=arguments.job,
            checkpoint_path=arguments.checkpoint_path
            and os.path.abspath(arguments.checkpoint_path),
            checkpoint=arguments.checkpoint,
            model_name=arguments.model_name,
            formats=arguments.formats,
            name=arguments.name,
            labels=pairs(arguments.labels),
            **pairs(arguments.settings),
        )
        return started(context, client, job)


COMMAND = Command(
    "export", "start an export job, which writes a model bundle", configure, run, call="StartExport"
)

"""multigrain evaluate"""

from __future__ import annotations

import argparse
import os

from multigrain_client.cli.command import Command, Context
from multigrain_client.cli.follow import started
from multigrain_client.cli.values import add_settings, pairs


def configure(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--job", help="training job whose weights are evaluated")
    weights.add_argument(
        "--checkpoint-path", metavar="PATH", help="checkpoint or weights file on the server's host"
    )
    weights.add_argument("--model", help="model of the registry")
    parser.add_argument("--checkpoint", help="with --job: last (default), best or a step")
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        help="the images, on the server's host (a relative path is taken from here): one "
        "sub-folder a class or group, or a published benchmark's own layout",
    )
    parser.add_argument(
        "--task",
        dest="tasks",
        action="append",
        help="classification, copy_detection, groups (repeatable; default the first two), or one "
        "of gem_p, holidays, ukb, copydays",
    )
    parser.add_argument(
        "--transform",
        choices=("crop", "rect"),
        help="crop (default): the centre, as in serving; rect: the whole picture, its largest side "
        "scaled to the resolution",
    )
    parser.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="default: that of the training"
    )
    parser.add_argument(
        "--group-queries",
        choices=("all", "first"),
        help="with groups: every image is a query (default), or the first of each group",
    )
    add_settings(parser)


def run(context: Context) -> int:
    arguments = context.arguments
    options = ("transform", "resolution", "group_queries")
    chosen = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    with context.connect() as client:
        job = client.evaluate(
            arguments.spec,
            job=arguments.job,
            checkpoint_path=arguments.checkpoint_path
            and os.path.abspath(arguments.checkpoint_path),
            model=arguments.model,
            checkpoint=arguments.checkpoint,
            dataset_path=arguments.dataset and os.path.abspath(arguments.dataset),
            tasks=arguments.tasks,
            name=arguments.name,
            labels=pairs(arguments.labels),
            **{**chosen, **pairs(arguments.settings)},
        )
        return started(context, client, job)


COMMAND = Command("evaluate", "start an evaluation job", configure, run, call="StartEvaluation")

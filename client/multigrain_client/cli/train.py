"""multigrain train"""

from __future__ import annotations

import argparse
import os

from multigrain_client.cli.command import Command, Context
from multigrain_client.cli.follow import started
from multigrain_client.cli.values import add_settings, pairs


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="preset that everything not given is taken from")
    parser.add_argument(
        "--train",
        metavar="FOLDER",
        help="dataset.train_path: one sub-folder of images a class, on the server's host "
        "(a relative path is taken from here)",
    )
    parser.add_argument("--val", metavar="FOLDER", help="dataset.val_path, likewise")
    parser.add_argument("--request-id", help="idempotency key; default: a new one")
    add_settings(parser)


def run(context: Context) -> int:
    arguments = context.arguments
    overrides = pairs(arguments.settings)
    for flag, key in (("train", "dataset.train_path"), ("val", "dataset.val_path")):
        folder = getattr(arguments, flag)
        if folder is not None:
            overrides[key] = os.path.abspath(folder)
    with context.connect() as client:
        job = client.start_training(
            arguments.spec,
            preset=arguments.preset,
            name=arguments.name,
            labels=pairs(arguments.labels),
            request_id=arguments.request_id,
            **overrides,
        )
        return started(context, client, job)


COMMAND = Command("train", "start a training job", configure, run, call="StartTraining")

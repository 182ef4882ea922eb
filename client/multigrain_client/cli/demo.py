"""multigrain demo"""

from __future__ import annotations

import argparse
from pathlib import Path

from multigrain_client.cli.command import Command, Context


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", default="demo-out", help="folder to write to (default demo-out)"
    )
    parser.add_argument("--size", type=int, help="side of images and model input (default 32)")
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    parser.add_argument("--workers", type=int, default=2, help="training processes (default 2)")


def run(context: Context) -> int:
    # Imported here: it needs what only the server installs.
    from multigrain_client.demo.run import DemoOptions, run_demo

    arguments = context.arguments
    options = DemoOptions(
        out=Path(arguments.out),
        size=arguments.size,
        epochs=arguments.epochs,
        workers=arguments.workers,
    )
    return run_demo(options, context.output)


COMMAND = Command(
    "demo", "train, evaluate, export and serve on real digits, on this machine", configure, run
)

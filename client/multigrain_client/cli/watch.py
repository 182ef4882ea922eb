"""multigrain watch"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import Command, Context
from multigrain_client.cli.follow import follow


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="id of the job")
    parser.add_argument(
        "--after-seq", type=int, default=0, metavar="N", help="only events after this one"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="in a pipe: show every Nth step only"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines also on a terminal")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        return follow(
            client,
            client.job(arguments.job),
            context.output,
            after_seq=arguments.after_seq,
            every=arguments.every,
            plain=arguments.plain,
        )


COMMAND = Command("watch", "show the progress of a job until it ends", configure, run)

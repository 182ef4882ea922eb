"""multigrain jobs"""

from __future__ import annotations

import argparse
from itertools import islice

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import JOB_HEAD, job_lines, job_row
from multigrain_client.cli.values import count, label, pairs
from multigrain_client.json_format import to_plain


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="id of one job, to show all of it")
    parser.add_argument(
        "--state", dest="states", action="append", default=[], help="such as running; repeatable"
    )
    parser.add_argument(
        "--kind",
        dest="kinds",
        action="append",
        default=[],
        help="training, evaluation or export; repeatable",
    )
    parser.add_argument("--label", dest="labels", action="append", type=label, metavar="KEY=VALUE")
    parser.add_argument("--name", default="", help="part of the name")
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="default 50; 0 = all")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        if arguments.job:
            job = client.job(arguments.job)
            context.output.data(job)
            for line in job_lines(job):
                context.output.line(line)
            return OK
        matching = client.jobs(
            states=arguments.states,
            kinds=arguments.kinds,
            labels=pairs(arguments.labels),
            name_contains=arguments.name,
        )
        found = list(islice(matching, arguments.limit or None))
    context.output.data([to_plain(job) for job in found])
    context.output.table(JOB_HEAD, [job_row(job) for job in found])
    return OK


COMMAND = Command("jobs", "list jobs, newest first, or show one", configure, run)

"""multigrain resume"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.follow import follow
from multigrain_client.jobs import state_name


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="id of the job")
    parser.add_argument("--watch", action="store_true", help="follow the job until it ends")


def run(context: Context) -> int:
    with context.connect() as client:
        job = client.resume(context.arguments.job)
        if context.arguments.watch:
            return follow(client, job, context.output)
    context.output.data(job)
    context.output.line(f"{job.job_id}  {state_name(job)}")
    return OK


COMMAND = Command(
    "resume",
    "run a failed or cancelled job again from its last checkpoint",
    configure,
    run,
    call="ResumeJob",
)

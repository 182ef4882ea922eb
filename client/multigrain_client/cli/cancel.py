"""multigrain cancel"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.jobs import is_terminal, state_name


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="id of the job")
    parser.add_argument("--wait", action="store_true", help="until it has ended")


def run(context: Context) -> int:
    with context.connect() as client:
        job = client.cancel(context.arguments.job)
        if context.arguments.wait and not is_terminal(job):
            for _ in client.stream_events(job, after_seq=job.last_seq, kinds=["state"]):
                pass
            job = client.job(job)
    context.output.data(job)
    context.output.line(f"{job.job_id}  {state_name(job)}")
    return OK


COMMAND = Command(
    "cancel", "end a job; a training saves a checkpoint first", configure, run, call="CancelJob"
)

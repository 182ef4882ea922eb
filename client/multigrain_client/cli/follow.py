"""Shows a job that was started until it has ended."""

from __future__ import annotations

import sys

from multigrain.v1.job_pb2 import Job
from multigrain_client.cli.command import FAILED, INTERRUPTED, OK, Context
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress import Display, choose
from multigrain_client.jobs import is_terminal, state_name
from multigrain_client.sync.client import Client


def started(context: Context, client: Client, job: Job) -> int:
    """Says that a job has been started, or follows it if that is wanted; the exit code."""
    if context.arguments.watch:
        return follow(client, job, context.output)
    context.output.data(job)
    context.output.line(f"{job.job_id}  started; follow it with: multigrain watch {job.job_id}")
    return OK


def follow(
    client: Client,
    job: Job,
    output: Output,
    *,
    after_seq: int = 0,
    every: int = 1,
    plain: bool = False,
) -> int:
    """Follows a job's events on the display that fits the output.

    Returns:
        exit code: 0 if the job has succeeded, 1 if not, 130 after an interrupt (which ends the
        watching, never the job).
    """
    display = choose(output, job, every=every, plain=plain)
    try:
        with display:
            latest = show(client, job, display, after_seq=after_seq)
    except KeyboardInterrupt:
        print(
            f"\nno longer watching; the job goes on (multigrain watch {job.job_id}, "
            f"multigrain cancel {job.job_id})",
            file=sys.stderr,
        )
        return INTERRUPTED
    if state_name(latest) == "SUCCEEDED":
        return OK
    reason = latest.error.message or latest.state_message
    print(
        f"multigrain: job {latest.job_id} {state_name(latest)}" + (f": {reason}" if reason else ""),
        file=sys.stderr,
    )
    if latest.error.log_tail:
        print(latest.error.log_tail.rstrip(), file=sys.stderr)
    return FAILED


def show(client: Client, job: Job, display: Display, *, after_seq: int = 0) -> Job:
    """Feeds a display until the job has ended; returns the job as it is then."""
    while True:
        for event in client.stream_events(job, after_seq=after_seq):
            after_seq = event.seq
            display.event(event)
        latest = client.job(job)
        # A job that was resumed at the moment its stream ended has more to tell.
        if is_terminal(latest):
            display.end(latest)
            return latest

"""multigrain plot"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.jobs import latest_curve
from multigrain_client.plotting import Curve, plot_losses


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="ids of training jobs")
    parser.add_argument("--out", default="loss.png", metavar="FILE.png", help="default loss.png")
    parser.add_argument("--log", action="store_true", help="logarithmic loss axis")


def run(context: Context) -> int:
    arguments = context.arguments
    curves = []
    with context.connect() as client:
        for job_id in arguments.jobs:
            job = client.job(job_id)
            points = latest_curve(client.stream_losses(job, follow=False))
            curves.append(Curve(job.name or job.job_id, points))
    plot_losses(curves, arguments.out, log=arguments.log)
    context.output.data({"file": arguments.out, "points": [len(c.points) for c in curves]})
    context.output.line(f"{arguments.out}: {sum(len(c.points) for c in curves)} points")
    return OK


COMMAND = Command("plot", "draw the loss curves of training jobs as a PNG", configure, run)

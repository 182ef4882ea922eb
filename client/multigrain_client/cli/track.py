"""The command that follows a job into an experiment tracker."""

from __future__ import annotations

import argparse

from multigrain_client.cli.arguments import OK, Command, Context, Result, find, job_id
from multigrain_client.jobs import state_name
from multigrain_client.tracking import MLflow, TensorBoard, Tracker, WandB, follow


def _configure(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument(
        "--to", required=True, choices=("tensorboard", "mlflow", "wandb"), help="the tracker"
    )
    parser.add_argument(
        "--dir", default="runs", metavar="DIR", help="of TensorBoard's event files; default: runs"
    )
    parser.add_argument(
        "--uri", default="", help="of MLflow's tracking server; default: MLFLOW_TRACKING_URI"
    )
    parser.add_argument(
        "--project",
        default="multigrain",
        metavar="NAME",
        help="experiment of MLflow, or project of Weights & Biases; default: multigrain",
    )


def _track(context: Context) -> int:
    arguments, output = context.arguments, context.output
    tracker = _tracker(arguments)
    with context.connect() as client:
        job = find(client, arguments.job)
        job, sent = follow(client, job, tracker)
    output.done(
        {"job": job.job_id, "state": state_name(job), "points": sent},
        f"{job.job_id}  {state_name(job)}, {sent} points sent to {arguments.to}",
    )
    return OK


def _tracker(arguments: argparse.Namespace) -> Tracker:
    if arguments.to == "tensorboard":
        return TensorBoard(arguments.dir)
    if arguments.to == "mlflow":
        return MLflow(arguments.uri, arguments.project)
    return WandB(arguments.project)


COMMANDS = (
    Command(
        "track", "follow a job into TensorBoard, MLflow or W&B", _configure, _track, Result.SERVER
    ),
)

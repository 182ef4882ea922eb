"""Starts a training run and prints its losses.

Needs a running server (``multigrain-server --data-root FOLDER``) and a folder with one subfolder
of images per class, which the server can read::

    python -m examples.train FOLDER/train --preset digits-demo --epochs 2
"""

from __future__ import annotations

import argparse
import sys

from multigrain.streams import standard_streams
from multigrain_client import Client, MultigrainClientError, latest_curve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("train_path", help="folder of the training images, on the server")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--preset", default="digits-demo")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()

    overrides = {"dataset.train_path": arguments.train_path}
    if arguments.epochs is not None:
        overrides["schedule.epochs"] = arguments.epochs
    with Client(arguments.server) as client:
        job = client.start_training(preset=arguments.preset, **overrides)
        print(f"job {job.job_id}")
        points = []
        # Reconnects by itself. To stop watching does not stop the job.
        for point in client.stream_losses(job):
            points.append(point)
            print(
                f"epoch {point.epoch}/{point.total_epochs}  step {point.step}/{point.total_steps}  "
                f"loss {point.loss:.4f}"
            )
        # Raises JobFailed with the reason if the job did not succeed.
        client.wait(job)
        # After a restart from a checkpoint some steps come twice; the newest attempt counts.
        curve = latest_curve(points)
        print(f"{len(curve)} steps, loss {curve[0].loss:.4f} -> {curve[-1].loss:.4f}")


if __name__ == "__main__":
    # Without a traceback if the reader of the output leaves, as `head` does.
    with standard_streams():
        try:
            main()
        except MultigrainClientError as error:
            sys.exit(f"error: {error}")

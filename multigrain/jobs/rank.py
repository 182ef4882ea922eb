"""``python -m multigrain.jobs.rank``: what a launcher starts for each worker.

Under msrun the cluster's scheduler is started by the same command, with MS_ROLE=MS_SCHED.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from multigrain.jobs.folder import JobFolder
from multigrain.jobs.guard import Guard, GuardOptions
from multigrain.jobs.messages import SCHEDULER_RANK

CHANNEL_VARIABLE = "MULTIGRAIN_CHANNEL"
TOKEN_VARIABLE = "MULTIGRAIN_TOKEN"


def parser() -> argparse.ArgumentParser:
    """No option may be the beginning of one of msrun's: it would take it for its own."""
    parser = argparse.ArgumentParser(prog="multigrain.jobs.rank", description=__doc__)
    parser.add_argument("--folder", required=True, help="the job's folder")
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--world", required=True, type=int, help="number of workers")
    parser.add_argument("--target", required=True, choices=["cpu", "gpu", "ascend"])
    parser.add_argument("--threads", type=int, default=0, help="0: an even share of the cores")
    parser.add_argument("--clustered", action="store_true", help="there are peers to join")
    # For tests: another work function, and no MindSpore.
    parser.add_argument("--work-function", default="", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    rank = SCHEDULER_RANK if scheduler else int(os.environ["RANK_ID"])
    address, token = os.environ[CHANNEL_VARIABLE], os.environ[TOKEN_VARIABLE]

    def work() -> int:
        # Only the child pays for what the work imports.
        from multigrain.jobs import worker

        rank_options = worker.RankOptions(
            folder=JobFolder(Path(options.folder)),
            attempt=options.attempt,
            rank=rank,
            world=options.world,
            target=options.target,
            threads=options.threads,
            device_id=int(os.environ.get("DEVICE_ID", "0")),
            address=address,
            token=token,
            clustered=options.clustered,
            work=options.work_function,
            bare=options.bare,
        )
        return worker.run_scheduler(rank_options) if scheduler else worker.run_worker(rank_options)

    return Guard(GuardOptions(address, token, rank)).run(work)


if __name__ == "__main__":
    sys.exit(main())

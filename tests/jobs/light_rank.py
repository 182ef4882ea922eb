"""A worker that calls a function of a test: ``python -m tests.jobs.light_rank FUNCTION SETUP ...``.

FUNCTION is "module:function". SETUP is "mindspore" or, for a worker that does not load MindSpore,
"bare". The other arguments are those of ``multigrain.jobs.rank``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from multigrain.jobs import rank

if TYPE_CHECKING:
    from multigrain.jobs.job_request import JobKind
    from multigrain.jobs.worker import EntryPoint, RankOptions


def main() -> int:
    function, setup, *arguments = sys.argv[1:]

    def run_worker(options: RankOptions) -> int:
        from multigrain.jobs import worker

        set_up = worker.set_up_mindspore if setup == "mindspore" else lambda options: None
        return worker.run_worker(options, find_entry_point, set_up)

    def find_entry_point(kind: JobKind) -> EntryPoint:
        module, _, name = function.partition(":")
        found: EntryPoint = getattr(import_module(module), name)
        return found

    return rank.main(arguments, run_worker)


if __name__ == "__main__":
    sys.exit(main())

"""The daemon as it is, whose jobs do the light work of ``tests.faults.work`` in real runners."""

from __future__ import annotations

import os
import sys
from functools import partial

from multigrain_server import main
from tests.faults.curve import ROOT

RUNNER = (
    *(sys.executable, "-m", "tests.jobs.light_runner"),
    *("--work", "tests.faults.work:train"),
)

if __name__ == "__main__":
    # Runners work in the folders of their jobs.
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [before]), str(ROOT)])
    main.serve = partial(main.serve, runner_command=RUNNER)  # type: ignore[assignment]
    sys.exit(main.main())

"""The runner, whose first choice of a port is TEST_FIRST_PORT."""

from __future__ import annotations

import os
import sys

from multigrain.jobs import runner
from multigrain.jobs.launcher import msrun

free_port = msrun.free_port
first = [int(os.environ["TEST_FIRST_PORT"])]
msrun.free_port = lambda: first.pop() if first else free_port()

if __name__ == "__main__":
    sys.exit(runner.main())

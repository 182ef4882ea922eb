"""The runner, whose first choice of a port is TEST_FIRST_PORT."""

from __future__ import annotations

import os
import sys

from multigrain.jobs import launchers, runner

free_port = launchers.free_port
first = [int(os.environ["TEST_FIRST_PORT"])]
launchers.free_port = lambda: first.pop() if first else free_port()

if __name__ == "__main__":
    sys.exit(runner.main())

"""The runner with the real msrun and the real scheduler, whose workers leave MindSpore alone."""

from __future__ import annotations

import sys

from multigrain.jobs import runner
from multigrain.jobs.launchers import MsrunLauncher

runner.DirectLauncher = MsrunLauncher  # type: ignore[misc, assignment]

if __name__ == "__main__":
    sys.exit(runner.main())

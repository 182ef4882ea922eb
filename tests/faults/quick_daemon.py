"""The daemon as it is, whose jobs do the light work of ``tests.faults.work`` in real runners."""

from __future__ import annotations

import asyncio
import os
import sys

from multigrain_server.log import setup_logging
from multigrain_server.main import serve
from multigrain_server.settings_sources import parse
from tests.faults.curve import ROOT

RUNNER = (
    *(sys.executable, "-m", "tests.jobs.light_runner"),
    *("--work", "tests.faults.work:train"),
)

if __name__ == "__main__":
    config = parse(sys.argv[1:], os.environ).config
    setup_logging(config.log)
    # Runners work in the folders of their jobs.
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [before]), str(ROOT)])
    asyncio.run(serve(config, RUNNER))

"""The daemon with a fake runner, for tests that need it in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys

from multigrain_server.log import setup_logging
from multigrain_server.main import serve
from multigrain_server.settings_sources import parse
from tests.server.jobs.conftest import FAKE_RUNNER

if __name__ == "__main__":
    config = parse(sys.argv[1:], os.environ).config
    setup_logging(config.log)
    asyncio.run(serve(config, FAKE_RUNNER))

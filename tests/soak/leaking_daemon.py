"""The daemon of a control run: it keeps a little of every request, as a defect would."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from multigrain_server.log import setup_logging
from multigrain_server.main import serve
from multigrain_server.serving.service import ImageService
from multigrain_server.settings_sources import parse
from tests.server.jobs.conftest import FAKE_RUNNER

_BYTES = 4096
_REQUESTS_A_DESCRIPTOR = 500
_kept: list[bytes] = []
_infer = ImageService.infer


async def _leaking(self: ImageService, request: Any) -> Any:
    _kept.append(os.urandom(_BYTES))
    if len(_kept) % _REQUESTS_A_DESCRIPTOR == 0:
        os.dup(2)
    return await _infer(self, request)


if __name__ == "__main__":
    ImageService.infer = _leaking  # type: ignore[method-assign]
    config = parse(sys.argv[1:], os.environ).config
    setup_logging(config.log)
    asyncio.run(serve(config, FAKE_RUNNER))

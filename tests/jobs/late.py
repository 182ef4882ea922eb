"""Work whose import takes a minute in rank 1, which therefore does not join in time."""

from __future__ import annotations

import os
import time

from tests.jobs.work import succeed

__all__ = ["succeed"]

if os.environ["RANK_ID"] == "1":
    time.sleep(60)

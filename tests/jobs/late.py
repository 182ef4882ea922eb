"""Work that rank 1 takes a minute to import: a rank that does not become ready."""

from __future__ import annotations

import os
import time

from tests.jobs.work import succeed

__all__ = ["succeed"]

if os.environ["RANK_ID"] == "1":
    time.sleep(60)

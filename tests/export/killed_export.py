"""Started by test_killed.py: an export that is killed before it reports its bundle."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from multigrain.events.records import ArtifactRecord, Record
from multigrain.export import run
from multigrain.specs.export import ExportSpec
from tests.evaluate.context import RecordingReporter, context


class Killed(RecordingReporter):
    """Kills itself with SIGKILL instead of sending."""

    def emit(self, record: Record) -> None:
        if isinstance(record, ArtifactRecord):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    spec = ExportSpec.model_validate_json(sys.argv[2])
    weights = root / "checkpoints" / "step-00000030"
    run(context(root, weights=weights, export=spec, reporter=Killed()))

"""Started by test_resumption.py: a training job that is killed before it reports its second
checkpoint. Earlier events are in the event log, as the runner writes it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from multigrain.events.log import EventWriter
from multigrain.events.records import CheckpointRecord, Record
from multigrain.specs.training import TrainingSpec
from tests.train.tiny_job import TinyJob


class Killed:
    stop_requested = False

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._checkpoints = 0

    def emit(self, record: Record) -> None:
        self._checkpoints += isinstance(record, CheckpointRecord)
        if self._checkpoints == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self._writer.append(record, 1)

    def alive(self) -> None:
        pass


if __name__ == "__main__":
    job = TinyJob(Path(sys.argv[1]), TrainingSpec.model_validate_json(sys.argv[2]))
    job.folder.path.mkdir(parents=True)
    with EventWriter(job.folder.events, "job") as events:
        job.run(Killed(events))

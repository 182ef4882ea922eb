"""Step of a training job relative to MindSpore's own training cell, ResNet-50 at 224 px.

The job runs as under the daemon: runner, msrun, worker, events, metrics, checkpoints and augmented
images from JPEG files. The loop, ``nn.TrainOneStepCell`` with ``nn.Momentum``, has one batch in
memory and none of that. Both run alternately. The cost of a checkpoint is spread over 100 steps;
the presets write one every 5,000.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks import results
from benchmarks.alternating import BenchmarkProcess, median_ms
from benchmarks.mindspore_step import CLASSES, training_spec
from benchmarks.photographs import photographs
from multigrain.events.log import EventWriter, read_events, utc_now
from multigrain.events.records import CheckpointRecord, JobState, LossRecord, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.base import DeviceSpec
from multigrain.specs.training import AugmentationSpec, CheckpointSpec, DatasetSpec, ScheduleSpec

LIMIT, WAIT_LIMIT = 1.03, 0.05
STEPS, WARM_UP, TURN = 26, 16, 8
CHECKPOINT_AFTER = 20
STEPS_PER_CHECKPOINT = 100


@dataclass(frozen=True)
class JobTimes:
    """Seconds of each step after the warm-up and of one checkpoint; share of time spent waiting."""

    steps: list[float]
    data_wait: float
    checkpoint: float


def write_images(root: Path) -> None:
    """Writes photographs into eight class folders."""
    for number, data in enumerate(photographs()):
        folder = root / f"class-{number % 8}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.jpg").write_bytes(data)


def run_job(root: Path, name: str, batch: int) -> JobTimes:
    """Runs a job to its end and reads its event log."""
    folder = JobFolder(root / name)
    folder.path.mkdir()
    spec = training_spec("momentum", batch, 224)
    spec = spec.model_copy(
        update={
            "dataset": DatasetSpec(train_path=str(root / "images")),
            "model": spec.model.model_copy(update={"classes": CLASSES}),
            "augmentation": AugmentationSpec(repeats=2),
            "schedule": ScheduleSpec(batch_size=batch, epochs=100, max_steps=STEPS),
            "checkpointing": CheckpointSpec(every_epochs=0, every_steps=CHECKPOINT_AFTER),
            "devices": DeviceSpec(target="cpu", count=1),
        }
    )
    request = JobRequest(job_id=name, kind=JobKind.TRAINING, create_time=utc_now(), training=spec)
    folder.spec.write_text(request.model_dump_json())
    with EventWriter(folder.events, name) as writer:
        writer.append(StateRecord(JobState.QUEUED, "submitted"), 0)
    subprocess.run([sys.executable, "-m", "multigrain.jobs.runner", str(folder.path)], check=True)

    steps: list[float] = []
    waits: list[float] = []
    checkpoint, before = 0.0, ""
    for event in read_events(folder.events):
        record = event.record
        if isinstance(record, LossRecord):
            if record.step > WARM_UP:
                steps.append(record.step_seconds)
                waits.append(record.data_wait)
        elif isinstance(record, CheckpointRecord) and record.step == CHECKPOINT_AFTER:
            checkpoint = _seconds(before, event.time)
        before = event.time
    if len(steps) != STEPS - WARM_UP:
        logs = "".join(p.read_text()[-2000:] for p in sorted(folder.logs.glob("*.log")))
        raise RuntimeError(f"the job logged {len(steps)} steps after the warm-up: {logs}")
    return JobTimes(steps, waits[-1], checkpoint)


def main() -> int:
    parser = results.parser("job_overhead")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    report = results.Report("job_overhead", options)
    bare: list[float] = []
    jobs: list[JobTimes] = []
    arguments = ["--kind", "bare", "--batch", str(options.batch), "--warm-up", str(WARM_UP)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "images")
        with BenchmarkProcess("benchmarks.mindspore_step", arguments) as loop:
            bare += loop.measure(TURN).seconds
            for number in range(options.rounds):
                jobs.append(run_job(root, f"job-{number}", options.batch))
                bare += loop.measure(TURN).seconds
    base = median_ms(bare)
    step = median_ms([s for job in jobs for s in job.steps])
    checkpoint = statistics.median(job.checkpoint for job in jobs) * 1000
    wait = statistics.median(job.data_wait for job in jobs)
    report.compare(
        "step of a job, with its share of a checkpoint", step + checkpoint / STEPS_PER_CHECKPOINT,
        unit="ms", over=base, reference="MindSpore's training cell", at_most=LIMIT,
    )  # fmt: skip
    report.compare("share of the time that a job waits for data", wait, at_most=WAIT_LIMIT)
    report.compare("one checkpoint", checkpoint, unit="ms")
    report.note(f"ResNet-50 at 224 px, batches of {options.batch}, float32, one worker.")
    return report.finish()


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


if __name__ == "__main__":
    sys.exit(main())

"""Time from the submission of a training job to its second step, with and without compiled graphs.

``python -m benchmarks.job_start``. Trains the demo's network on two workers for a few steps, twice:
first with an empty cache of compiled graphs, then with those of the first job. The runner starts
workers as under the daemon. Fails if the losses of the two jobs differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from benchmarks import results
from examples.demo.digits import write_digits
from multigrain.events.log import EventWriter, read_events, utc_now
from multigrain.events.records import JobState, LossRecord, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.launchers import COMPILE_CACHE_SIZE_VARIABLE, COMPILE_CACHE_VARIABLE
from multigrain.specs.presets import merge, preset_values
from multigrain.specs.training import TrainingSpec

SECONDS_TO_STEP_2 = 15.0
STEPS = 4


def run_job(root: Path, name: str, workers: int) -> tuple[dict[str, float], list[float]]:
    """Runs a job; returns the seconds from its submission to each point, and its losses."""
    folder = JobFolder(root / name)
    folder.path.mkdir()
    values = merge(
        preset_values("digits-demo"),
        {
            "dataset": {"train_path": str(root / "digits" / "train")},
            "schedule": {"max_steps": STEPS},
            "devices": {"count": workers},
        },
    )
    spec = TrainingSpec.model_validate(values)
    request = JobRequest(job_id=name, kind=JobKind.TRAINING, create_time=utc_now(), training=spec)
    folder.spec.write_text(request.model_dump_json())
    with EventWriter(folder.events, name) as writer:
        writer.append(StateRecord(JobState.QUEUED, "submitted"), 0)
    environment = {
        **os.environ,
        COMPILE_CACHE_VARIABLE: str(root / "compile-cache"),
        COMPILE_CACHE_SIZE_VARIABLE: str(1 << 30),
    }
    command = [sys.executable, "-m", "multigrain.jobs.runner", str(folder.path)]
    subprocess.run(command, check=True, env=environment)
    points: dict[str, float] = {}
    losses: list[float] = []
    begin = ""
    for event in read_events(folder.events):
        begin = begin or event.time
        seconds = (
            datetime.fromisoformat(event.time) - datetime.fromisoformat(begin)
        ).total_seconds()
        if isinstance(event.record, StateRecord):
            points.setdefault(event.record.state.value, seconds)
        elif isinstance(event.record, LossRecord):
            points[f"step {event.record.step}"] = seconds
            losses.append(event.record.loss)
    if len(losses) != STEPS:
        logs = "".join(path.read_text()[-2000:] for path in sorted(folder.logs.rglob("*.log")))
        raise RuntimeError(f"the job did {len(losses)} of {STEPS} steps: {logs}")
    return points, losses


def main() -> int:
    parser = results.parser("job_start")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = results.Report("job_start", options)
    columns = ("RUNNING", "step 1", "step 2", "step 3")
    table = report.table("Seconds after the submission", columns)
    measured: list[dict[str, float]] = []
    losses: list[list[float]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_digits(root / "digits", 32)
        for title in ("a new network", "a network seen before"):
            points, found = run_job(root, title.replace(" ", "-"), options.workers)
            table.row(title, *(round(points[column], 1) for column in columns))
            measured.append(points)
            losses.append(found)
    if losses[0] != losses[1]:
        raise RuntimeError(f"the losses differ: {losses}")
    report.compare(
        "submission to second step, network seen before",
        measured[1]["step 2"],
        unit="s",
        at_most=SECONDS_TO_STEP_2,
    )
    report.compare(
        "of the time without compiled graphs",
        measured[1]["step 2"],
        over=measured[0]["step 2"],
        reference="the same job with an empty cache",
        unit="s",
        at_most=0.5,
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

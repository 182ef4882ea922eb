"""``python -m multigrain.train.inspect_process``: inspects a dataset for the daemon.

The daemon itself decodes no image. Reads one JSON object from standard input and writes one to
standard output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from multigrain.data.held_out import split
from multigrain.data.image_folder import scan
from multigrain.data.inspection import inspect
from multigrain.data.inspection_report import InspectionRequest, InspectionResult
from multigrain.errors import MultigrainError
from multigrain.processes import die_with_parent
from multigrain.sandbox.apply import apply
from multigrain.sandbox.policies import WORKER_VARIABLE, worker_sandbox
from multigrain.specs.training import TrainingSpec
from multigrain.train.plan import machine_flops, plan


def run(request: InspectionRequest) -> InspectionResult:
    """Inspects a dataset and plans a training run.

    Raises:
        MultigrainError: DATASET, if the images cannot be listed or split.
    """
    spec = TrainingSpec.model_validate_json(msgspec.json.encode(request.spec))
    train, held_out = scan(Path(spec.dataset.train_path), request.limits), None
    if spec.dataset.val_path:
        held_out = scan(Path(spec.dataset.val_path), request.limits)
    elif spec.dataset.val_fraction:
        parts = split(train, spec.dataset.val_fraction, spec.dataset.split_seed)
        train, held_out = parts.train, parts.held_out
    found = inspect(
        train,
        held_out,
        resolution=spec.model.image_size,
        images=request.images,
        seconds=request.seconds,
    )
    planned = plan(
        spec,
        len(train),
        len(held_out) if held_out is not None else 0,
        measured=request.measured,
        measured_in=request.measured_in,
        flops=machine_flops() if spec.devices.target == "cpu" and not request.measured else 0.0,
    )
    return InspectionResult(found, found.warnings, planned)


def main() -> int:
    die_with_parent(os.getppid())
    body = sys.stdin.buffer.read()
    request = msgspec.json.decode(
        body, type=InspectionRequest, dec_hook=lambda kind, value: kind(value)
    )
    if os.environ.get(WORKER_VARIABLE) == "auto":
        # Before there are threads. It writes no file.
        sandbox = worker_sandbox(read=request.limits.roots or (), write=())
        report = apply(sandbox)
        for missing in report.missing:
            print(f"not restricted by {missing}", file=sys.stderr)
    try:
        result = run(request)
    except MultigrainError as error:
        result = InspectionResult(error_kind=error.kind.name, error=error.message)
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

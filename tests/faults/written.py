"""Run under strace by test_fsync.py: writes one thing of each kind, with a mark before it."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from multigrain.bundle.folder import TarSource
from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.events.log import EventWriter
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain_server.data_dir import DataDir
from multigrain_server.engines.config import ServingConfig
from multigrain_server.jobs.files import create_folder, move_to_trash
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.models.state import ServingState
from tests.engine.bundles import write_bundle
from tests.server.serving.harness import NoReferences


def mark(name: str) -> None:
    os.path.exists(f"/mark/{name}")


async def main(root: Path) -> None:
    manifest = CheckpointManifest(step=1, epoch=1, model=ModelSpec(classes=2))
    tensors = {"w": np.zeros(4)}
    request = JobRequest(
        job_id="train-1",
        kind=JobKind.TRAINING,
        create_time="2026-01-31T12:00:00.000000Z",
        training=TrainingSpec(),
    )
    archive = io.BytesIO()
    with TarSource(write_bundle(root / "elsewhere")) as source:
        archive.writelines(source.chunks(1 << 20))

    mark("folders")
    data = DataDir(root / "data")
    mark("job")
    folder = create_folder(data.jobs, request, "queued")
    mark("event")
    with EventWriter(folder.events, "train-1") as writer:
        writer.append(StateRecord(JobState.STARTING), 1)
    mark("checkpoint")
    store.save(folder.checkpoints, manifest, tensors, tensors)
    mark("checkpoint written again")
    store.save(folder.checkpoints, manifest, tensors, tensors)
    mark("loaded models")
    ServingState(data.serving).set_default("tiny")
    models = ModelManager(
        data.models,
        data.serving,
        ServingConfig(),
        ServingMetrics(CollectorRegistry()),
        lambda *_: None,
        NoReferences(),
    )
    mark("imported bundle")
    arriving = models.import_bundle("", 0, "")
    await arriving.write(archive.getvalue())
    await arriving.finish()
    await arriving.close()
    mark("deleted job")
    move_to_trash(folder)
    mark("deleted bundle")
    await models.delete("tiny@1")
    mark("end")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

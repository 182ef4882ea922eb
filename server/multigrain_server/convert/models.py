"""Models as messages."""

from __future__ import annotations

import math

from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.bundle.manifest import Head
from multigrain.v1 import model_pb2
from multigrain_server.convert.events import timestamp
from multigrain_server.models.catalog import ModelPage, ModelView


def model_message(view: ModelView) -> model_pb2.Model:
    """Everything that the daemon knows about a model version."""
    manifest = view.entry.manifest
    head = manifest.heads[0]
    return model_pb2.Model(
        name=manifest.name,
        version=manifest.version,
        state=model_pb2.ModelState.Value(f"MODEL_STATE_{view.state.name}"),
        state_message=view.message,
        aliases=view.aliases,
        trunk=manifest.model.trunk,
        embedding_size=manifest.embedding_size,
        classes=manifest.classes,
        labels=manifest.labels,
        resolution=head.resolution,
        gem_p=head.gem_p,
        files={name: entry.bytes for name, entry in manifest.files.items()},
        metrics={name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
        source_job_id=manifest.source.job_id,
        source_step=manifest.source.step,
        create_time=_timestamp(manifest.create_time),
        runtime=view.runtime,
        max_batch_size=view.max_batch,
        load_seconds=view.load_seconds,
        engine_restarts=view.restarts,
        resolutions=[_resolution(head) for head in manifest.heads],
    )


def page_message(page: ModelPage) -> model_pb2.ListModelsResponse:
    return model_pb2.ListModelsResponse(
        models=[model_message(view) for view in page.models],
        next_page_token=page.next_token,
        aliases=page.aliases,
        default_model=page.default_model,
    )


def _resolution(head: Head) -> model_pb2.ModelResolution:
    message = model_pb2.ModelResolution(resolution=head.resolution, gem_p=head.gem_p)
    if head.whitening is not None:
        message.whitened_size = head.whitening.size
        message.whitening_images = head.whitening.images
    return message


def _timestamp(text: str) -> Timestamp | None:
    """None for a bundle made elsewhere that does not say, or says it in another form."""
    try:
        return timestamp(text)
    except ValueError:
        return None

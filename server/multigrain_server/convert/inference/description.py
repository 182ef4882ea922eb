"""Models as the protocol describes them."""

from __future__ import annotations

from collections.abc import Sequence

from multigrain.bundle.manifest import BundleManifest
from multigrain.v1.inference import model_pb2, service_pb2
from multigrain_server.convert.inference.names import (
    EMBEDDING,
    IMAGES,
    INPUTS,
    PIXELS,
    PLATFORM,
    SCORES,
)
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.view import ModelView
from multigrain_server.serving.config import ServingConfig

_ANY = -1
_KINDS = {
    "cpu": model_pb2.ModelInstanceGroup.KIND_CPU,
    "gpu": model_pb2.ModelInstanceGroup.KIND_GPU,
    # The protocol has no name for an NPU.
    "ascend": model_pb2.ModelInstanceGroup.KIND_MODEL,
}
_STATES = {
    ModelState.UNLOADED: "UNAVAILABLE",
    ModelState.LOADING: "LOADING",
    ModelState.READY: "READY",
    ModelState.DRAINING: "UNLOADING",
    ModelState.FAILED: "UNAVAILABLE",
}


def metadata_message(
    manifest: BundleManifest, versions: Sequence[int]
) -> service_pb2.ModelMetadataResponse:
    """Shapes with the number of images as first dimension."""
    message = service_pb2.ModelMetadataResponse(
        name=manifest.name, versions=map(str, versions), platform=PLATFORM
    )
    for name, dims in _inputs(manifest).items():
        message.inputs.add(name=name, datatype=INPUTS[name], shape=[_ANY, *dims])
    for name, dims in _outputs(manifest).items():
        message.outputs.add(name=name, datatype="FP32", shape=[_ANY, *dims])
    return message


def config_message(
    view: ModelView, loaded: Sequence[int], config: ServingConfig
) -> model_pb2.ModelConfigResponse:
    """What a load tool must know. ``loaded``: the versions that are."""
    manifest = view.entry.manifest
    message = model_pb2.ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend=view.runtime,
        max_batch_size=config.max_images_per_request,
        version_policy=model_pb2.ModelVersionPolicy(
            specific=model_pb2.ModelVersionPolicy.Specific(versions=loaded)
        ),
        dynamic_batching=model_pb2.ModelDynamicBatching(preferred_batch_size=[config.max_batch]),
        instance_group=[
            model_pb2.ModelInstanceGroup(name=manifest.name, count=1, kind=_KINDS[config.device])
        ],
    )
    inputs = _inputs(manifest)
    message.input.add(
        name=IMAGES, data_type=model_pb2.TYPE_STRING, dims=inputs[IMAGES], optional=True
    )
    message.input.add(
        name=PIXELS,
        data_type=model_pb2.TYPE_FP32,
        format=model_pb2.ModelInput.FORMAT_NCHW,
        dims=inputs[PIXELS],
        optional=True,
    )
    for name, dims in _outputs(manifest).items():
        message.output.add(name=name, data_type=model_pb2.TYPE_FP32, dims=dims)
    parameters: dict[str, str] = {"trunk": manifest.model.trunk}
    for head in manifest.heads:
        parameters[f"gem_p_{head.resolution}"] = f"{head.gem_p:g}"
        if head.whitening is not None:
            parameters[f"whitened_size_{head.resolution}"] = str(head.whitening.size)
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    return model_pb2.ModelConfigResponse(config=message)


def index_message(views: Sequence[ModelView], *, ready: bool) -> model_pb2.RepositoryIndexResponse:
    """``ready``: only those that answer."""
    message = model_pb2.RepositoryIndexResponse()
    for view in views:
        if not ready or view.state is ModelState.READY:
            message.models.add(
                name=view.entry.version.name,
                version=str(view.entry.version.version),
                state=_STATES[view.state],
                reason=view.message or ("not loaded" if view.state is ModelState.UNLOADED else ""),
            )
    return message


def _inputs(manifest: BundleManifest) -> dict[str, list[int]]:
    """Dimensions of one image."""
    sides = {head.resolution for head in manifest.heads}
    side = sides.pop() if len(sides) == 1 else _ANY
    return {IMAGES: [1], PIXELS: [3, side, side]}


def _outputs(manifest: BundleManifest) -> dict[str, list[int]]:
    # A whitened vector has another size than the plain one.
    whitens = any(head.whitening is not None for head in manifest.heads)
    outputs = {EMBEDDING: [_ANY if whitens else manifest.embedding_size]}
    classes = manifest.model.classes or len(manifest.labels)
    if classes:
        outputs[SCORES] = [classes]
    return outputs

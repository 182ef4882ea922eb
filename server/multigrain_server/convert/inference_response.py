"""Answers of the serving core as ModelInfer responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multigrain.bundle.manifest import BundleManifest
from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.v1.inference import model_pb2, service_pb2
from multigrain_server.convert.inference_request import (
    EMBEDDING,
    FLOAT_BYTES,
    IMAGES,
    INPUTS,
    PIXELS,
    PLATFORM,
    SCORES,
    InferRequest,
    join_bytes,
)
from multigrain_server.models.catalog import ModelView
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.reference import ModelVersion
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import Duration, ModelStatistics
from multigrain_server.serving.types import Answer, ItemAnswer

FINAL_RESPONSE = "triton_final_response"


def infer_response(answer: Answer, asked: InferRequest) -> service_pb2.ModelInferResponse:
    """All outputs raw, in the order wanted.

    Raises:
        MultigrainError: of the first image that has no answer, naming every one: the protocol
            has no status of an image.
    """
    _refuse_failed(answer)
    response = service_pb2.ModelInferResponse(
        model_name=answer.version.name,
        model_version=str(answer.version.version),
        id=asked.id,
    )
    has_scores = asked.top > 0 or bool(answer.items[0].scores)
    for name in asked.outputs or ((EMBEDDING, SCORES) if has_scores else (EMBEDDING,)):
        if name == EMBEDDING:
            _add(response, name, [len(answer.items), answer.embedding_size])
            response.raw_output_contents.append(b"".join(item.vector for item in answer.items))
        elif asked.top:
            _add(response, name, [len(answer.items), len(answer.items[0].classes)], "BYTES")
            response.raw_output_contents.append(join_bytes(_labels(answer)))
        else:
            classes = len(answer.items[0].scores) // FLOAT_BYTES
            _add(response, name, [len(answer.items), classes])
            response.raw_output_contents.append(b"".join(item.scores for item in answer.items))
    return response


def stream_response(
    response: service_pb2.ModelInferResponse,
) -> service_pb2.ModelStreamInferResponse:
    """The one and last response to a request of a stream."""
    response.parameters[FINAL_RESPONSE].bool_param = True
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def stream_error(
    message: service_pb2.ModelInferRequest, error: MultigrainError
) -> service_pb2.ModelStreamInferResponse:
    """The same for one that failed; the id tells which."""
    response = service_pb2.ModelInferResponse(
        model_name=message.model_name, model_version=message.model_version, id=message.id
    )
    made = stream_response(response)
    made.error_message = error.message
    return made


def _add(
    response: service_pb2.ModelInferResponse, name: str, shape: list[int], datatype: str = "FP32"
) -> None:
    response.outputs.add(name=name, datatype=datatype, shape=shape)


def _labels(answer: Answer) -> list[bytes]:
    """ "probability:class:label", as Triton writes a classification."""
    return [
        f"{score.probability:f}:{score.class_id}:{score.label}".encode()
        for item in answer.items
        for score in item.classes
    ]


def _refuse_failed(answer: Answer) -> None:
    failed = [(number, item) for number, item in enumerate(answer.items) if item.error is not None]
    if not failed:
        return
    number, item = failed[0]
    error = _error(item)
    total = len(answer.items)
    where = f"image {number} of {total}: " if total > 1 else ""
    more = f" (and {len(failed) - 1} more of these images)" if len(failed) > 1 else ""
    raise MultigrainError(
        error.kind,
        f"{where}{error.message}{more}",
        violations=tuple(
            FieldViolation(f"inputs[0][{number}]", _error(item).message) for number, item in failed
        ),
    )


def _error(item: ItemAnswer) -> MultigrainError:
    assert item.error is not None
    return MultigrainError(item.error.kind, item.error.message)


# MERGED: Models as the protocol describes them.


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
    classes = manifest.classes
    if classes:
        outputs[SCORES] = [classes]
    return outputs


# MERGED: Counts and times of a model as messages.


def statistics_message(
    version: ModelVersion, statistics: ModelStatistics
) -> model_pb2.ModelStatistics:
    """Everything that is counted of one loaded version."""
    return model_pb2.ModelStatistics(
        name=version.name,
        version=str(version.version),
        last_inference=statistics.last_ms,
        inference_count=statistics.images,
        execution_count=statistics.executions,
        inference_stats=model_pb2.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.prepare),
            compute_infer=_duration(statistics.infer),
            compute_output=_duration(statistics.encode),
        ),
        batch_stats=[
            model_pb2.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(times.prepare),
                compute_infer=_duration(times.infer),
            )
            for size, times in sorted(statistics.batches.items())
        ],
    )


def _duration(duration: Duration) -> model_pb2.StatisticDuration:
    return model_pb2.StatisticDuration(count=duration.count, ns=duration.ns)


# MERGED: Parameters of loading and unloading.


Parameters = Mapping[str, model_pb2.ModelRepositoryParameter]

_RUNTIME = "runtime"
_UNLOAD_DEPENDENTS = "unload_dependents"


def load_runtime(parameters: Parameters) -> str:
    """The runtime that is asked for; "" = the server's.

    Raises:
        MultigrainError: UNSUPPORTED for Triton's "config" and "file:...", INVALID_FIELD for what
            is unknown.
    """
    for name, value in parameters.items():
        if name == "config" or name.startswith("file:"):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"parameters.{name[:80]}: a model comes as a bundle, by an export or by "
                "ModelService.ImportModel, and is loaded as it is",
            )
        if name != _RUNTIME:
            raise _unknown(name, _RUNTIME)
        if value.WhichOneof("parameter_choice") != "string_param":
            raise MultigrainError.field(f"parameters.{name}", "must be a text (string_param)")
    return parameters[_RUNTIME].string_param if _RUNTIME in parameters else ""


def check_unload(parameters: Parameters) -> None:
    """Raises MultigrainError INVALID_FIELD for what is unknown."""
    for name in parameters:
        if name != _UNLOAD_DEPENDENTS:
            raise _unknown(name, _UNLOAD_DEPENDENTS)


def _unknown(name: str, known: str) -> MultigrainError:
    return MultigrainError.field("parameters", f"{name[:80]!r} is unknown: {known} is known")

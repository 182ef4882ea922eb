"""Open Inference Protocol: responses, descriptions of models, statistics."""

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
from multigrain_server.engines.config import ServingConfig
from multigrain_server.models.catalog import ModelView
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.metrics import Duration, ModelStatistics
from multigrain_server.models.registry import ModelVersion
from multigrain_server.serving.service import ImageResponse

FINAL_RESPONSE = "triton_final_response"


def infer_response(result: ImageResponse, request: InferRequest) -> service_pb2.ModelInferResponse:
    """All outputs as raw tensors, in the requested order.

    Raises:
        MultigrainError: of the first image that failed, naming all that did: the protocol has no
            status of an image.
    """
    _raise_failed(result)
    response = service_pb2.ModelInferResponse(
        model_name=result.version.name,
        model_version=str(result.version.version),
        id=request.id,
    )
    images = result.results
    has_scores = request.top > 0 or bool(images[0].scores)
    for name in request.outputs or ((EMBEDDING, SCORES) if has_scores else (EMBEDDING,)):
        if name == EMBEDDING:
            _add(response, name, [len(images), result.embedding_size])
            response.raw_output_contents.append(b"".join(image.vector for image in images))
        elif request.top:
            _add(response, name, [len(images), images[0].reply.classes], "BYTES")
            response.raw_output_contents.append(join_bytes(_labels(result)))
        else:
            classes = len(images[0].scores) // FLOAT_BYTES
            _add(response, name, [len(images), classes])
            response.raw_output_contents.append(b"".join(image.scores for image in images))
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
    """The response to a request of a stream that failed; its id says which one."""
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


def _labels(result: ImageResponse) -> list[bytes]:
    """ "probability:class:label", as Triton writes a classification."""
    return [
        f"{probability:f}:{class_id}:{label}".encode()
        for image in result.results
        for class_id, label, probability in image.classes(result.labels)
    ]


def _raise_failed(result: ImageResponse) -> None:
    failed = [
        (number, image.error)
        for number, image in enumerate(result.results)
        if image.error is not None
    ]
    if not failed:
        return
    number, error = failed[0]
    total = len(result.results)
    where = f"image {number} of {total}: " if total > 1 else ""
    more = f" (and {len(failed) - 1} more of these images)" if len(failed) > 1 else ""
    raise MultigrainError(
        error.kind,
        f"{where}{error.message}{more}",
        violations=tuple(
            FieldViolation(f"inputs[0][{number}]", error.message) for number, error in failed
        ),
    )


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
    """The configuration that load generators read; ``loaded``: versions that are loaded."""
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
    """``ready``: only models that answer."""
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


def statistics_message(
    version: ModelVersion, statistics: ModelStatistics
) -> model_pb2.ModelStatistics:
    """All counts and times of one loaded version."""
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


Parameters = Mapping[str, model_pb2.ModelRepositoryParameter]

_RUNTIME = "runtime"
_UNLOAD_DEPENDENTS = "unload_dependents"


def load_runtime(parameters: Parameters) -> str:
    """The requested runtime; "" = the server's.

    Raises:
        MultigrainError: UNSUPPORTED for Triton's "config" and "file:...", INVALID_FIELD for an
            unknown parameter.
    """
    for name, value in parameters.items():
        if name == "config" or name.startswith("file:"):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"parameters.{name[:80]}: a model is a bundle, made by an export job or "
                "imported with ModelService.ImportModel, and is loaded as it is",
            )
        if name != _RUNTIME:
            raise _unknown(name, _RUNTIME)
        if value.WhichOneof("parameter_choice") != "string_param":
            raise MultigrainError.field(f"parameters.{name}", "must be a text (string_param)")
    return parameters[_RUNTIME].string_param if _RUNTIME in parameters else ""


def check_unload(parameters: Parameters) -> None:
    """Raises MultigrainError INVALID_FIELD for an unknown parameter."""
    for name in parameters:
        if name != _UNLOAD_DEPENDENTS:
            raise _unknown(name, _UNLOAD_DEPENDENTS)


def _unknown(name: str, known: str) -> MultigrainError:
    return MultigrainError.field("parameters", f"{name[:80]!r} is unknown: {known} is known")

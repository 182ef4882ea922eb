"""Answers of the serving core as ModelInfer responses."""

from __future__ import annotations

from multigrain.errors import FieldViolation, MultigrainError
from multigrain.v1.inference import service_pb2
from multigrain_server.convert.inference.names import EMBEDDING, SCORES
from multigrain_server.convert.inference.request import InferRequest
from multigrain_server.convert.inference.tensors import FLOAT_BYTES, join_bytes
from multigrain_server.serving.request import Answer, ItemAnswer

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

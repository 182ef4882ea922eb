"""Builds requests from the arguments of the client's methods."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.job_pb2 import (
    EventKind,
    Job,
    ListArtifactsRequest,
    ListJobsRequest,
    StreamEventsRequest,
)
from multigrain.v1.model_pb2 import ListModelsRequest
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain_client.errors import FieldViolation, InvalidRequest, MissingPackage
from multigrain_client.json_format import enum_names, fill, invalid, is_repeated, merge, nest

StartRequest = TypeVar(
    "StartRequest", StartTrainingRequest, StartEvaluationRequest, StartExportRequest
)
JobLike = str | Job
SpecLike = Mapping[str, Any] | Message | str | os.PathLike[str] | None

# Fields that name a file or a folder on the server's host.
_PATHS = frozenset(
    {
        *("train_path", "val_path", "retrieval_path", "dataset_path", "initial_weights"),
        *("checkpoint_path", "whitening_path", "int8_path", "rank_table"),
    }
)
# As in multigrain.specs.weights_reference; one letter would be a drive of Windows.
_REFERENCE = re.compile(r"(job|model|timm|torchvision):")


def job_id(job: JobLike) -> str:
    """The id of a job, which may be given as a Job or as its id.

    Raises:
        InvalidRequest: for an empty id.
    """
    found = job if isinstance(job, str) else job.job_id
    if not found:
        raise InvalidRequest("job: empty; give a job or its id")
    return found


def start_request(
    request_type: type[StartRequest],
    spec: SpecLike,
    fields: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    name: str,
    labels: Mapping[str, str] | None,
    request_id: str | None,
    validate_only: bool = False,
) -> StartRequest:
    """A request that starts a job.

    Args:
        request_type: StartTrainingRequest, StartEvaluationRequest or StartExportRequest.
        spec: a mapping, a message, the path of a YAML file, or None.
        fields: fields of the spec that have an argument of their own; None = not given.
        overrides: further fields. They win over ``fields``, and both over ``spec``.
        name: display name of the job.
        labels: labels of the job.
        request_id: idempotency key; None = a new one, so that the call can be retried.
        validate_only: start nothing.

    Raises:
        InvalidRequest: naming every field that is unknown or has a wrong type.
    """
    request = request_type()
    fill(
        request,
        {
            "request_id": str(uuid.uuid4()) if request_id is None else request_id,
            "name": name,
            "labels": dict(labels or {}),
            "validate_only": validate_only,
        },
    )
    fill_spec(request.spec, spec, fields, overrides)
    return request


def fill_spec(
    target: Message, spec: SpecLike, fields: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Fills the specification of a request; the arguments are those of ``start_request``.

    Raises:
        InvalidRequest: naming every field that is unknown or has a wrong type.
    """
    overrides = dict(overrides)
    dataset = overrides.get("dataset")
    if isinstance(dataset, str | os.PathLike):
        # A folder alone. An evaluation has one folder, under its own name.
        overrides["dataset"] = {"train_path": os.fspath(dataset)}
    given = {key: value for key, value in fields.items() if value is not None}
    over = merge(nest(given), nest(overrides), "spec")
    if isinstance(spec, Message):
        if not isinstance(spec, type(target)):
            raise InvalidRequest(f"expected a {type(target).__name__}, not {type(spec).__name__}")
        target.CopyFrom(spec)
        # A list in an override replaces the list of the spec; protobuf would append to it.
        _clear_lists(target, over)
    elif spec is not None and not isinstance(spec, Mapping | str | os.PathLike):
        raise InvalidRequest(
            f"spec: expected a mapping, a {type(target).__name__} or the path of a YAML "
            f"file, not {type(spec).__name__}"
        )
    elif spec is not None:
        over = merge(nest(spec if isinstance(spec, Mapping) else read_spec(spec)), over, "spec")
    fill(target, over, "spec")
    _make_absolute(target)


def weights_source(
    *,
    job: JobLike | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    model: str | None = None,
    checkpoint: str | int | None = None,
) -> dict[str, str] | None:
    """The fields of a WeightsSource; None if there are none.

    Raises:
        InvalidRequest: if more than one source is given.
    """
    source: dict[str, str] = {}
    if job is not None:
        source["job_id"] = job_id(job)
    if checkpoint_path is not None:
        source["checkpoint_path"] = os.fspath(checkpoint_path)
    if model is not None:
        source["model"] = model
    if len(source) > 1:
        raise invalid(
            [
                FieldViolation(
                    "spec.weights", f"give one source of weights, not {' and '.join(source)}"
                )
            ]
        )
    if checkpoint is not None:
        source["checkpoint"] = str(checkpoint)
    return source or None


def list_jobs_request(
    *,
    states: Iterable[str | int],
    kinds: Iterable[str | int],
    labels: Mapping[str, str] | None,
    name_contains: str,
    id_prefix: str,
    page_size: int,
) -> ListJobsRequest:
    """Raises:
    InvalidRequest: for an unknown state or kind, or an invalid page size.
    """
    request = ListJobsRequest()
    fill(
        request,
        {
            "states": _names(states),
            "kinds": _names(kinds),
            "labels": labels or {},
            "name_contains": name_contains,
            "id_prefix": id_prefix,
            "page_size": page_size,
        },
    )
    return request


def list_artifacts_request(job: JobLike, kinds: Iterable[str | int]) -> ListArtifactsRequest:
    """Raises:
    InvalidRequest: for an unknown kind.
    """
    request = ListArtifactsRequest()
    fill(request, {"job_id": job_id(job), "kinds": _names(kinds)})
    return request


def list_models_request(name: str, *, loaded_only: bool, page_size: int) -> ListModelsRequest:
    """Raises:
    InvalidRequest: for an invalid page size.
    """
    request = ListModelsRequest()
    fill(request, {"name": name, "loaded_only": loaded_only, "page_size": page_size})
    return request


def event_kinds(kinds: Iterable[str | int] | None) -> list[EventKind.ValueType]:
    """EventKind numbers of names such as "loss" or "EVENT_KIND_LOSS".

    Raises:
        InvalidRequest: for an unknown name.
    """
    request = StreamEventsRequest()
    fill(request, {"kinds": _names(kinds)})
    known = enum_names(EventKind.DESCRIPTOR)
    for kind in request.kinds:
        if kind not in known.values():
            expected = ", ".join(known).lower()
            raise invalid(
                [FieldViolation("kinds", f"no event kind {kind}; choose from {expected}")]
            )
    return list(request.kinds)


def read_spec(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields in a YAML file.

    Raises:
        MissingPackage: without PyYAML.
        InvalidRequest: if the file cannot be read, or is not unambiguous YAML; see
            ``multigrain.strict_yaml``.
    """
    try:
        from multigrain.strict_yaml import YamlError, load_yaml_file
    except ImportError as error:
        raise MissingPackage(
            "reading a YAML file needs PyYAML: pip install 'multigrain[cli]'"
        ) from error
    try:
        return load_yaml_file(Path(path))
    except OSError as error:
        raise InvalidRequest(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    except YamlError as error:
        raise InvalidRequest(str(error)) from error


def absolute_path(path: str | os.PathLike[str]) -> str:
    """An absolute path; a relative one starts in the current directory.

    The name of weights, such as "job:ID", "model:NAME@VERSION" or "timm:NAME", stays as it is.
    """
    text = os.fspath(path)
    return text if _REFERENCE.match(text) else os.path.abspath(text)


def _make_absolute(message: Message) -> None:
    """Makes the paths of a specification absolute: the server does not know this directory."""
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _make_absolute(value)
        elif field.name in _PATHS and value:
            setattr(message, field.name, absolute_path(value))


def _clear_lists(message: Message, over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        field = message.DESCRIPTOR.fields_by_name.get(key)
        if field is None or value is None:
            continue
        if is_repeated(field):
            message.ClearField(key)
        elif isinstance(value, Mapping) and field.message_type is not None:
            _clear_lists(getattr(message, key), value)


def _names(values: Iterable[str | int] | str | int | None) -> list[str | int]:
    """A list of enum values, of which a single one may be given alone."""
    return [values] if isinstance(values, (str, int)) else list(values or ())

"""Builds requests from the arguments of the client's methods."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_spec_pb2 import ExportSpec
from multigrain.v1.job_pb2 import EventKind, Job, ListJobsRequest, StreamEventsRequest
from multigrain.v1.model_pb2 import ListModelsRequest
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_spec_pb2 import TrainingSpec
from multigrain_client.errors import FieldViolation, InvalidRequest, MissingPackage
from multigrain_client.json_format import enum_names, fill, invalid, merge, nest

JobLike = str | Job
SpecLike = Mapping[str, Any] | Message | str | os.PathLike[str] | None


def job_id(job: JobLike) -> str:
    """The id of a job, which may be given as a Job or as its id.

    Raises:
        InvalidRequest: for an empty id.
    """
    found = job if isinstance(job, str) else job.job_id
    if not found:
        raise InvalidRequest("job: empty; give a job or its id")
    return found


def start_training_request(
    spec: SpecLike,
    overrides: Mapping[str, Any],
    *,
    preset: str | None,
    name: str,
    labels: Mapping[str, str] | None,
    request_id: str | None,
) -> StartTrainingRequest:
    """The request with spec, preset and overrides; an override replaces a field of the spec."""
    request = StartTrainingRequest(
        request_id=_request_id(request_id), name=name, labels=dict(labels or {})
    )
    extra = {**({"preset": preset} if preset else {}), **overrides}
    _fill_spec(request.spec, TrainingSpec, spec, extra)
    return request


def start_evaluation_request(
    spec: SpecLike,
    overrides: Mapping[str, Any],
    *,
    weights: Mapping[str, str],
    dataset_path: str | os.PathLike[str] | None,
    tasks: Iterable[str] | None,
    name: str,
    labels: Mapping[str, str] | None,
    request_id: str | None,
) -> StartEvaluationRequest:
    """As ``start_training_request``; ``weights`` are the fields of a WeightsSource."""
    request = StartEvaluationRequest(
        request_id=_request_id(request_id), name=name, labels=dict(labels or {})
    )
    extra: dict[str, Any] = {f"weights.{key}": value for key, value in weights.items()}
    if dataset_path is not None:
        extra["dataset_path"] = dataset_path
    if tasks is not None:
        extra["tasks"] = [tasks] if isinstance(tasks, str) else list(tasks)
    _fill_spec(request.spec, EvaluationSpec, spec, {**extra, **overrides})
    return request


def start_export_request(
    spec: SpecLike,
    overrides: Mapping[str, Any],
    *,
    weights: Mapping[str, str],
    model_name: str | None,
    formats: Iterable[str] | None,
    name: str,
    labels: Mapping[str, str] | None,
    request_id: str | None,
) -> StartExportRequest:
    """As ``start_evaluation_request``."""
    request = StartExportRequest(
        request_id=_request_id(request_id), name=name, labels=dict(labels or {})
    )
    extra: dict[str, Any] = {f"weights.{key}": value for key, value in weights.items()}
    if model_name is not None:
        extra["model_name"] = model_name
    if formats is not None:
        extra["formats"] = [formats] if isinstance(formats, str) else list(formats)
    _fill_spec(request.spec, ExportSpec, spec, {**extra, **overrides})
    return request


def weights_source(
    *,
    job: JobLike | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    model: str | None = None,
    checkpoint: str | int | None = None,
) -> dict[str, str]:
    """Fields of a WeightsSource.

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
    return source


def list_jobs_request(
    *,
    states: Iterable[str | int],
    kinds: Iterable[str | int],
    labels: Mapping[str, str] | None,
    name_contains: str,
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
            "page_size": page_size,
        },
    )
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


def _fill_spec(
    target: Message, spec_type: type[Message], spec: SpecLike, overrides: Mapping[str, Any]
) -> None:
    over = nest(overrides)
    if isinstance(spec, Message):
        if not isinstance(spec, spec_type):
            raise InvalidRequest(f"expected a {spec_type.__name__}, not {type(spec).__name__}")
        target.CopyFrom(spec)
        # A list in an override replaces the list of the spec; protobuf would append to it.
        _clear_lists(target, over)
        fill(target, over, "spec")
        return
    if isinstance(spec, Mapping):
        base = nest(spec)
    elif spec is None:
        base = {}
    else:
        base = nest(read_spec(spec))
    fill(target, merge(base, over, "spec"), "spec")


def _clear_lists(message: Message, over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        field = message.DESCRIPTOR.fields_by_name.get(key)
        if field is None or value is None:
            continue
        if field.is_repeated:
            message.ClearField(key)
        elif isinstance(value, Mapping) and field.message_type is not None:
            _clear_lists(getattr(message, key), value)


def _request_id(request_id: str | None) -> str:
    """A new idempotency key unless the caller has one, so that the call can be retried."""
    return str(uuid.uuid4()) if request_id is None else request_id


def _names(values: Iterable[str | int] | str | int | None) -> list[str | int]:
    """A list of enum values, of which a single one may be given alone."""
    return [values] if isinstance(values, (str, int)) else list(values or ())

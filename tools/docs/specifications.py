"""Fields of training, evaluation and export specifications."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tools.docs.limits import entry, item_type
from tools.docs.markdown import code, prose, table
from tools.docs.product import EvaluationSpec, ExportSpec, TrainingSpec
from tools.docs.protos import comments


def training() -> str:
    """All groups of a training specification."""
    return _render(TrainingSpec)


def evaluation() -> str:
    """All groups of an evaluation specification."""
    return _render(EvaluationSpec)


def export() -> str:
    """All groups of an export specification."""
    return _render(ExportSpec)


def _render(spec: type[BaseModel]) -> str:
    parts = []
    for path, model in _groups(spec):
        message = f"multigrain.v1.{model.__name__}"
        if path:
            parts.append(f"## {code(path)}")
            parts.append(prose(comments().get(message, "")))
        rows = [
            [
                entry(".".join(filter(None, (path, name))), info),
                prose(comments().get(f"{message}.{name}", "")),
            ]
            for name, info in model.model_fields.items()
            if not _is_group(info)
        ]
        parts.append(table(["field", "meaning"], rows))
    return "\n\n".join(part for part in parts if part)


def _groups(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A specification and the specifications inside it, with the path of each."""
    yield path, model
    for name, info in model.model_fields.items():
        here = ".".join(filter(None, (path, name)))
        if _is_group(info):
            yield from _groups(typing.cast(type[BaseModel], info.annotation), here)
        elif (item := item_type(info)) is not None:
            yield from _groups(item, f"{here}[]")


def _is_group(info: FieldInfo) -> bool:
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)

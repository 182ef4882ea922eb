"""What the manifests of bundles and checkpoints have in common: types with bounds, and a parser.

A manifest may come from an upload or from a folder that somebody else writes. pydantic makes an
error of each wrong value, and 16 MiB of them take half a minute and gigabytes; the parser here
refuses a document of a wrong shape before it is validated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import from_json

from multigrain.bundle.members import is_plain
from multigrain.files import MAX_DOCUMENT_BYTES
from multigrain.specs.base import Spec
from multigrain.text import is_printable, printable

#: Of class names: those of a bundle are in each answer of GetModel.
MAX_LABELS: Final = 100_000
#: Of a checkpoint: the manifest of one with more is larger than MAX_DOCUMENT_BYTES.
MAX_CHECKPOINT_CLASSES: Final = 200_000
_MAX_LABEL = 255
_MAX_TEXT = 255
# Largest numbers of the protobuf messages that carry them, uint32 and uint64, or less.
_MAX_COUNT = 2**31 - 1
_MAX_LONG = 2**63 - 1

# A real manifest has some hundred values beside its class names and the hashes of its classes.
_MAX_VALUES = 20_000
_MAX_DEPTH = 16
# Marks in the text, for each class: they are counted before it is parsed, and bound the number of
# its values. A class of a checkpoint has its name twice, and the number and hash of its images.
_MARKS: Final = {b'"': 12, b",": 10, b":": 4, b"[": 1, b"{": 2}
_TAGS = dict.fromkeys(range(0xE0020, 0xE0080))  # of flags of regions, such as Scotland's

_Manifest = TypeVar("_Manifest", bound=Spec)


def _checked_text(text: str) -> str:
    if not is_printable(text):
        raise ValueError(f"{printable(text[:80])!r} has control or invisible characters")
    return text


def _checked_file(name: str) -> str:
    if name and not is_plain(name):
        raise ValueError(f"{printable(name[:80])!r} is not a plain file name")
    return name


def _checked_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    longest = max(map(len, labels), default=0)
    if longest > _MAX_LABEL:
        number = next(n for n, label in enumerate(labels) if len(label) > _MAX_LABEL)
        raise ValueError(f"class {number} has {longest} characters, at most {_MAX_LABEL}")
    # All at once, which takes a millisecond for a thousand class names.
    if not _is_visible("".join(labels)):
        number = next(n for n, label in enumerate(labels) if not _is_visible(label))
        raise ValueError(
            f"class {number}, {printable(labels[number])!r}, has control or invisible characters"
        )
    return labels


def _is_visible(label: str) -> bool:
    return is_printable(label.translate(_TAGS))


Text = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(_checked_text)]
"""A short text without control characters."""

FileName = Annotated[str, AfterValidator(_checked_file)]
"""The name of a file in the folder of the manifest; "" = none."""

Labels = Annotated[tuple[str, ...], AfterValidator(_checked_labels)]
"""Class names in the order of the outputs."""

Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Long = Annotated[int, Field(ge=0, le=_MAX_LONG)]
Metrics = Annotated[dict[Text, float], Field(max_length=1000)]


def parse_manifest(
    kind: type[_Manifest], data: bytes, *, max_classes: int = MAX_LABELS
) -> _Manifest:
    """Parses and validates a manifest, in bounded time.

    Args:
        kind: what it must be.
        data: JSON.
        max_classes: that it may have.

    Raises:
        ValueError: with the first problem, where it is, and without the rest.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
    if any(data.count(mark) > _MAX_VALUES + most * max_classes for mark, most in _MARKS.items()):
        raise ValueError("it has too many values")
    try:
        document = from_json(data, cache_strings="none")
    except ValueError as error:
        raise ValueError(f"content: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise ValueError("content: it is not a JSON object")
    _check_shape(document, max_classes)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(printable(str(part)[:80]) for part in first["loc"]) or "content"
        raise ValueError(f"{where}: {first['msg'][:300]}") from None


def _check_shape(document: dict[str, Any], max_classes: int) -> None:
    """Refuses what would make an error for each of many values."""
    rest = dict(document)
    _check_list(rest.pop("labels", []), max_classes)
    dataset = rest.get("dataset")
    if isinstance(dataset, dict):
        rest["dataset"] = dataset = dict(dataset)
        _check_classes(dataset.pop("classes", {}))
    values = 0
    waiting: list[tuple[int, Iterator[Any]]] = [(1, iter([rest]))]
    while waiting:
        depth, items = waiting.pop()
        for item in items:
            values += 1
            if values > _MAX_VALUES or depth > _MAX_DEPTH:
                raise ValueError("it has too many values, or values that are nested too deeply")
            if isinstance(item, dict):
                waiting.append((depth + 1, iter(item.values())))
            elif isinstance(item, list):
                waiting.append((depth + 1, iter(item)))


def _check_list(labels: Any, max_classes: int) -> None:
    if not isinstance(labels, list) or not all(type(label) is str for label in labels):
        raise ValueError("labels: must be a list of class names")
    if len(labels) > max_classes:
        raise ValueError(f"labels: has {len(labels)} class names, at most {max_classes}")


def _check_classes(classes: Any) -> None:
    """Of the fingerprint of a training set: class name -> {"images": number, "sum": hash}."""
    if not isinstance(classes, dict) or not all(
        type(entry) is dict
        and entry.keys() == {"images", "sum"}
        and type(entry["images"]) is int
        and type(entry["sum"]) is str
        for entry in classes.values()
    ):
        raise ValueError("dataset.classes: must have the number and the hash of images by class")

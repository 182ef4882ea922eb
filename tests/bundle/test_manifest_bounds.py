"""Every value of a manifest has bounds, and a hostile manifest is refused in bounded time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multigrain.bundle.folder import read
from multigrain.bundle.manifest import BundleManifest
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.manifests import MAX_CHECKPOINT_CLASSES, parse_manifest
from tests.bundle.bundles import write_bundle

#: What is put in the place of each value.
EXTREMES: dict[str, Any] = {
    "-1": -1,
    "0": 0,
    "2^31": 2**31,
    "2^32": 2**32,
    "2^53": 2**53,
    "2^63": 2**63,
    "2^64": 2**64,
    "10^4000": 10**4000,
    "1e308": 1e308,
    "NaN": float("nan"),
    "-Infinity": float("-inf"),
    "Infinity": float("inf"),
    "nothing": None,
    "empty": "",
    "long": "x" * 100_000,
    "control": "a\x1b]0;x\x07\u009b\u202e",
    "surrogate": "\ud800",
    "path": "../../../etc/passwd",
    "absolute": "/etc/passwd",
    "NUL": "a\0b",
    "list": [1] * 100,
    "object": {"a": {"b": 1}},
    "true": True,
}


def whole() -> dict[str, Any]:
    """A manifest with a value in every field."""
    return {
        "format_version": 1,
        "name": "m",
        "version": 3,
        "create_time": "2026-11-30T12:00:00+00:00",
        "multigrain_version": "0.2.0",
        "model": {"trunk": "resnet18", "classes": 2, "image_size": 32, "gem_p": 3.0},
        "embedding_size": 8,
        "labels": ["a", "b"],
        "weights": "weights.safetensors",
        "heads": [
            {
                "resolution": 32,
                "gem_p": 3.0,
                "preprocessing": {
                    "size": 32,
                    "resize_short": 36,
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.25, 0.25, 0.25],
                },
                "mindir": "",
                "onnx": "model.onnx",
                "air": "",
                "whitening": {"file": "whitening.safetensors", "size": 9, "images": 100},
                "reference": "reference.safetensors",
                "int8": {
                    "file": "int8.xml",
                    "calibration_images": 1,
                    "images": 2,
                    "cosine_mean": 0.99,
                    "cosine_min": 0.98,
                    "same_top1": 0.9,
                    "labelled_images": 2,
                    "f32": {"top1": 0.5, "top5": 0.6},
                    "int8": {"top1": 0.5, "top5": 0.6},
                },
            }
        ],
        "files": {
            name: {"sha256": "0" * 64, "bytes": 1}
            for name in (
                "weights.safetensors", "model.onnx", "whitening.safetensors",
                "reference.safetensors", "int8.xml", "int8.bin",
            )
        },
        "metrics": {"top1": 0.5},
        "source": {"job_id": "j", "step": 7, "checkpoint": "step-00000007"},
        "export_job": "e",
    }  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, at any depth."""
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from places(item, (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = whole()
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def text_of(document: dict[str, Any]) -> bytes:
    # Infinity and NaN as the manifest's own writer writes them, and as other programs do.
    return json.dumps(document).encode()


PLACES = sorted(places(whole()), key=str)


def test_the_walk_has_every_field() -> None:
    assert len(PLACES) > 60
    assert parse_manifest(BundleManifest, text_of(whole())).heads[0].int8 is not None


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_an_extreme_value_is_refused_or_fits_every_message(path: tuple[Any, ...]) -> None:
    from multigrain_server.grpc.models import _model_message
    from multigrain_server.models.catalog import ModelView
    from multigrain_server.models.registry import BundleEntry, ModelVersion

    reasons = []
    for value in EXTREMES.values():
        try:
            manifest = parse_manifest(BundleManifest, text_of(changed(path, value)))
        except ValueError as error:
            reasons.append(str(error))
            continue
        version = ModelVersion(manifest.name, manifest.version)
        message = _model_message(ModelView(BundleEntry(version, Path("/m"), manifest)))
        assert message.SerializeToString()
        assert parse_manifest(BundleManifest, manifest.model_dump_json().encode()) is not None
    assert reasons
    assert all(len(reason) < 1000 and reason.isprintable() for reason in reasons)


MANY = 1_000_000
HOSTILE: dict[str, bytes] = {
    "unknown keys": b"{" + b",".join(b'"%x":1' % n for n in range(MANY)) + b"}",
    "labels that are numbers": b'{"labels":[' + b"1," * MANY + b"1]}",
    "labels that are lists": b'{"labels":[' + b"[]," * MANY + b"1]}",
    "short labels": b'{"labels":[' + b'"",' * MANY + b'""]}',
    "metrics": b'{"metrics":{' + b",".join(b'"%x":1' % n for n in range(MANY)) + b"}}",
    "heads": b'{"heads":[' + b"{}," * MANY + b"{}]}",
    "deep": b'{"labels":' + b"[" * MANY,
    "deep objects": b'{"a":' * MANY,
    "digits": b'{"version":' + b"9" * MANY + b"}",
    "too large": b" " * (17 << 20),
    "not JSON": b"\xff" * 1000,
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "-1e308"])
def test_colors_are_scaled_to_finite_numbers_only(field: str, value: str) -> None:
    path = ("heads", 0, "preprocessing", field, 1)
    with pytest.raises(ValueError, match=field):
        parse_manifest(BundleManifest, text_of(changed(path, float(value))))


@pytest.mark.parametrize("kind", [BundleManifest, CheckpointManifest])
@pytest.mark.parametrize("attack", HOSTILE)
def test_a_manifest_of_many_values_is_refused_before_it_is_validated(
    attack: str, kind: type[BundleManifest] | type[CheckpointManifest]
) -> None:
    """pydantic would make an error of each: 18 s and 4 GB for 16 MiB of them."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_manifest(kind, HOSTILE[attack], max_classes=100_000)
    assert len(str(caught.value)) < 1000


def test_the_classes_of_a_large_dataset_are_read() -> None:
    names = [f"class {number}" for number in range(20_000)]
    document = {
        "step": 1, "epoch": 1, "model": {}, "labels": names,
        "dataset": {
            "images": 1, "sha256": "x",
            "classes": {name: {"images": 1, "sum": "0" * 16} for name in names},
        },
    }  # fmt: skip
    data = text_of(document)
    manifest = parse_manifest(CheckpointManifest, data, max_classes=MAX_CHECKPOINT_CLASSES)
    assert len(manifest.labels) == 20_000
    del document["dataset"]
    with pytest.raises(ValueError, match="labels: has 20000 class names, at most 10000"):
        parse_manifest(CheckpointManifest, text_of(document), max_classes=10_000)


@pytest.mark.parametrize(
    "label",
    [
        "\u0646\u0645\u06cc\u200c\u062e",
        "👩\u200d👧",
        "🏴\U000e0067\U000e0062\U000e007f",
        "日本",
        "a b, c",
    ],
)
def test_labels_of_all_languages_are_accepted(label: str) -> None:
    assert parse_manifest(BundleManifest, text_of({**whole(), "labels": [label]})).labels == (
        label,
    )


@pytest.mark.parametrize("label", ["\x1b[31m", "\x9b", "\u202e", "\n", "x" * 256])
def test_labels_that_would_change_a_terminal_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match=r"labels: .*class 1"):
        parse_manifest(BundleManifest, text_of({**whole(), "labels": ["a", label]}))


NAMING = [
    ("weights",), ("heads", 0, "onnx"), ("heads", 0, "mindir"), ("heads", 0, "air"),
    ("heads", 0, "reference"), ("heads", 0, "whitening", "file"), ("heads", 0, "int8", "file"),
]  # fmt: skip


@pytest.mark.parametrize("path", NAMING, ids=str)
@pytest.mark.parametrize(
    "name",
    ["../x.xml", "/etc/x.xml", "a/x.xml", "...xml", ".x.xml", "a\\x.xml", "x\n.xml", "\0.xml"],
)
def test_a_manifest_names_files_of_its_folder_only(path: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        parse_manifest(BundleManifest, text_of(changed(path, name)))


@pytest.mark.parametrize("name", ["", "model.json", "../x", ".x"])
def test_odd_names_are_not_listed(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / "a")
    document = whole()
    document["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / "a/model.json").write_bytes(text_of(document))
    with pytest.raises(MultigrainError, match=r"plain file name|lists itself") as caught:
        read(tmp_path / "a")
    assert caught.value.kind is ErrorKind.CHECKPOINT


@pytest.mark.parametrize("path", NAMING[1:], ids=str)
def test_a_named_file_must_be_listed(tmp_path: Path, path: tuple[Any, ...]) -> None:
    write_bundle(tmp_path / "a")
    (tmp_path / "a/model.json").write_bytes(text_of(changed(path, "other.xml")))
    with pytest.raises(MultigrainError, match=r"other\.\w+ is not listed") as caught:
        read(tmp_path / "a")
    assert caught.value.kind is ErrorKind.CHECKPOINT

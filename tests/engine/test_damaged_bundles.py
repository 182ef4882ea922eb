"""Bundles with damaged or hostile files: the load fails with what is wrong, and no engine dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from multigrain.bundle.folder import check_files, read, read_file, write_manifest
from multigrain.bundle.reference import read_reference
from multigrain.engine.protocol import LoadFailed
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import describe
from multigrain.tensors import parse_tensors
from multigrain.whitening import read_whitening
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.client import EngineClient


def tensor_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


TENSORS: dict[str, bytes] = {
    "nothing": b"",
    "a header of 2^63": tensor_file({}, length=2**63),
    "a header of 2^64 - 1": tensor_file({}, length=2**64 - 1),
    "a header beyond the file": tensor_file({}, length=100),
    "offsets beyond": tensor_file({"a": entry("F32", [4], 0, 16)}, bytes(8)),
    "offsets of 2^63": tensor_file({"a": entry("F32", [2**61], 0, 2**63)}, bytes(8)),
    "offsets back": tensor_file({"a": entry("F32", [1], 4, 0)}, bytes(8)),
    "overlap": tensor_file(
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)
    ),
    "a hole": tensor_file({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
    "a type that lies": tensor_file({"a": entry("F64", [2], 0, 8)}, bytes(8)),
    "a type that is none": tensor_file({"a": entry("\x1b[31m", [2], 0, 8)}, bytes(8)),
    "a type of no numpy": tensor_file({"a": entry("BF16", [2], 0, 4)}, bytes(4)),
    "a shape that overflows": tensor_file({"a": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4)),
    "a negative shape": tensor_file({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
    "a deep header": tensor_file(b"[" * 100_000),
    "no JSON": tensor_file(b"\xff" * 100),
    "bytes behind": tensor_file({"a": entry("F32", [1], 0, 4)}, bytes(99)),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_damaged_tensors_are_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    with pytest.raises(ValueError, match=r"it is not a whole|it has tensors of type") as caught:
        parse_tensors(TENSORS[damage])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    path = tmp_path / "x.safetensors"
    path.write_bytes(TENSORS[damage])
    for reader in (read_reference, lambda path: read_whitening(path, EMBEDDING)):
        with pytest.raises(MultigrainError, match=r"x\.safetensors") as refused:
            reader(path)
        assert refused.value.kind is ErrorKind.CHECKPOINT


def rows(**changes: Any) -> bytes:
    tensors: dict[str, Any] = {
        "pixels": np.zeros((2, 8, 8, 3), np.uint8),
        "embedding": np.zeros((2, 4), np.float32),
        "logits": np.zeros((2, 5), np.float32),
    }
    return save({**tensors, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros((2, 8, 8, 3), np.float32)},
        {"pixels": np.zeros((2, 8, 9, 3), np.uint8)},
        {"pixels": np.zeros((2, 8, 8, 4), np.uint8)},
        {"pixels": np.zeros((0, 8, 8, 3), np.uint8)},
        {"embedding": np.zeros((2, 4), np.int64)},
        {"embedding": np.zeros((3, 4), np.float32)},
        {"logits": np.zeros((2, 5, 1), np.float32)},
        {"logits": np.array(0, np.float32)},
    ],
)
def test_reference_outputs_of_other_shapes_are_refused(tmp_path: Path, changes: Any) -> None:
    (tmp_path / "r").write_bytes(rows())
    read_reference(tmp_path / "r")
    (tmp_path / "r").write_bytes(rows(**changes))
    with pytest.raises(MultigrainError, match="no reference outputs"):
        read_reference(tmp_path / "r")


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file together with its checksum, as the maker of a bundle can."""
    (folder / name).write_bytes(content)
    manifest = read(folder)
    files = {**manifest.files, name: describe(folder / name)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.onnx", b"\xff" * 5000, "cannot load"),
        ("model.onnx", b"", "cannot load"),
        ("reference.safetensors", TENSORS["a header of 2^63"], "reference.safetensors"),
        ("reference.safetensors", rows(), "export or import"),
        ("whitening.safetensors", TENSORS["overlap"], "whitening.safetensors"),
    ],
)
def test_an_engine_says_which_file_it_cannot_load(
    tmp_path: Path, name: str, content: bytes, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path, whitened=True, referenced=True)
    replaced(folder, name, content)
    with EngineClient(folder) as client:
        assert isinstance(client.first, LoadFailed)
        assert says in client.first.message
        assert client.first.error in (ErrorKind.CHECKPOINT, ErrorKind.UNSUPPORTED)
        assert client.process.wait(timeout=60) == 1
    # No traceback of the engine's code.
    assert 'multigrain/engine/serve.py", line' not in capfd.readouterr().err


def link(folder: Path) -> None:
    path = folder / "model.onnx"
    path.rename(folder.parent / "outside")
    path.symlink_to(folder.parent / "outside")


def longer(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")


def named_outside(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    text = text.replace('"weights": "weights.safetensors"', '"weights": "../../../outside"')
    (folder / "model.json").write_text(text)


@pytest.mark.process
@pytest.mark.parametrize("damage", [link, longer, named_outside])
def test_an_engine_checks_the_files_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = write_bundle(tmp_path)
    damage(folder)
    with EngineClient(folder) as client:
        assert isinstance(client.first, LoadFailed)
        assert client.first.error is ErrorKind.CHECKPOINT
        assert "the model bundle cannot be used" in client.first.message


def test_a_file_is_read_only_as_the_manifest_describes_it(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    manifest = read(folder)
    check_files(folder, manifest)
    assert read_file(folder, manifest, "model.onnx") == (folder / "model.onnx").read_bytes()
    with pytest.raises(MultigrainError, match=r"weights\.safetensors is not listed"):
        read_file(folder, manifest, "weights.safetensors")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    check_files(folder, manifest)
    with pytest.raises(MultigrainError, match=r"model\.onnx does not match its checksum"):
        read_file(folder, manifest, "model.onnx")


@pytest.mark.mindspore
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a header of 2^63", "a type that lies"])
def test_mindspore_says_what_is_wrong_with_the_weights(tmp_path: Path, damage: str) -> None:
    folder = write_bundle(tmp_path)
    replaced(folder, "weights.safetensors", TENSORS[damage])
    with EngineClient(folder, runtime="mindspore") as client:
        assert isinstance(client.first, LoadFailed)
        assert client.first.error is ErrorKind.CHECKPOINT
        assert "weights.safetensors cannot be used: it is not a whole" in client.first.message

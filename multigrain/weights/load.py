"""Loading weights from a checkpoint, a model bundle or a weights file."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest, Head
from multigrain.checkpoint import store
from multigrain.checkpoint.reader import MANIFEST as CHECKPOINT_MANIFEST
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import (
    MAX_DOCUMENT_BYTES,
    MAX_WEIGHTS_BYTES,
    Roots,
    open_regular,
    read_bytes,
    stat_path,
)
from multigrain.specs.training import ModelSpec
from multigrain.storage import os_error_hint
from multigrain.tensors import parse_tensors
from multigrain.weights.pytorch import SUFFIXES as PYTORCH_SUFFIXES
from multigrain.weights.pytorch import read_pytorch
from multigrain.weights.translate import has_native_names, translate

# Prefixes of what training programs write into a .ckpt besides the network's weights.
_NOT_WEIGHTS = (
    "moments.", "moment1.", "moment2.", "accum.", "stat.", "matrix_a", "matrix_g", "curvature.",
    "learning_rate", "global_step", "epoch_num", "step_num", "scale_sense", "loss_scale",
    "cov_step", "momentum",
)  # fmt: skip

_GEM_P = "pool.p"
_SUFFIXES = (".safetensors", ".ckpt", *PYTORCH_SUFFIXES)
_FILES = "a .safetensors, .ckpt or .pth file"


@dataclass(frozen=True)
class Weights:
    """A network's parameters and what the source says about the network.

    Args:
        model: parameters and BatchNorm statistics by name.
        spec: the network; None for a weights file with this package's names.
        labels: class names in the order of the outputs; empty for a weights file.
        heads: resolution heads with their preprocessing and exponent, if the source is a bundle.
        job_id, step, epoch, checkpoint: origin of the weights; empty for a weights file.
        metrics: metrics stored with them.
        naming: the naming scheme of a weights file; empty for this package's. For other schemes
            ``spec`` is the network that was recognized by names and shapes.
    """

    model: dict[str, NDArray[np.generic]]
    spec: ModelSpec | None = None
    labels: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    job_id: str = ""
    step: int = 0
    epoch: int = 0
    checkpoint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    naming: str = ""

    def head(self, resolution: int) -> Head | None:
        """Returns a bundle's head for a resolution (0 = its default), or None."""
        for head in self.heads:
            if resolution in (0, head.preprocessing.size):
                return head
        return None


def load_weights(path: Path, roots: Roots = None) -> Weights:
    """Reads a checkpoint folder, a bundle folder, a ``.safetensors``, ``.ckpt`` or ``.pth`` file.

    A file's parameter names may be this package's, or those of a scheme in
    ``multigrain.weights.names``.

    Args:
        path: the folder or file.
        roots: folders that it, and the files in it, must be in.

    Raises:
        MultigrainError: NOT_FOUND, if the path does not exist; CHECKPOINT, if it is damaged, of
            another kind, or of an unknown network.
    """
    if path.is_dir():
        if _is_there(path / MANIFEST_NAME, roots):
            return _from_bundle(path, roots)
        if path.suffix in _SUFFIXES and not _is_there(path / CHECKPOINT_MANIFEST, roots):
            raise _unusable(path, f"it is a folder; give the path of a file, {_FILES}")
        manifest, model = store.load_model(path, roots)
        return Weights(
            model=model,
            spec=manifest.model,
            labels=manifest.labels,
            job_id=manifest.job_id,
            step=manifest.step,
            epoch=manifest.epoch,
            checkpoint=path.name,
            metrics=manifest.metrics,
        )
    if not _is_there(path, roots):
        raise MultigrainError(
            ErrorKind.NOT_FOUND,
            f"there are no weights at {path}: give a checkpoint folder, or {_FILES}",
        )
    if path.suffix == ".safetensors":
        return _from_file(path, _parse_safetensors(path, _read(path, roots)))
    with _open(path, roots) as file:
        if path.suffix == ".ckpt":
            return _from_file(path, _read_ckpt(path, file))
        if path.suffix in PYTORCH_SUFFIXES:
            return _from_file(path, read_pytorch(path, file))
    raise MultigrainError(
        ErrorKind.CHECKPOINT,
        f"{path.name} has no known extension: give a checkpoint folder, or {_FILES}",
    )


def _is_there(path: Path, roots: Roots) -> bool:
    """Whether there is something to read. True also if it leads outside the roots, whether it
    exists there or not, or cannot be looked at: reading it says so."""
    try:
        stat_path(path, roots)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _open(path: Path, roots: Roots) -> BinaryIO:
    """Opens a file of weights: its readers would report one that cannot be opened as damaged."""
    try:
        file = open_regular(path, roots)
    except OSError as error:
        raise _unreadable(path, error) from error
    if os.fstat(file.fileno()).st_size > MAX_WEIGHTS_BYTES:
        file.close()
        raise _unusable(path, f"it has more than {MAX_WEIGHTS_BYTES >> 30} GiB")
    return file


def _read(path: Path, roots: Roots) -> bytes:
    try:
        return read_bytes(path, max_bytes=MAX_WEIGHTS_BYTES, roots=roots)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> MultigrainError:
    todo = os_error_hint(error, "read it", "give another file, or check the disk")
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the weights in {path.name} cannot be read: {error.strerror}; {todo}",
    )


def _from_file(path: Path, state: dict[str, NDArray[np.generic]]) -> Weights:
    non_finite = sorted(name for name, array in state.items() if not _is_finite(name, array))
    if non_finite:
        # ReLU may turn NaN into 0: the metrics would be those of a bad network.
        raise _unusable(path, f"{non_finite[0]} has values that are not finite in float32")
    if has_native_names(state):
        return Weights(model=state)
    found = translate(state, path.name)
    spec = ModelSpec.model_validate(
        {
            "trunk": found.trunk,
            "stem": found.stem,
            "classes": found.classes,
            "gem_p": found.gem_p,
        }
    )
    return Weights(model=found.model, spec=spec, naming=found.naming)


def _from_bundle(path: Path, roots: Roots) -> Weights:
    try:
        text = read_bytes(path / MANIFEST_NAME, max_bytes=MAX_DOCUMENT_BYTES, roots=roots)
        manifest = BundleManifest.parse(text)
    except OSError as error:
        raise _unusable(path, f"its {MANIFEST_NAME} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _unusable(path, f"its {MANIFEST_NAME} cannot be read: {error}") from error
    weights = path / manifest.weights
    if not manifest.weights or not _is_there(weights, roots):
        raise _unusable(path, "the bundle has graphs only, no weights")
    entry = manifest.files.get(weights.name)
    if entry is None:
        raise _unusable(path, f"{weights.name} is not listed in its {MANIFEST_NAME}")
    data = _read(weights, roots)
    if (len(data), hashlib.sha256(data).hexdigest()) != (entry.bytes, entry.sha256):
        raise _unusable(path, f"{weights.name} is not what was written")
    return Weights(
        model=_parse_safetensors(weights, data),
        spec=manifest.model,
        labels=manifest.labels,
        heads=manifest.heads,
        job_id=manifest.source.job_id,
        step=manifest.source.step,
        checkpoint=manifest.source.checkpoint,
        metrics=manifest.metrics,
    )


def _parse_safetensors(path: Path, data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        return parse_tensors(data)
    except ValueError as error:
        raise _unusable(path, str(error)) from error


def _read_ckpt(path: Path, file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    # A protobuf, not a pickle: reading it cannot execute code.
    from mindspore import load_checkpoint

    if zipfile.is_zipfile(file):
        raise _unusable(
            path, "it is a PyTorch file (as Lightning writes), not MindSpore's; rename it to .pth"
        )
    # It opens a path of its own: this copy is the file that was opened, and that nobody replaces.
    with TemporaryDirectory(prefix="multigrain-weights-") as folder:
        copy = Path(folder) / "weights.ckpt"
        file.seek(0)
        with copy.open("wb") as target:
            shutil.copyfileobj(file, target)
        try:
            parameters = load_checkpoint(str(copy))
        except (ValueError, OSError, RuntimeError) as error:
            raise _unusable(path, "MindSpore cannot read it") from error
    return {
        name: np.asarray(parameter.asnumpy())
        for name, parameter in parameters.items()
        if not name.startswith(_NOT_WEIGHTS)
    }


def _is_finite(name: str, array: NDArray[np.generic]) -> bool:
    if not np.issubdtype(array.dtype, np.floating):
        return True
    if name.endswith(_GEM_P) and (array == np.inf).all():  # max pooling
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def _unusable(path: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT, f"the weights in {path.name} cannot be used: {what}. Use others"
    )

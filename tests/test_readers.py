"""Files are opened by ``multigrain.files``, which knows what may be in their place.

Every other place is listed here with its number of calls and the reason.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("multigrain", "server/multigrain_server")

METHODS = frozenset({"read_text", "read_bytes", "write_text", "write_bytes", "savefig"})
"""Methods of a path, and others that open one."""

FUNCTIONS = frozenset(
    {
        *("os.open", "io.open", "os.scandir", "os.walk", "shutil.copyfile", "shutil.copy"),
        *("shutil.copy2", "shutil.copytree", "json.load", "np.load", "np.loadtxt", "np.fromfile"),
        *("np.memmap", "torch.load", "tarfile.open", "zipfile.ZipFile", "Image.open"),
        *("sqlite3.connect", "logging.basicConfig", "logging.FileHandler", "onnx.load"),
        *("onnxruntime.InferenceSession", "json.loads"),
    }
)
ANYWHERE = frozenset(
    {
        *("safe_open", "load_file", "load_checkpoint", "load_param_into_net", "read_model"),
        *("load_cert_chain", "load_verify_locations", "FileHandler", "RotatingFileHandler"),
    }
)
"""Functions of libraries that open a path, however they are imported."""

IN_MEMORY = "bytes in memory, no file"
OURS = "a file of the package itself"
PROC = "a file of the kernel in /proc or /sys, or a device that always exists"
NEW = "a file in a new folder of this process, which nobody else has written"
EXCEPTIONS: dict[str, tuple[dict[str, int], str]] = {
    "multigrain/files.py": ({"os.open": 9, "json.loads": 1}, "it is the reader"),
    "multigrain/data/listing.py": ({"os.scandir": 2}, "lists folders: opened by the reader"),
    "multigrain/strict_yaml.py": ({".open": 1}, "a pipe that the caller has opened already"),
    "multigrain/storage.py": ({"os.open": 1}, "a folder, to sync it"),
    "multigrain/streams.py": ({"os.open": 2}, PROC),
    "multigrain/shared_memory.py": ({"os.open": 1}, PROC),
    "multigrain/kernels.py": ({".read_text": 1}, PROC),
    "multigrain/machine.py": ({".read_text": 1}, PROC),
    "multigrain/processes.py": ({".read_text": 2, ".read_bytes": 1, ".write_text": 1}, PROC),
    "multigrain/jobs/runner_identity.py": ({".read_text": 2}, PROC),
    "multigrain/engine/decoder_process.py": ({"open": 1}, PROC),
    "server/multigrain_server/engines/memory.py": ({"open": 3}, PROC),
    "multigrain/sandbox/landlock.py": ({"os.open": 1}, "O_PATH: it is not read"),
    "multigrain/specs/presets.py": ({".read_text": 1}, OURS),
    "server/multigrain_server/status/site.py": ({".read_text": 2}, OURS),
    "server/multigrain_server/doctor/machine.py": ({".read_text": 1}, PROC),
    "server/multigrain_server/grpc/connections.py": ({".read_text": 1}, PROC),
    "multigrain/jobs/runner.py": (
        {"logging.basicConfig": 1},
        "runner.log, which the daemon has opened by the reader to start this process",
    ),
    "multigrain/engine/__main__.py": ({"logging.basicConfig": 1}, "standard error, no file"),
    "multigrain/index/__main__.py": ({"logging.basicConfig": 1}, "standard error, no file"),
    "multigrain/index/exact_store.py": ({"sqlite3.connect": 1}, "an index, which the daemon owns"),
    "multigrain/index/lance_store.py": ({"os.walk": 1}, "lists the files of an index"),
    "multigrain/weights/load.py": ({".open": 1, "load_checkpoint": 1}, NEW),
    "multigrain/weights/pytorch.py": ({"torch.load": 1}, "given a file that the reader opened"),
    "multigrain/checkpoint/store.py": ({".open": 1}, NEW),
    "multigrain/train/compile_cache.py": (
        {".read_text": 3, ".write_text": 1, ".read_bytes": 2, ".write_bytes": 1},
        "this process's private folder, the program's own files, /proc",
    ),
    "multigrain/train/graph_store.py": (
        {"os.scandir": 1},
        "a folder that only this user may write to",
    ),
    "multigrain/bundle/folder.py": ({".open": 1}, NEW),
    "multigrain/bundle/reference.py": ({".write_bytes": 1}, NEW),
    "multigrain/whitening.py": ({".write_bytes": 1}, NEW),
    "multigrain/export/job.py": ({".write_bytes": 1}, NEW),
    "multigrain/export/graphs.py": (
        {".write_bytes": 1, "onnx.load": 1, "onnxruntime.InferenceSession": 1},
        NEW,
    ),
    "server/multigrain_server/models/archive.py": ({".open": 1}, NEW),
    "multigrain/engine/runtimes/onnx.py": (
        {"onnxruntime.InferenceSession": 1},
        "the daemon has verified the bundle's files by the reader; in the engine's sandbox",
    ),
    "multigrain/engine/runtimes/openvino.py": (
        {"read_model": 1},
        "the daemon has verified the bundle's files by the reader; in the engine's sandbox",
    ),
    "multigrain/evaluate/results.py": (
        {".savefig": 1, "shutil.copyfile": 1},
        "given a file that the reader opened; files that this job has written",
    ),
    "multigrain/evaluate/distortion.py": ({"Image.open": 1}, IN_MEMORY),
    "server/multigrain_server/http/api.py": ({".read_bytes": 1}, OURS),
    "server/multigrain_server/jobs/artifacts.py": (
        {"os.scandir": 1},
        "lists a folder: opened by the reader",
    ),
    "server/multigrain_server/jobs/files.py": (
        {"shutil.copyfile": 1},
        "the list of held-out images, which the reader has read just before",
    ),
    "server/multigrain_server/database.py": (
        {"sqlite3.connect": 1},
        "open_index looks at the files before",
    ),
    "server/multigrain_server/grpc/tls.py": (
        {"load_cert_chain": 1, "load_verify_locations": 1},
        "the operator's files, which the reader has read just before; or bytes",
    ),
}


def _opens(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What opens a file in a module, and in which line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="open"):
                yield "open", node.lineno
            case ast.Name(id=name) if name in ANYWHERE:
                yield name, node.lineno
            case ast.Attribute(value=value, attr=name):
                whole = f"{ast.unparse(value)}.{name}"
                if whole in FUNCTIONS:
                    yield whole, node.lineno
                elif name in ANYWHERE:
                    yield name, node.lineno
                elif name in METHODS or (name == "open" and _has_mode(node)):
                    yield f".{name}", node.lineno


def _has_mode(call: ast.Call) -> bool:
    """Whether a method ``open`` is that of a path: ``path.open("rb")`` or ``path.open()``."""
    if not call.args and not call.keywords:
        return True
    first = call.args[0] if call.args else call.keywords[0].value
    return isinstance(first, ast.Constant) and first.value in (
        *("r", "rb", "w", "wb", "x", "xb", "a", "ab", "r+b", "w+b", "x+b", "a+b", "rt", "wt"),
    )


@functools.cache
def _modules() -> tuple[tuple[str, ast.Module], ...]:
    return tuple(
        (str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "_pb2" not in path.stem
    )


def test_files_are_opened_by_the_reader_only() -> None:
    wrong = []
    for file, tree in _modules():
        found = list(_opens(tree))
        allowed = Counter(EXCEPTIONS.get(file, ({}, ""))[0])
        counts = Counter(name for name, _ in found)
        for name, line in found:
            if counts[name] > allowed[name]:
                wrong.append(f"{file}:{line}: {name}: use multigrain.files")
    assert not wrong, "\n".join(wrong)


def test_no_exception_is_listed_in_vain() -> None:
    found = {file: Counter(name for name, _ in _opens(tree)) for file, tree in _modules()}
    vain = [
        f"{file}: {name}: {number} allowed, {found.get(file, Counter())[name]} there"
        for file, (names, _) in EXCEPTIONS.items()
        for name, number in names.items()
        if found.get(file, Counter())[name] != number
    ]
    assert not vain, "\n".join(vain)


def test_names_are_not_imported_past_this_test() -> None:
    """``from os import open`` or ``from json import loads`` would not be found above."""
    known = {name.rpartition(".") for name in FUNCTIONS}
    wrong = [
        f"{file}:{node.lineno}: from {node.module} import {alias.name}"
        for file, tree in _modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "", ".", alias.name) in known
    ]
    assert not wrong, "\n".join(wrong)

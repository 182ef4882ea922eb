"""Compiled training graphs, kept on disk for later jobs with the same network on this machine.

MindSpore 2.8 can save a graph after its front end (parsing, differentiation, optimization), which
takes most of a compilation, and load it in another process. It finds a saved graph only by its
number among the compilations of a process, and checks neither the network nor the shapes. This
module therefore decides by a key of its own which graph MindSpore finds: the file is put into a
private folder just before the compilation, and taken away after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import mindspore
import mindspore.common.api as mindspore_api
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore._c_expression import GraphExecutor_, JitExecutor_
from mindspore.ops import Primitive

import multigrain
from multigrain.jobs.context import WorkerContext
from multigrain.jobs.launchers import (
    CLUSTER_VARIABLES,
    COMPILE_CACHE_SIZE_VARIABLE,
    COMPILE_CACHE_VARIABLE,
)
from multigrain.specs.training import TrainingSpec
from multigrain.train.graph_store import GraphStore

_FORMAT: Final = 1
_MARK: Final = "loading"
# Fields of a specification that reach a graph as its inputs, as shapes or not at all.
_NOT_COMPILED: Final = {
    *("dataset", "schedule", "augmentation", "evaluation", "checkpointing"),
    *("initial_weights", "max_restarts", "devices"),
}
_COMPILER_VARIABLES: Final = ("MS_", "MINDSPORE", "ONEDNN", "DNNL", "GRAPH_", "ENABLE_")


class CompileCache:
    """Gives MindSpore graphs that an earlier process has compiled.

    Args:
        store: the graphs; None = every graph is compiled.
        work: private folder of this process, in the job's folder. What a process that died while
            it used a graph has left there names that graph: it is dropped, and no other is used.
        spec: of the training run.
        rank, world: of this worker.
        target: type of the device.

    Attributes:
        hits, misses: graphs that were found and not found.
    """

    def __init__(
        self,
        store: GraphStore | None,
        work: Path,
        spec: TrainingSpec,
        *,
        rank: int = 0,
        world: int = 1,
        target: str = "cpu",
    ) -> None:
        self._store = store
        self._mark = work / _MARK
        self._base = {
            "format": _FORMAT,
            "installation": installation(),
            "environment": _environment(),
            "spec": spec.model_dump(mode="json", exclude=_NOT_COMPILED),
            "rank": rank,
            "world": world,
            "target": target,
        }
        self.hits = self.misses = 0
        self._read = True
        if store is not None:
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._mark.exists():
                store.drop(self._mark.read_text())
                self._mark.unlink()
                self._read = False
            self._files = _MindSporeFiles.of_process(work)

    @classmethod
    def of_job(cls, ctx: WorkerContext, spec: TrainingSpec) -> CompileCache:
        """The cache of a worker. It is tested on CPUs, and does nothing on other devices."""
        folder = os.environ.get(COMPILE_CACHE_VARIABLE, "")
        size = int(os.environ.get(COMPILE_CACHE_SIZE_VARIABLE, "0"))
        store = None
        if folder and size and spec.devices.target == "cpu":
            store = GraphStore(Path(folder), size)
        return cls(
            store,
            ctx.folder.path / "compile" / f"rank-{ctx.rank}",
            spec,
            rank=ctx.rank,
            world=ctx.world,
            target=spec.devices.target,
        )

    @contextmanager
    def compiling(
        self,
        name: str,
        cells: Sequence[nn.Cell],
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[None]:
        """Within it, the first call of one compiled function uses a saved graph or saves its own.

        Args:
            name: of the function.
            cells: that it calls.
            inputs: of the call.
            parameters: all that the graph uses, by name.
        """
        if self._store is None or not self._files.usable:
            yield
            return
        key = self._key(name, cells, inputs, parameters)
        data = self._store.read(key) if self._read else None
        if data is not None:
            self._mark.write_text(key)
        found = False
        try:
            with self._files.compiling(data, parameters):
                yield
            found = self._files.was_used
        except BaseException:
            if data is not None:  # whatever is wrong, the next attempt shall compile
                self._store.drop(key)
            raise
        finally:
            compiled = self._files.take()
            self._mark.unlink(missing_ok=True)
        if found:
            self.hits += 1
            return
        self.misses += 1
        if data is not None:
            self._store.drop(key)
        if compiled is not None:
            self._store.write(key, compiled)

    def _key(
        self,
        name: str,
        cells: Sequence[nn.Cell],
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Parameter],
    ) -> str:
        described = {
            **self._base,
            "name": name,
            "network": [_describe_cell(cell) for cell in cells],
            "inputs": [_describe(tensor) for tensor in inputs],
            "parameters": {
                one: (_describe(p), bool(p.requires_grad)) for one, p in parameters.items()
            },
        }
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _MindSporeFiles:
    """The folder in which MindSpore looks for graphs: one per process, as it reads the path once.

    It numbers the compilations for which its cache is switched on, from 0.
    """

    _of_process: _MindSporeFiles | None = None

    def __init__(self, root: Path) -> None:
        self._root = root
        self._next = 0
        self._placed: tuple[Path, os.stat_result] | None = None
        self.usable = True
        self.was_used = False
        os.environ["MS_COMPILER_CACHE_PATH"] = str(root)

    @classmethod
    def of_process(cls, root: Path) -> _MindSporeFiles:
        """That of this process; in the first folder that it was given."""
        if cls._of_process is None:
            cls._of_process = cls(root)
        return cls._of_process

    @contextmanager
    def compiling(self, data: bytes | None, parameters: Mapping[str, Parameter]) -> Iterator[None]:
        """Switches MindSpore's cache on for one compilation.

        Args:
            data: the graph; None = it is compiled and saved.
            parameters: by name; those of a loaded graph are these.
        """
        self.was_used = False
        self._clear()
        self._placed = None
        if data is not None:
            # As MindSpore names it: by the role in a cluster and the rank.
            role, rank = "", 0
            if os.environ.get("MS_ROLE"):
                role, rank = os.environ["MS_ROLE"], int(os.environ.get("RANK_ID", "0"))
            folder = self._root / f"rank_{rank}" / "graph_cache"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"{role}compile_cache_{self._next}.mindir"
            path.write_bytes(data)
            self._placed = path, path.stat()
        weights = dict(parameters)
        for executor in (JitExecutor_.get_instance(), GraphExecutor_.get_instance()):
            executor.set_weights_values(weights)
        # Otherwise MindSpore hashes the files that it believes the main script to import.
        script = mindspore_api.entry_script_path
        mindspore_api.entry_script_path = None
        mindspore.set_context(enable_compile_cache=True)
        try:
            yield
        finally:
            mindspore.set_context(enable_compile_cache=False)
            mindspore_api.entry_script_path = script
            for executor in (JitExecutor_.get_instance(), GraphExecutor_.get_instance()):
                executor.set_weights_values({})
        if self._placed is not None:
            path, before = self._placed
            self.was_used = self._graphs() == [path] and _same(path.stat(), before)

    def take(self) -> bytes | None:
        """The graph that was compiled, or None; removes all files."""
        number, self._next = self._next, self._next + 1
        found = self._graphs()
        data = None
        if len(found) == 1 and found[0].name.endswith(f"compile_cache_{number}.mindir"):
            data = found[0].read_bytes()
        else:
            # Nothing was compiled, or MindSpore counts differently: from here on, do without it.
            self.usable = False
        self._clear()
        return data

    def _graphs(self) -> list[Path]:
        return sorted(self._root.rglob("*.mindir"))

    def _clear(self) -> None:
        for path in self._root.glob("rank_*"):
            shutil.rmtree(path, ignore_errors=True)


@cache
def installation() -> str:
    """A hash of all that compiles or runs a graph: our code, the libraries and the processor."""
    digest = hashlib.sha256()
    root = Path(multigrain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in ("mindspore", "numpy"):
        distribution = metadata.distribution(package)
        digest.update(f"{package} {distribution.version}\0".encode())
        # RECORD has the checksums of all files of a wheel.
        digest.update((distribution.read_text("RECORD") or "").encode())
    digest.update(f"{platform.python_version()} {platform.machine()}\0".encode())
    digest.update(_processor().encode())
    return digest.hexdigest()


def _processor() -> str:
    """Model and instruction sets of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in wanted}))


def _environment() -> dict[str, str]:
    """The variables by which MindSpore and its libraries are configured."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_COMPILER_VARIABLES)
        and name not in CLUSTER_VARIABLES
        and not name.startswith("MS_COMPILER_CACHE")
    }


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    fields = ("st_ino", "st_size", "st_mtime_ns")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _describe(value: Tensor) -> tuple[str, str]:
    return str(tuple(value.shape)), str(value.dtype)


def _describe_cell(cell: nn.Cell) -> list[Any]:
    """Classes and settings of a cell and those in it: what a graph may have as constants."""
    found = []
    for name, one in cell.cells_and_names():
        settings = {
            key: _setting(value) for key, value in vars(one).items() if not key.startswith("_")
        }
        kind = f"{type(one).__module__}.{type(one).__qualname__}"
        found.append([name, kind, one.training, settings])
    return found


def _setting(value: object) -> str:
    if isinstance(value, (bool, int, float, str, bytes, type(None), Primitive, mindspore.Type)):
        return repr(value)
    if isinstance(value, Parameter):
        return f"parameter {value.name} {_describe(value)}"
    if isinstance(value, Tensor):
        content = hashlib.sha256(np.ascontiguousarray(value.asnumpy()).tobytes()).hexdigest()
        return f"{_describe(value)} {content}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} {[_setting(one) for one in value]}"
    return f"{type(value).__module__}.{type(value).__qualname__}"

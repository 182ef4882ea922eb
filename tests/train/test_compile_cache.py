"""Compiled graphs of an earlier training run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

import multigrain
from multigrain.jobs.context import WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.launchers import COMPILE_CACHE_SIZE_VARIABLE, COMPILE_CACHE_VARIABLE
from multigrain.losses.objective import JointObjective
from multigrain.specs.training import TrainingSpec
from multigrain.train import compile_cache
from multigrain.train.compile_cache import CompileCache
from multigrain.train.graph_store import GraphStore
from multigrain.train.step import TrainStep
from tests.train.tiny import assert_same, batch, tiny_model, tiny_spec, weights

pytestmark = pytest.mark.mindspore

STEPS = 4
KEY = "0" * 64


def make_step(cache: CompileCache, spec: TrainingSpec) -> TrainStep:
    return TrainStep(
        tiny_model(), JointObjective(spec.objective), spec, world=1, steps_per_epoch=4, cache=cache
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compile")


@pytest.fixture(scope="module")
def first(folder: Path) -> tuple[CompileCache, TrainStep, list[float]]:
    """A run of four steps that stores its graphs."""
    cache = cache_of(folder)
    step = make_step(cache, tiny_spec())
    return cache, step, [step(*batch(number)).loss for number in range(STEPS)]


def store_of(folder: Path) -> GraphStore:
    return GraphStore(folder / "graphs", 1 << 28)


def cache_of(
    folder: Path, spec: TrainingSpec | None = None, *, rank: int = 0, world: int = 1
) -> CompileCache:
    store, work = store_of(folder), folder / "work"
    return CompileCache(store, work, spec or tiny_spec(), rank=rank, world=world)


def test_loaded_graphs_train_exactly_as_compiled_ones(
    folder: Path, first: tuple[CompileCache, TrainStep, list[float]]
) -> None:
    stored, step, losses = first
    assert (stored.hits, stored.misses) == (0, 3)
    cache = cache_of(folder)
    again = make_step(cache, tiny_spec())
    compiled = []
    for number, loss in enumerate(losses):
        assert again(*batch(number)).loss == loss
        compiled.append(again.compiled)
    assert (cache.hits, cache.misses) == (3, 0)
    assert compiled == [True, True, False, False]
    assert_same(weights(step), weights(again))
    assert_same(step.state(), again.state())


def test_a_loaded_graph_uses_the_weights_of_its_own_run(
    folder: Path, first: tuple[CompileCache, TrainStep, list[float]]
) -> None:
    _, _, losses = first
    cache = cache_of(folder)
    step = make_step(cache, tiny_spec())
    bias = step._model.classifier.bias
    bias.set_data(Tensor(np.asarray([3.0, 0.0, -3.0], np.float32)))
    assert step(*batch(0)).loss != losses[0]
    assert cache.hits == 2


def test_a_damaged_graph_is_compiled_again(
    folder: Path, first: tuple[CompileCache, TrainStep, list[float]]
) -> None:
    _, _, losses = first
    smallest = min((folder / "graphs").iterdir(), key=lambda path: path.stat().st_size)
    whole = smallest.read_bytes()
    smallest.write_bytes(whole[:-100] + b"?" * 100)
    cache = cache_of(folder)
    step = make_step(cache, tiny_spec())
    assert [step(*batch(number)).loss for number in range(STEPS)] == losses
    assert (cache.hits, cache.misses) == (2, 1)
    assert store_of(folder).read(smallest.stem) is not None


def key(
    cache: CompileCache,
    prepare: Callable[[TrainStep], object] = lambda step: None,
    spec: TrainingSpec | None = None,
    images: int = 8,
) -> str:
    step = make_step(cache, spec or tiny_spec())
    prepare(step)
    inputs = [Tensor(np.zeros((images, 3, 8, 8), np.float32))]
    return cache._key("gradients", (step._gradients._forward,), inputs, step._weights())


def spec_with(**fields: object) -> TrainingSpec:
    return tiny_spec().model_copy(update=fields)


def test_the_same_run_has_the_same_key(tmp_path: Path) -> None:
    assert key(cache_of(tmp_path)) == key(cache_of(tmp_path))


def test_what_is_not_compiled_is_not_in_the_key(tmp_path: Path) -> None:
    spec = tiny_spec()
    changed = spec.model_copy(
        update={
            "schedule": spec.schedule.model_copy(update={"epochs": 77}),
            "dataset": spec.dataset.model_copy(update={"train_path": "/elsewhere"}),
        }
    )
    assert key(cache_of(tmp_path, changed), spec=changed) == key(cache_of(tmp_path))


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(clip_norm=1.0),
        tiny_spec("momentum"),
        tiny_spec(block_size=8),
        tiny_spec(instance_loss="none"),
        spec_with(seed=12),
        spec_with(optimizer=tiny_spec().optimizer.model_copy(update={"weight_decay": 0.5})),
    ],
    ids=["clipping", "optimizer", "blocks", "loss", "seed", "weight decay"],
)
def test_another_specification_has_another_key(tmp_path: Path, spec: TrainingSpec) -> None:
    assert key(cache_of(tmp_path, spec), spec=spec) != key(cache_of(tmp_path))


def test_another_worker_has_another_key(tmp_path: Path) -> None:
    caches = cache_of(tmp_path), cache_of(tmp_path, world=2), cache_of(tmp_path, rank=1)
    assert len({key(cache) for cache in caches}) == 3


def test_another_batch_has_another_key(tmp_path: Path) -> None:
    assert key(cache_of(tmp_path), images=6) != key(cache_of(tmp_path))


def test_constants_that_were_changed_after_the_network_was_built_are_in_the_key(
    tmp_path: Path,
) -> None:
    def set_exponent(step: TrainStep) -> None:
        step._model.pool.learn = False
        step._model.pool.exponent = 4.0

    def switch_taps(step: TrainStep) -> None:
        step._gradients._tap(False)

    keys = {
        key(cache_of(tmp_path), prepare)
        for prepare in (lambda step: None, set_exponent, switch_taps)
    }
    assert len(keys) == 3


def test_another_installation_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(cache_of(tmp_path))
    monkeypatch.setattr(compile_cache, "installation", lambda: "other")
    assert key(cache_of(tmp_path)) != before


def test_the_installation_has_our_code_the_libraries_and_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [compile_cache.installation.__wrapped__()]
    monkeypatch.setattr(compile_cache, "_processor", lambda: "flags: other")
    found.append(compile_cache.installation.__wrapped__())
    (tmp_path / "one.py").write_text("x = 1")
    monkeypatch.setattr(multigrain, "__file__", str(tmp_path / "__init__.py"))
    found.append(compile_cache.installation.__wrapped__())
    (tmp_path / "one.py").write_text("x = 2")
    found.append(compile_cache.installation.__wrapped__())
    monkeypatch.setattr(metadata.Distribution, "version", "0")
    found.append(compile_cache.installation.__wrapped__())
    assert len(set(found)) == len(found)


def test_another_setting_of_mindspore_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(cache_of(tmp_path))
    monkeypatch.setenv("MS_DEV_JIT_SYNTAX_LEVEL", "0")
    assert key(cache_of(tmp_path)) != before


def test_a_graph_in_use_when_a_process_died_is_dropped_and_no_other_is_used(
    tmp_path: Path,
) -> None:
    store = GraphStore(tmp_path / "graphs", 1 << 20)
    store.write(KEY, b"graph")
    store.write("1" * 64, b"other")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "loading").write_text(KEY)
    cache = cache_of(tmp_path)
    assert store.read(KEY) is None
    assert store.read("1" * 64) is not None
    assert not cache._read
    assert cache_of(tmp_path)._read


def test_an_error_while_a_loaded_graph_runs_drops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path)
    monkeypatch.setattr(cache, "_files", Files())
    monkeypatch.setattr(cache, "_key", lambda *_: KEY)
    store_of(tmp_path).write(KEY, b"graph")
    mark = tmp_path / "work" / "loading"

    def fail() -> None:
        with cache.compiling("gradients", (), (), {}):
            assert mark.read_text() == KEY
            raise RuntimeError("cannot be loaded")

    with pytest.raises(RuntimeError, match="cannot be loaded"):
        fail()
    assert store_of(tmp_path).read(KEY) is None
    assert not mark.exists()


@pytest.mark.parametrize(
    ("target", "size", "kept"), [("cpu", 1 << 20, True), ("cpu", 0, False), ("gpu", 1 << 20, False)]
)
def test_graphs_are_kept_on_cpus_in_the_folder_that_the_daemon_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, size: int, kept: bool
) -> None:
    spec = tiny_spec()
    spec = spec.model_copy(update={"devices": spec.devices.model_copy(update={"target": target})})
    request = JobRequest(
        job_id="job",
        kind=JobKind.TRAINING,
        create_time="2026-01-31T12:00:00Z",
        training=spec,
    )
    context = WorkerContext(request, JobFolder(tmp_path / "job"), Silent())
    assert CompileCache.of_job(context, spec)._store is None
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, str(tmp_path / "graphs"))
    monkeypatch.setenv(COMPILE_CACHE_SIZE_VARIABLE, str(size))
    assert (CompileCache.of_job(context, spec)._store is not None) == kept
    assert (tmp_path / "graphs").exists() == kept


class Silent:
    """A reporter that reports nothing."""

    stop_requested = False

    def emit(self, record: object) -> None:
        pass

    def alive(self) -> None:
        pass


class Files:
    """Stands for MindSpore's folder."""

    usable = True
    was_used = False

    def compiling(self, data: bytes | None, parameters: object) -> AbstractContextManager[None]:
        return nullcontext()

    def take(self) -> bytes | None:
        return None

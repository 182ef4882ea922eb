"""Parts of the convergence benchmarks, without a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import nn

from benchmarks.convergence import objectives, optimizers
from benchmarks.convergence.candidates import CANDIDATES, TARGET
from benchmarks.convergence.restart import constants
from benchmarks.convergence.results import Record, Results
from benchmarks.convergence.run import merged
from benchmarks.convergence.statistics import statistics_of
from benchmarks.datasets.dataset import DATASETS
from benchmarks.datasets.glyphs import (
    FONTS,
    HELD_OUT,
    font_of,
    instance_of,
    write_glyphs,
)
from multigrain.model.parameters import assign
from multigrain.specs.resolve import resolve_training

pytestmark = pytest.mark.mindspore


def record(candidate: str, kind: str, top1: list[float], loss: float = 1.0) -> Record:
    figures = {"held_out_loss": loss, "refreshes": 5, "checks": 6}
    points = [
        {"epoch": i / 2, "top1": x, "cpu": 10.0 * i, **figures} for i, x in enumerate(top1, 1)
    ]
    return {"candidate": candidate, "kind": kind, "compiling": 3.0, "points": points}


def test_glyphs_are_reproducible_and_no_font_is_in_both_splits(tmp_path: Path) -> None:
    first = write_glyphs(tmp_path / "a", sheets=1, characters="AQ")
    write_glyphs(tmp_path / "b", sheets=1, characters="AQ")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 2 * len(FONTS)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    fonts = [
        {font_of(str(path)) for path in side.rglob("*.png")} for side in (first.train, first.val)
    ]
    assert fonts == [set(FONTS) - HELD_OUT, HELD_OUT]


def test_an_instance_is_a_character_in_a_font() -> None:
    assert instance_of("A/DejaVuSans-Bold-2.png") == "A/DejaVuSans-Bold"
    assert font_of("A/DejaVuSans-Bold-2.png") == "DejaVuSans-Bold"


@pytest.mark.parametrize("name", DATASETS)
def test_hyperparameters_are_chosen_on_training_images_only(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name]
    if name == "glyphs":
        dataset = replace(dataset, write=lambda root: write_glyphs(root, sheets=1, characters="AQ"))
    split = dataset.split(tmp_path)
    inner = dataset.inner(split.train)
    parts = [set(folder.paths) for folder in (inner.train, inner.held_out)]
    assert parts[0] | parts[1] == set(split.train.paths)
    assert not parts[0] & parts[1]
    labels = [set(folder.labels.tolist()) for folder in (inner.train, inner.held_out)]
    assert labels[0] == labels[1] == set(range(len(split.train.classes)))
    for folder in (inner.train, inner.held_out):
        for path, label in zip(folder.paths, folder.labels.tolist(), strict=True):
            assert folder.classes[label] == path.split("/")[0]


def test_an_interrupted_series_is_resumed(tmp_path: Path) -> None:
    done: list[str] = []

    def run(name: str) -> Record:
        done.append(name)
        return {"value": len(done)}

    results = Results(tmp_path / "a" / "series.jsonl")
    runs = [(name, lambda name=name: run(name)) for name in "abcd"]  # type: ignore[misc]
    assert not results.complete(runs, part=(1, 2))
    assert done == ["b", "d"]
    assert not results.complete(runs, minutes=-1)
    assert results.complete(runs)
    assert done == ["b", "d", "a", "c"]
    assert results.records()["d"]["value"] == 2


def test_the_target_is_reached_at_the_first_sufficient_point() -> None:
    found = optimizers.reached(record("x", "thor", [0.5, 0.9, 0.8, 0.95]), 0.9)
    assert found is not None
    assert found["epoch"] == 1
    assert optimizers.reached(record("x", "thor", [0.5]), 0.9) is None


def test_candidates_are_ranked_by_missed_targets_epochs_and_loss() -> None:
    records = [
        record("slow", "thor", [0.1, 0.1, 0.9], loss=0.1),
        record("fast", "thor", [0.1, 0.9, 0.9], loss=0.3),
        record("fast and sure", "thor", [0.1, 0.9, 0.9], loss=0.2),
        record("never", "thor", [0.1, 0.1, 0.1], loss=0.0),
        record("other", "momentum", [0.9]),
    ]
    ranking = ["fast and sure", "fast", "slow", "never"]
    assert optimizers.ranked(records, "thor", 0.9) == ranking
    assert optimizers.ranked(records, "momentum", 0.9) == ["other"]


def test_candidates_with_more_runs_rank_first() -> None:
    records = [record("once", "thor", [0.9])]
    records += [record("lucky", "thor", [0.9]), record("lucky", "thor", [0.1])]
    records += [record("steady", "thor", [0.1, 0.9]) for _ in range(2)]
    assert optimizers.ranked(records, "thor", 0.9) == ["steady", "lucky", "once"]


def test_the_table_shows_runs_that_never_reach_the_target() -> None:
    runs = [record("x", "thor", [0.1, 0.9]), record("x", "thor", [0.9, 0.9])]
    (row,) = optimizers.rows(runs, 0.9)
    assert row == ["x", "1, 0.5", "0.75", "15", "3", "90.0, 90.0", "5", "6"]
    runs.append(record("x", "thor", [0.1, 0.2]))
    (row,) = optimizers.rows(runs, 0.9)
    assert row[:4] == ["x", "1, 0.5, never", "", "15"]


def test_candidate_names_are_unique_and_cover_both_optimizers() -> None:
    assert CANDIDATES.keys() == TARGET.keys() == DATASETS.keys()
    for candidates in CANDIDATES.values():
        names = [candidate.name for candidate in candidates]
        assert len(set(names)) == len(names)
        # What a quick run tries.
        assert {candidate.kind for candidate in candidates[:2]} == {"thor", "momentum"}


def test_both_optimizers_have_equally_many_candidates() -> None:
    for candidates in CANDIDATES.values():
        kinds = [candidate.kind for candidate in candidates]
        assert kinds.count("thor") == kinds.count("momentum")


@pytest.mark.parametrize("changed", ["rate", "damping", "kl_clip", "momentum"])
def test_runs_share_graphs_unless_a_constant_differs(changed: str) -> None:
    base: dict[str, Any] = {
        "dataset": {"train_path": "x"},
        "optimizer": {"kind": "thor", "momentum": 0.9, "thor": {"damping_init": 1, "kl_clip": 0}},
        "schedule": {"learning_rate": {"init": 0.1}},
    }
    other: dict[str, dict[str, Any]] = {
        "rate": {"schedule": {"learning_rate": {"init": 0.2}}},
        "damping": {"optimizer": {"thor": {"damping_init": 2, "refresh": "trace"}}},
        "kl_clip": {"optimizer": {"thor": {"kl_clip": 0.1}}},
        "momentum": {"optimizer": {"momentum": 0.8}},
    }
    first, second = (resolve_training(x) for x in (base, merged(base, other[changed])))
    assert (constants(first) == constants(second)) == (changed in ("rate", "damping"))


def test_batch_norm_has_the_statistics_of_the_images_within_the_context() -> None:
    layer = nn.BatchNorm2d(3, momentum=0.9)
    assign(layer.moving_mean, np.full(3, 5, np.float32))
    images = np.random.default_rng(0).normal(2, 3, (8, 3, 4, 4)).astype(np.float32)
    with statistics_of(nn.SequentialCell(layer), images):
        np.testing.assert_allclose(layer.moving_mean.asnumpy(), images.mean((0, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(
            layer.moving_variance.asnumpy(), images.var((0, 2, 3)), rtol=0.02
        )
    assert layer.moving_mean.asnumpy().tolist() == [5, 5, 5]
    assert layer.moving_variance.asnumpy().tolist() == [1, 1, 1]


def test_the_table_shows_each_objective_with_its_spread() -> None:
    base = {"dataset": "digits", "epochs": 10, "copy_map": 0.5, "class_map": 0.25}
    found = [
        {**base, "objective": "joint", "top1": 0.9},
        {**base, "objective": "joint", "top1": 0.8},
        {**base, "objective": "classification", "top1": 0.7},
    ]
    table = objectives.rows(found)
    assert ("digits", "10", "joint", "85.0 +- 7.1", "50.0 +- 0.0", "", "25.0 +- 0.0", "2") in table
    assert ("digits", "10", "classification", "70.0", "50.0", "", "25.0", "1") in table


def test_settings_are_merged_key_by_key() -> None:
    first = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(first, {"a": {"c": 4}}) == {"a": {"b": 1, "c": 4}, "d": 3}
    assert first == {"a": {"b": 1, "c": 2}, "d": 3}

"""Two workers with msrun against one worker with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train.tiny import batch, tiny_spec, tiny_step
from tests.train.two_workers import CUT, RULE, STEPS, decision, whole_state

pytestmark = pytest.mark.mindspore

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("two_workers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(
        [
            str(binaries / "msrun"),
            "--worker_num=2",
            "--local_worker_num=2",
            f"--master_port={port}",
            f"--log_dir={folder / 'log'}",
            "--join=True",
            str(REPOSITORY / "tests/train/two_workers.py"),
            str(folder),
        ],
        env=environment,
        cwd=folder,
        timeout=400,
        check=False,  # only the written results count
        capture_output=True,
    )
    results = []
    for rank in range(2):
        path = folder / f"rank{rank}.npz"
        log = folder / "log" / f"worker_{rank}.log"
        assert path.exists(), log.read_text()[-3000:] if log.exists() else "no log"
        with np.load(path) as data:
            results.append(dict(data))
    return results


@pytest.mark.slow
def test_two_halves_equal_the_whole_batch(ranks: list[dict[str, np.ndarray]]) -> None:
    """Gradients and factors are averaged before anything is inverted or applied."""
    step = tiny_step(tiny_spec(instance_loss="none"), batch_norm=False)
    losses = [step(*batch(i)).loss for i in range(STEPS)]
    np.testing.assert_allclose(ranks[0]["losses"], losses, rtol=1e-4)
    for name, expected in whole_state(step).items():
        found = ranks[0][f"plain/{name}"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_the_trace_rule_decides_as_for_the_whole_batch(ranks: list[dict[str, np.ndarray]]) -> None:
    """Traces are averaged first, then only the chosen layers' factors."""
    step = tiny_step(tiny_spec(instance_loss="none", **RULE), batch_norm=False)
    decisions = [decision(step(*batch(i))) for i in range(STEPS)]
    assert sum(refreshed for refreshed, _, _ in decisions[1:]) > 0
    assert sum(kept for _, kept, _ in decisions) > 0
    for rank in ranks:
        np.testing.assert_array_equal(rank["decisions"], decisions)
    for name, expected in whole_state(step).items():
        found = ranks[0][f"rule/{name}"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_two_workers_resume_from_a_state(
    ranks: list[dict[str, np.ndarray]],
) -> None:
    for rank in ranks:
        np.testing.assert_array_equal(rank["resumed_decisions"], rank["decisions"][CUT:])
        names = [name.removeprefix("rule/") for name in rank if name.startswith("rule/")]
        assert "curvature_rule.accepted" in names
        for name in names:
            found, expected = rank[f"resumed/{name}"], rank[f"rule/{name}"]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_both_workers_have_identical_state(ranks: list[dict[str, np.ndarray]]) -> None:
    """Weights, momentum, inverses, beta, the pooling exponent and the synced statistics."""
    compared = [
        name for name in ranks[0] if name.startswith(("plain/", "rule/", "margin/", "skipped/"))
    ]
    assert "margin/objective.instance.beta" in compared
    for name in compared:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)


@pytest.mark.slow
def test_statistics_are_averaged(ranks: list[dict[str, np.ndarray]]) -> None:
    own = [rank["own_mean"] for rank in ranks]
    assert np.abs(own[0] - own[1]).max() > 1e-3
    np.testing.assert_allclose(
        ranks[0]["margin/trunk.bn1.moving_mean"], (own[0] + own[1]) / 2, rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
def test_a_stop_request_is_seen_by_both_workers_in_the_same_step(
    ranks: list[dict[str, np.ndarray]],
) -> None:
    for rank in ranks:
        assert (bool(rank["stop/0"]), bool(rank["stop/1"])) == (False, True)


@pytest.mark.slow
def test_a_non_finite_batch_of_one_worker_is_skipped_by_both(
    ranks: list[dict[str, np.ndarray]],
) -> None:
    for rank in ranks:
        assert rank["skipped"]
        for name in [name for name in rank if name.startswith("skipped/")]:
            before = rank["margin/" + name.removeprefix("skipped/")]
            np.testing.assert_array_equal(rank[name], before, err_msg=name)

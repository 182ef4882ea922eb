"""The demo's parts, and a run against a fake server."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.demo import run as demo_run
from examples.demo.daemon import Daemon
from examples.demo.digits import distort, write_digits
from examples.demo.folder import DemoFolder, processes_of
from examples.demo.report import Report
from examples.demo.retrieval import Query, draw_contact_sheet, nearest, pick_one_per_class
from multigrain.v1 import model_pb2
from multigrain_client import Client, InvalidRequest, ServerError
from multigrain_client.cli.output import Output
from multigrain_client.images import Classification


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), 32)


def test_the_digits_are_split_80_to_20_within_each_class(digits):
    assert (digits.train_images, digits.val_images) == (1437, 360)
    train, val = sorted(digits.train.glob("*/*.png")), digits.held_out()
    assert (len(train), len(val)) == (1437, 360)
    assert not {path.name for path in train} & {path.name for path in val}
    for label in range(10):
        share = len(list((digits.val / str(label)).iterdir()))
        assert 34 <= share <= 37


def test_the_digits_are_the_scans_upscaled_in_rgb(digits):
    from sklearn.datasets import load_digits

    path = digits.held_out()[7]
    index = int(path.stem.removeprefix("digit-"))
    scans = load_digits()
    assert str(scans.target[index]) == path.parent.name
    picture = Image.open(path)
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    gray = np.asarray(picture.convert("L"), np.float64)
    # The mean over each 4 x 4 square is the scan again, but for the bicubic overshoot.
    back = gray.reshape(8, 4, 8, 4).mean(axis=(1, 3)) * 16 / 255
    assert np.corrcoef(back.ravel(), scans.images[index].ravel())[0, 1] > 0.97


def test_the_split_is_reproducible(digits, tmp_path):
    again = write_digits(tmp_path, 48)
    assert [path.name for path in again.held_out()] == [path.name for path in digits.held_out()]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InvalidRequest, match="choose another folder or empty this one"):
        DemoFolder(tmp_path).prepare()
    assert (tmp_path / "thesis.tex").exists()


def test_only_a_previous_run_is_replaced(tmp_path):
    folder = DemoFolder(tmp_path / "out")
    assert folder.prepare() is False
    (folder.data / "jobs").mkdir(parents=True)
    folder.summary.write_text("{}")
    (folder.path / "notes.txt").write_text("mine")
    assert folder.prepare() is True
    assert not folder.data.exists()
    assert not folder.summary.exists()
    assert (folder.path / "notes.txt").exists()


def test_processes_of_a_previous_run_are_refused(tmp_path):
    import subprocess

    folder = DemoFolder(tmp_path)
    folder.prepare()
    code = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, f"{folder.data}/jobs/job-1"])
    try:
        assert processes_of(folder.data) == [process.pid]
        with pytest.raises(InvalidRequest, match=f"stop them with: kill {process.pid}"):
            folder.prepare()
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
def test_the_daemon_starts_and_stops_on_sigterm(tmp_path):
    daemon = Daemon(tmp_path / "data", [tmp_path], tmp_path / "server.log")
    with daemon, Client(daemon.address) as client:
        assert client.health().serving
        assert list(client.jobs()) == []
        pid = daemon.pid
    assert daemon.exit_code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.process
def test_a_daemon_that_cannot_start_is_an_error_with_its_log(tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    daemon = Daemon(tmp_path / "data", [], tmp_path / "server.log")
    with pytest.raises(ServerError, match=r"the daemon exited with code [12]:\n.*data"):
        daemon.__enter__()


def test_neighbors_are_ordered_by_cosine_and_only_a_copy_finds_its_original():
    paths = [Path(f"{label}/{n}.png") for n, label in enumerate("0011")]
    gallery = np.float32([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]])
    as_copy = nearest(gallery[0], gallery, paths, count=2, itself=0, is_copy=True)
    assert [(one.path.name, one.is_original) for one in as_copy] == [
        ("0.png", True),
        ("1.png", False),
    ]
    as_itself = nearest(gallery[0], gallery, paths, count=3, itself=0, is_copy=False)
    assert [one.path.name for one in as_itself] == ["1.png", "2.png", "3.png"]
    assert as_itself[0].cosine == pytest.approx(0.8)
    assert as_itself[0].label == "0"


def test_one_image_per_class_is_picked_reproducibly(digits):
    paths = digits.held_out()
    picked = pick_one_per_class(paths)
    assert [paths[index].parent.name for index in picked] == [str(n) for n in range(10)]
    assert picked == pick_one_per_class(paths)


def test_a_distorted_copy_differs_and_is_reproducible(digits):
    picture = Image.open(digits.held_out()[0]).convert("RGB")
    copy = distort(picture, seed=1)
    assert copy.size == picture.size
    assert np.array_equal(np.asarray(copy), np.asarray(distort(picture, seed=1)))
    assert np.abs(np.asarray(copy, float) - np.asarray(picture, float)).mean() > 5


def test_the_contact_sheet_shows_queries_and_neighbors(digits, tmp_path):
    paths = digits.held_out()[:4]
    gallery = np.eye(4, dtype=np.float32)
    picture = Image.open(paths[0]).convert("RGB")
    found = nearest(gallery[0], gallery, paths, count=3, itself=0, is_copy=True)
    query = Query(paths[0], picture, True, Classification("0", 0, 0.99), found)
    draw_contact_sheet([query, query], tmp_path / "sheet.png")
    colors = {color for _, color in Image.open(tmp_path / "sheet.png").getcolors(1 << 20)}
    # Blue: the original; green: the same class.
    assert {(40, 100, 200), (38, 140, 80)} <= colors


class RunningServer:
    """Replaces Daemon: the fake server already runs."""

    exit_code = 0

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        return None


@pytest.fixture
def run_demo(server, state, tmp_path, monkeypatch):
    """Runs the demo against the fake server; returns (exit code, what it printed)."""
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1, runtime="onnxruntime")
    monkeypatch.setattr(demo_run, "Daemon", lambda *_: RunningServer(server.address))

    def run() -> tuple[int, str]:
        printed = io.StringIO()
        options = demo_run.DemoOptions(out=tmp_path / "out", epochs=2)
        code = demo_run.run_demo(options, Output(printed, as_json=False))
        return code, printed.getvalue()

    return run


def test_the_demo_runs_seven_stages_and_reports_results(run_demo, state, tmp_path):
    state.finished_top1 = 0.98
    code, text = run_demo()
    assert code == 0
    for number in range(1, 8):
        assert f"[{number}/7]" in text
    assert "top-1 98.00% on held-out digits: target of 97% reached" in text
    training = state.jobs["job-1"].training
    assert training.preset == "digits-demo"
    assert training.schedule.epochs == 2
    assert training.devices.count == 2
    assert training.dataset.train_path == str(tmp_path / "out" / "dataset" / "train")
    assert not training.dataset.HasField("val_path")
    assert state.jobs["job-2"].evaluation.dataset_path == str(tmp_path / "out" / "dataset" / "val")
    assert list(state.jobs["job-3"].export.formats) == ["mindir", "onnx"]
    for name in ("contact_sheet.png", "loss.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["top1"] == 0.98
    assert set(summary["seconds"]) == {
        "dataset", "daemon start", "training", "evaluation", "export", "serving", "shutdown",
    }  # fmt: skip


def test_the_demo_fails_below_97_percent(run_demo, state):
    state.finished_top1 = 0.969
    code, text = run_demo()
    assert code == 1
    assert "target of 97% MISSED" in text


def test_an_interrupted_demo_cancels_its_job(run_demo, state, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_run, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo()
    assert state.calls["CancelJob"] == 1


def test_the_target_is_at_least_97_percent():
    assert Report(metrics={"top1": 0.97}).good
    assert not Report(metrics={"top1": 0.9699}).good
    assert not Report().good

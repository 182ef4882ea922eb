"""Which workers are restricted, and to what."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from multigrain.images.limits import DEFAULT_LIMITS, write_limits
from multigrain.jobs import confinement
from multigrain.jobs.confinement import confine_calls, confine_files
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.sandbox.apply import Sandbox, SandboxReport
from multigrain.sandbox.policies import WORKER_VARIABLE
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import TrainingSpec


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sandbox]:
    """The sandboxes that would be applied to the test's process."""
    found: list[Sandbox] = []

    def apply(sandbox: Sandbox) -> SandboxReport:
        found.append(sandbox)
        return SandboxReport()

    monkeypatch.setattr(confinement, "apply", apply)
    monkeypatch.setenv(WORKER_VARIABLE, "auto")
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", tempfile.gettempdir()))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path / "logs")
    return found


def job(folder: Path, kind: str, *, roots: tuple[Path, ...] | None) -> JobFolder:
    request = JobRequest(
        job_id="j",
        kind=JobKind(kind),
        create_time="2026-01-01T00:00:00Z",
        training=TrainingSpec() if kind == "TRAINING" else None,
        evaluation=EvaluationSpec() if kind == "EVALUATION" else None,
        export=ExportSpec() if kind == "EXPORT" else None,
        models_dir="/models",
    )
    (folder / "spec.json").write_text(request.model_dump_json())
    write_limits(folder / "image_limits.json", replace(DEFAULT_LIMITS, roots=roots))
    return JobFolder(folder)


@pytest.mark.parametrize(("kind", "also"), [("EVALUATION", []), ("EXPORT", [Path("/models")])])
def test_a_single_worker_on_the_cpu_reads_data_roots_and_writes_its_folder(
    tmp_path: Path, applied: list[Sandbox], kind: str, also: list[Path]
) -> None:
    folder = job(tmp_path, kind, roots=(Path("/data"),))
    sandbox = confine_files(folder, target="cpu", clustered=False)
    confine_calls(sandbox)
    files, calls = applied
    assert files.files is not None
    assert files.files.read == (Path("/data"),)
    devices = [path for path in files.files.write if path.is_relative_to("/dev")]
    written = [path for path in files.files.write if path not in devices]
    assert written == [tmp_path, tmp_path / "logs", *also]
    assert (files.filter, calls.filter, calls.sockets) == (False, True, False)
    assert calls.files is None
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "logs")


@pytest.mark.parametrize(
    ("kind", "roots", "target", "clustered"),
    [
        ("TRAINING", (Path("/data"),), "cpu", True),
        ("EVALUATION", (Path("/data"),), "cpu", True),
        ("EVALUATION", (Path("/data"),), "gpu", False),
        ("EVALUATION", None, "cpu", False),
    ],
)
def test_other_workers_only_gain_no_privileges(
    tmp_path: Path,
    applied: list[Sandbox],
    kind: str,
    roots: tuple[Path, ...] | None,
    target: str,
    clustered: bool,
) -> None:
    folder = job(tmp_path, kind, roots=roots)
    sandbox = confine_files(folder, target=target, clustered=clustered)
    confine_calls(sandbox)
    (only,) = applied
    assert (only.files, only.filter, only.capabilities) == (None, False, True)


@pytest.mark.parametrize("mode", ["off", ""])
def test_without_a_daemon_that_says_so_nothing_is_restricted(
    tmp_path: Path, applied: list[Sandbox], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv(WORKER_VARIABLE, mode)
    folder = job(tmp_path, "EVALUATION", roots=(Path("/data"),))
    assert confine_files(folder, target="cpu", clustered=False) is None
    assert not applied


def test_a_job_that_cannot_be_read_is_left_to_the_worker(
    tmp_path: Path, applied: list[Sandbox]
) -> None:
    (tmp_path / "spec.json").write_text("damaged")
    assert confine_files(JobFolder(tmp_path), target="cpu", clustered=False) is None
    assert len(applied) == 1

"""An export that is killed between publishing its bundle and reporting it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multigrain.events.log import EventWriter
from multigrain.events.records import ArtifactRecord
from multigrain.export import run
from multigrain.specs.export import ExportSpec
from tests.evaluate.context import RecordingReporter, context, write_checkpoint


@pytest.mark.mindspore
def test_the_next_attempt_reports_the_published_bundle(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "checkpoints", ("a", "b"))
    spec = ExportSpec(model_name="m", formats=("onnx",), int8="off")
    command = [sys.executable, "-m", "tests.export.killed_export", str(tmp_path)]
    ended = subprocess.run(
        [*command, spec.model_dump_json()],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL
    written = tmp_path / "models" / "m" / "1"
    before = (written / "model.json").read_bytes()

    reporter = RecordingReporter()
    outcome = run(context(tmp_path, weights=weights, export=spec, reporter=reporter))
    assert outcome.message == "wrote m@1"
    (artifact,) = reporter.records
    assert isinstance(artifact, ArtifactRecord)
    assert (artifact.model_name, artifact.model_version) == ("m", 1)
    assert [path.name for path in written.parent.iterdir()] == ["1"]
    assert (written / "model.json").read_bytes() == before

    # Its own bundle does not block an export to a given version.
    named = spec.model_copy(update={"version": 1})
    assert run(context(tmp_path, weights=weights, export=named)).message == "wrote m@1"

    # If the artifact event exists, a further attempt adds none.
    ctx = context(tmp_path, weights=weights, export=spec, reporter=(again := RecordingReporter()))
    ctx.folder.path.mkdir(parents=True)
    with EventWriter(ctx.folder.events, "job") as writer:
        writer.append(artifact, 1)
    run(ctx)
    assert again.records == []

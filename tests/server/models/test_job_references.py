"""Models and names that a job needs are protected."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from tests.engine.bundles import write_bundle
from tests.server.serving.harness import harness


class Jobs:
    """Job eval-7 reads a folder, job export-8 writes models of a name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder: Path | None = folder
        self._name = name

    def reader_of(self, folder: Path) -> str:
        return "eval-7" if folder == self.folder else ""

    def exporter_of(self, name: str) -> str:
        return "export-8" if name == self._name else ""


async def test_a_version_that_a_job_reads_is_not_deleted_until_the_job_has_ended(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "models", version=1)
    bundle = tmp_path / "models" / "tiny" / "1"
    jobs = Jobs(bundle, "coming")
    async with harness(tmp_path, references=jobs) as h:
        with pytest.raises(MultigrainError, match="job eval-7 reads it") as caught:
            await h.manager.delete("tiny@1")
        assert caught.value.kind is ErrorKind.WRONG_STATE
        assert (bundle / "model.json").exists()
        jobs.folder = None
        await h.manager.delete("tiny@1")
        with pytest.raises(MultigrainError, match="tiny"):
            h.manager.catalog.view("tiny@1")


async def test_an_alias_is_not_given_a_name_that_a_job_is_about_to_write(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "models", version=1)
    async with harness(tmp_path, references=Jobs(tmp_path, "coming")) as h:
        with pytest.raises(MultigrainError, match="job export-8 will write") as caught:
            h.manager.set_alias("coming", "tiny@1")
        assert caught.value.violations[0].field == "alias"

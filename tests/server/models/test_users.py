"""A version that somebody needs is not removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from tests.engine.bundles import write_bundle
from tests.server.serving.house import house


async def test_a_version_that_a_job_reads_is_not_deleted_until_the_job_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "models", version=1)
    async with house(tmp_path) as h:
        readers = {tmp_path / "models" / "tiny" / "1": "eval-7"}
        monkeypatch.setattr(h.manager, "_reader_of", lambda folder: readers.get(folder, ""))
        with pytest.raises(MultigrainError, match="job eval-7 reads it") as caught:
            await h.manager.delete("tiny@1")
        assert caught.value.kind is ErrorKind.WRONG_STATE
        assert bundle is None or (tmp_path / "models" / "tiny" / "1" / "model.json").exists()
        readers.clear()
        await h.manager.delete("tiny@1")
        with pytest.raises(MultigrainError, match="tiny"):
            h.manager.view("tiny@1")

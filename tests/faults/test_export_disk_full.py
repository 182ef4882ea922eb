"""An export whose disk fills up, with the real network, at whatever file that happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.bundle.folder import read
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export import run
from multigrain.specs.export import ExportSpec
from tests.engine.bundles import write_bundle
from tests.evaluate.context import context, write_checkpoint
from tests.faults.serving import amount
from tests.faults.small_disk import small_disk

pytestmark = pytest.mark.process

SHARES = (0.5, 1.3, 2.3)
"""Room, in sizes of the weights: for nothing; for these; for these and one graph."""


def test_an_export_that_finds_no_room_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "checkpoints", ("a", "b"))
    size = (weights / "model.safetensors").stat().st_size
    spec = ExportSpec(model_name="m", formats=("mindir", "onnx"), int8="off")
    with small_disk(tmp_path / "models", 200) as disk:
        write_bundle(disk.path, "m", 1)
        before = (disk.path / "m" / "1" / "model.json").read_bytes()
        for share in SHARES[amount(1, 0) : amount(2, 3)]:
            disk.fill(leave=int(share * size))
            with pytest.raises(MultigrainError, match="free some space") as caught:
                run(context(tmp_path, weights=weights, export=spec))
            assert caught.value.kind is ErrorKind.STORAGE
            assert [path.name for path in (disk.path / "m").iterdir()] == ["1"]
            assert (disk.path / "m" / "1" / "model.json").read_bytes() == before
            read(disk.path / "m" / "1", verify=True)
            disk.empty()
        if amount(0, 1):
            ended = run(context(tmp_path, weights=weights, export=spec))
            assert ended.message == "wrote m@2"

"""The sample of images that a whitening is fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.export.head import whitening_images
from multigrain.specs.export import ExportSpec
from tests.data.datasets import write_dataset

pytestmark = pytest.mark.mindspore


def test_the_sample_is_deterministic_and_covers_the_folder(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=3, each=6)
    spec = ExportSpec(model_name="m", whitening_path=str(root), whitening_images=7)
    drawn = whitening_images(spec)
    assert len(drawn.folder) == 18
    assert len(set(drawn.indices)) == 7
    assert drawn.indices == sorted(drawn.indices) == whitening_images(spec).indices
    assert len({index // 6 for index in drawn.indices}) > 1  # not the first seven
    everything = whitening_images(spec.model_copy(update={"whitening_images": 100}))
    assert everything.indices == list(range(18))

"""What a specification becomes before it is queued."""

from __future__ import annotations

from pathlib import Path

from multigrain.spec.roots import PathRoots
from multigrain.spec.training import TrainingSpec
from multigrain_server.database import Database
from multigrain_server.jobs.devices import Inventory
from multigrain_server.jobs.leases import Leases
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.jobs.submission import SubmissionChecks


def _checks(root: Path) -> SubmissionChecks:
    store = JobStore(Database(":memory:", [SCHEMA]))
    leases = Leases(Inventory.parse("ascend:0-1"))
    return SubmissionChecks(PathRoots([root]), leases, store, root / "jobs", lambda _name: root)


async def test_every_path_that_is_kept_is_the_one_that_was_checked(
    tmp_path: Path, dataset: Path
) -> None:
    for name in ("table.json", "weights.ckpt"):
        (tmp_path / name).write_text("{}")
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
    (tmp_path / "link-train").symlink_to(dataset)
    checked = await _checks(tmp_path).training(
        {
            "dataset": {
                "train_path": f"{tmp_path}/link-train",
                "val_path": f"{tmp_path}/link-train",
            },
            "initial_weights": f"{tmp_path}/link-weights.ckpt",
            "devices": {
                "target": "ascend",
                "count": 2,
                "launcher": "rank-table",
                "rank_table": f"{tmp_path}/link-table.json",
            },
        }
    )
    spec = checked.spec
    assert isinstance(spec, TrainingSpec)
    assert spec.dataset.train_path == spec.dataset.val_path == str(dataset)
    assert spec.initial_weights == str(tmp_path / "weights.ckpt")
    assert spec.devices.rank_table == str(tmp_path / "table.json")

"""What a specification becomes before it is queued."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.image_folder import scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.data_roots import PathRoots
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain_server.database import Database
from multigrain_server.devices import Inventory, Leases
from multigrain_server.file_threads import read_files
from multigrain_server.jobs import submitted_weights
from multigrain_server.jobs.job import JobView
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.jobs.submission import CheckedSpec, SubmissionChecks
from multigrain_server.jobs.submitted_weights import stored_labels
from tests.hostile_files import KINDS, put


def _checks(
    root: Path, *others: Path, store: JobStore | None = None, devices: str = "ascend:0-1"
) -> SubmissionChecks:
    store = store or JobStore(Database(":memory:", [SCHEMA]))
    leases = Leases(Inventory.parse(devices))
    return SubmissionChecks(
        PathRoots([root, *others]),
        leases,
        store,
        root / "jobs",
        lambda _name: root,
        {"production"}.__contains__,
    )


async def test_the_checked_paths_are_the_ones_in_the_specification(
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


async def test_an_export_named_like_an_alias_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError, match="production is an alias") as caught:
        await _checks(tmp_path).export(
            {"weights": {"checkpoint_path": str(tmp_path)}, "model_name": "production"}
        )
    assert [violation.field for violation in caught.value.violations] == ["spec.model_name"]


ASCEND = {"devices": {"target": "ascend", "count": 1}}


async def test_the_retrieval_folder_is_checked_at_submission(tmp_path: Path, dataset: Path) -> None:
    lonely = tmp_path / "lonely"
    for name in "ab":
        (lonely / name).mkdir(parents=True)
        (lonely / name / "1.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to(dataset)

    def overrides(val: Path, **schedule: object) -> dict[str, Any]:
        return {
            **ASCEND,
            "dataset": {"train_path": str(dataset), "val_path": str(val)},
            "evaluation": {"every_epochs": 1, "metric": "groups_map", "tasks": ["groups"],
                           **schedule},
        }  # fmt: skip

    checks = _checks(tmp_path)
    # Groups need not be classes of the training set.
    checked = await checks.training(overrides(dataset, retrieval_path=str(tmp_path / "link")))
    assert isinstance(checked.spec, TrainingSpec)
    assert checked.spec.evaluation.retrieval_path == str(dataset)
    for field, spec in (
        ("spec.dataset.val_path", overrides(lonely)),
        ("spec.evaluation.retrieval_path", overrides(dataset, retrieval_path=str(lonely))),
    ):
        with pytest.raises(MultigrainError, match="has two images") as caught:
            await checks.training(spec)
        assert caught.value.kind is ErrorKind.DATASET
        assert caught.value.violations[0].field == field
    with pytest.raises(MultigrainError) as caught:
        await checks.training(overrides(dataset, retrieval_path="/etc"))
    assert caught.value.kind is ErrorKind.PATH_NOT_ALLOWED


async def test_the_layout_of_a_dataset_is_checked_at_submission(
    tmp_path: Path, dataset: Path
) -> None:
    """One folder too high, an archive's own folder around the classes, names in two forms."""

    def overrides(train: Path, val: Path | str = "") -> dict[str, Any]:
        return {**ASCEND, "dataset": {"train_path": str(train), "val_path": str(val)}}

    checks = _checks(tmp_path)
    with pytest.raises(MultigrainError, match=f"did you mean {dataset}") as caught:
        await checks.training(overrides(dataset.parent))
    assert caught.value.kind is ErrorKind.DATASET
    assert caught.value.violations[0].field == "spec.dataset.train_path"
    shutil.copytree(dataset, tmp_path / "val" / "unpacked")
    with pytest.raises(MultigrainError, match=f"give {tmp_path}/val/unpacked"):
        await checks.training(overrides(tmp_path / "val"))
    instances_only = {"objective": {"classification_weight": 0.0}}
    await checks.training(overrides(tmp_path / "val") | instances_only)
    with pytest.raises(MultigrainError, match=r"\"unpacked\".*holds folders only") as caught:
        await checks.training(overrides(dataset, tmp_path / "val"))
    assert caught.value.violations[0].field == "spec.dataset.val_path"
    (dataset / "cat").rename(dataset / "caf\u00e9")
    shutil.copytree(dataset, tmp_path / "mac")
    (tmp_path / "mac" / "caf\u00e9").rename(tmp_path / "mac" / "cafe\u0301")
    (tmp_path / "mac" / "lost+found").mkdir()
    await checks.training(overrides(dataset, tmp_path / "mac"))


async def test_what_is_unusual_about_a_dataset_is_returned(tmp_path: Path, dataset: Path) -> None:
    """Not only in the event log, which the user sees hours later."""
    for folder in ("train", "val"):
        for name in ("cat", "dog"):
            shutil.copytree(dataset / "cat", tmp_path / folder / name / "x")
    (tmp_path / "train/cat/x/1.jp2").write_bytes(b"x")
    checks, train, val = _checks(tmp_path), tmp_path / "train", tmp_path / "val"
    layout = "all 2 class folders hold folders only ('cat': 'x')"
    paths = {"train_path": str(train), "val_path": str(val)}
    checked = await checks.training({**ASCEND, "dataset": paths})
    assert [warning.split(";")[0].split(": if")[0] for warning in checked.warnings] == [
        f"dataset {train}: {layout}",
        f"dataset {train}: {2 * len(list((dataset / 'cat').iterdir()))} images",
        f"dataset {val}: {layout}",
    ]
    same = {**ASCEND, "dataset": {"train_path": str(val), "val_path": str(val)}}
    assert len((await checks.training(same)).warnings) == 1
    plain = {**ASCEND, "dataset": {"train_path": str(dataset)}}
    assert (await checks.training(plain)).warnings == ()
    weights = {**ASCEND, "weights": {"checkpoint_path": str(tmp_path)}}
    evaluated = await checks.evaluation({**weights, "dataset_path": str(train)})
    assert evaluated.warnings == checked.warnings[:2]
    exported = await checks.export({**weights, "model_name": "m", "whitening_path": str(train)})
    assert exported.warnings == checked.warnings[1:2]


async def test_an_export_knows_the_images_of_its_training_run(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which its 8-bit graph is calibrated."""
    spec = TrainingSpec.model_validate(
        {"dataset": {"train_path": str(dataset), "val_path": str(tmp_path)}}
    )
    request = JobRequest(
        job_id="train-1", kind=JobKind.TRAINING, create_time="2026-01-31T12:00:00Z", training=spec
    )
    store = JobStore(Database(":memory:", [SCHEMA]))
    store.insert(request, JobView(), 0)
    monkeypatch.setattr("multigrain.checkpoint.store.resolve", lambda _folder, _name: tmp_path)
    checks = _checks(tmp_path, store=store)
    checked = await checks.export({**ASCEND, "weights": {"job_id": "train-1"}, "model_name": "m"})
    assert (checked.train_path, checked.val_path) == (str(dataset), str(tmp_path))
    weights = {**ASCEND, "weights": {"checkpoint_path": str(tmp_path)}, "model_name": "m"}
    assert (await checks.export(weights)).train_path == ""
    with pytest.raises(MultigrainError, match="int8 is off") as caught:
        await checks.export({**weights, "int8": "off", "int8_path": str(dataset)})
    assert [violation.field for violation in caught.value.violations] == ["spec.int8_path"]


@pytest.mark.parametrize(
    ("devices", "preset", "target"),
    [
        ("cpu:1", "photos-tiny", "cpu"),
        ("cpu:1,gpu:0", "photos-gpu", "gpu"),
        ("cpu:1,ascend:0", "photos-gpu", "ascend"),
    ],
)
async def test_without_a_preset_one_is_chosen(
    tmp_path: Path, dataset: Path, devices: str, preset: str, target: str
) -> None:
    checks = _checks(tmp_path, devices=devices)
    data = {"train_path": str(dataset)}
    checked = await checks.training({"dataset": data, "preset": ""})
    spec = checked.spec
    assert isinstance(spec, TrainingSpec)
    assert (spec.preset, spec.devices.target) == (preset, target)
    assert checked.preset_reason.startswith(f"{preset}: {len(scan(dataset))} images, ")
    assert (spec.dataset.val_fraction, spec.evaluation.every_epochs > 0) == (0.2, True)
    own = {"dataset": data, "schedule": {"epochs": 3}, "devices": {"target": target}}
    checked = await checks.training(own)
    assert isinstance(checked.spec, TrainingSpec)
    assert (checked.spec.preset, checked.spec.schedule.epochs) == (preset, 3)
    named = await checks.training({**own, "preset": "defaults"})
    assert isinstance(named.spec, TrainingSpec)
    assert (named.preset_reason, named.spec.model.trunk) == ("", "resnet50")


async def test_images_are_held_out_only_where_that_is_possible(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "ones" / name).mkdir(parents=True)
        (tmp_path / "ones" / name / "1.jpg").write_bytes(b"x")
    checks, data = _checks(tmp_path), {"train_path": str(tmp_path / "ones")}
    checked = await checks.training({"dataset": data})
    assert isinstance(checked.spec, TrainingSpec)
    assert (checked.spec.dataset.val_fraction, checked.spec.evaluation.every_epochs) == (0, 0)
    assert "no class has two images" in checked.warnings[-1]
    with pytest.raises(MultigrainError, match="no class has two images") as caught:
        await checks.training({**ASCEND, "preset": "photos-gpu", "dataset": data})
    assert caught.value.violations[0].field == "spec.dataset.val_fraction"


async def test_an_evaluation_uses_the_images_that_its_training_job_held_out(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(Database(":memory:", [SCHEMA]))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    kinds = {"part": {"val_fraction": 0.2}, "folder": {"val_path": str(dataset)}, "none": {}}
    for job_id, fields in kinds.items():
        training = TrainingSpec.model_validate({"dataset": {"train_path": str(dataset), **fields}})
        store.insert(
            JobRequest(
                job_id=job_id,
                kind=JobKind.TRAINING,
                create_time="2026-01-31T12:00:00Z",
                request_id=job_id,
                training=training,
            ),
            JobView(),
            0,
        )
    monkeypatch.setattr("multigrain.checkpoint.store.resolve", lambda _folder, _name: checkpoint)
    checks = _checks(tmp_path, store=store)
    record = tmp_path / "jobs" / "part" / "held_out.json"

    async def evaluated(**fields: object) -> tuple[str, bool, Path | None]:
        checked = await checks.evaluation({**ASCEND, **fields})
        assert isinstance(checked.spec, EvaluationSpec)
        return checked.spec.dataset_path, checked.spec.held_out, checked.held_out

    part = {"weights": {"job_id": "part"}}
    assert await evaluated(**part) == (str(dataset), True, record)
    assert await evaluated(weights={"job_id": "folder"}) == (str(dataset), False, None)
    assert await evaluated(**part, dataset_path=str(dataset)) == (str(dataset), False, None)
    manifest = CheckpointManifest(step=1, epoch=1, model=ModelSpec(), labels=(), job_id="part")
    (checkpoint / "manifest.json").write_text(manifest.model_dump_json())
    by_path = {"weights": {"checkpoint_path": str(checkpoint)}}
    assert await evaluated(**by_path) == (str(dataset), True, record)
    for refused in (
        {"weights": {"job_id": "none"}},
        {**part, "tasks": ["gem_p"]},
        {"weights": {"job_id": "none"}, "dataset_path": str(dataset), "held_out": True},
    ):
        with pytest.raises(MultigrainError, match="dataset_path"):
            await evaluated(**refused)
    exported = await checks.export({**ASCEND, **part, "model_name": "m"})
    assert exported.held_out == record


async def test_one_class_is_said_to_be_useless(tmp_path: Path, dataset: Path) -> None:
    shutil.rmtree(dataset / "dog")
    checks, data = _checks(tmp_path), {"dataset": {"train_path": str(dataset)}}
    (warning,) = (await checks.training(data)).warnings
    assert "has one class folder, 'cat'" in warning
    assert "classification_weight to 0" in warning
    instances = {"objective": {"classification_weight": 0.0}}
    assert (await checks.training({**data, **instances})).warnings == ()
    alone = {"objective": {"classification_weight": 1.0, "instance_loss": "none"}}
    with pytest.raises(MultigrainError, match="has one class folder") as caught:
        await checks.training({**data, **alone})
    assert caught.value.violations[0].field == "spec.dataset.train_path"


async def test_weights_may_be_named(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(Database(":memory:", [SCHEMA]))
    training = TrainingSpec.model_validate({"dataset": {"train_path": str(dataset)}})
    request = JobRequest(
        job_id="train-1", kind=JobKind.TRAINING, create_time="2026-01-31T12:00:00Z",
        training=training,
    )  # fmt: skip
    store.insert(request, JobView(), 0)
    checkpoint = tmp_path / "step-00000090"
    checkpoint.mkdir()
    network = ModelSpec(trunk="resnet34", stem="small")
    manifest = CheckpointManifest(step=90, epoch=1, model=network, labels=("cat", "dog"))
    (checkpoint / "manifest.json").write_text(manifest.model_dump_json())
    chosen: list[str] = []

    def resolve(_folder: Path, name: str) -> Path:
        chosen.append(name)
        return checkpoint

    monkeypatch.setattr("multigrain.checkpoint.store.resolve", resolve)
    checks, data = _checks(tmp_path, store=store, devices="cpu:1"), {"train_path": str(dataset)}

    async def started(name: str, **fields: object) -> tuple[TrainingSpec, CheckedSpec]:
        checked = await checks.training({"dataset": data, "initial_weights": name, **fields})
        assert isinstance(checked.spec, TrainingSpec)
        return checked.spec, checked

    spec, checked = await started("job:train-1@best")
    assert (spec.preset, spec.model.trunk, spec.model.stem) == (
        "photos-finetune", "resnet34", "small"
    )  # fmt: skip
    assert spec.initial_weights == "job:train-1@90"
    assert (checked.weights_path, checked.of_job, chosen) == (str(checkpoint), True, ["best"])
    # A folder's network is known, too.
    spec, checked = await started(str(checkpoint), preset="photos-finetune")
    assert (spec.model.trunk, checked.weights_path) == ("resnet34", "")
    with pytest.raises(MultigrainError, match="initial_weights has 'resnet34'") as caught:
        await started("job:train-1", preset="photos-small")
    assert caught.value.violations[0].field == "spec.model.trunk"
    with pytest.raises(MultigrainError, match=r'spec.initial_weights: no job "gone"'):
        await started("job:gone")
    installed = {"torchvision": object()}
    monkeypatch.setattr(submitted_weights, "find_spec", installed.get)
    spec, checked = await started("torchvision:resnet50")
    assert (spec.model.trunk, spec.initial_weights) == ("resnet50", "torchvision:resnet50")
    assert str(checked.hub) == "torchvision:resnet50"
    with pytest.raises(MultigrainError, match=r"multigrain\[hub\]") as caught:
        await started("timm:resnet50")
    assert caught.value.kind is ErrorKind.UNSUPPORTED

    async def evaluated(name: str) -> CheckedSpec:
        weights = {"weights": {"checkpoint_path": name}}
        return await checks.evaluation({**weights, "dataset_path": str(dataset)})

    found = await evaluated("job:train-1@90")
    assert isinstance(found.spec, EvaluationSpec)
    assert (found.spec.weights.job_id, found.spec.weights.checkpoint) == ("train-1", "90")
    assert found.of_job
    found = await evaluated("model:birds@2")
    assert isinstance(found.spec, EvaluationSpec)
    assert found.spec.weights.model == "birds@2"
    assert str((await evaluated("torchvision:resnet18")).hub) == "torchvision:resnet18"
    exported = await checks.export(
        {"weights": {"checkpoint_path": "torchvision:resnet18"}, "model_name": "m"}
    )
    assert str(exported.hub) == "torchvision:resnet18"
    with pytest.raises(MultigrainError, match="already an exported bundle"):
        await checks.export({"weights": {"checkpoint_path": "model:m@1"}, "model_name": "m"})


async def test_an_empty_path_is_refused(tmp_path: Path) -> None:
    checks, there = _checks(tmp_path), {"checkpoint_path": str(tmp_path)}
    for field, check in (
        ("train_path", checks.training({**ASCEND, "dataset": {"train_path": ""}})),
        ("dataset_path", checks.evaluation({**ASCEND, "weights": there, "dataset_path": ""})),
        (
            "checkpoint_path",
            checks.export({**ASCEND, "weights": {"checkpoint_path": ""}, "model_name": "m"}),
        ),
    ):
        with pytest.raises(MultigrainError, match=field) as caught:
            await check
        assert caught.value.kind is ErrorKind.INVALID_FIELD


PATH_FIELDS = (
    ("training", "spec.dataset.train_path"),
    ("training", "spec.initial_weights"),
    ("training", "spec.devices.rank_table"),
    ("evaluation", "spec.dataset_path"),
    ("evaluation", "spec.weights.checkpoint_path"),
    ("export", "spec.whitening_path"),
    ("export", "spec.int8_path"),
)


def _overrides(kind: str, dataset: Path, field: str, path: Path) -> dict[str, Any]:
    """A specification of a kind of job that names a path in one field."""
    weights = dataset.parent / "weights.safetensors"
    weights.touch()
    base: dict[str, dict[str, Any]] = {
        "training": {**ASCEND, "dataset": {"train_path": str(dataset)}},
        "evaluation": {
            **ASCEND,
            "dataset_path": str(dataset),
            "weights": {"checkpoint_path": str(weights)},
            "tasks": ["classification"],
        },
        "export": {
            **ASCEND,
            "model_name": "m",
            "weights": {"checkpoint_path": str(weights)},
            "formats": ["onnx"],
        },
    }
    found = base[kind]
    at = found
    *groups, name = field.removeprefix("spec.").split(".")
    for group in groups:
        at[group] = at = dict(at.get(group, {}))
    at[name] = str(path)
    if name == "rank_table":
        at["launcher"] = "rank-table"
    return found


@pytest.mark.parametrize(("kind", "field"), PATH_FIELDS)
@pytest.mark.parametrize("what", ["pipe", "socket", "endless", "loop", "broken"])
async def test_a_path_to_no_file_or_folder_is_refused(
    tmp_path: Path, dataset: Path, kind: str, field: str, what: str
) -> None:
    path = tmp_path / "hostile"
    put(path, what)
    check = getattr(_checks(tmp_path), kind)
    with pytest.raises(MultigrainError) as caught:
        async with asyncio.timeout(60):
            await check(_overrides(kind, dataset, field, path))
    assert caught.value.kind in (ErrorKind.INVALID_FIELD, ErrorKind.PATH_NOT_ALLOWED)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("name", ["manifest.json", "model.json"])
@pytest.mark.parametrize("what", KINDS)
async def test_a_hostile_manifest_holds_up_no_submission(
    tmp_path: Path, dataset: Path, name: str, what: str
) -> None:
    """The event loop goes on, and the job reports later what is wrong with its weights."""
    weights = dataset.parent / "weights"
    weights.mkdir()
    put(weights / name, what)
    overrides = _overrides("evaluation", dataset, "spec.weights.checkpoint_path", weights)
    async with asyncio.timeout(60):
        checked = await _checks(tmp_path).evaluation(overrides)
    assert checked.weights_path == str(weights)


async def test_labels_outside_the_data_roots_are_not_read(tmp_path: Path, dataset: Path) -> None:
    """A manifest outside would be shown by the error that names the unknown classes."""
    outside, inside = tmp_path / "outside", dataset.parent / "weights"
    outside.mkdir()
    inside.mkdir()
    manifest = CheckpointManifest(step=1, epoch=1, model=ModelSpec(), labels=("secret",))
    (outside / "manifest.json").write_text(manifest.model_dump_json())
    (inside / "manifest.json").symlink_to(outside / "manifest.json")
    assert stored_labels(inside) == ("secret",)
    overrides = _overrides("evaluation", dataset, "spec.weights.checkpoint_path", inside)
    await _checks(dataset.parent).evaluation(overrides)
    with pytest.raises(MultigrainError, match="not among the 1 classes"):
        await _checks(tmp_path).evaluation(overrides)


async def test_a_stuck_disk_is_reported_and_others_are_read(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system whose server is gone: the checks of other roots go on."""
    other = tmp_path / "nfs"
    other.mkdir()
    ended = threading.Event()
    check = PathRoots.check

    def slow(self: PathRoots, path: str, field: str, *, must_exist: bool = True) -> Path:
        if path.startswith(str(other)):
            ended.wait(60)
        return check(self, path, field, must_exist=must_exist)

    monkeypatch.setattr(PathRoots, "check", slow)
    monkeypatch.setattr(read_files, "__kwdefaults__", {"place": "", "seconds": 0.2})
    checks = _checks(dataset.parent, other)
    try:
        calls = [
            checks.training(_overrides("training", dataset, "spec.dataset.train_path", other))
            for _ in range(20)
        ]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, MultigrainError)
            assert error.kind is ErrorKind.UNAVAILABLE
        monkeypatch.setattr(read_files, "__kwdefaults__", {"place": "", "seconds": 60.0})
        await checks.training(_overrides("training", dataset, "spec.dataset.train_path", dataset))
    finally:
        ended.set()

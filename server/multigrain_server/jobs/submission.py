"""Checks before a job is queued: errors that can be found now must not occur hours later."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.files import describe_mode
from multigrain.images.limits import ImageLimits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind
from multigrain.specs.base import DeviceSpec, WeightsSource
from multigrain.specs.choice import FINETUNE, PHOTOS, choose_preset
from multigrain.specs.data_roots import PathRoots
from multigrain.specs.evaluation import FOLDER_TASKS, EvaluationSpec, Task
from multigrain.specs.export import ExportSpec
from multigrain.specs.presets import merge
from multigrain.specs.resolve import resolve_evaluation, resolve_export, resolve_training
from multigrain.specs.training import TrainingSpec
from multigrain.specs.weights_reference import HUBS, WeightsReference, parse_reference
from multigrain.text import printable
from multigrain_server.devices import Leases
from multigrain_server.file_threads import read_files
from multigrain_server.jobs import training_packages
from multigrain_server.jobs.listing_threads import in_listing_thread
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.submitted_weights import (
    WeightsStart,
    check_library,
    check_network,
    hub_of,
    source_of,
    stored_job,
    stored_labels,
    stored_network,
    with_source,
)

if TYPE_CHECKING:
    from multigrain.data.image_folder import ImageFolder

T = TypeVar("T")

# For all bytes of a checkpoint.
_VERIFY_SECONDS = 600.0


def check_resumable(spec: TrainingSpec, folder: JobFolder, roots: tuple[Path, ...] | None) -> None:
    """Refuses to resume a training run whose images have changed since its newest checkpoint.

    The worker checks this too, but then the job has already left its state. Lists the whole
    training set: call it in a thread.

    Args:
        spec: of the training run.
        folder: of the job.
        roots: folders that the training set must be in.

    Raises:
        MultigrainError: WRONG_STATE, with what has changed; DATASET if there are no images.
    """
    # Imported here, because they import numpy, which would slow down the daemon's start.
    from multigrain.checkpoint import store
    from multigrain.checkpoint.store import check_dataset
    from multigrain.data.fingerprint import fingerprint
    from multigrain.data.image_folder import scan

    if spec.dataset.allow_changes:
        return
    for _, path in reversed(store.steps(folder.checkpoints)):
        try:
            manifest = store.read_manifest(path)
        except MultigrainError:  # damaged: the job resumes from the one before it
            continue
        if manifest.dataset is None:
            return
        now = fingerprint(scan(Path(spec.dataset.train_path), ImageLimits(roots=roots)))
        try:
            check_dataset(manifest, now, allow_changes=False)
        except MultigrainError as error:
            raise MultigrainError(
                ErrorKind.WRONG_STATE, f"job {folder.job_id} cannot be resumed: {error.message}"
            ) from error
        return


@dataclass(frozen=True)
class Submission:
    """A request to start a job.

    Attributes:
        kind: of the job.
        body_sha256: hash of the whole request.
        request_id: by which a repeated request is recognized.
        name: the user's.
        labels: the user's.
        client: who sent it: the name of a token, or a host.
    """

    kind: JobKind
    body_sha256: str
    request_id: str = ""
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    client: str = ""


@dataclass(frozen=True)
class CheckedSpec:
    """A specification that can be queued.

    Attributes:
        kind: of the job.
        spec: resolved, with absolute paths.
        weights_path: see JobRequest.
        of_job: whether weights_path is a checkpoint of another job, which may delete it.
        train_path: see JobRequest.
        val_path: see JobRequest.
        warnings: what is unusual about the datasets, one line each.
        held_out: the record of the images that the job of the weights held out, if it did.
        preset_reason: see JobRequest.
        hub: a library's weights, which the job fetches.
    """

    kind: JobKind
    spec: TrainingSpec | EvaluationSpec | ExportSpec
    weights_path: str = ""
    of_job: bool = False
    warnings: tuple[str, ...] = ()
    train_path: str = ""
    val_path: str = ""
    held_out: Path | None = None
    preset_reason: str = ""
    hub: WeightsReference | None = None


class SubmissionChecks:
    """Resolves and checks specifications.

    Args:
        roots: folders that requests may name paths under.
        leases: of the devices.
        store: finds the jobs that weights are taken from.
        jobs_dir: the folder of all job folders.
        bundle_path: returns the bundle of a model reference; raises MultigrainError NOT_FOUND.
        is_alias: whether a name is an alias, which would hide a model of that name.
    """

    def __init__(
        self,
        roots: PathRoots,
        leases: Leases,
        store: JobStore,
        jobs_dir: Path,
        bundle_path: Callable[[str], Path],
        is_alias: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self._roots = roots
        self._limits = ImageLimits(roots=roots.roots)
        self._leases = leases
        self._store = store
        self._jobs_dir = jobs_dir
        self._bundle_path = bundle_path
        self._is_alias = is_alias

    async def training(self, overrides: Mapping[str, Any]) -> CheckedSpec:
        """Raises MultigrainError: INVALID_FIELD, PATH_NOT_ALLOWED or DATASET; WRONG_STATE in an
        installation that cannot train, as the other two do."""
        training_packages.require()
        chosen = not overrides.get("preset")
        # What is wrong with the request itself is reported before the images are listed.
        spec = resolve_training({**overrides, "preset": PHOTOS} if chosen else overrides)
        field = "spec.dataset.train_path"
        train_path = await self._path(spec.dataset.train_path, field)
        train = await self._scan(train_path, field)
        start = await self._start_of(spec.initial_weights)
        reason = ""
        if spec.preset == FINETUNE:
            spec = resolve_training(merge(start.network, overrides))
        if chosen:
            choice = choose_preset(
                len(train), self._target(overrides), finetune=bool(spec.initial_weights)
            )
            values = merge(choice.values, start.network)
            spec = resolve_training(merge(values, {**overrides, "preset": choice.preset}))
            reason = choice.reason
        spec = spec.model_copy(update={"devices": await self._devices(spec.devices)})
        val_path = ""
        if spec.dataset.val_path:
            val_path = str(await self._path(spec.dataset.val_path, "spec.dataset.val_path"))
        spec = spec.model_copy(update={"initial_weights": start.name})
        check_network(spec, start)
        classes, warnings = train.classes, train.warnings
        if len(classes) == 1 and train.warning and spec.objective.classification_weight:
            # A classifier of one class learns nothing, so this is an archive's own folder.
            raise _dataset_error("spec.dataset.train_path", train.warning)
        elif len(classes) == 1 and spec.objective.classification_weight:
            problem = (
                f"has one class folder, '{printable(classes[0])}': a classifier of one class "
                "learns nothing, and its top-1 is always 1; give a folder with one sub-folder for "
                "each class, or set objective.classification_weight to 0"
            )
            if spec.objective.classification_weight == 1:
                raise _dataset_error("spec.dataset.train_path", problem)
            warnings += (f"dataset {printable(str(train_path))} {problem}",)
        if spec.model.classes and spec.model.classes < len(classes):
            raise MultigrainError.field(
                "spec.model.classes",
                f"{spec.model.classes} is less than the {len(classes)} class folders of the "
                "training set; set it to 0 to take their number",
            )
        if spec.dataset.val_fraction:
            spec, warning = _checked_fraction(spec, train, chosen=chosen)
            warnings += (warning,) if warning else ()
        if val_path:
            field = "spec.dataset.val_path"
            found = await self._scan(Path(val_path), field)
            warnings += tuple(line for line in found.warnings if line not in warnings)
            if "classification" in spec.evaluation.tasks:
                _check_known_classes(found, classes, field)
        spec = await self._scheduled_retrieval(spec, val_path)
        dataset = spec.dataset.model_copy(
            update={"train_path": str(train_path), "val_path": val_path}
        )
        model = spec.model.model_copy(update={"classes": spec.model.classes or len(classes)})
        spec = spec.model_copy(update={"dataset": dataset, "model": model})
        return CheckedSpec(
            JobKind.TRAINING,
            spec,
            weights_path=start.weights_path,
            of_job=start.of_job,
            warnings=warnings,
            preset_reason=reason,
            hub=start.hub,
        )

    async def _start_of(self, initial_weights: str) -> WeightsStart:
        """Finds the weights that a training run starts from."""
        if not initial_weights:
            return WeightsStart()
        field = "spec.initial_weights"
        reference = parse_reference(initial_weights, field)
        if reference is None:
            path = await self._path(initial_weights, field)
            network = await self._read(path, partial(stored_network, path, self._roots.roots))
            return WeightsStart(str(path), network=network)
        if reference.kind in HUBS:
            check_library(reference, field)
            network = {"model": {"trunk": reference.trunk, "stem": "imagenet"}}
            return WeightsStart(str(reference), hub=reference, network=network)
        path = await self._weights(source_of(reference), field)
        network = await self._read(path, partial(stored_network, path, None))
        if reference.kind == "model":
            return WeightsStart(str(reference), str(path), network=network)
        # The checkpoint that "last" or "best" is now.
        step = replace(reference, checkpoint=path.name.rpartition("-")[2].lstrip("0") or "0")
        return WeightsStart(str(step), str(path), of_job=True, network=network)

    def _target(self, overrides: Mapping[str, Any]) -> str:
        """The device to choose a preset for: the user's, or the best that this server has."""
        devices = overrides.get("devices")
        if isinstance(devices, Mapping) and devices.get("target"):
            return str(devices["target"])
        inventory = self._leases.inventory
        return next((kind for kind in ("gpu", "ascend") if inventory.units(kind)), "cpu")

    async def _scheduled_retrieval(self, spec: TrainingSpec, val_path: str) -> TrainingSpec:
        """Checks the folder of the retrieval evaluation during training."""
        schedule = spec.evaluation
        field, path = "spec.dataset.val_path", Path(val_path)
        if schedule.retrieval_path:
            field = "spec.evaluation.retrieval_path"
            path = await self._path(schedule.retrieval_path, field)
            schedule = schedule.model_copy(update={"retrieval_path": str(path)})
        if schedule.every_epochs:
            await self._check_benchmarks(path, schedule.tasks, schedule.group_queries, field)
        return spec.model_copy(update={"evaluation": schedule})

    async def evaluation(self, overrides: Mapping[str, Any]) -> CheckedSpec:
        """Raises MultigrainError: as ``training``, and NOT_FOUND or CHECKPOINT for the weights."""
        training_packages.require()
        overrides = await self._with_held_out(with_source(overrides))
        spec = resolve_evaluation(overrides)
        spec = spec.model_copy(update={"devices": await self._devices(spec.devices)})
        weights = await self._weights(spec.weights)
        hub = hub_of(spec.weights)
        held_out = await self._held_out_record(spec) if spec.held_out else None
        dataset = await self._path(spec.dataset_path, "spec.dataset_path")
        warnings: tuple[str, ...] = ()
        if not FOLDER_TASKS.isdisjoint(spec.tasks):
            folder = await self._scan(dataset, "spec.dataset_path")
            warnings = folder.warnings
            labels: tuple[str, ...] = ()
            if hub is None:
                labels = await self._read(
                    weights, partial(stored_labels, weights, self._roots.roots)
                )
            if labels and not {"classification", "gem_p"}.isdisjoint(spec.tasks):
                _check_known_classes(folder, labels, "spec.dataset_path")
        await self._check_benchmarks(dataset, spec.tasks, spec.group_queries, "spec.dataset_path")
        spec = spec.model_copy(update={"dataset_path": str(dataset)})
        of_job = bool(spec.weights.job_id)
        checked = CheckedSpec(JobKind.EVALUATION, spec, str(weights), of_job, warnings)
        return replace(checked, held_out=held_out, hub=hub)

    async def _with_held_out(self, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
        """Names the images that the training job of the weights held out, if no others are."""
        if overrides.get("dataset_path") or "gem_p" in overrides.get("tasks", ()):
            return overrides
        training = await self._training_of(overrides.get("weights"))
        if training is None:
            return overrides
        dataset = training[1].dataset
        if dataset.val_path:
            return {**overrides, "dataset_path": dataset.val_path}
        if dataset.val_fraction:
            return {**overrides, "dataset_path": dataset.train_path, "held_out": True}
        return overrides

    async def _held_out_record(self, spec: EvaluationSpec) -> Path:
        """The record of what the training job of the weights held out.

        Raises:
            MultigrainError: INVALID_FIELD, if it held nothing out.
        """
        training = await self._training_of(spec.weights.model_dump(exclude_defaults=True))
        if training is None or not training[1].dataset.val_fraction:
            raise MultigrainError.field(
                "spec.held_out",
                "the weights are not of a training job of this server with dataset.val_fraction: "
                "leave it out, and name the held-out images in dataset_path",
            )
        return JobFolder(self._jobs_dir / training[0]).held_out

    async def _training_of(self, source: object) -> tuple[str, TrainingSpec] | None:
        """The training job that weights come from, if it is still known; does not check them."""
        if not isinstance(source, Mapping):
            return None
        job_id = str(source.get("job_id") or "")
        if not job_id and (model := source.get("model")):
            bundle = self._bundle_path(str(model))
            job_id = await self._read(bundle, partial(stored_job, bundle, None))
        elif not job_id and (path := source.get("checkpoint_path")):
            if parse_reference(str(path), "spec.weights.checkpoint_path") is not None:
                return None
            found = await self._path(str(path), "spec.weights.checkpoint_path")
            job_id = await self._read(found, partial(stored_job, found, self._roots.roots))
        row = self._store.get(job_id) if job_id else None
        training = row.job.request.training if row is not None else None
        return (job_id, training) if training is not None else None

    async def export(self, overrides: Mapping[str, Any]) -> CheckedSpec:
        """Raises MultigrainError: INVALID_FIELD, PATH_NOT_ALLOWED, NOT_FOUND, CHECKPOINT,
        DATASET (the images for the whitening), and UNSUPPORTED for a format that cannot be
        written on the device."""
        training_packages.require()
        spec = resolve_export(with_source(overrides))
        if self._is_alias(spec.model_name):
            raise MultigrainError.field(
                "spec.model_name",
                f"{spec.model_name} is an alias, which would hide the model; give another name, "
                "or remove the alias first",
            )
        spec = spec.model_copy(update={"devices": await self._devices(spec.devices)})
        warnings: tuple[str, ...] = ()
        if spec.whitening_path:
            field = "spec.whitening_path"
            path = await self._path(spec.whitening_path, field)
            warnings += (await self._scan_images(path, field)).warnings
            spec = spec.model_copy(update={"whitening_path": str(path)})
        if spec.int8_path:
            field = "spec.int8_path"
            path = await self._path(spec.int8_path, field)
            warnings += (await self._scan_images(path, field)).warnings
            spec = spec.model_copy(update={"int8_path": str(path)})
        weights = await self._weights(spec.weights)
        hub = hub_of(spec.weights)
        of_job = bool(spec.weights.job_id)
        row = self._store.get(spec.weights.job_id) if of_job else None
        training = row.job.request.training if row is not None else None
        checked = CheckedSpec(JobKind.EXPORT, spec, str(weights), of_job, warnings, hub=hub)
        if training is None:
            return checked
        dataset = training.dataset
        record = JobFolder(self._jobs_dir / spec.weights.job_id).held_out
        return replace(
            checked,
            train_path=dataset.train_path,
            val_path=dataset.val_path,
            held_out=record if dataset.val_fraction else None,
        )

    async def _devices(self, devices: DeviceSpec) -> DeviceSpec:
        self._leases.check(devices)
        if not devices.rank_table:
            return devices
        path = await self._path(devices.rank_table, "spec.devices.rank_table")
        return devices.model_copy(update={"rank_table": str(path)})

    async def _weights(self, source: WeightsSource, named: str = "") -> Path:
        """Finds weights; of a library, the path is without meaning.

        Args:
            source: the weights.
            named: field that names a job or a model; "" = those of ``source``.
        """
        if source.model:
            return self._bundle_path(source.model)
        if source.checkpoint_path:
            field = "spec.weights.checkpoint_path"
            if (hub := hub_of(source)) is not None:
                check_library(hub, field)
                return Path()
            return await self._path(source.checkpoint_path, field)
        row = self._store.get(source.job_id)
        if row is None:
            raise MultigrainError(
                ErrorKind.NOT_FOUND,
                f'{named or "spec.weights.job_id"}: no job "{source.job_id}"',
            )
        if row.job.request.kind is not JobKind.TRAINING:
            raise MultigrainError.field(
                named or "spec.weights.job_id",
                f"job {source.job_id} is of kind {row.job.request.kind}; only a training job "
                "has weights",
            )
        # Imported here, because it imports numpy, which would slow down the daemon's start.
        from multigrain.checkpoint.store import resolve

        checkpoints = JobFolder(self._jobs_dir / source.job_id).checkpoints
        try:
            # It reads the whole checkpoint to verify its checksums.
            return await read_files(
                partial(resolve, checkpoints, source.checkpoint),
                place=str(self._jobs_dir),
                seconds=_VERIFY_SECONDS,
            )
        except MultigrainError as error:
            if error.kind is ErrorKind.INVALID_FIELD:
                raise MultigrainError.field(
                    named or "spec.weights.checkpoint", error.violations[0].message
                ) from error
            raise MultigrainError(
                error.kind, f"{named or 'spec.weights'}: {error.message}"
            ) from error

    async def _path(self, path: str, field: str) -> Path:
        """Checks a path of the request, and that a file or a folder is there."""
        return await self._read(Path(path), partial(_checked_path, self._roots, path, field))

    async def _read(self, path: Path, function: Callable[[], T]) -> T:
        return await read_files(function, place=self._place(path))

    def _place(self, path: Path) -> str:
        """The data root of a path. Does not look at the disk."""
        return next((str(root) for root in self._roots.roots if path.is_relative_to(root)), "")

    async def _scan(self, path: Path, field: str) -> ImageFolder:
        """Lists an image folder. In a thread: it may contain a million files."""
        from multigrain.data.image_folder import scan

        return await self._list(partial(scan, path, self._limits), path, field)

    async def _scan_images(self, path: Path, field: str) -> ImageFolder:
        """Lists a folder of images, with or without class folders. In a thread."""
        from multigrain.data.image_folder import scan_images

        return await self._list(partial(scan_images, path, self._limits), path, field)

    async def _check_benchmarks(
        self,
        path: Path,
        tasks: tuple[Task, ...],
        group_queries: Literal["all", "first"],
        field: str,
    ) -> None:
        """Refuses a folder without the layout of the retrieval tasks. Listed in a thread."""
        from multigrain.data.benchmarks import RETRIEVAL_TASKS, list_benchmark

        for task in tasks:
            if task in RETRIEVAL_TASKS:
                work = partial(list_benchmark, task, path, group_queries, self._limits)
                await self._list(work, path, field)

    async def _list(self, work: Callable[[], T], path: Path, field: str) -> T:
        try:
            return await in_listing_thread(work, place=self._place(path))
        except MultigrainError as error:
            if error.kind not in (ErrorKind.DATASET, ErrorKind.PATH_NOT_ALLOWED):
                raise
            raise _field_error(error.kind, field, error.message) from error


def _checked_path(roots: PathRoots, path: str, field: str) -> Path:
    found = roots.check(path, field)
    mode = os.stat(found).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise MultigrainError.field(
            field, f"is {describe_mode(mode)} and not a file or a folder: {path}"
        )
    return found


def _checked_fraction(
    spec: TrainingSpec, train: ImageFolder, *, chosen: bool
) -> tuple[TrainingSpec, str]:
    """Checks that images can be held out. With a chosen preset none are where that is impossible.

    Returns:
        The specification and a warning, "" if there is none.

    Raises:
        MultigrainError: DATASET.
    """
    counts: dict[int, int] = {}
    for label in train.labels.tolist():
        counts[label] = counts.get(label, 0) + 1
    if max(counts.values()) > 1:
        return spec, ""
    if not chosen:
        raise _dataset_error(
            "spec.dataset.val_fraction", "no class has two images, of which one could be held out"
        )
    dataset = spec.dataset.model_copy(update={"val_fraction": 0.0})
    schedule = spec.evaluation.model_copy(update={"every_epochs": 0})
    return (
        spec.model_copy(update={"dataset": dataset, "evaluation": schedule}),
        "no class has two images: none is held out, and nothing is evaluated",
    )


def _check_known_classes(folder: ImageFolder, known: tuple[str, ...], field: str) -> None:
    from multigrain.data.image_folder import class_order

    order = class_order(folder.classes, known)
    unknown = [name for name, number in zip(folder.classes, order, strict=True) if number < 0]
    if unknown:
        names = ", ".join(f'"{printable(name)}"' for name in unknown[:5])
        hint = f" ({folder.warning})" if folder.warning else ""
        raise _dataset_error(
            field,
            f"{len(unknown)} of its {len(folder.classes)} class folders are not among the "
            f"{len(known)} classes trained on: {names}{hint}",
        )


def _dataset_error(field: str, message: str) -> MultigrainError:
    return _field_error(ErrorKind.DATASET, field, message)


def _field_error(kind: ErrorKind, field: str, message: str) -> MultigrainError:
    violation = FieldViolation(field, message)
    return MultigrainError(kind, f"{field}: {message}", violations=(violation,))

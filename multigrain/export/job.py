"""The export job inside one worker process."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from safetensors.numpy import save as save_tensors

from multigrain import __version__
from multigrain.bundle.folder import FILE_MODE, read, write_manifest
from multigrain.bundle.manifest import BundleManifest, Head, Source
from multigrain.data.report import report_listing
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import newest_record
from multigrain.events.records import ArtifactRecord
from multigrain.export.head import HeadWriter, whitening_images
from multigrain.export.int8_cost import describe as describe_cost
from multigrain.export.int8_images import Int8Images, NoInt8, find_images
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.manifests import MAX_LABELS
from multigrain.specs.export import ExportSpec
from multigrain.storage import (
    TEMPORARY_PREFIX,
    describe,
    make_folder,
    os_error_hint,
    sync_file,
    sync_folder,
    write_synced,
)
from multigrain.weights.restore import RestoredModel, restore

WEIGHTS = "weights.safetensors"
LABELS = "labels.txt"
_MAX_DIGITS = 18  # less than 2^63


def run_export(ctx: WorkerContext) -> Outcome:
    """Implements ``multigrain.export.run``."""
    spec = ctx.request.export
    if spec is None:
        raise ValueError("an export worker was started for another kind of job")
    if ctx.rank != 0:
        return Outcome(message="rank 0 exports")
    models = Path(ctx.request.models_dir)
    folder = models / spec.model_name
    published = _published_bundle(folder, ctx.request.job_id)
    if published is not None:
        # An earlier attempt ended between publishing the bundle and reporting it.
        return _report(ctx, published)
    _check(spec, models)
    # The stored weights are those of the default head.
    restored = restore(
        Path(ctx.request.weights_path),
        trunk=spec.trunk,
        gem_p=spec.heads[0].gem_p,
        roots=ctx.roots,
    )
    ctx.reporter.alive()
    temporary = folder / f"{TEMPORARY_PREFIX}{ctx.request.job_id}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an earlier attempt
        make_folder(folder)
        temporary.mkdir()
        manifest = _write(ctx, spec, restored, temporary)
        if manifest is None:
            return Outcome(stopped=True, message="stopped before the bundle was complete")
        manifest = _publish(folder, temporary, manifest, spec.version)
    except OSError as error:
        raise MultigrainError(
            ErrorKind.STORAGE,
            f"the bundle cannot be written ({error.strerror}): "
            + os_error_hint(
                error, "write in models/ of the data directory", "free some space and try again"
            ),
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return _report(ctx, manifest)


def _report(ctx: WorkerContext, manifest: BundleManifest) -> Outcome:
    """Emits the artifact event of a published bundle, unless it is in the event log already."""
    record = ArtifactRecord(
        model_name=manifest.name,
        model_version=manifest.version,
        files=tuple(sorted(manifest.files)),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
    )
    if newest_record(ctx.folder.events, ArtifactRecord) != record:
        ctx.reporter.emit(record)
    return Outcome(message=f"wrote {manifest.name}@{manifest.version}{_int8_note(manifest.heads)}")


def _int8_note(heads: tuple[Head, ...]) -> str:
    """What the job's result says about the 8-bit graph; nothing if none was wanted."""
    head = next((head for head in heads if head.no_int8), heads[0])
    if head.int8 is not None:
        return f"; 8-bit graph: {describe_cost(head.int8)}"
    return f"; no 8-bit graph: {head.no_int8}" if head.no_int8 else ""


def _published_bundle(folder: Path, job_id: str) -> BundleManifest | None:
    """Returns the bundle that an earlier attempt of this job has published, if any."""
    if not folder.is_dir():
        return None
    for path in folder.iterdir():
        if not _is_version(path.name):
            continue
        try:
            manifest = read(path)
        except MultigrainError:  # a damaged bundle of another job
            continue
        if manifest.export_job == job_id:
            return manifest
    return None


def _check(spec: ExportSpec, models: Path) -> None:
    """Rejects invalid specifications before anything is written."""
    if not spec.model_name:
        raise MultigrainError.field("spec.model_name", "is empty: give the model a name")
    if not spec.formats:
        raise MultigrainError.field("spec.formats", "is empty: give mindir, onnx or both")
    if "air" in spec.formats and spec.devices.target != "ascend":
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            "spec.formats: MindSpore writes air on Ascend devices only, but spec.devices.target is "
            f"{spec.devices.target}: omit it, or export on Ascend",
        )
    if spec.version and (models / spec.model_name / str(spec.version)).exists():
        raise _exists(spec.model_name, spec.version)


def _write(
    ctx: WorkerContext, spec: ExportSpec, restored: RestoredModel, folder: Path
) -> BundleManifest | None:
    """Writes all files except the manifest; returns it, or None if asked to stop."""
    _check_different([restored.preprocessing(wanted.resolution).size for wanted in spec.heads])
    limits = ctx.image_limits
    images = whitening_images(spec, limits) if spec.whitening_path else None
    record = ctx.folder.held_out
    held_out = record if record.exists() else None
    int8 = find_images(ctx.request, spec, restored.weights.labels, limits, held_out)
    listed = [images.folder] if images is not None else []
    listed += int8.folders if isinstance(int8, Int8Images) else []
    for source in listed:
        report_listing(ctx, source)
    (folder / WEIGHTS).write_bytes(save_tensors(restored.state))
    labels = restored.weights.labels
    if len(labels) > MAX_LABELS:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"the weights have {len(labels)} class names, and a model bundle holds at most "
            f"{MAX_LABELS}: train with fewer class folders",
        )
    if labels:
        lines = "".join(f"{' '.join(label.splitlines())}\n" for label in labels)
        write_synced(folder / LABELS, lines.encode("utf-8", "surrogateescape"))
    heads: list[Head] = []
    for head_spec in spec.heads:
        p = head_spec.gem_p or restored.spec.gem_p
        model = restored if p == restored.spec.gem_p else restored.with_exponent(p)
        preprocessing = model.preprocessing(head_spec.resolution)
        # The first head is the default one.
        writer = HeadWriter(ctx, spec, model, preprocessing, folder, default=not heads, int8=int8)
        head = writer.write(images)
        if head is None:
            return None
        heads.append(head)
        if head.int8 is None and isinstance(int8, Int8Images):
            # Engines serve 8 bits at all resolutions or at none.
            int8 = NoInt8(f"it was left out at {head.resolution} px")
            heads = [_without_int8(other, folder, int8.reason) for other in heads]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        path.chmod(FILE_MODE)
        sync_file(path)
    return BundleManifest(
        name=spec.model_name,
        version=spec.version or 1,
        create_time=datetime.now(UTC).isoformat(),
        multigrain_version=__version__,
        model=restored.spec,
        embedding_size=restored.network.embedding_size,
        labels=labels,
        weights=WEIGHTS,
        heads=tuple(heads),
        files={path.name: describe(path) for path in files},
        metrics=restored.weights.metrics,
        source=Source(
            job_id=restored.weights.job_id,
            step=restored.weights.step,
            checkpoint=restored.weights.checkpoint,
        ),
        export_job=ctx.request.job_id,
    )


def _without_int8(head: Head, folder: Path, reason: str) -> Head:
    """Removes the 8-bit graph of a head that has one."""
    if head.int8 is None:
        return head
    for name in head.int8.files:
        (folder / name).unlink()
    return head.model_copy(update={"int8": None, "no_int8": reason})


def _check_different(sizes: list[int]) -> None:
    duplicates = [size for number, size in enumerate(sizes) if size in sizes[:number]]
    if duplicates:
        raise MultigrainError.field(
            "spec.resolutions",
            f"has {duplicates[0]} twice; a resolution of 0 means the training resolution",
        )


def _publish(
    folder: Path, temporary: Path, manifest: BundleManifest, version: int
) -> BundleManifest:
    """Renames the bundle to its version atomically; version 0 = the next free one."""
    while True:
        number = version or _next_version(folder)
        manifest = manifest.model_copy(update={"version": number})
        write_manifest(temporary, manifest)
        read(temporary, verify=True)
        try:
            # Fails if the folder exists: an exported version never changes.
            os.rename(temporary, folder / str(number))
        except OSError as error:
            if not (folder / str(number)).exists():
                raise
            if version:
                raise _exists(manifest.name, version) from error
            continue  # another job took the version meanwhile
        sync_folder(folder)
        return manifest


def _next_version(folder: Path) -> int:
    taken = [int(path.name) for path in folder.iterdir() if _is_version(path.name)]
    return max(taken, default=0) + 1


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS


def _exists(name: str, version: int) -> MultigrainError:
    return MultigrainError(
        ErrorKind.ALREADY_EXISTS,
        f"{name}@{version} exists, and versions never change: give another one, or 0 for the "
        "next free one",
    )

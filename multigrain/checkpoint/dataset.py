"""Whether a training may go on from a checkpoint with the images that there are now."""

from __future__ import annotations

from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.errors import ErrorKind, MultigrainError


def check_dataset(
    manifest: CheckpointManifest, now: DatasetFingerprint, *, allow_changes: bool
) -> str:
    """What has changed since the checkpoint was written, in words; "" if nothing is known to.

    Args:
        manifest: of the checkpoint.
        now: of the training set as it is.
        allow_changes: whether that is acceptable.

    Raises:
        MultigrainError: DATASET if it has changed and must not.
    """
    difference = manifest.dataset.difference(now) if manifest.dataset is not None else ""
    if not difference:
        return ""
    changed = (
        f"the training set is not that of the checkpoint of step {manifest.step}: it has "
        f"{difference}"
    )
    if allow_changes:
        return changed
    raise MultigrainError(
        ErrorKind.DATASET,
        f"{changed}. Going on would not give what the uninterrupted job would have: put the "
        "images back, or start a training with this checkpoint as initial_weights; "
        "dataset.allow_changes, set when a job is started, lets it go on all the same",
    )

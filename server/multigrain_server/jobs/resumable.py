"""Whether an ended training can go on from where it is."""

from __future__ import annotations

from pathlib import Path

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.folder import JobFolder
from multigrain.spec.training import TrainingSpec


def check_resumable(spec: TrainingSpec, folder: JobFolder) -> None:
    """Refuses a training whose images have changed since its newest checkpoint.

    The worker checks as well; here the job keeps its state, and the caller learns at once. It
    lists the whole training set: call it in a thread.

    Raises:
        MultigrainError: WRONG_STATE, saying what has changed; DATASET if the images are gone.
    """
    # Here, not above: they bring numpy, which a start of the daemon should not wait for.
    from multigrain.checkpoint import store
    from multigrain.checkpoint.dataset import check_dataset
    from multigrain.data.fingerprint import fingerprint
    from multigrain.data.folder import scan

    if spec.dataset.allow_changes:
        return
    for _, path in reversed(store.steps(folder.checkpoints)):
        try:
            manifest = store.read_manifest(path)
        except MultigrainError:  # damaged: the job goes on from the one before it
            continue
        if manifest.dataset is None:
            return
        now = fingerprint(scan(Path(spec.dataset.train_path)))
        try:
            check_dataset(manifest, now, allow_changes=False)
        except MultigrainError as error:
            raise MultigrainError(
                ErrorKind.WRONG_STATE, f"job {folder.job_id} cannot be resumed: {error.message}"
            ) from error
        return

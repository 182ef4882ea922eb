"""Class numbers of a dataset that are a network's."""

from __future__ import annotations

from multigrain.checkpoint.restore import Restored
from multigrain.data.folder import ImageFolder
from multigrain.errors import MultigrainError


def numbered(folder: ImageFolder, restored: Restored) -> ImageFolder:
    """The images with class numbers of the network.

    Raises:
        MultigrainError: DATASET or INVALID_FIELD if the classes are not the network's.
    """
    if restored.weights.labels:
        return folder.relabelled(restored.weights.labels)
    if len(folder.classes) > restored.spec.classes:
        raise MultigrainError.field(
            "spec.dataset_path",
            f"it has {len(folder.classes)} class folders, the network {restored.spec.classes} "
            "outputs: give the dataset that the network was trained for",
        )
    return folder

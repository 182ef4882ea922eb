"""What a caller may be."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """A token has one or more. ``ADMIN`` may do everything."""

    #: Vectors and classes of images.
    INFER = "infer"
    #: Starting, cancelling, resuming and deleting jobs.
    TRAIN = "train"
    #: Loading, unloading, naming, importing and deleting models.
    ADMIN = "admin"
    #: Looking at jobs, events and models.
    READ = "read"

"""What an inspection of a dataset and the plan of a training run say. Imports no NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from multigrain.images.limits import ImageLimits
from multigrain.text import printable

_IMBALANCED: Final = 10.0


@dataclass(frozen=True)
class FolderReport:
    """The images on one side.

    Args:
        path: the folder.
        images: number of images.
        classes: number of classes.
        class_images: images of each class; at most 1,000 classes.
        left_out: number of files that are left out, by reason; of the whole folder.
        checked: images that were decoded.
        unreadable: of those, how many could not be.
        unreadable_files: some of them, with the reason.
        shortest, median, longest: shorter side of the checked images in pixels.
        small: checked images whose shorter side is below the training resolution.
    """

    path: str
    images: int
    classes: int
    class_images: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    checked: int = 0
    unreadable: int = 0
    unreadable_files: list[str] = field(default_factory=list)
    shortest: int = 0
    median: int = 0
    longest: int = 0
    small: int = 0

    @property
    def imbalance(self) -> float:
        """Images of the largest class divided by those of the smallest."""
        counts = [count for count in self.class_images.values() if count]
        return max(counts) / min(counts) if counts else 1.0


@dataclass(frozen=True)
class PairReport:
    """Pairs of images that show the same.

    Args:
        compared: images among which they were searched.
        train: pairs on the side that is trained on.
        held_out: pairs on the other side.
        across: pairs of one image of each side.
        examples: some pairs, "first = second"; those across first.
    """

    compared: int = 0
    train: int = 0
    held_out: int = 0
    across: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.train + self.held_out + self.across


@dataclass(frozen=True)
class Inspection:
    """What was found in a dataset.

    Args:
        train: the images that are trained on.
        held_out: the others; None if there are none.
        equal: pairs of files with equal bytes.
        near: pairs of other images that almost look the same: resized, compressed again, in
            another light.
        seconds: that it took.
    """

    train: FolderReport
    held_out: FolderReport | None
    equal: PairReport
    near: PairReport
    seconds: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should look at before training, one line each."""
        found = []
        parts = [self.train] + ([self.held_out] if self.held_out else [])
        for part in parts:
            if part.unreadable:
                files = "; ".join(part.unreadable_files)
                found.append(
                    f"{part.unreadable} of {part.checked} checked images cannot be read: {files}"
                )
        if self.train.imbalance >= _IMBALANCED:
            largest = max(self.train.class_images, key=lambda name: self.train.class_images[name])
            smallest = min(self.train.class_images, key=lambda name: self.train.class_images[name])
            found.append(
                f"the largest class, {printable(largest)!r}, has {self.train.imbalance:.0f} times "
                f"as many images as the smallest, {printable(smallest)!r}"
            )
        if self.train.small * 2 > self.train.checked:
            found.append(
                f"{self.train.small} of {self.train.checked} checked images are smaller than the "
                "training resolution and are enlarged"
            )
        for what, pairs in (("equal", self.equal), ("almost equal", self.near)):
            if pairs.across:
                found.append(
                    f"{pairs.across} {what} images are on both sides, which makes the score too "
                    f"good: {'; '.join(pairs.examples)}"
                )
        return tuple(found)

    @property
    def fields(self) -> dict[str, str]:
        """The numbers, for a log event."""
        held_out = self.held_out or FolderReport("", 0, 0)
        numbers = {
            "train": self.train.images,
            "held_out": held_out.images,
            "classes": self.train.classes,
            "checked": self.train.checked + held_out.checked,
            "unreadable": self.train.unreadable + held_out.unreadable,
            "shortest": self.train.shortest,
            "longest": self.train.longest,
            "equal": self.equal.total,
            "equal_across": self.equal.across,
            "near": self.near.total,
            "near_across": self.near.across,
        }
        return {name: str(number) for name, number in numbers.items()}

    @property
    def line(self) -> str:
        """One line: "1,920 images in 12 classes (8 to 24 each) to train on, 48 held out; ..."."""
        counts = list(self.train.class_images.values())
        each = f" ({min(counts):,} to {max(counts):,} each)" if counts else ""
        held_out = f", {self.held_out.images:,} held out" if self.held_out else ""
        sizes = f"shorter side {self.train.shortest} to {self.train.longest} px"
        checked = self.train.checked + (self.held_out.checked if self.held_out else 0)
        unreadable = self.train.unreadable + (self.held_out.unreadable if self.held_out else 0)
        return (
            f"{self.train.images:,} images in {self.train.classes:,} classes{each} to train on"
            f"{held_out}; {sizes}; {unreadable} of {checked:,} checked unreadable; "
            f"{self.equal.total} equal and {self.near.total} almost equal pairs"
        )


@dataclass(frozen=True)
class TrainingPlan:
    """A training run in numbers.

    Args:
        steps_per_epoch: optimizer steps of an epoch.
        epochs: of the run.
        total_steps: of the run.
        step_images: images of a step over all workers, copies included.
        evaluated_images: held-out images that are scored in the whole run.
        seconds: estimate for the run without compilation; -1 = unknown.
        basis: what the estimate rests on.
        memory_bytes: estimate of each worker's memory.
    """

    steps_per_epoch: int
    epochs: int
    total_steps: int
    step_images: int
    evaluated_images: int
    seconds: float
    basis: str
    memory_bytes: int


@dataclass(frozen=True)
class InspectionRequest:
    """What to inspect.

    Args:
        spec: a resolved training specification, as JSON.
        limits: of an image file.
        images: most images that are decoded.
        seconds: after which no further image is decoded.
        measured: see ``multigrain.train.plan.plan``.
        measured_in: see there.
    """

    spec: dict[str, Any]
    limits: ImageLimits
    images: int
    seconds: float
    measured: float = 0.0
    measured_in: str = ""


@dataclass(frozen=True)
class InspectionResult:
    """What was found, or why nothing was.

    Args:
        inspection: what is in the dataset.
        warnings: see ``Inspection``.
        plan: the training run in numbers.
        error_kind: name of an ErrorKind; "" if there is no error.
        error: its message.
    """

    inspection: Inspection | None = None
    warnings: tuple[str, ...] = ()
    plan: TrainingPlan | None = None
    error_kind: str = ""
    error: str = ""

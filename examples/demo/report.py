"""Times of the demo's stages, and the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from multigrain_client.cli.output import Output

TARGET_TOP1 = 0.97


@dataclass
class Report:
    """Everything that the demo measures; ``seconds`` holds the stages in order."""

    seconds: dict[str, float] = field(default_factory=dict)
    train_images: int = 0
    held_out_images: int = 0
    workers: int = 0
    epochs: int = 0
    steps: int = 0
    first_loss: float = 0.0
    last_loss: float = 0.0
    images_per_second: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    served_top1: float = 0.0
    copies_found_first: int = 0
    copies: int = 0
    model: str = ""
    runtime: str = ""
    load_seconds: float = 0.0
    vector_size: int = 0
    embedded_per_second: float = 0.0

    @contextmanager
    def stage(self, output: Output, name: str, description: str) -> Iterator[None]:
        """Times a stage and prints a line at its start and end."""
        output.line(f"[{len(self.seconds) + 1}/7] {description}")
        start = time.monotonic()
        # Keeps the order, also if the stage fails.
        self.seconds[name] = 0.0
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start
            output.line(f"      {self.seconds[name]:.1f} s")

    @property
    def top1(self) -> float:
        return self.metrics.get("top1", 0.0)

    @property
    def good(self) -> bool:
        return self.top1 >= TARGET_TOP1

    def lines(self, files: Mapping[str, Path]) -> list[str]:
        """The summary as text."""
        results = {
            "images": f"{self.train_images} for training, {self.held_out_images} held out",
            "training": f"{self.steps} steps in {self.epochs} epochs on {self.workers} workers, "
            f"{self.images_per_second:.0f} images/s",
            "loss": f"{self.first_loss:.3f} in the first tenth of the steps, "
            f"{self.last_loss:.3f} in the last",
            **{f"held-out {name}": f"{value:.4f}" for name, value in sorted(self.metrics.items())},
            "served top1": f"{self.served_top1:.4f} (Classify over gRPC, the same images)",
            "copies": f"{self.copies_found_first} of {self.copies} distorted copies "
            "have their original as nearest neighbor",
            "model": f"{self.model}, vectors of {self.vector_size}",
            "runtime": f"{self.runtime}, loaded in {self.load_seconds:.1f} s",
            "embedding": f"{self.embedded_per_second:.0f} images/s over gRPC",
        }
        times = {name: f"{seconds:6.1f} s" for name, seconds in self.seconds.items()}
        times["total"] = f"{sum(self.seconds.values()):6.1f} s"
        blocks = {
            "Results": results,
            "Times": times,
            "Files": {name: str(path) for name, path in files.items()},
        }
        width = max(len(name) for rows in blocks.values() for name in rows)
        lines: list[str] = []
        for title, rows in blocks.items():
            lines += ["", title]
            lines += [f"  {name.ljust(width)}  {value}" for name, value in rows.items()]
        return lines[1:]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

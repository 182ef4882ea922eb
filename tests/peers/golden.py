"""Embeddings computed with PyTorch, for tests that run without it.

``python -m tests.peers.golden`` rewrites ``golden.json`` (needs PyTorch). It has the first
and the last elements of each embedding and its norm, for weights and images that
``tests.peers.seeded`` generates.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PATH = Path(__file__).with_name("golden.json")
CASES = (("resnet18", 1.0), ("resnet18", 3.0), ("se_resnet50", 3.0))
SIZE = 64
IMAGES = 2
CLASSES = 10
KEPT = 8


@dataclass(frozen=True)
class Golden:
    """A sample of one network's outputs per image."""

    trunk: str
    gem_p: float
    first: list[list[float]]
    last: list[list[float]]
    norm: list[float]
    logits: list[list[float]]

    @classmethod
    def of(
        cls, trunk: str, gem_p: float, embedding: NDArray[np.floating], logits: NDArray[np.floating]
    ) -> Golden:
        """Args: embedding (N, C); logits (N, K)."""
        return cls(
            trunk=trunk,
            gem_p=gem_p,
            first=embedding[:, :KEPT].tolist(),
            last=embedding[:, -KEPT:].tolist(),
            norm=np.linalg.norm(embedding, axis=1).tolist(),
            logits=logits.tolist(),
        )


def read() -> list[Golden]:
    """Reads the committed values."""
    return [Golden(**case) for case in json.loads(PATH.read_text())]


def main() -> None:
    import torch

    from tests.peers.names import pytorch_shapes
    from tests.peers.networks import TorchResNet
    from tests.peers.seeded import images, seeded_state

    found = []
    for trunk, p in CASES:
        net = TorchResNet(trunk, CLASSES, p).eval()
        state = seeded_state(pytorch_shapes(trunk, CLASSES))
        net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        with torch.no_grad():
            embedding, logits = net.double()(torch.from_numpy(images(IMAGES, SIZE)).double())
        found.append(Golden.of(trunk, p, embedding.numpy(), logits.numpy()))
    PATH.write_text(json.dumps([asdict(case) for case in found], indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A network whose embedding is whitened."""

from __future__ import annotations

from pathlib import Path

from mindspore import Tensor, nn, ops

from multigrain.checkpoint.restore import Restored
from multigrain.errors import MultigrainError
from multigrain.model.multigrain import MultiGrain
from multigrain.whitening.file import StoredWhitening, read_whitening


class Whitened(nn.Cell):
    """(N, 3, H, W) -> phi (N, D), not normalised, and the network's logits (N, K).

    ``phi = ([e; 1] / |[e; 1]| - mean) @ projection``, D = C + 1, float32, as in serving.
    """

    def __init__(self, network: MultiGrain, whitening: StoredWhitening) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.embedding_size = whitening.size
        self.mean = Tensor(whitening.mean)
        self.projection = Tensor(whitening.projection)

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logits = self.network(images)
        rows = ops.concat((embedding, ops.ones_like(embedding[:, :1])), 1)
        rows = rows / ops.sqrt(ops.square(rows).sum(1, keepdims=True))
        return ops.matmul(rows - self.mean, self.projection), logits


def whitened(restored: Restored, bundle: Path, resolution: int) -> Whitened:
    """The network with the whitening that its bundle carries at a resolution (0 = its default).

    Raises:
        MultigrainError: INVALID_FIELD "spec.whiten" if it carries none, CHECKPOINT if it is
            damaged.
    """
    head = restored.weights.head(resolution)
    if head is None or head.whitening is None:
        where = f" at {resolution} px" if resolution else ""
        raise MultigrainError.field(
            "spec.whiten",
            f"the model carries no whitening{where}: leave it out, or export the model with "
            "whitening_path",
        )
    stored = read_whitening(bundle / head.whitening.file, restored.network.embedding_size)
    return Whitened(restored.network, stored)

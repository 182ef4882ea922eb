"""A network that pools with another exponent than its own, and shares its weights."""

from __future__ import annotations

from mindspore import Tensor, nn

from multigrain.model.gem import GeM
from multigrain.model.multigrain import MultiGrain


class Pooled(nn.Cell):
    """(N, 3, H, W) float32 -> embedding (N, C) and logits (N, K), as ``network`` with p = ``p``.

    Several of them hold one copy of the weights; each is compiled by itself.

    Args:
        network: trunk and classifier.
        p: exponent, >= 1 or infinity; a constant.
    """

    def __init__(self, network: MultiGrain, p: float) -> None:
        # No prefix: the parameters keep their names, whoever else holds the network.
        super().__init__(auto_prefix=False)
        self.network = network
        self.pool = GeM(p)

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.pool(self.network.trunk(images))
        return embedding, self.network.classifier(embedding)

"""The network with other exponents: what differs comes after the trunk, which runs once."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn, ops

from multigrain.model.gem import GeM
from multigrain.model.multigrain import MultiGrain


class AtExponents(nn.Cell):
    """(N, 3, S, S) -> embeddings (N, P, C) and logits (N, P, K), one for each exponent."""

    def __init__(self, network: MultiGrain, exponents: Sequence[float]) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.pools = nn.CellList([GeM(p) for p in exponents])

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.trunk(images)
        embeddings = [pool(maps) for pool in self.pools]
        logits = [self.network.classifier(embedding) for embedding in embeddings]
        return ops.stack(embeddings, 1), ops.stack(logits, 1)


class Maps(nn.Cell):
    """(N, 3, S, S) -> the trunk's maps (N, C, H, W), twice: inference wants two outputs."""

    def __init__(self, network: MultiGrain) -> None:
        super().__init__(auto_prefix=False)
        self.trunk = network.trunk

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(images)
        return maps, maps


class ExponentLoss(nn.Cell):
    """Mean cross-entropy of maps (N, C, H, W) with labels (N,) as a function of p alone."""

    def __init__(self, classifier: nn.Cell, p: float) -> None:
        super().__init__(auto_prefix=False)
        self.classifier = classifier
        self.pool = GeM(p, learn=True)

    def construct(self, maps: Tensor, labels: Tensor) -> Tensor:
        return ops.cross_entropy(self.classifier(self.pool(maps)), labels)

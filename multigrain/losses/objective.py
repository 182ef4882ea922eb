"""The joint objective: lambda * classification loss + (1 - lambda) * instance loss."""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from multigrain.losses.instance import MarginLoss, TripletLoss
from multigrain.specs.training import ObjectiveSpec


class SmoothedCrossEntropy(nn.Cell):
    """Softmax cross-entropy against smoothed labels, averaged over the batch.

    With K classes the target has probability 1 - eps + eps/K and every other class eps/K (the
    convention of PyTorch and of ``ops.cross_entropy``; the ModelZoo's 1 - eps and eps/(K-1) is
    the same with another eps). (N, K) logits and (N,) int32 labels -> scalar float32.

    Args:
        smoothing: eps, in [0, 1).
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = ops.log_softmax(ops.cast(logits, mindspore.float32), 1)
        n, classes = log_p.shape
        target = ops.one_hot(
            labels, classes, Tensor(1.0, mindspore.float32), Tensor(0.0, mindspore.float32)
        )
        target = target * (1.0 - self.smoothing) + self.smoothing / classes
        return -ops.ReduceSum()(target * log_p) / n


class JointObjective(nn.Cell):
    """(embedding, logits, labels, instances, noise) -> (joint, classification, instance).

    Embedding (N, C) and logits (N, K) float32; labels and instances (N,) int32; noise (N, N)
    standard Gumbel noise from :meth:`noise`, used by the margin loss only. All three results
    are float32 scalars. With ``instance_loss: none`` the joint loss is the classification loss,
    regardless of the weight.

    Args:
        spec: kinds and weights of the losses.
    """

    def __init__(self, spec: ObjectiveSpec) -> None:
        super().__init__()
        self.classification = SmoothedCrossEntropy(spec.label_smoothing)
        self.kind = spec.instance_loss
        self.weight = spec.classification_weight
        if self.kind == "margin":
            self.instance = MarginLoss(spec.margin, spec.beta_init)
        elif self.kind == "triplet":
            self.instance = TripletLoss(spec.margin)

    def construct(
        self, embedding: Tensor, logits: Tensor, labels: Tensor, instances: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        classification = self.classification(logits, labels)
        if self.kind == "none":
            return classification, classification, ops.zeros_like(classification)
        if self.kind == "margin":
            instance = self.instance(embedding, instances, noise)
        else:
            instance = self.instance(embedding, instances)
        joint = self.weight * classification + (1.0 - self.weight) * instance
        return joint, classification, instance

    def noise(self, batch: int, key: tuple[int, ...]) -> Tensor:
        """Returns the sampling noise of a step, a pure function of ``key`` (seed, step, rank).

        It is generated on the host, so that a resumed run draws the same noise as an
        uninterrupted one on every kind of device.
        """
        if self.kind != "margin":
            return Tensor(np.zeros((1, 1), np.float32))
        rng = np.random.default_rng(list(key))
        return Tensor(rng.gumbel(size=(batch, batch)).astype(np.float32))

    @property
    def beta(self) -> float:
        """The margin loss's beta; 0 for other instance losses."""
        return float(self.instance.beta.asnumpy()) if self.kind == "margin" else 0.0

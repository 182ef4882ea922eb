"""timm's names of an SE-ResNet: torchvision's, and the gates as 1x1 convolutions."""

from __future__ import annotations

from multigrain.checkpoint.naming.scheme import Scheme, table
from multigrain.checkpoint.naming.torchvision import TORCHVISION

_THEIRS = "layer{stage}.{block}.se.fc{n}"
_OURS = "trunk.layer{stage}.{block}.se.fc{n}"

TIMM = Scheme(
    name="timm",
    rules=(
        *TORCHVISION.rules,
        *table((f"{_THEIRS}.weight", f"{_OURS}.weight"), dense=True),
        *table((f"{_THEIRS}.bias", f"{_OURS}.bias")),
    ),
    ignored=TORCHVISION.ignored,
)

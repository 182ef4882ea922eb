"""The names in the checkpoints published with the MultiGrain paper."""

from __future__ import annotations

from multigrain.checkpoint.naming.scheme import Scheme, table
from multigrain.checkpoint.naming.torchvision import trunk_ignored, trunk_table

PUBLISHED = Scheme(
    name="MultiGrain (published)",
    rules=(
        *trunk_table("features."),
        *table(
            ("pool.p", "pool.p"),
            ("classifier.weight", "classifier.weight"),
            ("classifier.bias", "classifier.bias"),
        ),
    ),
    ignored=trunk_ignored("features."),
)

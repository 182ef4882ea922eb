"""Names that mark networks which only look like ours."""

from __future__ import annotations

from collections.abc import Iterable

# A name in the file -> why the file cannot be taken.
OTHER_NETWORKS: dict[str, str] = {
    "layer0.conv1.weight": (
        "it is an SE-ResNet of the old form (layer0, se_module), whose stride stands in the 1x1 "
        "convolution and whose max pooling rounds up; take timm's seresnet50"
    ),
    "layer1.0.down_sample_layer.0.weight": (
        "it is a ResNet of MindSpore's ModelZoo (down_sample_layer), whose layers of stride 2 pad "
        "on one side only and whose BatchNorms have another epsilon; train it anew here"
    ),
    "conv1.0.weight": "its stem has three convolutions (ResNet-D); ours has one",
    "whitening.pca.pca_P": (
        "its whitening is folded into the classifier already; take the checkpoint from before "
        "the whitening, which export computes anew"
    ),
    "features.layer0.conv1.weight": "its trunk is a SENet-154, which is not among ours",
}


def reason_against(names: Iterable[str]) -> str:
    """Why weights with these names are another network's; empty if nothing says so."""
    present = set(names)
    return next((why for name, why in OTHER_NETWORKS.items() if name in present), "")

"""Names of tensors and of what the protocol calls things."""

from __future__ import annotations

#: Input: encoded files, BYTES [N, 1] or [N].
IMAGES = "images"
#: Input: prepared images, FP32 [N, 3, side, side].
PIXELS = "pixels"
#: Output: FP32 [N, size].
EMBEDDING = "embedding"
#: Output: FP32 [N, classes]; with the parameter "classification", BYTES [N, k].
SCORES = "scores"

INPUTS = {IMAGES: "BYTES", PIXELS: "FP32"}
OUTPUTS = (EMBEDDING, SCORES)

CLASSIFICATION = "classification"
PLATFORM = "multigrain"

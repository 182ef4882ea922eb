"""The names under which a runtime can be asked for. The daemon reads them: nothing heavy here."""

from __future__ import annotations

from typing import Final, Literal, get_args

#: What a request or the configuration may say.
RuntimeName = Literal[
    "auto",
    "openvino",
    "openvino-int8",
    "openvino-bf16",
    "openvino-f32",
    "onnxruntime",
    "mindspore",
]
RUNTIMES: Final[tuple[str, ...]] = get_args(RuntimeName)

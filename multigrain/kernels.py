"""Keeps MindSpore's convolutions fast on CPUs with AVX-512.

The oneDNN of MindSpore 2.9 and 2.10 has no AVX-512 kernel for convolutions of plain NCHW tensors
and falls back to its reference kernel, which is about a hundred times slower: 730 ms instead of
8 ms for a 3x3 convolution of 4 x 64 x 56 x 56. Limited to AVX2 it takes its fast kernel, also 8 ms.
CPUs without AVX-512 are not affected.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path
from typing import Final

VARIABLES: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_LIMIT: Final = "AVX2_VNNI_2"
_AFFECTED_SINCE: Final = (2, 9)


def limit_instructions(environment: MutableMapping[str, str] = os.environ) -> str:
    """Limits oneDNN to AVX2 where AVX-512 is slow; must precede the import of MindSpore.

    A limit that the user has set stays.

    Args:
        environment: of this process.

    Returns:
        What was done or found, for the log; "" if this CPU and this MindSpore are not affected.
    """
    version = mindspore_version()
    if not affected(version, _cpu_flags()):
        return ""
    for name in VARIABLES:
        if value := environment.get(name):
            return f"MindSpore {version}: {name}={value} of the environment limits oneDNN"
    environment[VARIABLES[0]] = _LIMIT
    return (
        f"MindSpore {version} has no fast convolution for AVX-512: {VARIABLES[0]}={_LIMIT} makes "
        "it use its AVX2 kernels"
    )


def affected(version: str, flags: str) -> bool:
    """Whether a MindSpore version is slow on a CPU with these flags of /proc/cpuinfo."""
    numbers = version.split(".")[:2]
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        return False
    return tuple(map(int, numbers)) >= _AFFECTED_SINCE and "avx512f" in flags.split()


def mindspore_version() -> str:
    """The installed version, "" if there is none. Does not import it."""
    try:
        return metadata.version("mindspore")
    except metadata.PackageNotFoundError:
        return ""


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""

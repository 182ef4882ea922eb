"""multigrain embed"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.embed_options import add_embed_options, embed_arguments
from multigrain_client.images import FloatArray


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--out", metavar="FILE.npy", help="write float32 (N, D); default: JSON")
    add_embed_options(parser)
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=["raise", "nan"],
        help="a bad image fails the command (default), or its row is not-a-number",
    )


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        vectors = client.embed(
            arguments.images,
            on_error=arguments.on_error,
            **embed_arguments(arguments),
        )
    if arguments.out:
        # An open file, because NumPy would add ".npy" to any other name.
        with Path(arguments.out).open("wb") as file:
            np.save(file, vectors)
        rows, size = vectors.shape
        failed = int(np.isnan(vectors).any(axis=1).sum())
        context.output.data({"file": arguments.out, "images": rows, "failed": failed, "size": size})
        note = f", {failed} of them not-a-number: no image, or a bad one" if failed else ""
        context.output.line(f"{arguments.out}: {rows} vectors of {size}{note}")
    else:
        context.output.json(
            [
                {"image": image, "embedding": _numbers(vector)}
                for image, vector in zip(arguments.images, vectors, strict=True)
            ]
        )
    return OK


def _numbers(vector: FloatArray) -> list[float] | None:
    """Shortest decimals that give the same float32; None for the row of a bad image."""
    if not math.isfinite(float(vector.sum())):
        return None
    return [float(str(value)) for value in vector]


COMMAND = Command("embed", "embed image files", configure, run)

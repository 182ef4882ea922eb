"""multigrain embed-folder"""

from __future__ import annotations

import argparse
import sys

from multigrain_client.cli.command import FAILED, OK, Command, Context
from multigrain_client.cli.embed_options import add_embed_options, embed_arguments
from multigrain_client.cli.progress.count import counting


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="with image files, in sub-folders too")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="vectors.parquet (path, embedding, error), or vectors.npy with vectors.csv beside it",
    )
    add_embed_options(parser)


def run(context: Context) -> int:
    """Exits 1 if any image has no vector; the file has been written all the same."""
    arguments = context.arguments
    with context.connect() as client, counting("embedding") as on_progress:
        result = client.embed_folder(
            arguments.folder,
            arguments.out,
            on_progress=on_progress,
            **embed_arguments(arguments),
        )
    for error in result.errors:
        print(f"multigrain embed-folder: {error}", file=sys.stderr)
    context.output.data(
        {
            "file": str(result.file),
            "images": result.images,
            "failed": len(result.errors),
            "size": result.size,
            "model": result.model,
            "seconds": round(result.seconds, 3),
        }
    )
    rate = result.images / max(result.seconds, 1e-9)
    context.output.line(
        f"{result.file}: {result.images - len(result.errors)} vectors of {result.size} by "
        f"{result.model}, {len(result.errors)} images without one, {rate:.0f} images/s"
    )
    return FAILED if result.errors else OK


COMMAND = Command("embed-folder", "embed every image of a folder into a file", configure, run)

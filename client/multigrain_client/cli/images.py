"""Commands that embed and classify images."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from multigrain_client.cli.arguments import FAILED, OK, Command, Context
from multigrain_client.cli.progress import counter
from multigrain_client.images import EmbedKeywords, FloatArray


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; default: the model's")


def _add_embed_options(parser: argparse.ArgumentParser) -> None:
    _add_model_options(parser)
    parser.add_argument(
        "--whiten", action="store_true", help="apply PCA whitening, if the model has it"
    )
    parser.add_argument("--no-normalize", action="store_true", help="do not L2-normalize")
    parser.add_argument(
        "--dtype", default="fp32", choices=["fp32", "fp16", "int8"], help="transfer dtype"
    )


def _embed_keywords(arguments: argparse.Namespace) -> EmbedKeywords:
    return {
        "model": arguments.model,
        "resolution": arguments.resolution,
        "normalize": not arguments.no_normalize,
        "whiten": arguments.whiten,
        "dtype": arguments.dtype,
    }


def _configure_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--out", metavar="FILE.npy", help="write float32 (N, D); default: print JSON"
    )
    _add_embed_options(parser)
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=["raise", "nan"],
        help="for an unreadable image, fail (default) or write a row of NaN",
    )


def _embed(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        vectors = client.embed(
            arguments.images, on_error=arguments.on_error, **_embed_keywords(arguments)
        )
    if not arguments.out:
        context.output.json(
            [
                {"image": image, "embedding": _numbers(vector)}
                for image, vector in zip(arguments.images, vectors, strict=True)
            ]
        )
        return OK
    # An open file, because NumPy would append ".npy" to any other name.
    with Path(arguments.out).open("wb") as file:
        np.save(file, vectors)
    rows, size = vectors.shape
    failed = int(np.isnan(vectors).any(axis=1).sum())
    context.output.data({"file": arguments.out, "images": rows, "failed": failed, "size": size})
    note = f", {failed} rows are NaN (unreadable images)" if failed else ""
    context.output.line(f"{arguments.out}: {rows} vectors of {size}{note}")
    return OK


def _numbers(vector: FloatArray) -> list[float] | None:
    """The shortest decimals that give the same float32; None for the row of a failed image."""
    if not math.isfinite(float(vector.sum())):
        return None
    return [float(str(value)) for value in vector]


def _configure_embed_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder with images, also in subfolders")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="vectors.parquet (path, embedding, error), or vectors.npy with vectors.csv next to it",
    )
    _add_embed_options(parser)


def _embed_folder(context: Context) -> int:
    """Exits 1 if any image failed; the file is written all the same."""
    arguments = context.arguments
    with context.connect() as client, counter("embedding") as on_progress:
        result = client.embed_folder(
            arguments.folder,
            arguments.out,
            on_progress=on_progress,
            **_embed_keywords(arguments),
        )
    for error in result.errors:
        print(f"multigrain embed-folder: {error}", file=sys.stderr)
    context.output.data(
        {
            "file": str(result.file),
            "images": result.images,
            "failed": len(result.errors),
            "left_out": dict(result.left_out),
            "size": result.size,
            "model": result.model,
            "seconds": round(result.seconds, 3),
        }
    )
    rate = result.images / max(result.seconds, 1e-9)
    context.output.line(
        f"{result.file}: {result.images - len(result.errors)} vectors of {result.size} by "
        f"{result.model}, {len(result.errors)} images failed, {rate:.0f} images/s"
    )
    if result.left_out_message:
        context.output.line(f"left out: {result.left_out_message}")
    return FAILED if result.errors else OK


def _configure_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="classes per image; default 5"
    )
    _add_model_options(parser)


def _classify(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        results = client.classify(
            arguments.images,
            top_k=arguments.top_k,
            model=arguments.model,
            resolution=arguments.resolution,
        )
    rows = list(zip(arguments.images, results, strict=True))
    context.output.data(
        [{"image": image, "classes": [asdict(one) for one in classes]} for image, classes in rows]
    )
    for image, classes in rows:
        scores = ", ".join(f"{one.label or one.class_id} {one.probability:.4f}" for one in classes)
        context.output.line(f"{image}: {scores}")
    return OK


COMMANDS = (
    Command("embed", "embed image files", _configure_embed, _embed),
    Command(
        "embed-folder",
        "embed every image of a folder into a file",
        _configure_embed_folder,
        _embed_folder,
    ),
    Command("classify", "classify image files", _configure_classify, _classify),
)

"""Commands that embed and classify images."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from multigrain.text import stored_path
from multigrain_client.cli.arguments import FAILED, OK, Command, Context, Result, count, positive
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress import counter, listing
from multigrain_client.errors import ImagesFailed, MultigrainClientError
from multigrain_client.images import (
    ClassifiedImage,
    EmbeddedImage,
    EmbedKeywords,
    FloatArray,
    matrix,
)
from multigrain_client.output_file import OutputFile
from multigrain_client.sync.client import Client

# Images of the command line whose answers are printed together.
PART = 256

Answer = TypeVar("Answer", EmbeddedImage, ClassifiedImage)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument("--resolution", type=count, default=0, help="pixels; default: the model's")


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
        "--out",
        metavar="FILE.npy",
        help="write float32 (N, D); - is standard output; default: print JSON",
    )
    _add_embed_options(parser)
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=["raise", "nan"],
        help="an unreadable image has no embedding (a row of NaN) and is named; then exit with 1 "
        "(raise, the default) or with 0 (nan)",
    )


def _embed(context: Context) -> int:
    arguments, output = context.arguments, context.output
    if not arguments.out:
        code, results = _each(context, _embed_call)
        rows = zip(arguments.images, results, strict=False)
        output.json([_row(image, one, "embedding", _numbers(one.vector)) for image, one in rows])
        return code
    with OutputFile(arguments.out) as file, context.connect() as client:
        results = _embed_call(client, arguments, arguments.images)
        vectors = matrix(results, "nan")
        encoded = io.BytesIO()  # NumPy cannot write to a pipe
        np.save(encoded, vectors)
        file.stream.write(encoded.getbuffer())
        file.finish()
    failed = _report_failed(output, results)
    count, size = vectors.shape
    note = f", {failed} rows are NaN (failed images)" if failed else ""
    output.done(
        {"file": stored_path(arguments.out), "images": count, "failed": failed, "size": size},
        f"{arguments.out}: {count} vectors of {size}{note}",
        in_file=True,
    )
    return FAILED if failed and arguments.on_error == "raise" else OK


def _embed_call(
    client: Client, arguments: argparse.Namespace, images: list[str]
) -> list[EmbeddedImage]:
    return client.embed_each(images, **_embed_keywords(arguments))


def _each(
    context: Context,
    call: Callable[[Client, argparse.Namespace, list[str]], list[Answer]],
    show: Callable[[str, Answer], None] = lambda image, answer: None,
) -> tuple[int, list[Answer]]:
    """Answers for the images of the command line, part by part.

    Failed images, and a call that fails after others have succeeded, are reported and do not lose
    the answers before.

    Args:
        context: of the command.
        call: makes the answers of a part.
        show: called for each image that has not failed.

    Returns:
        the exit code, and the answers in the order of the images.
    """
    arguments, output = context.arguments, context.output
    answers: list[Answer] = []
    code = OK
    with context.connect() as client:
        for start in range(0, len(arguments.images), PART):
            part = arguments.images[start : start + PART]
            try:
                found = call(client, arguments, part)
            except MultigrainClientError as error:
                if not answers:
                    raise
                output.client_error(error)
                output.error(f"{len(answers)} of {len(arguments.images)} images have an answer")
                return FAILED, answers
            answers += found
            for image, answer in zip(part, found, strict=True):
                if answer.error is None:
                    show(image, answer)
            if _report_failed(output, found) and getattr(arguments, "on_error", "raise") == "raise":
                code = FAILED
    return code, answers


def _report_failed(output: Output, answers: Sequence[EmbeddedImage | ClassifiedImage]) -> int:
    """Names the failed images on standard error; returns their number."""
    errors = [answer.error for answer in answers if answer.error is not None]
    if errors:
        output.client_error(ImagesFailed(errors, len(answers)))
        for error in errors[ImagesFailed.SHOWN :]:
            output.error(str(error))
    return len(errors)


def _row(
    image: str, answer: EmbeddedImage | ClassifiedImage, key: str, value: Any
) -> dict[str, Any]:
    """An answer in JSON."""
    row = {"image": stored_path(image), key: value}
    return row if answer.error is None else {**row, "error": answer.error.message}


def _numbers(vector: FloatArray | None) -> list[float] | None:
    """The shortest decimals that give the same float32; None for a failed image."""
    if vector is None or not math.isfinite(float(vector.sum())):
        return None
    return [float(str(value)) for value in vector]


def _configure_embed_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder with images, also in subfolders")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="vectors.parquet (path, embedding, error), or vectors.npy with vectors.csv next to "
        "it; bytes of a path that are not UTF-8 are written as \\xe9",
    )
    _add_embed_options(parser)


def _embed_folder(context: Context) -> int:
    """Exits 1 if any image failed; the file is written all the same."""
    arguments, output = context.arguments, context.output
    with (
        context.connect() as client,
        listing(arguments.folder, output.errors),
        counter("embedding", output.errors) as on_progress,
    ):
        result = client.embed_folder(
            arguments.folder,
            arguments.out,
            on_progress=on_progress,
            **_embed_keywords(arguments),
        )
    for error in result.errors:
        output.error(str(error))
    rate = result.images / max(result.seconds, 1e-9)
    left_out = [f"left out: {result.left_out_message}"] if result.left_out_message else []
    output.done(
        {
            "file": stored_path(str(result.file)),
            "images": result.images,
            "failed": len(result.errors),
            "left_out": dict(result.left_out),
            "size": result.size,
            "model": result.model,
            "seconds": round(result.seconds, 3),
        },
        f"{result.file}: {result.images - len(result.errors)} vectors of {result.size} by "
        f"{result.model}, {len(result.errors)} images failed, {rate:.0f} images/s",
        *left_out,
        in_file=True,
    )
    return FAILED if result.errors else OK


def _configure_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--top-k", type=positive, default=5, metavar="K", help="classes per image; default 5"
    )
    _add_model_options(parser)


def _classify(context: Context) -> int:
    output = context.output
    code, answers = _each(context, _classify_call, lambda *shown: output.line(_classes(*shown)))
    rows = []
    for image, answer in zip(context.arguments.images, answers, strict=False):
        rows.append(_row(image, answer, "classes", [asdict(one) for one in answer.classes]))
    output.data(rows)
    return code


def _classify_call(
    client: Client, arguments: argparse.Namespace, images: list[str]
) -> list[ClassifiedImage]:
    return client.classify_each(
        images, arguments.top_k, model=arguments.model, resolution=arguments.resolution
    )


def _classes(image: str, answer: ClassifiedImage) -> str:
    scores = (f"{one.label or one.class_id} {one.probability:z.4f}" for one in answer.classes)
    return f"{image}: {', '.join(scores)}"


COMMANDS = (
    Command("embed", "embed image files", _configure_embed, _embed, Result.FILE),
    Command(
        "embed-folder",
        "embed every image of a folder into a file",
        _configure_embed_folder,
        _embed_folder,
        Result.FILE,
    ),
    Command("classify", "classify image files", _configure_classify, _classify, Result.OUTPUT),
)

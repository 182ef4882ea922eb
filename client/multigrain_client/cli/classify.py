"""multigrain classify"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from multigrain_client.cli.command import OK, Command, Context


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="default 5")
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; default the model's")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        answers = client.classify(
            arguments.images,
            top_k=arguments.top_k,
            model=arguments.model,
            resolution=arguments.resolution,
        )
    rows = list(zip(arguments.images, answers, strict=True))
    context.output.data(
        [{"image": image, "classes": [asdict(one) for one in classes]} for image, classes in rows]
    )
    for image, classes in rows:
        scores = ", ".join(f"{one.label or one.class_id} {one.probability:.4f}" for one in classes)
        context.output.line(f"{image}: {scores}")
    return OK


COMMAND = Command("classify", "classify image files", configure, run)

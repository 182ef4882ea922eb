"""The command that looks at a dataset before it is trained on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from multigrain.v1.training_pb2 import FolderReport, InspectDatasetResponse, PairReport
from multigrain_client.cli.arguments import (
    OK,
    Command,
    Context,
    Result,
    absolute,
    add_spec_options,
    count,
    pairs,
    seconds,
)
from multigrain_client.cli.output import duration, size
from multigrain_client.json_format import to_plain

_CLASSES = 20


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="dataset.train_path: one subfolder of images per class, on the server's host "
        "(a relative path starts in the current directory)",
    )
    parser.add_argument("--val", metavar="FOLDER", help="dataset.val_path, likewise")
    parser.add_argument("--preset", help="preset to plan with; default: as train chooses")
    add_spec_options(parser)
    parser.add_argument(
        "--max-images",
        type=count,
        default=0,
        metavar="N",
        help="images that are decoded at most, a random sample; default 2000",
    )
    parser.add_argument(
        "--max-seconds",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="no further image is decoded after these; default 30",
    )


def _inspect(context: Context) -> int:
    arguments, output = context.arguments, context.output
    overrides = pairs(arguments.settings)
    for value, key, option in (
        (arguments.folder, "dataset.train_path", "FOLDER"),
        (arguments.val, "dataset.val_path", "--val"),
    ):
        if value is not None:
            overrides[key] = absolute(value, option)
    with context.connect() as client:
        found = client.inspect_dataset(
            arguments.spec,
            preset=arguments.preset,
            max_images=arguments.max_images,
            max_seconds=arguments.max_seconds,
            **overrides,
        )
    output.data(to_plain(found))
    for line in _lines(found):
        output.line(line)
    for warning in found.warnings:
        output.error(f"warning: {warning}")
    return OK


def _lines(found: InspectDatasetResponse) -> Iterator[str]:
    yield from _folder("train on", found.train)
    if found.HasField("held_out"):
        yield from _folder("held out", found.held_out)
    yield f"equal files    {_pairs(found.equal)}"
    yield f"almost equal   {_pairs(found.near)}"
    counts = found.train.class_images
    order = sorted(counts, key=lambda name: (-counts[name], name))
    shown = [f"{name} {counts[name]:,}" for name in order[:_CLASSES]]
    more = f", and {found.train.classes - _CLASSES:,} more" if len(order) > _CLASSES else ""
    yield f"classes        {', '.join(shown)}{more}"
    spec, plan = found.spec, found.plan
    yield f"preset         {found.preset_reason or spec.preset or 'defaults'}"
    yield f"network        {spec.model.trunk} at {spec.model.image_size} px"
    yield (
        f"plan           {plan.total_steps:,} steps of {plan.step_images} images in "
        f"{plan.epochs} epochs; {plan.evaluated_images:,} images scored"
    )
    estimate = f"about {duration(plan.seconds)}" if plan.seconds >= 0 else "unknown"
    yield f"time           {estimate} ({plan.basis}), without compilation"
    workers = f" in each of {spec.devices.count} workers" if spec.devices.count > 1 else ""
    yield f"memory         about {size(plan.memory_bytes)}{workers}"


def _folder(what: str, part: FolderReport) -> Iterator[str]:
    yield f"{what:<14} {part.images:,} images in {part.classes:,} classes of {part.path}"
    sample = "" if part.checked == part.images else ", a random sample"
    yield (
        f"               {part.checked:,} checked{sample}: {part.unreadable:,} unreadable, shorter "
        f"side {part.shortest} to {part.longest} px, median {part.median}"
    )
    if part.left_out:
        reasons = ", ".join(f"{part.left_out[reason]:,} {reason}" for reason in part.left_out)
        yield f"               left out: {reasons}"


def _pairs(found: PairReport) -> str:
    if not found.compared:
        return "not searched, for lack of time"
    total = found.train + found.held_out + found.across
    text = f"{total:,} pairs among {found.compared:,} images"
    if not total:
        return text
    return (
        f"{text}: {found.train:,} trained on, {found.held_out:,} held out, {found.across:,} across "
        f"({found.examples[0]})"
    )


COMMANDS = (
    Command(
        "inspect",
        "look at a folder of images, and plan a training run on it",
        _configure,
        _inspect,
        Result.OUTPUT,
        "InspectDataset",
    ),
)

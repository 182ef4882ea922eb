"""KEY=VALUE arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


def setting(text: str) -> tuple[str, Any]:
    """``schedule.epochs=3`` -> ("schedule.epochs", 3). Numbers, true, false and [lists] are
    read as JSON, everything else is a text; of a text with commas a field of many values makes
    its list.

    Raises:
        ArgumentTypeError: without a key and "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as schedule.epochs=3")
    return key.strip(), scalar(value.strip())


def scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def count(text: str) -> int:
    """A whole number from 0.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def label(text: str) -> tuple[str, str]:
    """``team=search`` -> ("team", "search").

    Raises:
        ArgumentTypeError: without a key and "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as team=search")
    return key, value


def pairs(found: Sequence[tuple[str, Any]] | None) -> dict[str, Any]:
    """Pairs as a dict; the last of a key wins, as later flags do everywhere."""
    return dict(found or ())


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--spec, --set, --name and --label of commands that start a job."""
    parser.add_argument("--spec", metavar="FILE", help="YAML file with a specification")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=setting,
        metavar="KEY=VALUE",
        help="one field over the preset and the file, such as schedule.epochs=3, or "
        "evaluation.tasks=classification,copy_detection; repeatable",
    )
    parser.add_argument("--name", default="", help="name of the job, for people")
    parser.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=label,
        metavar="KEY=VALUE",
        help="label of the job; repeatable",
    )
    parser.add_argument("--watch", action="store_true", help="follow the job until it ends")

"""The options that every embedding command has."""

from __future__ import annotations

import argparse

from multigrain_client.images import EmbedKeywords


def add_embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; default the model's")
    parser.add_argument(
        "--whiten", action="store_true", help="whiten the vectors, if the model can"
    )
    parser.add_argument("--no-normalize", action="store_true", help="leave the vectors' lengths")
    parser.add_argument(
        "--dtype", default="fp32", choices=["fp32", "fp16", "int8"], help="on the wire"
    )


def embed_arguments(arguments: argparse.Namespace) -> EmbedKeywords:
    return {
        "model": arguments.model,
        "resolution": arguments.resolution,
        "normalize": not arguments.no_normalize,
        "whiten": arguments.whiten,
        "dtype": arguments.dtype,
    }

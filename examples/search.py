"""Finds the images of a folder that are most similar to a query image.

Needs a server with a loaded model (``multigrain load MODEL --default``)::

    python -m examples.search photos/ query.jpg --count 5
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from multigrain.data.listing import list_images
from multigrain.streams import standard_streams
from multigrain.text import printable
from multigrain_client import Client, MultigrainClientError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    server = os.environ.get("MULTIGRAIN_SERVER", "127.0.0.1:50051")
    parser.add_argument("--server", default=server)
    parser.add_argument("--count", type=int, default=5)
    arguments = parser.parse_args()

    listing = list_images(arguments.folder, optional=True)
    paths = [arguments.folder / path for path in listing.paths]
    with Client(arguments.server) as client:
        # One row per image. Unreadable images become rows of NaN.
        gallery = client.embed(paths, on_error="nan")
        (query,) = client.embed([arguments.query])
    # Embeddings have length 1, so the dot product is the cosine.
    similarity = np.nan_to_num(gallery @ query, nan=-np.inf)
    for index in np.argsort(-similarity)[: arguments.count]:
        print(f"{similarity[index]:.3f}  {printable(str(paths[index]))}")


if __name__ == "__main__":
    # Without a traceback if the reader of the output leaves, as `head` does.
    with standard_streams():
        try:
            main()
        except (MultigrainClientError, OSError) as error:
            sys.exit(f"error: {error}")

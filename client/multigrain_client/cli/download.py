"""multigrain download"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import size


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name, name@version or alias")
    parser.add_argument("--out", required=True, metavar="FILE.tar", help="archive to write")


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        path = client.download_model(arguments.model, arguments.out, timeout=arguments.timeout)
    count = path.stat().st_size
    context.output.data({"file": str(path), "bytes": count})
    context.output.line(f"{path}: {arguments.model}, {size(count)}")
    return OK


COMMAND = Command(
    "download", "write a model bundle to a tar archive", configure, run, call="DownloadModel"
)

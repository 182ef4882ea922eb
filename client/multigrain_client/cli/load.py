"""multigrain load"""

from __future__ import annotations

import argparse

from multigrain_client.cli.command import OK, Command, Context
from multigrain_client.cli.describe import model_name


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or name@version")
    parser.add_argument(
        "--runtime", default="", help="auto (default), openvino, onnxruntime or mindspore"
    )
    parser.add_argument(
        "--default", action="store_true", help="let it answer requests that name no model"
    )


def run(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        model = client.load_model(
            arguments.model,
            runtime=arguments.runtime,
            make_default=arguments.default,
            timeout=arguments.timeout,
        )
    context.output.data(model)
    context.output.line(
        f"{model_name(model)}  ready after {model.load_seconds:.1f} s on {model.runtime}"
    )
    return OK


COMMAND = Command("load", "load a model for serving", configure, run, call="LoadModel")

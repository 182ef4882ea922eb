"""Commands for the model registry and for loading models."""

from __future__ import annotations

import argparse

from multigrain.text import stored_path
from multigrain.v1.model_pb2 import ListModelsRequest
from multigrain_client.cli.arguments import OK, Command, Context, Result, count
from multigrain_client.cli.output import MODEL_HEAD, model_name, model_row, size
from multigrain_client.json_format import to_plain
from multigrain_client.local_files import STANDARD_INPUT


def _configure_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="only versions of this model")
    parser.add_argument("--loaded", action="store_true", help="only loaded models")


def _models(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        found = list(client.models(arguments.name, loaded_only=arguments.loaded))
        default = client.ListModels(ListModelsRequest(page_size=1)).default_model
    context.output.data(
        [{**to_plain(model), "is_default": model_name(model) == default} for model in found]
    )
    context.output.table(MODEL_HEAD, [model_row(model, default) for model in found])
    return OK


def _configure_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or name@version")
    parser.add_argument(
        "--runtime",
        default="",
        help="auto (default), openvino, openvino-int8, openvino-bf16, openvino-f32, onnxruntime "
        "or mindspore",
    )
    parser.add_argument(
        "--default", action="store_true", help="also serve requests that name no model"
    )


def _load(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        model = client.load_model(
            arguments.model,
            runtime=arguments.runtime,
            make_default=arguments.default,
            timeout=arguments.timeout,
        )
    context.output.done(
        model, f"{model_name(model)}  ready after {model.load_seconds:.1f} s on {model.runtime}"
    )
    return OK


def _configure_unload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or name@version")


def _unload(context: Context) -> int:
    with context.connect() as client:
        model = client.unload_model(context.arguments.model, timeout=context.arguments.timeout)
    context.output.done(model, f"{model_name(model)}  unloaded")
    return OK


def _configure_alias(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("alias", help="such as production")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("model", nargs="?", help="a loaded name@version")
    target.add_argument("--remove", action="store_true", help="remove the alias")


def _alias(context: Context) -> int:
    arguments = context.arguments
    model = "" if arguments.remove else arguments.model
    with context.connect() as client:
        client.set_alias(arguments.alias, model)
    context.output.done(
        {"alias": arguments.alias, "model": model},
        f"{arguments.alias} -> {model}" if model else f"{arguments.alias}  removed",
    )
    return OK


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="local folder of a bundle, or an uncompressed tar of it; - is standard input",
    )
    parser.add_argument("--name", default="", help="name in the registry; default: the bundle's")
    parser.add_argument(
        "--version", type=count, default=0, metavar="N", help="default: the next free one"
    )


def _import(context: Context) -> int:
    arguments = context.arguments
    bundle = STANDARD_INPUT if arguments.bundle == "-" else arguments.bundle
    with context.connect() as client:
        model = client.import_model(
            bundle,
            name=arguments.name,
            version=arguments.version,
            timeout=arguments.timeout,
        )
    name = model_name(model)
    context.output.done(model, f"{name}  imported; serve it with: multigrain load {name}")
    return OK


def _configure_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name, name@version or alias")
    parser.add_argument(
        "--out", required=True, metavar="FILE.tar", help="archive to write; - is standard output"
    )


def _download(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        path = client.download_model(arguments.model, arguments.out, timeout=arguments.timeout)
    written = path.stat().st_size if path.is_file() else 0
    context.output.done(
        {"file": stored_path(str(path)), "bytes": written},
        f"{path}: {arguments.model}" + (f", {size(written)}" if written else ""),
        in_file=True,
    )
    return OK


COMMANDS = (
    Command("models", "list models", _configure_models, _models, Result.OUTPUT),
    Command("load", "load a model for serving", _configure_load, _load, Result.SERVER, "LoadModel"),
    Command(
        "unload",
        "stop serving a model, after the requests in flight",
        _configure_unload,
        _unload,
        Result.SERVER,
        "UnloadModel",
    ),
    Command(
        "alias",
        "point an alias at a loaded model",
        _configure_alias,
        _alias,
        Result.SERVER,
        "SetAlias",
    ),
    Command(
        "import",
        "upload a model bundle to the server's registry",
        _configure_import,
        _import,
        Result.SERVER,
        "ImportModel",
    ),
    Command(
        "download",
        "download a model bundle as a tar archive",
        _configure_download,
        _download,
        Result.FILE,
        "DownloadModel",
    ),
)

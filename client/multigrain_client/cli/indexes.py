"""``multigrain index``: indexes of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from multigrain.text import stored_path
from multigrain.v1.index_pb2 import Index, IndexEngine
from multigrain_client.cli.arguments import (
    FAILED,
    OK,
    Command,
    Context,
    Result,
    add_shared_options,
    count,
    positive,
)
from multigrain_client.cli.progress import counter, listing
from multigrain_client.errors import InvalidRequest, ServerError
from multigrain_client.index_items import Condition, Hits, SearchKeywords, Value
from multigrain_client.json_format import enum_name, to_plain

Run = Callable[[Context], int]

_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
_HEAD = ("index", "model", "items", "size", "engine", "aliases", "problem")
# One of a million unrelated pairs of some networks is as similar.
_NEAR_COPY = 0.95


def _field(text: str) -> tuple[str, type]:
    name, _, kind = text.partition(":")
    if kind not in _TYPES:
        raise argparse.ArgumentTypeError("must be NAME:TYPE, with str, int, float or bool")
    return name, _TYPES[kind]


def _where(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise argparse.ArgumentTypeError("must be FIELD=VALUE or FIELD=LEAST..MOST")
    return name, value


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_shared_options(shared)

    def add(name: str, help: str, run: Run) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=help, parents=[shared])
        action.set_defaults(run_action=run)
        return action

    create = add("create", "create an index for the vectors of a loaded model", _create)
    create.add_argument("index", metavar="NAME", help="letters, digits, '.', '_' and '-'")
    create.add_argument("--model", default="", help="name, name@version or alias")
    create.add_argument("--resolution", type=count, default=0, help="default: the model's")
    create.add_argument("--whiten", action="store_true", help="hold whitened vectors")
    create.add_argument(
        "--field",
        dest="fields",
        metavar="NAME:TYPE",
        type=_field,
        action="append",
        default=[],
        help="an attribute of its items: str, int, float or bool; may be repeated",
    )
    create.add_argument(
        "--engine",
        default="",
        choices=["exact", "lancedb"],
        help="default: exact, and lancedb when it has grown above 20,000 items",
    )

    add("list", "list indexes", _list)

    delete = add("delete", "delete an index with its items", _delete)
    delete.add_argument("index", metavar="NAME", help="name of the index")

    alias = add("alias", "have an alias mean an index", _alias)
    alias.add_argument("alias", help="such as live")
    target = alias.add_mutually_exclusive_group(required=True)
    target.add_argument("index", metavar="NAME", nargs="?", help="name of the index")
    target.add_argument("--remove", action="store_true", help="remove the alias")

    sync = add("sync", "make an index hold the images of a local folder", _sync)
    sync.add_argument("index", metavar="NAME", help="name or alias of the index")
    sync.add_argument("folder", metavar="FOLDER", help="folder with images, also in subfolders")
    sync.add_argument(
        "--prefix", default="", help="of the ids, to keep several folders apart; such as phone/"
    )
    sync.add_argument(
        "--keep", action="store_true", help="do not delete the items of files that are gone"
    )
    sync.add_argument("--dry-run", action="store_true", help="only say what would change")

    search = add("search", "find the images most similar to image files", _search)
    search.add_argument("index", metavar="NAME", help="name or alias of the index")
    search.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    search.add_argument("-k", type=positive, default=10, metavar="K", help="hits; default 10")
    search.add_argument("--label", action="append", default=[], help="only with this label")
    search.add_argument("--tag", action="append", default=[], help="only with this tag")
    search.add_argument("--path-prefix", default="", metavar="PATH", help="only below this path")
    search.add_argument(
        "--where",
        type=_where,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="only with this value of a field, or FIELD=LEAST..MOST; may be repeated",
    )
    search.add_argument(
        "--min-similarity", type=_similarity, metavar="S", help="only hits at least so similar"
    )
    search.add_argument(
        "--effort",
        default="balanced",
        choices=["fast", "balanced", "exact"],
        help="how thoroughly to search; default balanced: at least 99 %% of the nearest",
    )

    copies = add("near-copies", "find all pairs of near copies, exactly", _near_copies)
    copies.add_argument("index", metavar="NAME", help="name or alias of the index")
    copies.add_argument(
        "--out",
        dest="out_folder",
        required=True,
        metavar="FOLDER",
        help="for pairs.csv, clusters.csv and report.html",
    )
    copies.add_argument(
        "--min-similarity",
        type=_similarity,
        default=_NEAR_COPY,
        metavar="S",
        help=f"of a pair; default {_NEAR_COPY}",
    )
    copies.add_argument(
        "--images", metavar="FOLDER", help="folder of the images, for pictures in the report"
    )


def _run(context: Context) -> int:
    run: Run = context.arguments.run_action
    return run(context)


def _create(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        index = client.create_index(
            arguments.index,
            model=arguments.model,
            resolution=arguments.resolution,
            whiten=arguments.whiten,
            fields=dict(arguments.fields),
            engine=arguments.engine,
        )
        info = index.info()
    text = f"{info.name}  created for {info.model}; fill it with: multigrain index sync {info.name}"
    context.output.done(info, f"{text} FOLDER")
    return OK


def _list(context: Context) -> int:
    with context.connect() as client:
        found = client.indexes()
    context.output.data([to_plain(index) for index in found])
    context.output.table(_HEAD, [_row(index) for index in found])
    return OK


def _row(index: Index) -> list[str]:
    engine = enum_name(IndexEngine.DESCRIPTOR, index.engine).lower() if index.engine else ""
    return [
        index.name,
        index.model,
        f"{index.items:,}" if not index.problem else "",
        str(index.size or ""),
        engine,
        ", ".join(index.aliases),
        index.problem,
    ]


def _delete(context: Context) -> int:
    name = context.arguments.index
    with context.connect() as client:
        client.delete_index(name)
    context.output.done({"index": name}, f"{name}  deleted")
    return OK


def _alias(context: Context) -> int:
    arguments = context.arguments
    name = "" if arguments.remove else arguments.index
    with context.connect() as client:
        client.set_index_alias(arguments.alias, name)
    context.output.done(
        {"alias": arguments.alias, "index": name},
        f"{arguments.alias} -> {name}" if name else f"{arguments.alias}  removed",
    )
    return OK


def _sync(context: Context) -> int:
    """Exits 1 if any file could not be added; the others were."""
    arguments, output = context.arguments, context.output
    with (
        context.connect() as client,
        listing(arguments.folder, output.errors),
        counter("adding", output.errors) as on_progress,
    ):
        result = client.index(arguments.index).sync_folder(
            arguments.folder,
            prefix=arguments.prefix,
            delete=not arguments.keep,
            dry_run=arguments.dry_run,
            on_progress=on_progress,
        )
    for error in result.errors:
        output.error(str(error))
    changes = f"{len(result.added)} added, {len(result.changed)} changed"
    dry = "in a dry run, " if arguments.dry_run else ""
    failed = f", {len(result.errors)} failed" if result.errors else ""
    output.done(
        {**asdict(replace(result, errors=())), "failed": len(result.errors)},
        f"{arguments.index}: {dry}{changes}, {len(result.deleted)} deleted, "
        f"{result.unchanged} unchanged{failed}",
    )
    return FAILED if result.errors else OK


def _search(context: Context) -> int:
    arguments, output = context.arguments, context.output
    with context.connect() as client:
        index = client.index(arguments.index)
        keywords: SearchKeywords = {
            "k": arguments.k,
            "label": arguments.label,
            "tag": arguments.tag,
            "path_prefix": arguments.path_prefix,
            "effort": arguments.effort,
        }
        if arguments.where:
            info = index.info()
            types = {field.name: _python_type(field.type) for field in info.fields}
            keywords["where"] = {
                name: _condition(name, text, types) for name, text in arguments.where
            }
        if arguments.min_similarity is not None:
            keywords["min_similarity"] = arguments.min_similarity
        found = index.search_each(arguments.images, **keywords)
    output.data(
        [
            {"image": stored_path(image), "hits": [_hit(hit) for hit in hits]}
            for image, hits in zip(arguments.images, found, strict=True)
        ]
    )
    for image, hits in zip(arguments.images, found, strict=True):
        output.line(f"{image}: {len(hits)} hits")
        _print_hits(context, hits)
    return OK


def _print_hits(context: Context, hits: Hits) -> None:
    for hit in hits:
        labels = f"  {', '.join(hit.item.labels)}" if hit.item.labels else ""
        context.output.line(f"  {hit.similarity:.4f}  {hit.item.path or hit.item.id}{labels}")


def _hit(hit: Any) -> dict[str, Any]:
    item = hit.item
    return {
        "id": item.id,
        "similarity": round(hit.similarity, 6),
        "path": item.path,
        "labels": list(item.labels),
        "tags": list(item.tags),
        "attributes": dict(item.attributes),
    }


def _python_type(number: int) -> type:
    return {1: str, 2: int, 3: float, 4: bool}[number]


def _condition(name: str, text: str, types: Mapping[str, type]) -> Condition:
    """The condition of ``--where``. Raises InvalidRequest."""
    kind = types.get(name)
    if kind is None:
        known = ", ".join(types) or "none"
        raise InvalidRequest(f"--where: the index has no field {name!r}; its fields: {known}")
    least, dots, most = text.partition("..")
    if dots and kind in (int, float):
        return (
            _value(name, least, kind) if least else None,
            _value(name, most, kind) if most else None,
        )
    return _value(name, text, kind)


def _value(name: str, text: str, kind: type) -> Value:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value: Value = kind(text)
    except (ValueError, KeyError):
        raise InvalidRequest(f"--where {name}: {text!r} is not a {kind.__name__}") from None
    return value


def _near_copies(context: Context) -> int:
    from multigrain_client import near_copies

    arguments, output = context.arguments, context.output
    with context.connect() as client:
        index = client.index(arguments.index)
        total = index.info().items
        with counter("reading", output.errors) as on_progress:

            def items() -> Any:
                for number, item in enumerate(index.items(with_vectors=True), 1):
                    yield item
                    on_progress(number, max(total, number))

            try:
                found = near_copies.find(items(), arguments.min_similarity)
            except ValueError as error:
                raise ServerError(str(error)) from error
    root = Path(arguments.images) if arguments.images else None
    files = near_copies.write(found, Path(arguments.out_folder), root)
    output.done(
        {
            "images": len(found.items),
            "pairs": len(found.pairs),
            "clusters": len(found.clusters),
            "files": [stored_path(str(file)) for file in files],
        },
        f"{files[-1]}: {len(found.pairs)} pairs in {len(found.clusters)} clusters, of "
        f"{len(found.items)} images",
    )
    return OK


COMMANDS = (
    Command(
        "index",
        "create, fill and search indexes of images",
        _configure,
        _run,
        Result.OUTPUT,
        "Search",
    ),
)

"""What the daemon does with indexes: it embeds images, checks vectors, stores and searches."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.index import protocol
from multigrain.index.filters import All, Filter, check_filter
from multigrain.index.items import Changes, Field, FieldType, Item, check_item, check_value
from multigrain.index.manifest import Engine, Manifest, Origin
from multigrain.index.store import Effort
from multigrain_server.engines.images import ImageRequest, ImageResult
from multigrain_server.indexes.process import IndexProcess
from multigrain_server.models.catalog import ModelCatalog
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.metrics import StageTimes
from multigrain_server.serving.service import ImageService

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]

MAX_ITEMS = 1000
MAX_QUERIES = 64
MAX_HITS = 1000
DEFAULT_HITS = 10
# Of all queries of a call.
MAX_ALL_HITS = 10_000
_MAX_VECTOR_BYTES = 32 << 20
_HASHED_AT_ONCE = 1 << 20  # bytes; more of them are hashed in a thread
_SCANNED_BYTES = 2 << 20  # of vectors in a page of a scan


@dataclass(frozen=True)
class IndexView:
    """An index as callers see it; without ``opened``, it has a problem."""

    name: str
    aliases: tuple[str, ...] = ()
    opened: protocol.Opened | None = None
    problem: str = ""


@dataclass
class NewItem:
    """An item to add: its image, or its vector."""

    item: Item
    image: bytes | None = None
    vector: Vectors | None = None


@dataclass
class Query:
    """What to search for: one of the three."""

    image: bytes | None = None
    vector: Vectors | None = None
    id: str | None = None


@dataclass(frozen=True)
class Hit:
    """An item that was found."""

    item: Item
    similarity: float
    vector: Vectors | None = None


@dataclass
class Found:
    """Hits or an error for each query, and what the images took."""

    results: list[list[Hit] | MultigrainError]
    version: int
    times: StageTimes | None = None


@dataclass(frozen=True)
class Caller:
    """Whose request it is; images are counted for their client."""

    client: str = ""
    connection: str = ""
    deadline_ns: int = 0
    received_ns: int = field(default_factory=time.monotonic_ns)


class IndexService:
    """Stores images in indexes and searches them.

    Methods raise MultigrainError.

    Args:
        process: owns the indexes.
        catalog: of the models whose vectors they hold.
        images: embeds images.
        max_images: in a call, and in one request to an engine.
    """

    def __init__(
        self, process: IndexProcess, catalog: ModelCatalog, images: ImageService, max_images: int
    ) -> None:
        self._process = process
        self._catalog = catalog
        self._images = images
        self._max_images = max_images

    @staticmethod
    async def prepare() -> None:
        """Loads NumPy, which takes a quarter of a second, in a thread; before vectors are used."""
        if "numpy" not in sys.modules:
            await asyncio.to_thread(import_module, "numpy")

    async def create(
        self,
        name: str,
        model: str,
        resolution: int,
        whiten: bool,
        fields: Sequence[Field],
        engine: Engine | None,
    ) -> IndexView:
        """Creates an index for the vectors of a loaded model."""
        loaded = self._catalog.route(model)
        origin, size = self._origin(loaded, resolution, whiten)
        try:
            manifest = msgspec.convert(
                {
                    "name": name,
                    "origin": origin,
                    "size": size,
                    "fields": tuple(fields),
                    "created": time.time(),
                    "engine": engine or "exact",
                    "fixed_engine": engine is not None,
                },
                Manifest,
                from_attributes=True,
            )
        except msgspec.ValidationError as error:
            raise _invalid_manifest(error) from None
        opened, _ = await self._process.call(
            lambda number: protocol.Create(number, manifest), protocol.Opened
        )
        return IndexView(name, (), opened)

    async def get(self, name: str) -> IndexView:
        """An index by its name or alias."""
        opened = await self._open(name)
        return IndexView(opened.manifest.name, await self._aliases_of(opened.manifest.name), opened)

    async def list_all(self) -> list[IndexView]:
        """All indexes, by name; also those that cannot be opened."""
        listed, _ = await self._process.call(protocol.List, protocol.Listed)
        views = []
        for name in listed.names:
            aliases = tuple(sorted(a for a, n in listed.aliases.items() if n == name))
            try:
                views.append(IndexView(name, aliases, await self._open(name)))
            except MultigrainError as error:
                if error.kind is ErrorKind.UNAVAILABLE:
                    raise
                views.append(IndexView(name, aliases, None, error.message))
        return views

    async def delete(self, name: str) -> None:
        """Deletes an index."""
        await self._process.call(lambda number: protocol.DeleteIndex(number, name), protocol.Done)

    async def set_alias(self, alias: str, name: str) -> None:
        """Has an alias mean an index, or removes it."""
        await self._process.call(
            lambda number: protocol.SetAlias(number, alias, name), protocol.Done
        )

    async def add(
        self, name: str, items: Sequence[NewItem], model: str, caller: Caller
    ) -> tuple[list[MultigrainError | None], int]:
        """Adds items; returns an error or None for each, and the index's version."""
        if not 1 <= len(items) <= MAX_ITEMS:
            raise MultigrainError.field("items", f"has {len(items)} items: send 1 to {MAX_ITEMS}")
        ids = {new.item.id for new in items}
        if len(ids) < len(items):
            raise MultigrainError.field("items", "has two items of one id")
        opened = await self._open(name)
        manifest = opened.manifest
        fields = _fields(manifest)
        errors: list[MultigrainError | None] = [None] * len(items)
        vectors: list[Vectors | None] = [None] * len(items)
        if any(new.vector is not None for new in items):
            self._check_model(model, manifest)
        images = []
        for number, new in enumerate(items):
            try:
                check_item(new.item, fields)
                if new.vector is not None:
                    vectors[number] = _normalized(new.vector, manifest.size)
                elif new.image is not None:
                    images.append(number)
                else:
                    raise ValueError("has neither an image nor a vector")
            except ValueError as error:
                errors[number] = MultigrainError.field(f"items[{number}]", str(error))
        embedded, _ = await self._embed(
            manifest, [items[number].image or b"" for number in images], caller
        )
        for number, result in zip(images, embedded, strict=True):
            if isinstance(result, MultigrainError):
                errors[number] = result
            else:
                vectors[number] = result
        added, now = [], time.time()
        digests = await _digests([new.image for new in items])
        for new, vector, digest in zip(items, vectors, digests, strict=True):
            if vector is not None:
                sha256 = digest or new.item.sha256
                added.append(msgspec.structs.replace(new.item, sha256=sha256, added=now))
        version = opened.version
        if added:
            import numpy as np

            rows = np.stack([vector for vector in vectors if vector is not None])
            done, _ = await self._process.call(
                lambda number: protocol.Add(number, manifest.name, added),
                protocol.Done,
                rows.astype("<f4").tobytes(),
            )
            version = done.version
        return errors, version

    async def items(
        self, name: str, ids: Sequence[str], with_vectors: bool
    ) -> tuple[list[Item], Vectors | None]:
        """Items by their ids, without those that there are not."""
        if len(ids) > MAX_ITEMS:
            raise MultigrainError.field("ids", f"has {len(ids)} ids: send at most {MAX_ITEMS}")
        opened = await self._open(name)
        found, payload = await self._process.call(
            lambda number: protocol.Get(number, opened.manifest.name, list(ids), with_vectors),
            protocol.Items,
        )
        return found.items, _rows(payload, opened.manifest.size) if with_vectors else None

    async def update(self, name: str, changes: Sequence[Changes]) -> tuple[list[str], int]:
        """Changes items; returns ids that there are not, and the version."""
        if not 1 <= len(changes) <= MAX_ITEMS:
            raise MultigrainError.field("items", f"has {len(changes)} items: send 1 to {MAX_ITEMS}")
        opened = await self._open(name)
        fields = _fields(opened.manifest)
        for number, change in enumerate(changes):
            try:
                msgspec.convert(msgspec.to_builtins(change), Changes)  # lengths
                check_item(
                    Item(id=change.id, labels=change.labels or (), tags=change.tags or ()), {}
                )
                for attribute, value in change.attributes.items():
                    if value is not None:
                        check_value(attribute, value, fields)
            except (ValueError, msgspec.ValidationError) as error:
                raise MultigrainError.field(f"items[{number}]", str(error)) from None
        done, _ = await self._process.call(
            lambda number: protocol.Update(number, opened.manifest.name, list(changes)),
            protocol.Done,
        )
        return done.ids, done.version

    async def delete_items(self, name: str, chosen: Filter) -> tuple[int, int]:
        """Deletes items; returns how many, and the version."""
        opened = await self._open(name)
        _check_filter(chosen, opened.manifest)
        done, _ = await self._process.call(
            lambda number: protocol.Delete(number, opened.manifest.name, chosen), protocol.Done
        )
        return done.number, done.version

    async def search(
        self,
        name: str,
        queries: Sequence[Query],
        k: int,
        *,
        chosen: Filter | None,
        min_similarity: float | None,
        effort: Effort,
        with_vectors: bool,
        caller: Caller,
    ) -> Found:
        """Finds the nearest items for each query."""
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise MultigrainError.field(
                "queries", f"has {len(queries)} queries: send 1 to {MAX_QUERIES}"
            )
        if k > MAX_HITS:
            raise MultigrainError.field("k", f"{k} is more than {MAX_HITS}")
        k = k or DEFAULT_HITS
        opened = await self._open(name)
        manifest = opened.manifest
        _check_size(len(queries) * k, manifest.size if with_vectors else 0)
        if chosen is not None:
            _check_filter(chosen, manifest)
        vectors, times = await self._query_vectors(manifest, queries, caller)
        results: list[list[Hit] | MultigrainError] = [
            vector if isinstance(vector, MultigrainError) else [] for vector in vectors
        ]
        able = {
            n: vector for n, vector in enumerate(vectors) if not isinstance(vector, MultigrainError)
        }
        if able:
            import numpy as np

            rows = np.stack(list(able.values())).astype("<f4")
            # An item that is searched for is not among its own hits.
            more = any(queries[number].id is not None for number in able)
            found, payload = await self._process.call(
                lambda number: protocol.Search(
                    number, manifest.name, k + more, chosen, effort, with_vectors
                ),
                protocol.Found,
                rows.tobytes(),
            )
            all_vectors = iter(_rows(payload, manifest.size))
            for number, hits in zip(able, found.hits, strict=True):
                listed = [
                    Hit(item, similarity, next(all_vectors) if with_vectors else None)
                    for item, similarity in hits
                ]
                results[number] = [
                    hit
                    for hit in listed
                    if hit.item.id != queries[number].id
                    and (min_similarity is None or hit.similarity >= min_similarity)
                ][:k]
        return Found(results, opened.version, times)

    async def scan(
        self, name: str, chosen: Filter | None, with_vectors: bool
    ) -> AsyncIterator[tuple[list[Item], Vectors | None, int]]:
        """Yields all items in order of id, as they are now, each time with the number of all."""
        opened = await self._open(name)
        manifest = opened.manifest
        if chosen is not None:
            _check_filter(chosen, manifest)
        counted, _ = await self._process.call(
            lambda number: protocol.Count(number, manifest.name, chosen or All(())), protocol.Done
        )
        rows = max(1, min(1000, _SCANNED_BYTES // (4 * manifest.size)))
        begun, _ = await self._process.call(
            lambda number: protocol.Scan(number, manifest.name, chosen, rows), protocol.Done
        )
        try:
            while True:
                part, payload = await self._process.call(
                    lambda number: protocol.Next(number, begun.number), protocol.Items
                )
                if not part.items:
                    return
                vectors = _rows(payload, manifest.size) if with_vectors else None
                yield part.items, vectors, counted.number
        except GeneratorExit:
            await self._process.call(
                lambda number: protocol.EndScan(number, begun.number), protocol.Done
            )
            raise

    async def _open(self, name: str) -> protocol.Opened:
        if not name:
            raise MultigrainError.field("index", "is empty: name an index")
        opened, _ = await self._process.call(
            lambda number: protocol.Open(number, name), protocol.Opened
        )
        return opened

    async def _aliases_of(self, name: str) -> tuple[str, ...]:
        listed, _ = await self._process.call(protocol.List, protocol.Listed)
        return tuple(sorted(a for a, n in listed.aliases.items() if n == name))

    def _origin(self, model: LoadedModel, resolution: int, whiten: bool) -> tuple[Origin, int]:
        """What makes the vectors of a loaded model, and their size."""
        head = next(iter(model.heads.values()))
        if resolution:
            if resolution not in model.heads:
                raise MultigrainError.field(
                    "resolution",
                    f"{resolution} is not served by {model.label}: use "
                    f"{', '.join(map(str, model.heads))}, or 0 for {head.resolution}",
                )
            head = model.heads[resolution]
        if whiten and head.whitening is None:
            raise MultigrainError.field(
                "whiten", f"{model.label} has no whitening at {head.resolution} px: leave it out"
            )
        ready = model.engine.ready
        size = model.entry.manifest.embedding_size
        if whiten and head.whitening is not None:
            size = head.whitening.size
        digest = hashlib.sha256(model.entry.manifest.model_dump_json().encode()).hexdigest()
        origin = Origin(
            model.label,
            digest,
            head.resolution,
            whiten,
            ready.precision if ready is not None else "f32",
        )
        return origin, size

    def _check_model(self, model: str, manifest: Manifest) -> None:
        """Checks the model that a caller's vectors are of."""
        if not model:
            raise MultigrainError.field(
                "model", f"is empty: name the model of the vectors, as {manifest.origin.model}"
            )
        if model != manifest.origin.model:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"the vectors are of {model}, and index {manifest.name} holds those of "
                f"{manifest.origin.model}: vectors of different models cannot be compared",
            )

    async def _embed(
        self, manifest: Manifest, images: Sequence[bytes], caller: Caller
    ) -> tuple[list[Vectors | MultigrainError], StageTimes | None]:
        """Vectors of images, with the model of the index exactly as it was."""
        if not images:
            return [], None
        if len(images) > self._max_images:
            raise MultigrainError.field(
                "items", f"has {len(images)} images: send at most {self._max_images} in a call"
            )
        model = self._catalog.route(manifest.origin.model)
        origin, _ = self._origin(model, manifest.origin.resolution, manifest.origin.whiten)
        if origin != manifest.origin:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"index {manifest.name} holds vectors of {_describe(manifest.origin)}, and the "
                f"loaded model is {_describe(origin)}: load it as it was, or create a new index",
            )
        response = await self._images.infer(
            ImageRequest(
                model=manifest.origin.model,
                images=images,
                resolution=manifest.origin.resolution,
                vector=EmbeddingOptions(whiten=manifest.origin.whiten),
                client=caller.client,
                connection=caller.connection,
                deadline_ns=caller.deadline_ns,
                received_ns=caller.received_ns,
            )
        )
        return [_vector(result) for result in response.results], response.times

    async def _query_vectors(
        self, manifest: Manifest, queries: Sequence[Query], caller: Caller
    ) -> tuple[list[Vectors | MultigrainError], StageTimes | None]:
        images = [n for n, query in enumerate(queries) if query.image is not None]
        ids = [query.id for query in queries if query.id is not None]
        vectors: dict[int, Vectors | MultigrainError] = {}
        times = None
        if images:
            embedded, times = await self._embed(
                manifest, [queries[number].image or b"" for number in images], caller
            )
            vectors.update(zip(images, embedded, strict=True))
        stored: dict[str, Vectors] = {}
        if ids:
            found, rows = await self.items(manifest.name, ids, with_vectors=True)
            assert rows is not None
            stored = {item.id: row for item, row in zip(found, rows, strict=True)}
        for number, query in enumerate(queries):
            if query.vector is not None:
                try:
                    vectors[number] = _normalized(query.vector, manifest.size)
                except ValueError as error:
                    vectors[number] = MultigrainError.field(f"queries[{number}].vector", str(error))
            elif query.id is not None:
                vectors[number] = stored.get(
                    query.id,
                    MultigrainError(
                        ErrorKind.NOT_FOUND, f"index {manifest.name} has no item {query.id!r}"
                    ),
                )
            elif query.image is None:
                vectors[number] = MultigrainError.field(
                    f"queries[{number}]", "is empty: give an image, a vector or an id"
                )
        return [vectors[number] for number in range(len(queries))], times


async def _digests(images: Sequence[bytes | None]) -> list[str]:
    """SHA-256 of images in hex; empty where there is none."""

    def hashed() -> list[str]:
        return [hashlib.sha256(image).hexdigest() if image else "" for image in images]

    if sum(len(image or b"") for image in images) <= _HASHED_AT_ONCE:
        return hashed()
    return await asyncio.to_thread(hashed)


def _check_size(hits: int, vector_size: int) -> None:
    """Refuses searches whose answers would be too large."""
    if hits > MAX_ALL_HITS or 4 * hits * vector_size > _MAX_VECTOR_BYTES:
        most = MAX_ALL_HITS
        if vector_size:
            most = min(most, _MAX_VECTOR_BYTES // (4 * vector_size))
        raise MultigrainError.field(
            "k",
            f"asks for up to {hits} hits in all, and an answer has at most {most}"
            f"{' with vectors' if vector_size else ''}: ask for fewer, or send fewer queries",
        )


def _vector(result: ImageResult) -> Vectors | MultigrainError:
    import numpy as np

    return result.error or np.frombuffer(result.vector, "<f4")


def _normalized(vector: Vectors, size: int) -> Vectors:
    import numpy as np

    if vector.shape != (size,):
        raise ValueError(f"has {len(vector)} numbers, and the index's vectors have {size}")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length) or length == 0.0:
        raise ValueError("is zero or not finite")
    result: Vectors = (vector / length).astype(np.float32)
    return result


def _rows(payload: bytes, size: int) -> Vectors:
    import numpy as np

    return np.frombuffer(payload, "<f4").reshape(-1, size)


def _fields(manifest: Manifest) -> dict[str, FieldType]:
    return {known.name: known.type for known in manifest.fields}


def _check_filter(chosen: Filter, manifest: Manifest) -> None:
    try:
        check_filter(chosen, _fields(manifest))
    except ValueError as error:
        raise MultigrainError.field("filter", str(error)) from None


def _describe(origin: Origin) -> str:
    whitened = ", whitened" if origin.whiten else ""
    return (
        f"{origin.model} (bundle {origin.bundle[:12]}, {origin.resolution} px, "
        f"{origin.precision}{whitened})"
    )


def _invalid_manifest(error: msgspec.ValidationError) -> MultigrainError:
    text = str(error)
    if "$.name" in text:
        return MultigrainError.field(
            "name",
            "must be 1 to 128 letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return MultigrainError.field(
        "fields",
        "names must be 1 to 63 lowercase letters, digits and '_', and begin with a letter",
    )

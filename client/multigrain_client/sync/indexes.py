# Generated from aio/indexes.py by `make sync-client`: edit that file instead.
"""Indexes of images: what is in them, and searches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from multigrain.v1 import index_pb2
from multigrain.v1.index_pb2 import (
    AddItemsRequest,
    CreateIndexRequest,
    DeleteItemsRequest,
    Filter,
    GetItemsRequest,
    ItemChanges,
    NewItem,
    Query,
    ScanItemsRequest,
    StringList,
    UpdateItemsRequest,
)
from multigrain_client.errors import ImageError, ImagesFailed, InvalidRequest
from multigrain_client.folder_sync import Difference, FolderSync, OnProgress
from multigrain_client.images import (
    MAX_IMAGES,
    Batch,
    FloatArray,
    batches_of,
    each,
    encode_each,
)
from multigrain_client.index_items import (
    Condition,
    Hits,
    IndexItem,
    SearchKeywords,
    Value,
    engine_number,
    field_messages,
    filter_message,
    hits_of,
    item_message,
    item_of,
    missing_item,
    parts,
    search_request,
    status_error,
    value_message,
    vector_message,
)
from multigrain_client.sync.rpcs import Rpcs

if TYPE_CHECKING:
    from multigrain_client.images import Image, Images

# Items in a call that carries no images.
_MAX_ITEMS = 1000


class Index:
    """One index of a server, by its name or an alias.

        index = client.index("pets")
        for hit in index.search("cat.jpg", k=5, label="cat"):
            print(hit.item.path, hit.similarity)

    Args:
        rpcs: makes the calls.
        name: of the index, or an alias.
    """

    def __init__(self, rpcs: Rpcs, name: str) -> None:
        self._rpcs = rpcs
        self.name = name

    def __repr__(self) -> str:
        return f"<index {self.name!r}>"

    def info(self, *, timeout: float | None = None) -> index_pb2.Index:
        """Its model, size, fields, number of items and version."""
        return self._rpcs.GetIndex(index=self.name, timeout=timeout)

    def add(
        self,
        images: Images,
        ids: Sequence[str],
        *,
        paths: Sequence[str] = (),
        labels: Sequence[Sequence[str]] = (),
        tags: Sequence[Sequence[str]] = (),
        attributes: Sequence[Mapping[str, Value]] = (),
        timeout: float | None = None,
    ) -> None:
        """Adds images, in place of items with the same ids.

        What an interrupted call has added stays; to repeat it is safe.

        Args:
            images: the images, as for ``embed``.
            ids: of the items, one for each image; all different.
            paths, labels, tags, attributes: of each item; empty = none of any.
            timeout: seconds for each call.

        Raises:
            ImagesFailed: naming every image that was not added; the others were.
        """
        listed = list(each(images))
        _check_lengths(
            listed, ids=ids, paths=paths, labels=labels, tags=tags, attributes=attributes
        )
        items = [
            item_message(
                id,
                paths[n] if paths else "",
                labels[n] if labels else (),
                tags[n] if tags else (),
                attributes[n] if attributes else None,
            )
            for n, id in enumerate(ids)
        ]
        errors = self._add_images(listed, items, timeout)
        if errors:
            raise ImagesFailed(errors, len(listed))

    def add_vectors(
        self,
        vectors: FloatArray,
        ids: Sequence[str],
        model: str,
        *,
        paths: Sequence[str] = (),
        labels: Sequence[Sequence[str]] = (),
        tags: Sequence[Sequence[str]] = (),
        attributes: Sequence[Mapping[str, Value]] = (),
        timeout: float | None = None,
    ) -> None:
        """Adds vectors that the index's model has made.

        Args:
            vectors: float32 (N, C).
            ids: of the items, one for each row; all different.
            model: "name@version" that made the vectors, which must be the index's.
            paths, labels, tags, attributes: of each item; empty = none of any.
            timeout: seconds for each call.

        Raises:
            ImagesFailed: naming every row that was not added; the others were.
        """
        _check_lengths(
            list(vectors), ids=ids, paths=paths, labels=labels, tags=tags, attributes=attributes
        )
        errors: list[ImageError] = []
        for rows in parts(range(len(ids)), _MAX_ITEMS):
            request = AddItemsRequest(index=self.name, model=model)
            for n in rows:
                item = item_message(
                    ids[n],
                    paths[n] if paths else "",
                    labels[n] if labels else (),
                    tags[n] if tags else (),
                    attributes[n] if attributes else None,
                )
                request.items.append(NewItem(item=item, vector=vector_message(vectors[n])))
            response = self._rpcs.AddItems(request, timeout=timeout)
            for n, status in zip(rows, response.statuses, strict=True):
                if (error := status_error(n, ids[n], status)) is not None:
                    errors.append(error)
        if errors:
            raise ImagesFailed(errors, len(ids))

    def search(
        self, image: Image, *, timeout: float | None = None, **keywords: Unpack[SearchKeywords]
    ) -> Hits:
        """The items most similar to an image.

        Args:
            image: the image, as for ``embed``.
            timeout: seconds for the call.
            keywords: see ``SearchKeywords``.

        Raises:
            ImagesFailed: if the image cannot be read.
        """
        (hits,) = self.search_each([image], timeout=timeout, **keywords)
        return hits

    def search_each(
        self, images: Images, *, timeout: float | None = None, **keywords: Unpack[SearchKeywords]
    ) -> list[Hits]:
        """As ``search``, for any number of images: the hits of each, in input order.

        Raises:
            ImagesFailed: naming every image that cannot be read.
        """
        found: dict[int, Hits] = {}
        errors: list[ImageError] = []
        for batch in batches_of(encode_each(images), max_images=MAX_IMAGES):
            errors += batch.errors
            queries = [Query(image=image.data) for image in batch.images]
            if not queries:
                continue
            request = search_request(self.name, keywords)
            request.queries.extend(queries)
            response = self._rpcs.Search(request, timeout=timeout)
            for image, result in zip(batch.images, response.results, strict=True):
                error = status_error(image.index, image.name, result.status)
                if error is None:
                    found[image.index] = hits_of(result)
                else:
                    errors.append(error)
        if errors:
            raise ImagesFailed(errors, len(errors) + len(found))
        return [found[number] for number in sorted(found)]

    def search_vectors(
        self,
        vectors: FloatArray,
        *,
        timeout: float | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> list[Hits]:
        """The items most similar to each vector.

        Args:
            vectors: float32 (N, C), of the index's model.
            timeout: seconds for each call.
            keywords: see ``SearchKeywords``.
        """
        found: list[Hits] = []
        for rows in parts(list(vectors), MAX_IMAGES):
            request = search_request(self.name, keywords)
            request.queries.extend(Query(vector=vector_message(row)) for row in rows)
            response = self._rpcs.Search(request, timeout=timeout)
            for n, result in enumerate(response.results):
                error = status_error(len(found), f"vector {len(found)}", result.status)
                if error is not None:
                    raise ImagesFailed([error], len(rows) - n)
                found.append(hits_of(result))
        return found

    def neighbors(
        self, id: str, *, timeout: float | None = None, **keywords: Unpack[SearchKeywords]
    ) -> Hits:
        """The items most similar to an item of the index, without itself.

        Raises:
            NotFound: if there is no such item.
        """
        request = search_request(self.name, keywords)
        request.queries.append(Query(id=id))
        response = self._rpcs.Search(request, timeout=timeout)
        if response.results[0].status.code:
            raise missing_item(id, self.name)
        return hits_of(response.results[0])

    def get(
        self, ids: Sequence[str], *, with_vectors: bool = False, timeout: float | None = None
    ) -> list[IndexItem]:
        """Items by their ids, in this order, without those that there are not."""
        found: list[IndexItem] = []
        for part in parts(ids, _MAX_ITEMS):
            request = GetItemsRequest(index=self.name, ids=part, with_vectors=with_vectors)
            response = self._rpcs.GetItems(request, timeout=timeout)
            found += map(item_of, response.items)
        return found

    def update(
        self,
        id: str,
        *,
        path: str | None = None,
        labels: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        attributes: Mapping[str, Value | None] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Changes an item, but not its vector.

        Args:
            id: of the item.
            path, labels, tags: new ones; None = stay as they are.
            attributes: values to set; None removes one.
            timeout: seconds for the call.

        Raises:
            NotFound: if there is no such item.
        """
        message = ItemChanges(id=id)
        if path is not None:
            message.path = path
        if labels is not None:
            message.labels.CopyFrom(StringList(values=labels))
        if tags is not None:
            message.tags.CopyFrom(StringList(values=tags))
        for name, value in (attributes or {}).items():
            if value is None:
                message.remove_attributes.append(name)
            else:
                message.attributes[name].CopyFrom(value_message(value, f"attributes[{name}]"))
        request = UpdateItemsRequest(index=self.name, items=[message])
        response = self._rpcs.UpdateItems(request, timeout=timeout)
        if response.missing_ids:
            raise missing_item(id, self.name)

    def delete_items(
        self,
        ids: Sequence[str] | None = None,
        *,
        label: str | Sequence[str] = (),
        tag: str | Sequence[str] = (),
        path_prefix: str = "",
        where: Mapping[str, Condition] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Deletes items by their ids or by a filter; returns how many there were.

        Raises:
            InvalidRequest: without ids and without a filter.
        """
        if ids is None:
            chosen = filter_message(label, tag, path_prefix, where)
            if chosen is None:
                raise InvalidRequest("give ids or a filter: nothing chooses the items to delete")
            request = DeleteItemsRequest(index=self.name, filter=chosen)
            return (self._rpcs.DeleteItems(request, timeout=timeout)).deleted
        deleted = 0
        for part in parts(ids, _MAX_ITEMS):
            request = DeleteItemsRequest(
                index=self.name, filter=Filter(ids=StringList(values=part))
            )
            deleted += (self._rpcs.DeleteItems(request, timeout=timeout)).deleted
        return deleted

    def items(
        self,
        *,
        label: str | Sequence[str] = (),
        tag: str | Sequence[str] = (),
        path_prefix: str = "",
        where: Mapping[str, Condition] | None = None,
        with_vectors: bool = False,
        timeout: float | None = None,
    ) -> Iterator[IndexItem]:
        """All items, in order of their ids, as they were when the call began; with a filter, those
        that it chooses."""
        chosen = filter_message(label, tag, path_prefix, where)
        request = ScanItemsRequest(index=self.name, filter=chosen, with_vectors=with_vectors)
        for part in self._rpcs.ScanItems(request, timeout=timeout):
            for message in part.items:
                yield item_of(message)

    def sync_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        prefix: str = "",
        delete: bool = True,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> FolderSync:
        """Makes the index hold the images of a local folder: adds new and changed files, and
        deletes the items of files that are gone.

        The id and the path of an item are the prefix and the file's path below the folder, and its
        label is the name of the file's folder. Files are compared by their bytes. An interrupted
        call is repeated with what is left.

        Args:
            folder: the folder.
            prefix: keeps several folders in one index apart, such as "phone/". Only items whose
                path begins so are deleted.
            delete: whether to delete the items of files that are gone.
            dry_run: changes nothing.
            on_progress: called with (files compared or added, of so many).
            timeout: seconds for each call.

        Raises:
            InvalidRequest: if the folder cannot be read, or has no image.
        """
        known = {item.id: item.sha256 for item in self.items(path_prefix=prefix, timeout=timeout)}
        difference = Difference(folder, prefix, delete)
        difference.compare(known)
        if not dry_run:
            files = difference.to_add
            for part in parts(files, 4 * MAX_IMAGES):
                items = [
                    item_message(file.id, file.id, [file.label] if file.label else [])
                    for file in part
                ]
                paths = [file.path for file in part]
                difference.errors += self._add_images(paths, items, timeout)
                if on_progress is not None:
                    on_progress(files.index(part[-1]) + 1, len(files))
            if difference.gone:
                self.delete_items(difference.gone, timeout=timeout)
        return difference.result()

    def _add_images(
        self, images: Sequence[Any], items: Sequence[Any], timeout: float | None
    ) -> list[ImageError]:
        errors: list[ImageError] = []
        for batch in batches_of(encode_each(images), max_images=MAX_IMAGES):
            errors += batch.errors
            errors += self._add_batch(batch, items, timeout)
        return errors

    def _add_batch(
        self, batch: Batch, items: Sequence[Any], timeout: float | None
    ) -> list[ImageError]:
        if not batch.images:
            return []
        request = AddItemsRequest(index=self.name)
        for image in batch.images:
            request.items.append(NewItem(item=items[image.index], image=image.data))
        response = self._rpcs.AddItems(request, timeout=timeout)
        found = [
            status_error(image.index, image.name, status)
            for image, status in zip(batch.images, response.statuses, strict=True)
        ]
        return [error for error in found if error is not None]


class IndexCalls(Rpcs):
    """Indexes hold the vectors of images, with ids and attributes, and are searched."""

    def index(self, name: str) -> Index:
        """An index by its name or alias; makes no call."""
        return Index(self, name)

    def create_index(
        self,
        name: str,
        *,
        model: str = "",
        resolution: int = 0,
        whiten: bool = False,
        fields: Mapping[str, type] | None = None,
        engine: str = "",
        timeout: float | None = None,
    ) -> Index:
        """Creates an index for the vectors of a loaded model.

        Args:
            name: of the index.
            model: "name", "name@version" or an alias; empty = the default model.
            resolution: side of the input in pixels; 0 = the model's.
            whiten: whether its vectors are whitened.
            fields: attributes that its items may have: names and str, int, float or bool.
            engine: "exact", "lancedb", or empty: "exact" until it has grown.
            timeout: seconds for the call.
        """
        request = CreateIndexRequest(
            name=name,
            model=model,
            resolution=resolution,
            whiten=whiten,
            fields=field_messages(fields or {}),
            engine=engine_number(engine),
        )
        self.CreateIndex(request, timeout=timeout)
        return Index(self, name)

    def indexes(self, *, timeout: float | None = None) -> list[index_pb2.Index]:
        """All indexes; those that cannot be used have a ``problem``."""
        return list((self.ListIndexes(timeout=timeout)).indexes)

    def delete_index(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes an index with its items and aliases."""
        self.DeleteIndex(index=name, timeout=timeout)

    def set_index_alias(self, alias: str, name: str, *, timeout: float | None = None) -> None:
        """Has an alias mean an index; an empty name removes the alias."""
        self.SetIndexAlias(alias=alias, index=name, timeout=timeout)


def _check_lengths(listed: Sequence[Any], **columns: Sequence[Any]) -> None:
    """Raises:
    InvalidRequest: if a column does not have a value for each image.
    """
    for name, values in columns.items():
        found = len(values)
        if found not in (len(listed), 0) or (name == "ids" and found != len(listed)):
            raise InvalidRequest(f"{name}: has {found} values for {len(listed)} images")

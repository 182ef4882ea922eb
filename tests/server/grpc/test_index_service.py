"""IndexService over a real connection, with a real engine and a real index process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from multigrain.v1 import common_pb2, embedding_pb2, index_pb2
from multigrain.v1.embedding_pb2 import EmbedRequest, Vector
from multigrain.v1.index_pb2 import (
    AddItemsRequest,
    CreateIndexRequest,
    DeleteIndexRequest,
    DeleteItemsRequest,
    EqualsFilter,
    Field,
    Filter,
    FilterList,
    GetIndexRequest,
    GetItemsRequest,
    Item,
    ItemChanges,
    ListIndexesRequest,
    NewItem,
    Query,
    RangeFilter,
    ScanItemsRequest,
    SearchRequest,
    SetIndexAliasRequest,
    StringList,
    UpdateItemsRequest,
    Value,
)
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.refusal import refusal
from tests.server.grpc.serving import Serving, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]

T = TypeVar("T")

FIELDS = [
    Field(name="year", type=index_pb2.FIELD_TYPE_INT),
    Field(name="shop", type=index_pb2.FIELD_TYPE_STRING),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models")
    async with serving(root) as s:
        await s.manager.load("tiny")
        yield s


@pytest_asyncio.fixture(loop_scope="module", params=[1, 2], ids=["exact", "lancedb"])
async def index(served: Serving, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """An index of seven pictures."""
    name = "pictures"
    await served.indexes.CreateIndex(
        CreateIndexRequest(name=name, model="tiny", fields=FIELDS, engine=request.param)
    )
    added = await served.indexes.AddItems(
        AddItemsRequest(index=name, items=[new_picture(number) for number in range(7)])
    )
    assert [status.code for status in added.statuses] == [0] * 7
    yield name
    await served.indexes.DeleteIndex(DeleteIndexRequest(index=name))


def new_picture(number: int, **values: object) -> NewItem:
    item = Item(
        id=f"p{number}",
        path=f"photos/{number}.jpg",
        labels=["even" if number % 2 == 0 else "odd"],
        tags=["low"] if number < 3 else [],
        attributes={"year": Value(int_value=2000 + number), "shop": Value(string_value="x")},
    )
    return NewItem(item=item, image=picture(number))


async def status_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """The code and the message of a refused call."""
    error = await refusal(call)
    return error.code(), error.details() or ""


async def after_restart(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call, repeated while the index process is started again."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)


def ids(hits: Sequence[index_pb2.Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


async def test_a_picture_finds_itself_and_its_neighbors(served: Serving, index: str) -> None:
    vectors = await served.embedding.Embed(
        EmbedRequest(images=[picture(number) for number in range(7)])
    )
    rows = np.stack([np.frombuffer(r.embedding.data, "<f4") for r in vectors.results])
    response = await served.indexes.Search(
        SearchRequest(
            index=index,
            queries=[Query(image=picture(number)) for number in range(7)],
            k=4,
            with_vectors=True,
            request_id="mine",
        )
    )
    assert response.request_id == "mine"
    assert response.timings.total_ns > response.timings.compute_ns > 0
    similarity = rows @ rows.T
    for number, result in enumerate(response.results):
        assert result.status.code == 0
        assert result.hits[0].item.id == f"p{number}"
        assert result.hits[0].similarity == pytest.approx(1.0, abs=1e-5)
        best = np.sort(similarity[number])[::-1][:4]
        np.testing.assert_allclose([hit.similarity for hit in result.hits], best, atol=1e-5)
        item = result.hits[0].item
        assert item.path == f"photos/{number}.jpg"
        assert item.sha256 == hashlib.sha256(picture(number)).digest()
        assert item.attributes["year"].int_value == 2000 + number
        assert item.add_time.seconds > 0
        np.testing.assert_allclose(np.frombuffer(item.vector.data, "<f4"), rows[number], atol=1e-6)


async def test_one_bad_image_fails_alone(served: Serving, index: str) -> None:
    request = AddItemsRequest(
        index=index, items=[new_picture(0), NewItem(item=Item(id="bad"), image=b"x")]
    )
    added = await served.indexes.AddItems(request)
    assert added.statuses[0].code == 0
    assert added.statuses[1].kind == common_pb2.ERROR_KIND_IMAGE_FORMAT
    found = await served.indexes.Search(
        SearchRequest(index=index, queries=[Query(image=b"x"), Query(image=picture(1))])
    )
    assert found.results[0].status.kind == common_pb2.ERROR_KIND_IMAGE_FORMAT
    assert found.results[1].hits[0].item.id == "p1"
    assert (await served.indexes.GetIndex(GetIndexRequest(index=index))).items == 7


async def test_large_images_are_added_and_searched_for(served: Serving, index: str) -> None:
    large = picture(50) + bytes(6 << 20)  # after the image's end
    request = AddItemsRequest(index=index, items=[NewItem(item=Item(id="large"), image=large)])
    assert (await served.indexes.AddItems(request)).statuses[0].code == 0
    answers = [answer async for answer in served.indexes.AddItemsStream(iter([request]))]
    assert answers[0].statuses[0].code == 0
    found = await served.indexes.Search(SearchRequest(index=index, queries=[Query(image=large)]))
    assert found.results[0].hits[0].item.id == "large"


async def test_an_item_is_searched_for_without_itself(served: Serving, index: str) -> None:
    queries = [Query(id="p3"), Query(id="nobody"), Query()]
    found = await served.indexes.Search(SearchRequest(index=index, queries=queries, k=6))
    assert len(found.results[0].hits) == 6
    assert "p3" not in ids(found.results[0].hits)
    assert found.results[1].status.kind == common_pb2.ERROR_KIND_NOT_FOUND
    assert found.results[2].status.kind == common_pb2.ERROR_KIND_INVALID_FIELD


FILTERS: list[tuple[Filter, set[int]]] = [
    (Filter(label="odd"), {1, 3, 5}),
    (Filter(tag="low"), {0, 1, 2}),
    (Filter(path_prefix="photos/4"), {4}),
    (Filter(ids=StringList(values=["p1", "p9"])), {1}),
    (Filter(equals=EqualsFilter(field="year", values=[Value(int_value=2002)])), {2}),
    (Filter(range=RangeFilter(field="year", least=Value(int_value=2005))), {5, 6}),
    (Filter(**{"not": Filter(label="odd")}), {0, 2, 4, 6}),
    (Filter(all=FilterList(filters=[Filter(label="odd"), Filter(tag="low")])), {1}),
    (Filter(any=FilterList(filters=[Filter(label="odd"), Filter(tag="low")])), {0, 1, 2, 3, 5}),
    (Filter(all=FilterList()), set(range(7))),
]


async def test_filters_choose_items(served: Serving, index: str) -> None:
    for chosen, numbers in FILTERS:
        request = SearchRequest(index=index, queries=[Query(image=picture(0))], k=50, filter=chosen)
        response = await served.indexes.Search(request)
        assert {int(id[1:]) for id in ids(response.results[0].hits)} == numbers, chosen
        scanned = [
            item.id
            async for part in served.indexes.ScanItems(
                ScanItemsRequest(index=index, filter=chosen, with_vectors=True)
            )
            for item in part.items
            if len(item.vector.data) == 4 * EMBEDDING
        ]
        assert scanned == sorted(f"p{number}" for number in numbers)


async def test_items_are_changed_and_deleted(served: Serving, index: str) -> None:
    updated = await served.indexes.UpdateItems(
        UpdateItemsRequest(
            index=index,
            items=[
                ItemChanges(id="p1", labels=StringList(), remove_attributes=["shop"]),
                ItemChanges(id="p2", path="moved", attributes={"year": Value(int_value=7)}),
                ItemChanges(id="p99", path="moved"),
            ],
        )
    )
    assert updated.missing_ids == ["p99"]
    request = GetItemsRequest(index=index, ids=["p2", "p99", "p1"])
    two, one = (await served.indexes.GetItems(request)).items
    assert (two.path, two.attributes["year"].int_value, list(two.labels)) == ("moved", 7, ["even"])
    assert (list(one.labels), list(one.attributes)) == ([], ["year"])
    deleted = await served.indexes.DeleteItems(
        DeleteItemsRequest(index=index, filter=Filter(path_prefix="moved"))
    )
    assert deleted.deleted == 1
    assert deleted.version > updated.version
    assert not (await served.indexes.GetItems(GetItemsRequest(index=index, ids=["p2"]))).items


async def test_vectors_of_another_model_are_refused(served: Serving, index: str) -> None:
    vector = Vector(data=np.ones(EMBEDDING, "<f4").tobytes())
    request = AddItemsRequest(index=index, items=[NewItem(item=Item(id="v"), vector=vector)])
    code, message = await status_of(served.indexes.AddItems(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "model: is empty" in message
    request.model = "tiny@2"
    code, message = await status_of(served.indexes.AddItems(request))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "vectors of different models" in message
    request.model = "tiny@1"
    assert (await served.indexes.AddItems(request)).statuses[0].code == 0
    found = await served.indexes.Search(
        SearchRequest(index=index, queries=[Query(vector=vector)], k=1)
    )
    assert ids(found.results[0].hits) == ["v"]
    assert found.results[0].hits[0].similarity == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        (Vector(), "numbers of 4 bytes"),
        (Vector(data=bytes(5)), "numbers of 4 bytes"),
        (Vector(data=np.ones(3, "<f4").tobytes()), "has 3 numbers"),
        (Vector(data=np.zeros(EMBEDDING, "<f4").tobytes()), "zero or not finite"),
        (Vector(data=np.full(EMBEDDING, np.nan, "<f4").tobytes()), "zero or not finite"),
        (Vector(data=bytes(EMBEDDING), dtype=embedding_pb2.DTYPE_INT8), "FP32 or FP16"),
    ],
)
async def test_bad_vectors_are_refused(served: Serving, vector: Vector, problem: str) -> None:
    await served.indexes.CreateIndex(CreateIndexRequest(name="bad-vectors"))
    try:
        item = NewItem(item=Item(id="v"), vector=vector)
        request = AddItemsRequest(index="bad-vectors", items=[item], model="tiny@1")
        try:
            (status,) = (await served.indexes.AddItems(request)).statuses
            message = status.message
        except grpc.aio.AioRpcError as error:
            message = error.details() or ""
        assert problem in message
    finally:
        await served.indexes.DeleteIndex(DeleteIndexRequest(index="bad-vectors"))


REFUSED = [
    (AddItemsRequest(), "items: has 0 items"),
    (AddItemsRequest(items=[new_picture(1), new_picture(1)]), "two items of one id"),
    (AddItemsRequest(items=[new_picture(0)] * 1001), "has 1001 items"),
]


@pytest.mark.parametrize(("request_", "problem"), REFUSED)
async def test_requests_are_checked(
    served: Serving, index: str, request_: AddItemsRequest, problem: str
) -> None:
    request_.index = index
    code, message = await status_of(served.indexes.AddItems(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert problem in message


async def test_items_that_do_not_fit_the_fields_fail_alone(served: Serving, index: str) -> None:
    wrong = [
        (Item(id=""), "length"),
        (Item(id="a", attributes={"color": Value(string_value="red")}), "no field 'color'"),
        (Item(id="a", attributes={"year": Value(string_value="red")}), "of type int"),
        (Item(id="a", attributes={"year": Value(bool_value=True)}), "of type int"),
        (Item(id="a", labels=["x"] * 300), "300 labels"),
    ]
    for item, problem in wrong:
        request = AddItemsRequest(index=index, items=[NewItem(item=item, image=picture(1))])
        try:
            (status,) = (await served.indexes.AddItems(request)).statuses
            message = status.message
        except grpc.aio.AioRpcError as error:
            message = error.details() or ""
        assert problem in message
    assert (await served.indexes.GetIndex(GetIndexRequest(index=index))).items == 7


async def test_answers_are_bounded(served: Serving, index: str) -> None:
    request = SearchRequest(index=index, queries=[Query(id="p1")] * 64, k=1000)
    code, message = await status_of(served.indexes.Search(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 10000: ask for fewer" in message
    del request.queries[10:]
    assert len((await served.indexes.Search(request)).results) == 10
    for field, request in (
        ("k", SearchRequest(index=index, queries=[Query(id="p1")], k=1001)),
        ("queries", SearchRequest(index=index, queries=[Query(id="p1")] * 65)),
        ("queries", SearchRequest(index=index)),
    ):
        code, message = await status_of(served.indexes.Search(request))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert field in message


async def test_filters_are_checked(served: Serving, index: str) -> None:
    deep = Filter(label="x")
    for _ in range(40):
        deep = Filter(**{"not": deep})
    wrong = [
        (Filter(), "is empty"),
        (deep, "levels"),
        (Filter(equals=EqualsFilter(field="color")), ""),
        (Filter(range=RangeFilter(field="color", least=Value(int_value=1))), "no field 'color'"),
        (Filter(range=RangeFilter(field="year")), "neither least nor most"),
        (Filter(range=RangeFilter(field="year", least=Value(string_value="a"))), "of type int"),
    ]
    for chosen, problem in wrong:
        if not problem:
            continue
        request = SearchRequest(index=index, queries=[Query(id="p1")], filter=chosen)
        code, message = await status_of(served.indexes.Search(request))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert problem in message
    code, message = await status_of(served.indexes.DeleteItems(DeleteItemsRequest(index=index)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "filter: is missing" in message


async def test_aliases_follow_their_index(served: Serving, index: str) -> None:
    await served.indexes.SetIndexAlias(SetIndexAliasRequest(alias="live", index=index))
    got = await served.indexes.GetIndex(GetIndexRequest(index="live"))
    assert (got.name, list(got.aliases), got.model, got.size) == (
        index,
        ["live"],
        "tiny@1",
        EMBEDDING,
    )
    listed = await served.indexes.ListIndexes(ListIndexesRequest())
    assert [(one.name, list(one.aliases)) for one in listed.indexes] == [(index, ["live"])]
    for call in (
        served.indexes.DeleteIndex(DeleteIndexRequest(index="live")),
        served.indexes.SetIndexAlias(SetIndexAliasRequest(alias="../x", index=index)),
    ):
        assert (await status_of(call))[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert (
        await status_of(
            served.indexes.SetIndexAlias(SetIndexAliasRequest(alias="other", index="none"))
        )
    )[0] == grpc.StatusCode.NOT_FOUND
    await served.indexes.SetIndexAlias(SetIndexAliasRequest(alias="live"))
    code, _ = await status_of(served.indexes.GetIndex(GetIndexRequest(index="live")))
    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", "../up", ".tmp-x", "a/b", "x" * 200, "é"])
async def test_names_are_checked(served: Serving, name: str) -> None:
    code, message = await status_of(served.indexes.CreateIndex(CreateIndexRequest(name=name)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "letters, digits" in message
    code, _ = await status_of(served.indexes.GetIndex(GetIndexRequest(index=name)))
    assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def test_an_index_of_a_name_that_exists_is_refused(served: Serving, index: str) -> None:
    code, _ = await status_of(served.indexes.CreateIndex(CreateIndexRequest(name=index)))
    assert code == grpc.StatusCode.ALREADY_EXISTS


async def test_a_stream_answers_in_order(served: Serving, index: str) -> None:
    requests = [
        AddItemsRequest(index=index, items=[new_picture(number)], request_id=str(number))
        for number in range(10, 16)
    ]
    answers = [answer async for answer in served.indexes.AddItemsStream(iter(requests))]
    assert [answer.request_id for answer in answers] == [str(n) for n in range(10, 16)]
    assert (await served.indexes.GetIndex(GetIndexRequest(index=index))).items == 13


async def test_what_was_acknowledged_survives_the_death_of_the_process(
    served: Serving, index: str
) -> None:
    pid = served.index_process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    got = await after_restart(lambda: served.indexes.GetIndex(GetIndexRequest(index=index)))
    assert got.items == 7
    assert served.index_process.pid not in (None, pid)


async def test_a_damaged_index_is_listed_with_its_problem_and_the_file(
    served: Serving,
) -> None:
    await served.indexes.CreateIndex(CreateIndexRequest(name="damaged"))
    await served.indexes.AddItems(AddItemsRequest(index="damaged", items=[new_picture(1)]))
    pid = served.index_process.pid
    assert pid is not None
    (path,) = (served.root / "indexes" / "damaged").glob("*/items.sqlite")
    os.kill(pid, signal.SIGKILL)
    data = bytearray(path.read_bytes())
    data[-600:] = bytes(600)
    path.write_bytes(data)
    listed = await after_restart(lambda: served.indexes.ListIndexes(ListIndexesRequest()))
    (one,) = [one for one in listed.indexes if one.name == "damaged"]
    assert "items.sqlite" in one.problem
    code, message = await status_of(
        served.indexes.Search(SearchRequest(index="damaged", queries=[Query(image=picture(1))]))
    )
    assert code == grpc.StatusCode.DATA_LOSS
    assert "items.sqlite" in message
    await served.indexes.DeleteIndex(DeleteIndexRequest(index="damaged"))

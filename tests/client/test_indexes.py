"""Indexes by the client and the command line, against a daemon with a small model."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from multigrain_client import (
    AlreadyExists,
    AsyncClient,
    Client,
    ImagesFailed,
    InvalidRequest,
    NotFound,
    WrongState,
)
from multigrain_client.cli import main
from multigrain_client.cli.main import build_parser
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.pictures import picture
from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("daemon") / "data"
    write_bundle(data / "models")
    daemon = DaemonProcess(data)
    try:
        address = daemon.wait_ready()
        with Client(address) as client:
            client.load_model("tiny")
        yield address
    finally:
        daemon.end()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout=30.0) as client:
        yield client
        for index in client.indexes():
            client.delete_index(index.name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures in two folders, a copy with other bytes, and one with the same."""
    root = tmp_path / "photos"
    for number in range(6):
        path = root / ("cats" if number % 2 == 0 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    shutil.copy(root / "cats" / "0.png", root / "dogs" / "same.png")
    with Image.open(root / "dogs" / "1.png") as image:
        image.convert("RGB").filter(ImageFilter.GaussianBlur(0.3)).save(root / "dogs" / "blur.png")
    return root


def test_a_picture_is_found_with_its_attributes(client: Client) -> None:
    index = client.create_index("pets", model="tiny", fields={"year": int, "shop": str})
    index.add(
        [picture(number) for number in range(5)],
        [f"p{number}" for number in range(5)],
        paths=[f"photos/{number}.png" for number in range(5)],
        labels=[["cat"] if number % 2 else ["dog", "pet"] for number in range(5)],
        attributes=[{"year": 2000 + number} for number in range(5)],
    )
    hits = index.search(picture(3), k=3)
    assert hits[0].id == "p3"
    assert hits[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert hits[0].item.attributes == {"year": 2003}
    assert hits[0].item.labels == ("cat",)
    assert [hit.similarity for hit in hits] == sorted((h.similarity for h in hits), reverse=True)
    assert "photos/3.png" in hits._repr_html_()

    def found(**keywords: object) -> set[str]:
        return {hit.id for hit in index.search(picture(3), k=99, **keywords)}  # type: ignore[arg-type]

    assert found(label="cat") == {"p1", "p3"}
    assert found(label=["cat", "pet"]) == {"p0", "p1", "p2", "p3", "p4"}
    assert found(where={"year": 2001}) == {"p1"}
    assert found(where={"year": [2001, 2004]}) == {"p1", "p4"}
    assert found(where={"year": (2003, None)}) == {"p3", "p4"}
    assert found(path_prefix="photos/2") == {"p2"}
    assert found(label="dog", where={"year": (None, 2001)}) == {"p0"}
    assert found(min_similarity=0.99999) >= {"p3"}
    assert "p3" not in {hit.id for hit in index.neighbors("p3", k=10)}
    info = index.info()
    assert (info.items, info.size, info.model) == (5, EMBEDDING, "tiny@1")
    vectors = client.embed([picture(4), picture(1)])
    best = index.search_vectors(vectors, k=1, with_vectors=True)
    assert [hits[0].id for hits in best] == ["p4", "p1"]
    np.testing.assert_allclose(best[0][0].item.vector, vectors[0], atol=1e-6)


def test_items_are_changed_and_deleted(client: Client) -> None:
    index = client.create_index("pets", fields={"year": int})
    index.add([picture(1), picture(2)], ["a", "b"], tags=[["x"], ["y"]])
    index.update("a", labels=["cat"], attributes={"year": 7})
    index.update("a", attributes={"year": None}, path="moved")
    (item,) = index.get(["a", "nobody"])
    assert (item.labels, item.tags, dict(item.attributes), item.path) == (
        ("cat",),
        ("x",),
        {},
        "moved",
    )
    with pytest.raises(NotFound, match="no item 'nobody'"):
        index.update("nobody", path="x")
    with pytest.raises(NotFound, match="no item 'nobody'"):
        index.neighbors("nobody")
    with pytest.raises(InvalidRequest, match="ids or a filter"):
        index.delete_items()
    assert index.delete_items(["a", "nobody"]) == 1
    assert [item.id for item in index.items()] == ["b"]
    assert index.delete_items(tag="y") == 1
    assert index.info().items == 0


def test_wrong_uses_are_refused(client: Client) -> None:
    index = client.create_index("pets")
    with pytest.raises(AlreadyExists, match="pets"):
        client.create_index("pets")
    with pytest.raises(InvalidRequest, match="ids: has 1 values for 2 images"):
        index.add([picture(1), picture(2)], ["a"])
    with pytest.raises(InvalidRequest, match="must be str, int, float or bool"):
        client.create_index("other", fields={"x": list})
    with pytest.raises(InvalidRequest, match="choose exact or lancedb"):
        client.create_index("other", engine="milvus")
    with pytest.raises(ImagesFailed, match="no such"):
        index.search("no such file.png")
    with pytest.raises(ImagesFailed) as caught:
        index.add([picture(1), b"not an image"], ["a", "b"])
    assert "1 of 2 images" in str(caught.value)
    assert "image 1" in str(caught.value)
    assert index.info().items == 1
    vectors = client.embed([picture(1)])
    with pytest.raises(WrongState, match="different models"):
        index.add_vectors(vectors, ["v"], "tiny@7")
    index.add_vectors(vectors, ["v"], "tiny@1", labels=[["vector"]])
    assert index.search(picture(1), label="vector")[0].id == "v"
    with pytest.raises(NotFound, match="there are: pets"):
        client.index("nothing").info()


def test_a_folder_is_synchronized(client: Client, photos: Path) -> None:
    index = client.create_index("pets")
    planned = index.sync_folder(photos, dry_run=True)
    assert len(planned.added) == 8
    assert index.info().items == 0
    first = index.sync_folder(photos)
    assert (len(first.added), first.changed, first.deleted) == (8, (), ())
    assert index.get(["cats/0.png"])[0].labels == ("cats",)
    version = index.info().version
    assert index.sync_folder(photos).unchanged == 8
    assert index.info().version == version
    (photos / "cats" / "2.png").write_bytes(picture(77))
    (photos / "dogs" / "3.png").unlink()
    (photos / "dogs" / "9.png").write_bytes(picture(9))
    (photos / "dogs" / "broken.png").write_bytes(picture(9)[:40])
    again = index.sync_folder(photos)
    assert again.changed == ("cats/2.png",)
    assert again.deleted == ("dogs/3.png",)
    assert again.added == ("dogs/9.png", "dogs/broken.png")
    assert [Path(error.name).name for error in again.errors] == ["broken.png"]
    assert again.unchanged == 6
    assert {item.id for item in index.items()} == {
        *(f"cats/{n}.png" for n in (0, 2, 4)),
        *(f"dogs/{n}.png" for n in (1, 5, 9, "same", "blur")),
    }
    # Another folder in the same index does not delete the first one's items.
    other = index.sync_folder(photos / "cats", prefix="phone/")
    assert (len(other.added), other.deleted) == (3, ())
    assert index.info().items == 11
    assert index.sync_folder(photos / "cats", prefix="phone/", delete=False).unchanged == 3


async def test_the_asyncio_client_does_the_same(client: Client, address: str) -> None:
    async with AsyncClient(address) as other:
        index = await other.create_index("pets")
        await index.add([picture(1), picture(2)], ["a", "b"])
        assert (await index.search(picture(2)))[0].id == "b"
        assert [item.id async for item in index.items()] == ["a", "b"]
        await other.set_index_alias("live", "pets")
        assert (await other.index("live").info()).name == "pets"


def run(address: str, *arguments: str, code: int = 0) -> str:
    """The standard output of ``multigrain index``."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", output)
        assert main(["--server", address, "index", *arguments]) == code
    return output.getvalue()


def test_the_command_line_creates_fills_and_searches(
    client: Client, address: str, photos: Path, tmp_path: Path
) -> None:
    assert "created for tiny@1" in run(address, "create", "pets", "--field", "year:int")
    assert "pets: in a dry run, 8 added" in run(address, "sync", "pets", str(photos), "--dry-run")
    text = run(address, "sync", "pets", str(photos))
    assert text == "pets: 8 added, 0 changed, 0 deleted, 0 unchanged\n"
    assert "live -> pets" in run(address, "alias", "live", "pets")
    listed = run(address, "list")
    assert "pets" in listed
    assert "live" in listed
    query = str(photos / "cats" / "4.png")
    lines = run(address, "search", "live", query, "-k", "2").splitlines()
    assert lines[0] == f"{query}: 2 hits"
    assert lines[1] == "  1.0000  cats/4.png  cats"
    (found,) = json.loads(
        run(address, "search", "live", query, "--label", "dogs", "--where", "year=2000..", "--json")
    )
    assert found["hits"] == []
    run(address, "search", "live", query, "--where", "color=red", code=2)
    out = tmp_path / "copies"
    text = run(
        address,
        *("near-copies", "pets", "--out", str(out)),
        *("--images", str(photos), "--min-similarity", "0.9999"),
    )
    assert "8 images" in text
    with (out / "pairs.csv").open() as file:
        pairs = {(row["first"], row["second"]): row for row in csv.DictReader(file)}
    assert pairs["cats/0.png", "dogs/same.png"]["equal_bytes"] == "1"
    with (out / "clusters.csv").open() as file:
        clusters = list(csv.DictReader(file))
    assert {"cats/0.png", "dogs/same.png"} <= {row["id"] for row in clusters}
    page = (out / "report.html").read_text()
    assert "equal files" in page
    assert "data:image/jpeg;base64," in page
    assert "live  removed" in run(address, "alias", "live", "--remove")
    assert "deleted" in run(address, "delete", "pets")
    assert "pets" not in run(address, "list")


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "x", "--field", "year"],
        ["create", "x", "--field", "year:date"],
        ["search", "x", "a.jpg", "--where", "year"],
        ["search", "x", "a.jpg", "--min-similarity", "2"],
        ["near-copies", "x"],
        ["nothing"],
    ],
)
def test_wrong_command_lines_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["index", *arguments])

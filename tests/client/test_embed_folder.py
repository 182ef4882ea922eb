"""embed_folder and its command."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from multigrain_client import ImagesFailed, InvalidRequest, ServerError
from multigrain_client.folder_embedding import FolderRun, list_folder
from multigrain_client.images import EmbeddedImage
from tests.client.faults import Fault
from tests.client.pictures import expected, images_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty images in two folders; the fake server accepts any bytes."""
    folder = tmp_path / "photos"
    for number, data in enumerate(images_of(40)):
        path = folder / f"{'ab'[number % 2]}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.jpg").write_bytes(b"hidden")
    return folder


def vectors_of(folder: Path) -> np.ndarray:
    return expected([(folder / name).read_bytes() for name in list_folder(folder).paths])


def test_image_files_are_sorted_and_exclude_other_files(photos):
    names = list_folder(photos).paths
    assert names == sorted(names)
    assert len(names) == 40
    assert names[0] == "a/000.jpg"


def test_npy_and_its_csv_are_written(client, photos, tmp_path):
    (photos / "a" / "010.jpg").write_bytes(b"bad")
    seen = []
    result = client.embed_folder(
        photos, tmp_path / "v.npy", on_progress=lambda done, total: seen.append((done, total))
    )
    vectors = np.load(tmp_path / "v.npy")
    with (tmp_path / "v.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bad = list_folder(photos).paths.index("a/010.jpg")
    good = [row for row in range(40) if row != bad]
    assert (result.images, result.size, len(result.errors)) == (40, vectors.shape[1], 1)
    assert result.errors[0].name.endswith("a/010.jpg")
    np.testing.assert_array_equal(vectors[good], vectors_of(photos)[good])
    assert np.isnan(vectors[bad]).all()
    assert [row["path"] for row in rows] == list_folder(photos).paths
    assert [bool(row["error"]) for row in rows] == [row == bad for row in range(40)]
    assert seen == [(done, 40) for done in range(1, 41)]


def test_parquet_has_null_vectors_for_failed_images(client, photos, tmp_path):
    # Including the first row, before the vector size is known.
    (photos / "a" / "000.jpg").write_bytes(b"bad")
    result = client.embed_folder(photos, tmp_path / "v.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column("path").to_pylist() == list_folder(photos).paths
    embeddings = table.column("embedding").to_pylist()
    assert embeddings[0] is None
    assert table.column("error").to_pylist()[1:] == [None] * 39
    assert table.column("error").to_pylist()[0]
    np.testing.assert_array_equal(np.array(embeddings[1:], np.float32), vectors_of(photos)[1:])
    assert table.schema.metadata[b"multigrain.model"].decode() == result.model


def test_broken_connection_loses_no_row(client, state, photos, tmp_path):
    state.faults["EmbedStream"].extend([Fault(after=1)] * 2)
    client.embed_folder(photos, tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors_of(photos))


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_rows_before_an_error_are_kept_under_another_name(tmp_path, photos, name):
    vector = np.ones(4, np.float32)

    def switch_models() -> None:
        with FolderRun(photos, tmp_path / name) as run:
            run.add(EmbeddedImage(0, "a", vector, model="m@1"))
            run.add(EmbeddedImage(1, "b", vector, model="m@2"))

    for number in ("", "-2"):
        with pytest.raises(ServerError, match="name it as name@version") as caught:
            switch_models()
        (note,) = caught.value.__notes__
        kept = tmp_path / name.replace(".", f".part{number}.")
        assert note.startswith(f"the first 1 of 40 rows are in {kept}")
        assert vectors_in(kept) == [[1.0] * 4]
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


def vectors_in(path: Path) -> list[list[float]]:
    if path.suffix == ".npy":
        rows = np.load(path).tolist()
        with path.with_suffix(".csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
        return rows
    return pyarrow.parquet.read_table(path).column("embedding").to_pylist()


def test_no_file_is_written_if_all_images_fail(client, photos, tmp_path):
    for name in list_folder(photos).paths:
        (photos / name).write_bytes(b"bad")
    with pytest.raises(ImagesFailed, match="40 of 40"):
        client.embed_folder(photos, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("folder", "out", "said"),
    [
        ("nowhere", "v.npy", "folder: .*nowhere"),
        ("empty", "v.npy", "no image file"),
        ("photos", "v.txt", r"must end in .parquet or .npy"),
        ("photos", "nowhere/v.npy", "there is no folder"),
    ],
)
def test_invalid_arguments_are_refused_before_any_call(
    client, state, photos, tmp_path, folder, out, said
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=said):
        client.embed_folder(tmp_path / folder, tmp_path / out)
    assert not state.calls["EmbedStream"]


@pytest.mark.parametrize(("folder", "out"), [("", "v.npy"), ("photos", "")])
def test_an_empty_path_is_not_the_current_directory(
    client, run, state, photos, tmp_path, monkeypatch, folder, out
):
    """As of a shell variable that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="the path is empty"):
        client.embed_folder(folder, out)
    code, _, err = run("embed-folder", folder, "--out", out)
    assert code == 2
    assert "the path is empty" in err
    assert not state.calls["EmbedStream"]


def test_a_listing_that_lasts_is_mentioned(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("multigrain_client.cli.progress.LISTING_AFTER", -1.0)
    code, _, err = run("embed-folder", str(photos), "--out", str(tmp_path / "v.npy"))
    assert code == 0
    assert f"listing {photos}: 0 folders and unknown files so far\n" in err
    monkeypatch.undo()
    assert "listing" not in run("embed-folder", str(photos), "--out", str(tmp_path / "v.npy"))[2]


def test_embed_folder_command_writes_the_file_and_names_failed_images(run, photos, tmp_path):
    out = str(tmp_path / "v.npy")
    code, text, _ = run("embed-folder", str(photos), "--out", out)
    assert code == 0
    assert "40 vectors of" in text
    (photos / "b" / "001.jpg").write_bytes(b"bad")
    code, text, errors = run("embed-folder", str(photos), "--out", out)
    assert code == 1
    assert "39 vectors of" in text
    assert "b/001.jpg" in errors
    assert "40 of 40" in errors


def test_what_is_left_out_is_reported_and_links_are_followed(run, client, photos, tmp_path):
    shutil.copytree(photos / "a", tmp_path / "store")
    (photos / "link").symlink_to(tmp_path / "store")
    (photos / "link2").symlink_to(photos / "a")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "b" / "@eaDir" / "1.jpg").mkdir(parents=True)
    (photos / "b" / "@eaDir" / "1.jpg" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"thumb")
    (photos / "scan.jp2").write_bytes(b"x")
    result = client.embed_folder(photos, tmp_path / "v.npy")
    assert result.images == 60
    assert result.left_out == {
        "unsupported": 1,
        "broken_link": 1,
        "listed_already": 1,
        "other": 2,
        "system": 1,
        "hidden": 1,
    }
    code, text, _ = run("embed-folder", str(photos), "--out", str(tmp_path / "v.npy"))
    assert code == 0
    assert "left out: 1 .jp2 file (JPEG 2000 is not read: save as JPEG or PNG)" in text
    assert "1 link that cannot be followed (gone.jpg)" in text


def test_a_folder_without_images_is_refused_with_what_it_holds(client, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jp2").touch()
    with pytest.raises(InvalidRequest, match=r"no image file: it has only 1 \.jp2 file"):
        client.embed_folder(tmp_path / "a", tmp_path / "v.npy")

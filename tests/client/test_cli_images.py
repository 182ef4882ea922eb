"""The commands ``embed`` and ``classify`` against a fake server."""

from __future__ import annotations

import json

import grpc
import numpy as np
import pytest

from tests.client.fake_server import vector_of
from tests.client.faults import Fault


def test_embed_writes_npy_or_prints_json(run, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"12345678")
    code, out, _ = run("embed", str(image), str(image), "--out", str(tmp_path / "vectors"))
    assert code == 0
    assert out.endswith("vectors: 2 vectors of 8\n")
    np.testing.assert_array_equal(np.load(tmp_path / "vectors")[1], vector_of(b"12345678"))
    _, out, _ = run("embed", str(image))
    (row,) = json.loads(out)
    assert row["image"] == str(image)
    np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of(b"12345678"))


def test_embed_names_a_failed_image_and_exits_with_1(run, tmp_path):
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    good.write_bytes(b"good")
    bad.write_bytes(b"bad")
    code, out, err = run("embed", str(good), str(bad))
    assert code == 1
    assert err == f"multigrain embed: 1 of 2 images failed: {bad}: not an image\n"
    rows = json.loads(out)
    np.testing.assert_array_equal(np.float32(rows[0]["embedding"]), vector_of(b"good"))
    assert rows[1] == {"image": str(bad), "embedding": None, "error": "not an image"}
    code, out, _ = run("embed", str(good), str(bad), "--on-error", "nan")
    assert code == 0
    assert json.loads(out)[1]["embedding"] is None


def test_classify_prints_classes(run, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    _, out, _ = run("classify", str(image), "--top-k", "2")
    assert out == f"{image}: class 0 1.0000, class 1 0.5000\n"
    _, out, _ = run("classify", str(image), "--top-k", "1", "--json")
    assert json.loads(out)[0]["classes"] == [
        {"label": "class 0", "class_id": 0, "probability": 1.0}
    ]


@pytest.fixture
def mixed(tmp_path):
    """Paths of five images, of which the second and the last are bad."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths[:4]):
        path.write_bytes(b"bad" if number == 1 else b"good %d" % number)
    return [str(path) for path in paths]


def test_classify_prints_good_answers_in_order_and_names_the_bad_images(run, mixed):
    code, out, err = run("classify", *mixed, "--top-k", "1")
    assert code == 1
    assert out.splitlines() == [f"{mixed[number]}: class 0 1.0000" for number in (0, 2, 3)]
    assert err == (
        f"multigrain classify: 2 of 5 images failed: {mixed[1]}: not an image; "
        f"{mixed[4]}: cannot be read: No such file or directory\n"
    )
    code, out, _ = run("classify", *mixed, "--top-k", "1", "--json")
    rows = json.loads(out)
    assert code == 1
    assert [row["image"] for row in rows] == mixed
    assert [len(row["classes"]) for row in rows] == [1, 0, 1, 1, 0]
    assert [row.get("error") for row in rows] == [
        None,
        "not an image",
        None,
        None,
        "cannot be read: No such file or directory",
    ]


def test_classify_of_bad_images_only_is_an_error(run, mixed):
    code, out, err = run("classify", mixed[1], mixed[4])
    assert (code, out) == (1, "")
    assert err.startswith("multigrain classify: 2 of 2 images failed: ")


def test_every_failed_image_is_named(run, tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(13)]
    code, _, err = run("classify", *names)
    assert code == 1
    assert all(name in err for name in names)


def test_embed_writes_good_rows_beside_those_of_bad_images(run, mixed, tmp_path):
    out = tmp_path / "v.npy"
    for options, expected in (([], 1), (["--on-error", "nan"], 0)):
        code, text, err = run("embed", *mixed, "--out", str(out), *options)
        assert code == expected
        assert text == f"{out}: 5 vectors of 8, 2 rows are NaN (failed images)\n"
        assert mixed[1] in err
        vectors = np.load(out)
        assert np.isnan(vectors).any(axis=1).tolist() == [False, True, False, False, True]
        np.testing.assert_array_equal(vectors[2], vector_of(b"good 2"))


@pytest.mark.parametrize(("command", "call"), [("classify", "Classify"), ("embed", "Embed")])
def test_call_that_fails_later_does_not_lose_earlier_answers(
    run, state, mixed, monkeypatch, command, call
):
    monkeypatch.setattr("multigrain_client.cli.images.PART", 2)
    fault = Fault(grpc.StatusCode.FAILED_PRECONDITION, "unloaded", "WRONG_STATE")
    begin, calls = state.begin, []

    def fail_second(name, request, context):
        calls.append(name)
        if len(calls) == 2:
            state.faults[call].append(fault)
        return begin(name, request, context)

    state.begin = fail_second
    code, out, err = run(command, *mixed, "--json")
    assert code == 1
    assert [row["image"] for row in json.loads(out)] == mixed[:2]
    assert "unloaded" in err
    assert err.endswith(f"multigrain {command}: 2 of 5 images have an answer\n")

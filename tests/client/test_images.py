"""embed and classify."""

from __future__ import annotations

import io
import threading

import grpc
import numpy as np
import pytest
from PIL import Image

from multigrain.v1 import embedding_pb2
from multigrain_client import ImagesFailed, InvalidRequest, Unavailable
from tests.client.fake_server import VECTOR_SIZE, vector_of
from tests.client.faults import Fault
from tests.client.pictures import expected, images_of


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_embed_returns_one_float32_row_per_image(client):
    vectors = client.embed(images_of(3))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(images_of(3)))


def test_single_image_gives_one_row_and_empty_input_none(client, state):
    assert client.embed(b"00000007").shape == (1, VECTOR_SIZE)
    assert client.embed([]).shape == (0, 0)
    assert state.calls["Embed"] == 1


def test_images_may_be_paths_bytes_files_pil_images_and_arrays(client, state, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    data = png_bytes(picture)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        client.embed(
            [path, str(path), data, bytearray(data), file, io.BytesIO(data), picture, pixels]
        )
    sent = list(state.requests[-1].images)
    assert len(sent) == 8
    for image in sent:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)


def test_pil_image_is_rotated_by_its_exif_orientation(client, state):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    client.embed(Image.open(buffer))
    sent = Image.open(io.BytesIO(state.requests[-1].images[0]))
    np.testing.assert_array_equal(np.asarray(sent), np.rot90(pixels, -1))
    assert 0x0112 not in sent.getexif()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_gray_is_sent_without_loss(client, state, mode):
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    stored = {"I;16": "<u2", "I;16B": ">u2", "I": "=i4"}[mode]
    client.embed(Image.frombytes(mode, (8, 8), values.astype(stored).tobytes()))
    sent = Image.open(io.BytesIO(state.requests[-1].images[0]))
    np.testing.assert_array_equal(np.asarray(sent), values)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_transparency_is_sent(client, state, mode):
    clear = Image.new("P", (4, 4), 7) if mode == "PA" else Image.new("L", (4, 4), 200)
    clear.putalpha(0)
    for step in {"RGBA": ["RGBA"], "RGBa": ["RGBA", "RGBa"], "La": ["La"]}.get(mode, []):
        clear = clear.convert(step)
    assert clear.mode == mode
    client.embed(clear)
    sent = Image.open(io.BytesIO(state.requests[-1].images[0]))
    assert sent.convert("RGBA").getchannel("A").getextrema() == (0, 0)


def test_damaged_exif_of_a_pil_image_is_ignored(client):
    picture = Image.new("RGB", (2, 2))
    picture.info["exif"] = b"no metadata"
    assert client.embed(picture).shape == (1, VECTOR_SIZE)


def test_4d_array_is_several_images_and_3d_or_gray_is_one(client, state):
    client.embed(np.zeros((3, 4, 4, 3), np.uint8))
    assert len(state.requests[-1].images) == 3
    client.embed(np.zeros((4, 4), np.uint8))
    assert len(state.requests[-1].images) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be uint8"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        ([3.5], "float is not an image type"),
        (5, "int is not an image type"),
        (io.StringIO("x"), "open it with mode 'rb'"),
        (Image.new("F", (2, 2)), "mode F: floating-point"),
        (Image.new("I", (2, 2), -1), "mode I: values must be 0..65535"),
    ],
)
def test_unsupported_image_is_refused_with_the_reason(client, bad, message):
    with pytest.raises(InvalidRequest, match=message):
        client.embed(bad)


def test_many_images_are_split_by_count_in_input_order(client, state):
    images = images_of(1000)
    np.testing.assert_array_equal(client.embed(images), expected(images))
    sizes = [len(request.images) for request in state.requests]
    assert max(sizes) == 64
    assert sum(sizes) == 1000


def test_large_images_are_split_by_bytes(client, state, monkeypatch):
    images = [data.ljust(10 * 2**20, b".") for data in images_of(9)]
    np.testing.assert_array_equal(client.embed(images), expected(images))
    assert sorted(len(request.images) for request in state.requests) == [1, 4, 4]


def test_number_of_parallel_calls_is_limited(make_client, server, state):
    client = make_client(server.address, concurrency=3, batch_size=1)
    under_way, most, lock = 0, 0, threading.Lock()
    begin = state.begin

    def counted(name, request, context):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        state.delay = 0.01
        try:
            return begin(name, request, context)
        finally:
            with lock:
                under_way -= 1

    state.begin = counted
    client.embed(images_of(20))
    assert 2 <= most <= 3


def test_all_failed_images_are_named(client, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"bad")
    images = [b"good", path, b"good", b"bad", tmp_path / "missing.jpg"]
    with pytest.raises(ImagesFailed) as info:
        client.embed(images)
    text = str(info.value)
    assert text.startswith("3 of 5 images failed")
    assert f"{path}: not an image" in text
    assert "image 3: not an image" in text
    assert "missing.jpg: cannot be read: No such file" in text
    assert [image.index for image in info.value.images] == [1, 3, 4]
    assert {image.kind for image in info.value.images} == {"IMAGE_UNREADABLE"}


def test_on_error_nan_gives_a_row_of_nan(client):
    vectors = client.embed([b"a" * 8, b"bad", b"b" * 8, "/nowhere/x.png"], on_error="nan")
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(vectors[2], vector_of(b"b" * 8))


def test_all_images_failed_is_an_error_even_with_on_error_nan(client):
    with pytest.raises(ImagesFailed):
        client.embed([b"bad"], on_error="nan")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0), ("fp16", 1e-3), ("int8", 4e-3)])
def test_vectors_in_each_transfer_dtype(client, state, dtype, tolerance):
    images = images_of(4)
    np.testing.assert_allclose(client.embed(images, dtype=dtype), expected(images), atol=tolerance)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.embed([b"1"], resolution=-1), "resolution"),
        (lambda client: client.embed([b"1"], model=5), "model"),
        (lambda client: client.classify([b"1"], top_k=-1), "top_k"),
        (lambda client: client.classify([b"1"], top_k=1.5), "top_k"),
        (lambda client: list(client.embed_stream([b"1"], resolution=2**32)), "resolution"),
        (lambda client: list(client.models(page_size=-1)), "page_size"),
        (lambda client: list(client.stream_events("job-1", after_seq=-1)), "after_seq"),
    ],
)
def test_number_out_of_the_range_of_its_field_is_refused_by_name(client, state, call, field):
    with pytest.raises(InvalidRequest, match=f"^{field}: must be") as info:
        call(client)
    assert info.value.violations[0].field == field
    assert not state.requests


def test_unknown_dtype_or_on_error_is_refused(client):
    with pytest.raises(InvalidRequest, match="must be one of fp32, fp16, int8"):
        client.embed(b"x", dtype="fp8")
    with pytest.raises(InvalidRequest, match="on_error: choose raise or nan"):
        client.embed(b"x", on_error="ignore")


def test_embed_retries_an_unreachable_and_an_overloaded_server(client, state):
    state.faults["Embed"].extend(
        [
            Fault(),
            Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OVERLOADED", retry_after=0.01),
        ]
    )
    images = images_of(200)
    np.testing.assert_array_equal(client.embed(images), expected(images))


def test_error_of_one_of_many_calls_is_raised(client, state):
    state.faults["Embed"].extend([Fault()] * 100)
    with pytest.raises(Unavailable):
        client.embed(images_of(300))


def test_classify_returns_classes_with_labels(client):
    answers = client.classify(images_of(70), top_k=2)
    assert len(answers) == 70
    first, second = answers[69]
    assert (first.label, first.class_id, first.probability) == ("class 0", 0, 1.0)
    assert (second.label, second.probability) == ("class 1", 0.5)


def test_classify_names_failed_images_or_leaves_them_empty(client):
    with pytest.raises(ImagesFailed, match="image 1: not an image"):
        client.classify([b"good", b"bad"])
    answers = client.classify([b"good", b"bad"], top_k=1, on_error="empty")
    assert [len(classes) for classes in answers] == [1, 0]


def test_array_without_pillow_names_the_extra_to_install(client, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'multigrain\[images\]'"):
        client.embed(np.zeros((4, 4, 3), np.uint8))
    assert client.embed(b"00000001").shape == (1, VECTOR_SIZE)


def test_defaults_and_options_of_embed_are_sent(client, state):
    client.embed(images_of(1))
    client.embed(images_of(1), model="m@1", normalize=False, whiten=True, dtype="FP16")
    default, chosen = state.requests
    assert (default.model, default.normalize, default.whiten) == ("", True, False)
    assert default.dtype == embedding_pb2.DTYPE_FP32
    assert (chosen.model, chosen.normalize, chosen.whiten) == ("m@1", False, True)
    assert chosen.dtype == embedding_pb2.DTYPE_FP16


def test_unknown_keyword_of_embed_is_a_type_error(client, state):
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalise'"):
        client.embed(images_of(1), normalise=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'request_id'"):
        client.embed_stream(images_of(1), request_id="x")
    assert not state.calls

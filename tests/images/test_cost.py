"""The estimated cost of decoding: read from the header, never an exception, never far too low."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multigrain.images.cost import decode_cost
from tests.images.files import encode, noise

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_pixels_are_those_of_the_header(form: str) -> None:
    cost = decode_cost(encode(noise(320, 200), form))
    assert cost.pixels == 320 * 200
    assert cost.seconds > 0
    assert cost.bytes > 4 * 320 * 200


def test_a_jpeg_that_is_decoded_at_a_fraction_takes_less() -> None:
    data = encode(noise(1600, 1200), "JPEG")
    whole, part = decode_cost(data), decode_cost(data, shortest=300)
    assert part.pixels == whole.pixels
    assert part.bytes < whole.bytes
    assert part.seconds < whole.seconds


def test_each_scan_of_a_jpeg_costs() -> None:
    image = noise(800, 600)
    plain, progressive = (encode(image, "JPEG", progressive=flag) for flag in (False, True))
    assert decode_cost(progressive).seconds > decode_cost(plain).seconds
    assert decode_cost(progressive).bytes > decode_cost(plain).bytes


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_headers_have_a_cost_too(form: str) -> None:
    data = encode(noise(64, 48), form)
    rng = np.random.default_rng(0)
    for length in range(0, min(len(data), 600), 7):
        assert decode_cost(data[:length]).seconds > 0
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), 4):
            changed[place] = rng.integers(256)
        assert decode_cost(bytes(changed)).bytes > 0


@pytest.mark.parametrize("data", [b"", b"\xff", b"no image", bytes(1000), b"<html></html>"])
def test_what_is_no_image_costs_next_to_nothing(data: bytes) -> None:
    assert decode_cost(data).pixels == 0
    assert decode_cost(data).seconds < 0.1


@pytest.mark.process
def test_the_daemon_imports_neither_numpy_nor_pillow_for_it() -> None:
    program = (
        "import sys, multigrain.images.cost\n"
        "heavy = {'numpy', 'PIL', 'pillow_heif', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

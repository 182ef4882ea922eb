"""Captured factors against NumPy loops over examples and positions."""

from __future__ import annotations

import math

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from multigrain.model.layers import Conv2d, Dense
from multigrain.optim.thor.capture import CapturedLayer, attach

Net = nn.Cell


def capture(
    net: Net, x: np.ndarray, *, scale: float = 1.0, compiled: bool = False, **options: int
) -> tuple[CapturedLayer, np.ndarray, np.ndarray, np.ndarray]:
    """The layer, sqrt(T) A, sqrt(T) G and the derivative of scale * mean loss by the output."""
    (layer,) = attach(net, loss_scale=scale, **{"block_size": 128, "row_limit": 10**9, **options})
    n = len(x)
    weights = np.random.default_rng(5).standard_normal(net(Tensor(x)).shape).astype(np.float32)

    def loss(images: Tensor) -> Tensor:
        return scale * (net(images) * Tensor(weights)).sum() / n

    slots = mindspore.ParameterTuple([layer.a_slot, layer.g_slot])
    run = mindspore.value_and_grad(loss, None, slots)
    if compiled:
        run = mindspore.jit(run)
    _, (a, g) = run(Tensor(x))
    return layer, a.asnumpy(), g.asnumpy(), scale * weights / n


def conv(i: int, o: int, kernel: int, stride: int, padding: int) -> Conv2d:
    net = Conv2d(i, o, kernel, stride=stride, padding=padding)
    values = np.random.default_rng(1).standard_normal((o, i, kernel, kernel)).astype(np.float32)
    net.weight.set_data(Tensor(values))
    return net


def conv_by_loops(net: Conv2d, x: np.ndarray, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and G from their definition."""
    n = len(x)
    _, o, height, width = dout.shape
    k, s, p = net.kernel, net.stride, net.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (p, p), (p, p)))
    dim = net.in_channels * k * k
    a, g = np.zeros((dim, dim)), np.zeros((o, o))
    for b in range(n):
        for row in range(height):
            for column in range(width):
                patch = padded[b, :, row * s : row * s + k, column * s : column * s + k].ravel()
                a += np.outer(patch, patch)
                ds = n * dout[b, :, row, column].astype(np.float64)
                g += np.outer(ds, ds)
    rows = n * height * width
    return a / rows, g / rows


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, 5), (3, 2, 1, 6), (1, 1, 0, 4), (1, 2, 0, 5), (7, 2, 3, 9), (3, 1, 1, 1)],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_factors_of_a_convolution(
    kernel: int, stride: int, padding: int, size: int, compiled: bool
) -> None:
    net = conv(3, 4, kernel, stride, padding)
    x = np.random.default_rng(0).standard_normal((2, 3, size, size + 1)).astype(np.float32)
    _, a, g, dout = capture(net, x, compiled=compiled, block_size=1000)
    root = math.sqrt(dout.shape[2] * dout.shape[3])
    expected_a, expected_g = conv_by_loops(net, x, dout)
    np.testing.assert_allclose(a[0], root * expected_a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(g[0], root * expected_g, rtol=1e-4, atol=1e-5)


def test_blocks_are_the_diagonal_blocks_and_padding_is_zero() -> None:
    net = conv(5, 7, 3, 1, 1)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 4)).astype(np.float32)
    layer, a, g, dout = capture(net, x, block_size=4)
    full_a, full_g = (4.0 * f for f in conv_by_loops(net, x, dout))
    assert a.shape == (12, 4, 4)  # 45 = 11 * 4 + 1
    assert g.shape == (2, 4, 4)  # 7 = 4 + 3
    for blocks, full, layout in ((a, full_a, layer.a), (g, full_g, layer.g)):
        for index, block in enumerate(blocks):
            valid = layout.valid(index)
            part = slice(index * 4, index * 4 + valid)
            np.testing.assert_allclose(
                block[:valid, :valid], full[part, part], rtol=1e-4, atol=1e-5
            )
            assert (block[valid:] == 0).all()
            assert (block[:, valid:] == 0).all()


def test_factors_of_a_dense_layer() -> None:
    net = Dense(5, 3)
    net.weight.set_data(Tensor(np.random.default_rng(1).random((3, 5)).astype(np.float32)))
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    _, a, g, dout = capture(net, x)
    ds = 6 * dout.astype(np.float64)
    np.testing.assert_allclose(a[0], sum(np.outer(v, v) for v in x) / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(g[0], sum(np.outer(v, v) for v in ds) / 6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_loss_scale_does_not_change_the_factors(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "conv":
        x = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    else:
        x = rng.standard_normal((2, 3)).astype(np.float32)
    found = [
        capture(conv(3, 4, 3, 1, 1) if kind == "conv" else Dense(3, 4), x, scale=scale)
        for scale in (1.0, 1024.0)
    ]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-5)
    np.testing.assert_allclose(found[1][3], 1024 * found[0][3], rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (7, 2, 3)]
)
def test_row_limit_takes_a_centred_grid_of_positions(
    kernel: int, stride: int, padding: int
) -> None:
    net = conv(2, 3, kernel, stride, padding)
    x = np.random.default_rng(0).standard_normal((2, 2, 24, 24)).astype(np.float32)
    _, a, g, dout = capture(net, x, row_limit=60)
    side = dout.shape[2]
    k = next(k for k in range(1, 100) if 2 * math.ceil(side / k) ** 2 <= 60)
    offset = (side - 1 - (math.ceil(side / k) - 1) * k) // 2
    offset = offset if offset * stride >= padding else 0
    grid = range(offset, side, k)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    patches = [
        padded[b, :, r * stride : r * stride + kernel, c * stride : c * stride + kernel].ravel()
        for b in range(2)
        for r in grid
        for c in grid
    ]
    ds = [2.0 * dout[b, :, r, c] for b in range(2) for r in grid for c in grid]
    for found, rows in ((a, patches), (g, ds)):
        expected = side * sum(np.outer(v, v) for v in rows) / len(rows)  # sqrt(T) = side
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_taps_change_neither_output_nor_gradients() -> None:
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32))
    results = []
    for tapped in (False, True):
        net = conv(3, 4, 3, 1, 1)
        if tapped:
            attach(net, block_size=128)
        weights = mindspore.ParameterTuple([net.weight])
        value, (dx, (dw,)) = mindspore.value_and_grad(lambda z: (net(z) ** 2).sum(), 0, weights)(x)  # noqa: B023
        results.append([value.asnumpy(), dx.asnumpy(), dw.asnumpy()])
    for plain, with_taps in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, with_taps)

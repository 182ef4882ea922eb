"""Captured factors against NumPy loops over examples and positions."""

from __future__ import annotations

import math

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.layers import Conv2d, Dense, Pair
from multigrain.optim.thor.capture import CapturedLayer, attach_taps, excluded_layers
from multigrain.optim.thor.taps import concat_examples

pytestmark = pytest.mark.mindspore

Net = nn.Cell


def capture(
    net: Net, x: np.ndarray, *, compiled: bool = False, **options: int
) -> tuple[CapturedLayer, np.ndarray, np.ndarray, np.ndarray]:
    """The layer, sqrt(T) A, sqrt(T) G and the derivative of the mean loss by the output."""
    (layer,) = attach_taps(net, **{"block_size": 128, "row_limit": 10**9, **options})
    n = len(x)
    weights = np.random.default_rng(5).standard_normal(net(Tensor(x)).shape).astype(np.float32)

    def loss(images: Tensor) -> Tensor:
        return (net(images) * Tensor(weights)).sum() / n

    slots = mindspore.ParameterTuple(list(layer.slots))
    run = mindspore.value_and_grad(loss, None, slots)
    if compiled:
        run = mindspore.jit(run)
    _, (a, g) = run(Tensor(x))
    return layer, a.asnumpy(), g.asnumpy(), weights / n


def conv(
    i: int,
    o: int,
    kernel: int | Pair,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair = 1,
) -> Conv2d:
    net = Conv2d(i, o, kernel, stride=stride, padding=padding, dilation=dilation)
    values = np.random.default_rng(1).standard_normal(net.weight.shape).astype(np.float32)
    net.weight.set_data(Tensor(values))
    return net


def patch_at(net: Conv2d, padded: np.ndarray, row: int, column: int) -> np.ndarray:
    """The input patch of output position (row, column), in the order of the flattened weight."""
    (kh, kw), (sh, sw), (dh, dw) = net.kernel, net.stride, net.dilation
    values = [
        padded[channel, row * sh + y * dh, column * sw + x * dw]
        for channel in range(net.in_channels)
        for y in range(kh)
        for x in range(kw)
    ]
    return np.array(values)


def pad(net: Conv2d, x: np.ndarray) -> np.ndarray:
    ph, pw = net.padding
    return np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))


def conv_by_loops(net: Conv2d, x: np.ndarray, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes A and G by their definition."""
    n = len(x)
    _, o, height, width = dout.shape
    padded = pad(net, x)
    dim = net.in_channels * net.kernel[0] * net.kernel[1]
    a, g = np.zeros((dim, dim)), np.zeros((o, o))
    for b in range(n):
        for row in range(height):
            for column in range(width):
                patch = patch_at(net, padded[b], row, column)
                a += np.outer(patch, patch)
                ds = n * dout[b, :, row, column].astype(np.float64)
                g += np.outer(ds, ds)
    rows = n * height * width
    return a / rows, g / rows


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [
        (3, 1, 1, 1, 5),
        (3, 2, 1, 1, 6),
        (1, 1, 0, 1, 4),
        (1, 2, 0, 1, 5),
        (7, 2, 3, 1, 9),
        (3, 1, 1, 1, 1),
        (3, 1, 2, 2, 6),
        (3, 2, 0, 2, 7),
        ((1, 3), 1, (0, 1), 1, 5),
        ((3, 1), (2, 1), (1, 0), 1, 6),
        ((2, 3), (1, 2), (0, 2), (2, 1), 6),
        (1, 1, 1, 1, 3),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_factors_of_a_convolution(
    kernel: int | Pair,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    size: int,
    compiled: bool,
) -> None:
    net = conv(3, 4, kernel, stride, padding, dilation)
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


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (1, 1, 0, 1),
        (7, 2, 3, 1),
        (3, 1, 2, 2),
        (3, 2, 2, 3),
        ((1, 5), (1, 2), (0, 2), 1),
        ((1, 5), 1, (0, 2), 1),  # centered in one direction, from the border in the other
        ((5, 1), 1, (2, 0), 1),
        ((5, 2), (2, 1), (2, 0), (1, 3)),
    ],
)
def test_the_row_limit_samples_a_centered_grid(
    kernel: int | Pair, stride: int | Pair, padding: int | Pair, dilation: int | Pair
) -> None:
    net = conv(2, 3, kernel, stride, padding, dilation)
    x = np.random.default_rng(0).standard_normal((2, 2, 24, 23)).astype(np.float32)
    _, a, g, dout = capture(net, x, row_limit=60)
    sides = dout.shape[2:]
    k = next(k for k in range(1, 100) if 2 * np.prod([-(-n // k) for n in sides]) <= 60)
    assert k > 1
    grids = []
    for n, s, p in zip(sides, net.stride, net.padding, strict=True):
        offset = (n - 1 - (math.ceil(n / k) - 1) * k) // 2
        grids.append(range(offset if offset * s >= p else 0, n, k))
    padded = pad(net, x)
    positions = [(b, r, c) for b in range(2) for r in grids[0] for c in grids[1]]
    patches = [patch_at(net, padded[b], r, c) for b, r, c in positions]
    ds = [2.0 * dout[b, :, r, c] for b, r, c in positions]
    root = math.sqrt(sides[0] * sides[1])
    for found, rows in ((a, patches), (g, ds)):
        expected = root * sum(np.outer(v, v) for v in rows) / len(rows)
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_over_workers_is_the_factor_of_the_whole_batch(world: int) -> None:
    """Also if positions are sampled: every worker samples those that one worker would."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 2, 12, 12)).astype(np.float32)
    weights = rng.standard_normal((6, 3, 12, 12)).astype(np.float32)

    def factors(part: slice, workers: int) -> list[np.ndarray]:
        net = conv(2, 3, 3, 1, 1)
        (layer,) = attach_taps(net, block_size=128, row_limit=300, world=workers)
        slots = mindspore.ParameterTuple(list(layer.slots))
        images, own = Tensor(x[part]), Tensor(weights[part])
        run = mindspore.value_and_grad(lambda z: (net(z) * own).sum() / own.shape[0], None, slots)
        return [f.asnumpy() for f in run(images)[1]]

    each = 6 // world
    parts = [factors(slice(r * each, (r + 1) * each), world) for r in range(world)]
    for whole, *shares in zip(factors(slice(0, 6), 1), *parts, strict=True):
        np.testing.assert_allclose(np.mean(shares, 0), whole, rtol=1e-4, atol=1e-5)


def test_taps_change_neither_output_nor_gradients() -> None:
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32))
    results = []
    for tapped in (False, True):
        net = conv(3, 4, 3, 1, 1)
        if tapped:
            attach_taps(net, block_size=128)
        weights = mindspore.ParameterTuple([net.weight])
        value, (dx, (dw,)) = mindspore.value_and_grad(lambda z: (net(z) ** 2).sum(), 0, weights)(x)  # noqa: B023
        results.append([value.asnumpy(), dx.asnumpy(), dw.asnumpy()])
    for plain, with_taps in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, with_taps)


@pytest.mark.parametrize(
    "layer",
    [Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, group=4)],
    ids=["grouped", "depthwise"],
)
def test_a_grouped_convolution_is_refused_by_name(layer: nn.Cell) -> None:
    net = nn.SequentialCell([Conv2d(3, 4, 3), layer])
    with pytest.raises(MultigrainError, match=r"^1 is a convolution with [24] groups") as caught:
        attach_taps(net, block_size=128)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert not net[0].tapped  # nothing was changed


def test_a_grouped_convolution_equals_its_groups() -> None:
    net = Conv2d(4, 6, 3, padding=1, groups=2)
    weight = np.random.default_rng(1).standard_normal((6, 2, 3, 3)).astype(np.float32)
    net.weight.set_data(Tensor(weight))
    net.matmul_positions = 1000  # has no effect on it
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
    found = net(Tensor(x)).asnumpy()
    for group in range(2):
        half = Conv2d(2, 3, 3, padding=1)
        half.weight.set_data(Tensor(weight[3 * group : 3 * group + 3]))
        expected = half(Tensor(x[:, 2 * group : 2 * group + 2])).asnumpy()
        np.testing.assert_allclose(found[:, 3 * group : 3 * group + 3], expected, atol=1e-5)


def test_excluded_layers_have_a_reason() -> None:
    net = nn.SequentialCell([Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), Dense(4, 2)])
    attach_taps(net, block_size=128)
    found = {x.name: (x.parameters, x.reason) for x in excluded_layers(net)}
    assert found.keys() == {"1", "2", "3"}
    assert found["1"][0] == ("gamma", "beta")
    assert "BatchNorm" in found["1"][1]
    assert found["2"] == (("weight",), "no taps exist for Conv2d")
    assert found["3"][0] == ("bias",)


@pytest.mark.parametrize("examples", [1, 5, 36, 37, 40])
def test_concatenated_examples_keep_their_order(examples: int) -> None:
    x = np.random.default_rng(3).standard_normal((examples, 3, 2)).astype(np.float32)
    joined = concat_examples(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(joined, x.transpose(1, 0, 2).reshape(1, 3, 2 * examples))

"""Trunks: shapes and the published numbers of parameters."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from multigrain.model.layers import Conv2d, Pair, positions_inside
from multigrain.model.multigrain import SMALL_MAP, build_model
from multigrain.model.resnet import LAYOUTS, MaxPool, batch_norm
from multigrain.specs.training import ModelSpec

pytestmark = pytest.mark.mindspore

# torchvision's counts with 1000 classes; SE-ResNet-50: 28.1 million.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "se_resnet50": 28_088_024,
}


@pytest.mark.parametrize("trunk", sorted(LAYOUTS))
def test_number_of_parameters_is_the_published_one(trunk: str) -> None:
    net = build_model(ModelSpec(trunk=trunk), 1000)
    count = sum(int(np.prod(p.shape)) for p in net.trainable_params())
    assert count == PARAMETERS[trunk]


@pytest.mark.parametrize(
    ("trunk", "stem", "size", "side", "channels"),
    [
        ("resnet18", "imagenet", 64, 2, 512),
        ("resnet18", "imagenet", 47, 2, 512),
        ("resnet18", "small", 32, 4, 512),
        ("se_resnet50", "imagenet", 64, 2, 2048),
    ],
)
def test_output_shapes(trunk: str, stem: str, size: int, side: int, channels: int) -> None:
    net = build_model(ModelSpec(trunk=trunk, stem=stem), 7)
    net.set_train(False)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32))
    assert net.trunk(x).shape == (2, channels, side, side)
    embedding, logits = net(x)
    assert embedding.shape == (2, channels) == (2, net.embedding_size)
    assert logits.shape == (2, 7)
    np.testing.assert_allclose(
        logits.asnumpy(),
        embedding.asnumpy() @ net.classifier.weight.asnumpy().T + net.classifier.bias.asnumpy(),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [7, 8])
def test_max_pooling_equals_padding_with_minus_infinity(size: int) -> None:
    x = np.random.default_rng(0).random((1, 2, size, size)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    side = (size + 2 - 3) // 2 + 1
    expected = np.stack(
        [
            [padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(side)]
            for i in range(side)
        ]
    )
    found = MaxPool()(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize(("stride", "size"), [(1, 1), (1, 3), (2, 2), (2, 5)])
def test_matmul_of_small_maps_equals_the_convolution(stride: int, size: int) -> None:
    rng = np.random.default_rng(0)
    layer = Conv2d(6, 4, 3, stride=stride, padding=1)
    layer.weight.set_data(Tensor(rng.standard_normal((4, 6, 3, 3)).astype(np.float32)))
    x = Tensor(rng.standard_normal((3, 6, size, size)).astype(np.float32))
    plain = layer(x).asnumpy()
    layer.matmul_positions = SMALL_MAP
    np.testing.assert_allclose(layer(x).asnumpy(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "padding", "dilation", "inside"),
    [
        (1, 3, 1, 1, 1, (1, 1)),
        (2, 3, 1, 1, 1, (0, 2)),  # the two outputs meet different ones
        (2, 3, 2, 1, 1, (1, 2)),
        (1, 7, 2, 3, 1, (3, 3)),
        (3, 7, 2, 3, 1, (1, 5)),
        (2, 3, 1, 2, 2, (1, 1)),
        (4, 7, 4, 3, 1, (3, 6)),
        (3, 3, 1, 1, 2, (0, 2)),  # 1 is met, at the second input: a kernel of 1 begins before it
        (8, 3, 1, 0, 1, (0, 2)),
    ],
)
def test_kernel_positions_that_meet_an_input(
    length: int, kernel: int, stride: int, padding: int, dilation: int, inside: tuple[int, int]
) -> None:
    assert positions_inside(length, kernel, stride, padding, dilation) == inside


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [(3, 1, 1, 1, 1), (3, 2, 1, 1, 2), (3, 1, 2, 2, 2), (7, 2, 3, 1, 1), ((3, 5), 1, (1, 2), 1, 1)],
)
def test_matmul_of_a_part_of_the_kernel_has_the_gradients_of_the_convolution(
    kernel: int | Pair, stride: int, padding: int | Pair, dilation: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    layer = Conv2d(6, 4, kernel, stride=stride, padding=padding, dilation=dilation)
    weight = rng.standard_normal(layer.weight.shape).astype(np.float32)
    layer.weight.set_data(Tensor(weight))
    x = Tensor(rng.standard_normal((3, 6, size, size)).astype(np.float32))

    def loss(images: Tensor) -> Tensor:
        y = layer(images)
        return (y * y * y).sum()

    differentiate = mindspore.value_and_grad(loss, 0, mindspore.ParameterTuple([layer.weight]))
    value, (of_x, (of_weight,)) = differentiate(x)
    layer.matmul_positions = SMALL_MAP
    assert layer.positions(x) <= SMALL_MAP
    found, (of_x_found, (of_weight_found,)) = differentiate(x)
    assert float(found) == pytest.approx(float(value), rel=1e-4)
    np.testing.assert_allclose(of_x_found.asnumpy(), of_x.asnumpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_weight_found.asnumpy(), of_weight.asnumpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((1, 3), 1, (0, 1), 1), ((3, 2), (1, 2), (1, 0), 1), (3, 1, 2, 2), (3, (2, 1), 2, (1, 2))],
)
def test_matmul_equals_convolutions_of_every_shape(
    kernel: int | Pair, stride: int | Pair, padding: int | Pair, dilation: int | Pair
) -> None:
    rng = np.random.default_rng(0)
    layer = Conv2d(5, 4, kernel, stride=stride, padding=padding, dilation=dilation)
    weight = rng.standard_normal(layer.weight.shape).astype(np.float32)
    layer.weight.set_data(Tensor(weight))
    x = Tensor(rng.standard_normal((3, 5, 6, 5)).astype(np.float32))
    plain = layer(x).asnumpy()
    assert plain.shape[2:] == (layer.output_side(6, 0), layer.output_side(5, 1))
    layer.matmul_positions = 1000
    np.testing.assert_allclose(layer(x).asnumpy(), plain, rtol=1e-4, atol=1e-5)


def test_the_seed_determines_the_weights() -> None:
    def weight(seed: int) -> np.ndarray:
        return build_model(ModelSpec(trunk="resnet18"), 10, seed=seed).trunk.conv1.weight.asnumpy()

    np.testing.assert_array_equal(weight(3), weight(3))
    assert np.abs(weight(3) - weight(4)).max() > 0.01
    assert weight(3).std() == pytest.approx(np.sqrt(2 / (64 * 49)), rel=0.05)


def test_every_weight_has_its_initial_standard_deviation() -> None:
    """Convolutions: He over the fan-out; gates: He over the fan-in; the classifier: small."""
    net = build_model(ModelSpec(trunk="se_resnet50"), 1000)
    block = net.trunk.layer4[0]
    for weight, deviation in (
        (block.conv1.weight, np.sqrt(2 / 512)),
        (block.conv3.weight, np.sqrt(2 / 2048)),
        (block.se.fc1.weight, np.sqrt(2 / 2048)),
        (block.se.fc2.weight, np.sqrt(2 / 128)),
        (net.classifier.weight, 0.01),
    ):
        values = weight.asnumpy()
        assert values.std() == pytest.approx(deviation, rel=0.02), weight.name
        assert abs(values.mean()) < 0.02 * deviation, weight.name
    assert (net.classifier.bias.asnumpy() == 0).all()


def test_running_statistics_move_by_a_tenth_toward_the_batch() -> None:
    """PyTorch's momentum of 0.1, with its unbiased variance."""
    norm = batch_norm(3)
    norm.set_train(True)
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 3, 5, 5)).astype(np.float32)
    norm(Tensor(x))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(norm.moving_mean.asnumpy(), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.asnumpy(), 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_last_norm_of_a_block_starts_at_zero_on_request(zero: bool) -> None:
    for trunk, norms in (("resnet18", ("bn1", "bn2")), ("resnet50", ("bn1", "bn2", "bn3"))):
        net = build_model(ModelSpec(trunk=trunk, zero_init_residual=zero), 10)
        *others, last = (getattr(net.trunk.layer1[0], name).gamma.asnumpy() for name in norms)
        assert last.max() == (0 if zero else 1)
        assert all((other == 1).all() for other in others)

"""The layers that THOR can precondition: convolution and dense."""

from __future__ import annotations

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import constexpr

Pair = tuple[int, int]


@constexpr
def positions_inside(
    length: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Returns the first and the last kernel position that meets an input along one direction.

    All of them, if a kernel without the others would need unequal padding on the two sides.
    """
    outputs = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    met = [
        k
        for k in range(kernel)
        if any(0 <= o * stride - padding + k * dilation < length for o in range(outputs))
    ]
    if not met:
        return 0, kernel - 1
    before = padding - met[0] * dilation
    left = (length + 2 * before - dilation * (met[-1] - met[0]) - 1) // stride + 1
    return (met[0], met[-1]) if before >= 0 and left == outputs else (0, kernel - 1)


class Conv2d(nn.Cell):
    """2-D convolution without bias, NCHW, symmetric zero padding; weight (O, I / groups, kh, kw).

    ``multigrain.optim.thor.capture`` may attach two *taps*: identities around the convolution
    whose backward pass also computes the layer's curvature factors. They are never part of an
    exported graph: a model that is built for inference has none attached.

    A small feature map (at most ``matmul_positions`` output positions; 0 = never) is convolved as
    one matrix product: the CPU's convolution kernels reorder the whole weight at every call,
    which costs several times the arithmetic there. Kernel positions that only ever meet the
    padding are left out of it: of a 3x3 kernel on a 1x1 map, all but the middle one.

    Args:
        in_channels: I.
        out_channels: O.
        kernel, stride, padding, dilation: one number for both directions, or (height, width). As
            attributes they are always pairs.
        groups: number of groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = _pair(kernel)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        height, width = self.padding
        # Zeros: multigrain.model.parameters initializes every weight from one seed.
        self.weight = Parameter(
            ops.zeros((out_channels, in_channels // groups, *self.kernel)), name="weight"
        )
        self.convolve = ops.Conv2D(
            out_channel=out_channels,
            kernel_size=self.kernel,  # tuples: the ONNX export does not accept integers
            pad_mode="pad",
            pad=(height, height, width, width),
            stride=self.stride,
            dilation=self.dilation,
            group=groups,
        )
        self.multiply = ops.MatMul()
        self.matmul_positions = 0
        self.half = False
        self.half_type = mindspore.float16
        self.tapped = False

    def construct(self, x: Tensor) -> Tensor:
        if self.tapped:
            x = self.input_tap(x, self.a_slot)
        if (
            self.matmul_positions > 0
            and self.groups == 1
            and self.positions(x) <= self.matmul_positions
        ):
            y = self.as_matmul(x)
        elif self.half:
            y = self.convolve(ops.cast(x, self.half_type), ops.cast(self.weight, self.half_type))
        else:
            y = self.convolve(x, self.weight)
        if self.tapped:
            y = self.output_tap(y, self.g_slot)
        return y

    def positions(self, x: Tensor) -> int:
        """Returns the number of output positions for an input."""
        return self.output_side(x.shape[2], 0) * self.output_side(x.shape[3], 1)

    def output_side(self, length: int, direction: int) -> int:
        """Returns the output length along the height (direction 0) or the width (1)."""
        reach = self.dilation[direction] * (self.kernel[direction] - 1) + 1
        return (length + 2 * self.padding[direction] - reach) // self.stride[direction] + 1

    def as_matmul(self, x: Tensor) -> Tensor:
        """Computes the convolution as one matrix product over unfolded patches (im2col)."""
        n = x.shape[0]
        height = self.output_side(x.shape[2], 0)
        width = self.output_side(x.shape[3], 1)
        top, bottom = positions_inside(
            x.shape[2], self.kernel[0], self.stride[0], self.padding[0], self.dilation[0]
        )
        left, right = positions_inside(
            x.shape[3], self.kernel[1], self.stride[1], self.padding[1], self.dilation[1]
        )
        kernel = (bottom - top + 1, right - left + 1)
        weight = self.weight
        if kernel != self.kernel:
            weight = weight[:, :, top : bottom + 1, left : right + 1]
        columns = self.in_channels * kernel[0] * kernel[1]
        patches = ops.Im2Col(
            ksizes=kernel,
            strides=self.stride,
            dilations=self.dilation,
            pads=(
                self.padding[0] - top * self.dilation[0],
                self.padding[1] - left * self.dilation[1],
            ),
        )(x)
        patches = ops.reshape(patches, (n, columns, height * width))
        patches = ops.reshape(ops.transpose(patches, (1, 0, 2)), (columns, n * height * width))
        y = self.multiply(ops.reshape(weight, (self.out_channels, columns)), patches)
        y = ops.reshape(y, (self.out_channels, n, height * width))
        return ops.reshape(ops.transpose(y, (1, 0, 2)), (n, self.out_channels, height, width))


class Dense(nn.Cell):
    """Linear layer with bias: (N, I) -> (N, O); weight (O, I). Always float32.

    May have taps like :class:`Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = Parameter(ops.zeros((out_channels, in_channels)), name="weight")
        self.bias = Parameter(ops.zeros((out_channels,)), name="bias")
        self.multiply = ops.MatMul(transpose_b=True)
        self.add = ops.BiasAdd()
        self.tapped = False

    def construct(self, x: Tensor) -> Tensor:
        x = ops.cast(x, mindspore.float32)
        if self.tapped:
            x = self.input_tap(x, self.a_slot)
        y = self.add(self.multiply(x, self.weight), self.bias)
        if self.tapped:
            y = self.output_tap(y, self.g_slot)
        return y


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value

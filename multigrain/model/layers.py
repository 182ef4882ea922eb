"""The two layers whose curvature THOR can capture: convolution and dense."""

from __future__ import annotations

import mindspore
from mindspore import Parameter, Tensor, nn, ops


class Conv2d(nn.Cell):
    """2-D convolution without bias, NCHW, symmetric zero padding; weight (O, I, kh, kw).

    In its plain mode it is a convolution and nothing else. ``multigrain.optim.thor.capture``
    may attach two *taps*: identities around the convolution whose backward pass also computes
    the layer's curvature factors. They are never part of an exported graph because a model
    that is built for inference has none attached.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        # Zeros: multigrain.model.initial fills every weight from one seed.
        self.weight = Parameter(
            ops.zeros((out_channels, in_channels, kernel, kernel)), name="weight"
        )
        self.convolve = ops.Conv2D(
            out_channel=out_channels, kernel_size=kernel, pad_mode="pad", pad=padding, stride=stride
        )
        self.half = False
        self.half_type = mindspore.float16
        self.tapped = False

    def construct(self, x: Tensor) -> Tensor:
        if self.tapped:
            x = self.input_tap(x, self.a_slot)
        if self.half:
            y = self.convolve(ops.cast(x, self.half_type), ops.cast(self.weight, self.half_type))
        else:
            y = self.convolve(x, self.weight)
        if self.tapped:
            y = self.output_tap(y, self.g_slot)
        return y


class Dense(nn.Cell):
    """Linear layer with bias: (N, I) -> (N, O); weight (O, I). Always float32.

    Has the same two modes as :class:`Conv2d`; the taps see the output before the bias, whose
    derivative is the same.
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

"""Taps: identities around a layer whose backward pass computes the Kronecker factors.

A tap takes a tensor and a *slot*, a parameter with the shape of the factor's blocks. Forward, it
returns the tensor. Backward, it passes the derivative on and returns the factor as the "gradient"
of the slot. ``value_and_grad`` over weights and slots then returns gradients and factors in one
backward pass.

Both factors come scaled by sqrt(T), with T the layer's number of output positions, so that the
preconditioner needs no shapes (see ``multigrain.optim.thor.preconditioner``)::

    sqrt(T) A,  A = 1/(nT) sum_{b,t} a_bt a_bt^T        a: input patch, weight.reshape(O, -1) order
    sqrt(T) G,  G = 1/(nT) sum_{b,t} s_bt s_bt^T        s = n * dL/ds

L is the mean over the n examples, hence the factor n: s is the per-example derivative. If L is
multiplied by a loss scale S, the result is S^2 times G; ``multigrain.train.gradients`` divides
it.
"""

from __future__ import annotations

import math

import mindspore
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from multigrain.model.layers import Conv2d
from multigrain.optim.thor.blocks import BlockLayout

# Most rows (examples x positions) that a factor is built from. A block has 128 rows, so 8192
# samples over-determine it 64-fold; using every position of a large map would cost more than
# the step itself.
ROW_LIMIT = 8192


@constexpr
def sample_step(examples: int, height: int, width: int, limit: int) -> int:
    """Returns k: every k-th position of a feature map is sampled in each direction.

    The smallest k with ``examples * ceil(height/k) * ceil(width/k) <= limit``, but at least one
    position per example. It depends on shapes alone, so it is the same on every worker.
    """
    k = 1
    while examples * -(-height // k) * -(-width // k) > limit and k < max(height, width):
        k += 1
    return k


@constexpr
def sample_offset(length: int, k: int, stride: int, padding: int) -> int:
    """Returns the first sampled position of ``length``, so that the samples are centered.

    It is 0 if the first patch of the centered grid would need padding.
    """
    offset = (length - 1 - (-(-length // k) - 1) * k) // 2
    return offset if offset * stride >= padding else 0


@constexpr
def output_length(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Returns the number of output positions of a convolution in one direction."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@constexpr
def factor_scale(rows: int, positions: int) -> float:
    """Returns sqrt(T) / rows."""
    return math.sqrt(positions) / rows


@constexpr
def group_count(examples: int) -> int:
    """Returns the number of groups in which examples are concatenated.

    The divisor of ``examples`` nearest below its square root; 1 if there are so few that grouping
    saves nothing.
    """
    if examples <= 32:
        return 1
    return max(k for k in range(1, math.isqrt(examples) + 1) if examples % k == 0)


def concat_examples(x: Tensor) -> Tensor:
    """Concatenates the examples: (n, dim, positions) -> (1, dim, n * positions).

    Not by ``transpose``: on the CPU that kernel keeps more memory than the tensor has for the life
    of the graph (MindSpore 2.8.0). Many examples are concatenated in groups first, and then the
    groups: a graph node per example would take long to compile. So would ``ops.split`` and
    ``ops.concat``, Python code that is compiled again for every layer.
    """
    n, dim, positions = x.shape
    groups = group_count(n)
    if groups > 1:
        x = ops.reshape(x, (groups, n // groups, dim, positions))
        x = ops.reshape(ops.Concat(3)(ops.Split(1, n // groups)(x)), (groups, dim, -1))
    if n > 1:
        x = ops.Concat(2)(ops.Split(0, groups if groups > 1 else n)(x))
    return x


def columns(x: Tensor) -> Tensor:
    """Transposes rows to columns: (n, dim) -> (1, dim, n)."""
    return ops.reshape(ops.transpose(x, (1, 0)), (1, x.shape[1], x.shape[0]))


class BlockSecondMoment(nn.Cell):
    """Computes the diagonal blocks of X X^T, (count, size, size) float32."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        self.count = layout.count
        self.size = layout.size
        self.missing = layout.padded - layout.dim
        self.multiply = ops.BatchMatMul(transpose_b=True)
        self.total = ops.ReduceSum()

    def construct(self, x: Tensor) -> Tensor:
        """Sums over the examples and positions of x (n, dim, positions)."""
        n, _, positions = x.shape
        if positions < self.size:
            # The blocks of each example would be larger than the example.
            x = concat_examples(x)
            n, _, positions = x.shape
        if self.missing > 0:
            # Not ``Pad``, which is ten times slower on the CPU.
            x = ops.concat((x, ops.zeros((n, self.missing, positions), mindspore.float32)), 1)
        x = ops.reshape(x, (n * self.count, self.size, positions))
        blocks = self.multiply(x, x)
        if n == 1:
            return blocks
        return self.total(ops.reshape(blocks, (n, self.count, self.size, self.size)), 0)


class ConvInputTap(nn.Cell):
    """Computes sqrt(T) A of a convolution's input (N, I, H, W)."""

    def __init__(self, layout: BlockLayout, layer: Conv2d, row_limit: int) -> None:
        super().__init__()
        self.kernel = layer.kernel
        self.stride = layer.stride
        self.padding = layer.padding
        self.dilation = layer.dilation
        self.pointwise = layer.kernel == (1, 1) and layer.padding == (0, 0)
        self.row_limit = row_limit
        self.dim = layout.dim
        self.blocks = BlockSecondMoment(layout)

    def construct(self, x: Tensor, slot: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        # ``depend`` delays this to the layer's turn in the backward pass: otherwise the graph
        # unfolds the inputs of all layers at once, which takes gigabytes.
        return dout, self.factor(ops.depend(x, dout))

    def factor(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        stride_h, stride_w = self.stride
        pad_h, pad_w = self.padding
        rows_h = output_length(h, self.kernel[0], stride_h, pad_h, self.dilation[0])
        rows_w = output_length(w, self.kernel[1], stride_w, pad_w, self.dilation[1])
        k = sample_step(n, rows_h, rows_w, self.row_limit)
        top = sample_offset(rows_h, k, stride_h, pad_h) * stride_h
        left = sample_offset(rows_w, k, stride_w, pad_w) * stride_w
        # A sampling grid that starts inside the image needs no padding at its first patch.
        if top > 0:
            x = x[:, :, top - pad_h :, :]
            pad_h = 0
        if left > 0:
            x = x[:, :, :, left - pad_w :]
            pad_w = 0
        x = ops.cast(x, mindspore.float32)
        if self.pointwise:
            patches = x[:, :, :: stride_h * k, :: stride_w * k]
        else:
            patches = ops.Im2Col(
                ksizes=self.kernel,
                strides=(stride_h * k, stride_w * k),
                dilations=self.dilation,
                pads=(pad_h, pad_w),
            )(x)
        patches = ops.reshape(patches, (n, self.dim, -1))
        return self.blocks(patches) * factor_scale(n * patches.shape[2], rows_h * rows_w)


class ConvOutputTap(nn.Cell):
    """Computes sqrt(T) G from the derivative of a convolution's output (N, O, H, W)."""

    def __init__(self, layout: BlockLayout, layer: Conv2d, row_limit: int) -> None:
        super().__init__()
        self.stride = layer.stride
        self.padding = layer.padding
        self.row_limit = row_limit
        self.dim = layout.dim
        self.blocks = BlockSecondMoment(layout)

    def construct(self, y: Tensor, slot: Tensor) -> Tensor:
        return y

    def bprop(self, y: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, self.factor(dout)

    def factor(self, dout: Tensor) -> Tensor:
        n, _, h, w = dout.shape
        k = sample_step(n, h, w, self.row_limit)
        top = sample_offset(h, k, self.stride[0], self.padding[0])
        left = sample_offset(w, k, self.stride[1], self.padding[1])
        s = ops.cast(dout[:, :, top::k, left::k], mindspore.float32) * n
        s = ops.reshape(s, (n, self.dim, -1))
        return self.blocks(s) * factor_scale(n * s.shape[2], h * w)


class DenseInputTap(nn.Cell):
    """Computes A of a dense layer's input (N, I); T = 1."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        self.blocks = BlockSecondMoment(layout)

    def construct(self, x: Tensor, slot: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, self.factor(x)

    def factor(self, x: Tensor) -> Tensor:
        return self.blocks(columns(ops.cast(x, mindspore.float32))) * (1.0 / x.shape[0])


class DenseOutputTap(nn.Cell):
    """Computes G from the derivative of a dense layer's output (N, O); T = 1."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        self.blocks = BlockSecondMoment(layout)

    def construct(self, y: Tensor, slot: Tensor) -> Tensor:
        return y

    def bprop(self, y: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout, self.factor(dout)

    def factor(self, dout: Tensor) -> Tensor:
        s = ops.cast(dout, mindspore.float32) * dout.shape[0]
        return self.blocks(columns(s)) * (1.0 / dout.shape[0])

"""Blocks that the U-Net and the autoencoder share. Pictures and latents are (B, H, W, C).

Parameters have the names of Hugging Face's files, without list indices that have no use here; model_io/names.py holds
the few differences.
"""

from __future__ import annotations

from collections.abc import Callable

from . import ops
from .backend import mx, nn


class GroupNorm(nn.Module):
    """Group normalisation, then an activation if one is given."""

    def __init__(self, groups: int, channels: int, eps: float, act: str | None = None):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self.groups = groups
        self.eps = eps
        self.act = ops.ACTIVATIONS[act] if act else None

    def __call__(self, x: mx.array) -> mx.array:
        return ops.group_norm(x, self.weight, self.bias, self.groups, self.eps, self.act)


class Conv2d(nn.Module):
    """A convolution with bias, as `ops.conv2d` computes it; `padding` defaults to half the kernel.

    `plus` is added to the result.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int | None = None):
        super().__init__()
        bound = (inputs * kernel * kernel) ** -0.5
        self.weight = mx.random.uniform(-bound, bound, (outputs, kernel, kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride
        self.padding = (kernel - 1) // 2 if padding is None else padding

    def __call__(self, x: mx.array, plus: mx.array | None = None) -> mx.array:
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, plus)


class Downsample(nn.Module):
    """Halve both sides by a convolution of stride 2.

    `padding` 0 pads right and bottom by one instead, as the autoencoder does (diffusers downsampling.py).
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, stride=2, padding=padding)
        self.pad_end = padding == 0

    def __call__(self, x: mx.array) -> mx.array:
        if self.pad_end:
            x = ops.padded(x, 0, 1)
        return self.conv(x)


class Upsample(nn.Module):
    """Double both sides by nearest neighbour, or grow to a skip connection's `size` (H, W), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels)

    def __call__(self, x: mx.array, size: tuple[int, int] | None = None) -> mx.array:
        height, width = size or (2 * x.shape[1], 2 * x.shape[2])
        return self.conv(ops.upsample_nearest(x, height, width))


class ResnetBlock(nn.Module):
    """Norm, activation and convolution, twice, with the time embedding added in between (diffusers resnet.py).

    x (B, H, W, C_in) and, if the block has a time projection, the *activated* embedding (B or 1, T).
    Returns (B, H, W, C_out).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        eps: float,
        act: str = "silu",
        time_channels: int | None = None,
        output_scale: float = 1.0,
    ):
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs, eps, act)
        self.conv1 = Conv2d(inputs, outputs)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, outputs)
        self.norm2 = GroupNorm(groups, outputs, eps, act)
        self.conv2 = Conv2d(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = nn.Linear(inputs, outputs)
        self.output_scale = output_scale

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        # One name for all: each layer's input is freed before the next layer allocates.
        y = self.norm1(x)
        y = self.conv1(y, None if time is None else self.time_emb_proj(time)[:, None, None, :])
        y = self.norm2(y)
        y = self.conv2(y, self.conv_shortcut(x) if "conv_shortcut" in self else x)
        return y if self.output_scale == 1.0 else y / self.output_scale


class Attention(nn.Module):
    """Multi-head attention of x (B, N, C) to itself or to a context (B or 1, M, D) (diffusers attention_processor.py).

    Keys and values are projected separately, so that a prompt's are computed once per generation.
    """

    def __init__(
        self, channels: int, context: int, heads: int, head_dim: int, bias: bool = False, upcast: bool = False
    ):
        super().__init__()
        inner = heads * head_dim
        self.to_q = nn.Linear(channels, inner, bias=bias)
        self.to_k = nn.Linear(context, inner, bias=bias)
        self.to_v = nn.Linear(context, inner, bias=bias)
        self.to_out = nn.Linear(inner, channels)
        self.heads = heads
        self.upcast = upcast

    def keys_values(self, context: mx.array) -> tuple[mx.array, mx.array]:
        """Project a context (B, M, D) to keys and values, (B, heads, M, head_dim) each."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def __call__(
        self,
        x: mx.array,
        keys_values: tuple[mx.array, mx.array] | None = None,
        attend: Callable[[mx.array, mx.array, mx.array], mx.array] | None = None,
    ) -> mx.array:
        attend = attend or ops.attention
        q = self._split(self.to_q(x))
        k, v = keys_values or self.keys_values(x)
        if self.upcast:
            q, k = q.astype(mx.float32), k.astype(mx.float32)
            y = attend(q, k, v.astype(mx.float32)).astype(x.dtype)
        else:
            y = attend(q, k, v)
        return self.to_out(y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))

    def _split(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

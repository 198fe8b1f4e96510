"""SwinIR: image restoration by shifted windows of attention (Liang et al. 2021, arXiv:2108.10257).

The reference is spandrel's architectures/SwinIR. A transformer's blocks attend within windows; every other block's are
shifted by half a window (Liu et al. 2021, arXiv:2103.14030).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import ops
from ..backend import mx, nn
from ..layers import Conv2d
from .blocks import CHANNELS, ShuffledUp, leaky_relu, padded, pixel_unshuffle

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's pictures
FEATURES = 64  # channels after the transformer
FAR = -100.0  # added to the scores between parts of a shifted window that are not neighbours in the picture
JPEG_WINDOW = 7  # of the models against JPEG's artefacts, which have another range of values

SHUFFLED, DIRECT, NEAREST, RESTORING = "pixelshuffle", "pixelshuffledirect", "nearest+conv", ""


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows x (N, w w, C), with a learned bias for each distance."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = mx.zeros(((2 * window - 1) ** 2, heads))
        self.heads = heads
        self.window = window

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        count, length, channels = x.shape
        qkv = self.qkv(x).reshape(count, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        places = mx.array(_distances(self.window))
        bias = self.relative_position_bias_table[places].transpose(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask.astype(bias.dtype)
        y = mx.fast.scaled_dot_product_attention(*qkv, scale=(channels // self.heads) ** -0.5, mask=bias)
        return self.proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class Block(nn.Module):
    """Attention within windows, shifted or not, then a perceptron."""

    def __init__(self, channels: int, heads: int, window: int, hidden: int, shift: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.window = window
        self.shift = shift

    def __call__(self, x: mx.array) -> mx.array:
        height, width = x.shape[1:3]
        y = _rolled(self.norm1(x), -self.shift)
        mask = mx.array(_mask(height, width, self.window, self.shift)) if self.shift else None
        y = _together(self.attn(_windows(y, self.window), mask), height, width)
        x = x + _rolled(y, self.shift)
        y = self.fc1(self.norm2(x))
        return x + self.fc2(ops.ACTIVATIONS["gelu"](y))


class Convolutions(nn.Module):
    """One convolution, or three with fewer channels in between."""

    def __init__(self, channels: int, three: bool):
        super().__init__()
        fewer = channels // 4
        layers = [Conv2d(channels, fewer), Conv2d(fewer, fewer, kernel=1), Conv2d(fewer, channels)]
        self.layers = layers if three else [Conv2d(channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        for i, layer in enumerate(self.layers):
            x = layer(leaky_relu(x) if i else x)
        return x


class Group(nn.Module):
    """Some blocks and a convolution, with a residual around them."""

    def __init__(self, channels: int, depth: int, heads: int, window: int, hidden: int, three: bool):
        super().__init__()
        self.blocks = [Block(channels, heads, window, hidden, i % 2 * (window // 2)) for i in range(depth)]
        self.conv = Convolutions(channels, three)

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        for block in self.blocks:
            y = block(y)
        return self.conv(y) + x


class SwinIR(nn.Module):
    """Pictures (B, H, W, 3) in [0, 1] -> (B, s H, s W, 3), in [0, 1] apart from overshoots."""

    overlap = 32
    margin = 8
    supports_half = False  # the scores and the range of 255 are too much for it

    def __init__(
        self,
        channels: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        hidden: int,
        three: bool,
        upsampler: str,
        scale: int,
        unshuffle: int,
    ):
        super().__init__()
        self.conv_first = Conv2d(CHANNELS * unshuffle**2, channels)
        self.patch_norm, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        sizes = zip(depths, heads, strict=True)
        self.layers = [Group(channels, depth, count, window, hidden, three) for depth, count in sizes]
        self.conv_after_body = Convolutions(channels, three)
        if upsampler in (SHUFFLED, NEAREST):
            self.conv_before_upsample = Conv2d(channels, FEATURES)
        if upsampler == SHUFFLED:
            steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
            self.upsample = [ShuffledUp(FEATURES, FEATURES, step) for step in steps]
        elif upsampler == DIRECT:
            self.upsample = [ShuffledUp(channels, CHANNELS, scale)]
        elif upsampler == NEAREST:
            for i in range(1, scale.bit_length()):
                self[f"conv_up{i}"] = Conv2d(FEATURES, FEATURES)
            self.conv_hr = Conv2d(FEATURES, FEATURES)
        if upsampler != DIRECT:
            self.conv_last = Conv2d(channels if upsampler == RESTORING else FEATURES, CHANNELS)
        self.upsampler = upsampler
        self.unshuffle = unshuffle
        self.multiple = window * unshuffle
        self.range = 255.0 if window == JPEG_WINDOW else 1.0
        self.scale = scale // unshuffle
        tokens = (12 * channels + 2 * hidden + 3 * max(heads) * window**2) // unshuffle**2
        self.values_per_pixel = tokens + 4 * FEATURES * self.scale**2

    def __call__(self, x: mx.array) -> mx.array:
        height, width = (side * self.scale for side in x.shape[1:3])
        mean = mx.array(MEAN, x.dtype)
        x = (padded(x, self.multiple) - mean) * self.range
        if self.unshuffle > 1:
            x = pixel_unshuffle(x, self.unshuffle)
        y = self.conv_first(x)
        y = self.conv_after_body(self._transformed(y)) + y
        y = self._enlarged(y) if self.upsampler else x + self.conv_last(y)
        return (y / self.range + mean)[:, :height, :width]

    def _transformed(self, x: mx.array) -> mx.array:
        x = self.patch_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def _enlarged(self, x: mx.array) -> mx.array:
        if self.upsampler != DIRECT:
            x = leaky_relu(self.conv_before_upsample(x), 0.01)
        if self.upsampler == NEAREST:
            i = 1
            while f"conv_up{i}" in self:
                x = ops.upsample_nearest(x, 2 * x.shape[1], 2 * x.shape[2])
                x = leaky_relu(self[f"conv_up{i}"](x))
                i += 1
            return self.conv_last(leaky_relu(self.conv_hr(x)))
        for layer in self.upsample:
            x = layer(x)
        return x if self.upsampler == DIRECT else self.conv_last(x)


def _rolled(x: mx.array, shift: int) -> mx.array:
    """Rows and columns moved on by `shift`, those that fall out at the end put in at the beginning."""
    return mx.roll(mx.roll(x, shift, 1), shift, 2) if shift else x


def _windows(x: mx.array, window: int) -> mx.array:
    """(B, H, W, C) -> (windows, w w, C), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window * window, channels)


def _together(x: mx.array, height: int, width: int) -> mx.array:
    """The inverse of `_windows`."""
    window, channels = round(x.shape[1] ** 0.5), x.shape[2]
    x = x.reshape(-1, height // window, width // window, window, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, height, width, channels)


@lru_cache(maxsize=4)
def _distances(window: int) -> np.ndarray:
    """For each pair of places in a window the row of the table that holds their distance's bias, (w w, w w)."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down, across = (each[:, None] - each[None] + window - 1 for each in (rows, columns))
    return down * (2 * window - 1) + across


@lru_cache(maxsize=4)
def _mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """What is added to the scores in windows of a picture shifted by `shift`, (windows, 1, w w, w w)."""

    def parts(side: int) -> np.ndarray:
        """What lay apart before the shift: all but the last window, and both parts of the last one."""
        places = np.arange(side)
        return (places >= side - window).astype(int) + (places >= side - shift)

    labels = parts(height)[:, None] * 3 + parts(width)[None]
    labels = labels.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    labels = labels.reshape(-1, 1, window * window)
    return np.where(labels[..., None] == labels[..., None, :], 0.0, FAR).astype(np.float32)

"""SPAN, the swift parameter-free attention network (Wan et al. 2024, arXiv:2311.12770).

The reference is spandrel's architectures/SPAN. A file holds each convolution as four that were trained together; the
loader adds them up to one.
"""

from __future__ import annotations

from ..backend import mx, nn
from ..layers import Conv2d
from .blocks import BLEND, CHANNELS, ShuffledUp

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's pictures
RANGE = 255.0
BLOCKS = 6


class AttentionBlock(nn.Module):
    """Three convolutions, whose result is weighted by a symmetric function of itself (equations 2 to 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv2d(channels, channels) for _ in range(3))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """The block's result, and its first convolution's activated, which the last block's successor reads."""
        first = nn.silu(self.c1_r(x))
        y = self.c3_r(nn.silu(self.c2_r(first)))
        return (y + x) * (mx.sigmoid(y) - 0.5), first


class SPAN(nn.Module):
    """Pictures (B, H, W, 3) in [0, 1] -> (B, scale H, scale W, 3), in [0, 1] apart from overshoots."""

    multiple = 1
    supports_half = True
    margin = 3 + 3 * BLOCKS  # a pixel reaches as far as there are 3x3 convolutions
    overlap = 2 * margin + BLEND

    def __init__(self, channels: int, scale: int, normalised: bool):
        super().__init__()
        self.conv_1 = Conv2d(CHANNELS, channels)
        for i in range(1, BLOCKS + 1):
            self[f"block_{i}"] = AttentionBlock(channels)
        self.conv_2 = Conv2d(channels, channels)
        self.conv_cat = nn.Linear(4 * channels, channels)
        self.upsampler = ShuffledUp(channels, CHANNELS, scale)
        self.normalised = normalised
        self.scale = scale
        self.values_per_pixel = 12 * channels + 3 * CHANNELS * scale**2

    def __call__(self, x: mx.array) -> mx.array:
        if self.normalised:
            x = (x - mx.array(MEAN, x.dtype)) * RANGE
        features = self.conv_1(x)
        first, _ = y, inner = self.block_1(features)
        for i in range(2, BLOCKS + 1):
            y, inner = self[f"block_{i}"](y)
        joined = mx.concatenate([features, self.conv_2(y), first, inner], axis=-1)
        return self.upsampler(self.conv_cat(joined))

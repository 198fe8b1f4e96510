"""What several upscaling networks are made of. Pictures and feature maps are (B, H, W, C)."""

from __future__ import annotations

from ..backend import mx, nn
from ..layers import Conv2d

CHANNELS = 3  # of the pictures that go in and come out
BLEND = 8  # pixels over which tiles change into each other, where both are right


class PReLU(nn.Module):
    """max(x, 0) + weight min(x, 0), with a weight for each channel (He et al. 2015, equation 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = mx.full((channels,), 0.25)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0) + self.weight * mx.minimum(x, 0)


def leaky_relu(x: mx.array, slope: float = 0.2) -> mx.array:
    """x, or slope x where that is negative."""
    return mx.maximum(x, slope * x)


def pixel_shuffle(x: mx.array, scale: int) -> mx.array:
    """Channels to space (Shi et al. 2016, equation 4), in torch's order: (B, H, W, C s s) -> (B, s H, s W, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // scale**2, scale, scale).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * scale, width * scale, channels // scale**2)


def pixel_unshuffle(x: mx.array, scale: int) -> mx.array:
    """Space to channels, the inverse of `pixel_shuffle`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // scale, scale, width // scale, scale, channels).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, height // scale, width // scale, channels * scale**2)


def padded(x: mx.array, multiple: int) -> mx.array:
    """Extend right and bottom to a multiple by reflection, which a side of a few pixels repeats."""
    for axis in (1, 2):
        while missing := -x.shape[axis] % multiple:
            size = x.shape[axis]
            if size == 1:
                mirrored = x
            else:
                places = mx.arange(size - 2, max(size - 2 - missing, -1), -1)
                mirrored = mx.take(x, places, axis=axis)
            x = mx.concatenate([x, mirrored], axis=axis)
    return x


class ShuffledUp(nn.Module):
    """A convolution, then `pixel_shuffle`."""

    def __init__(self, inputs: int, outputs: int, scale: int):
        super().__init__()
        self.conv = Conv2d(inputs, outputs * scale**2)
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        return pixel_shuffle(self.conv(x), self.scale)

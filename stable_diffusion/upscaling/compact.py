"""The compact network of Real-ESRGAN's video and general models (SRVGGNetCompact; Wang et al. 2021, arXiv:2107.10833).

The reference is spandrel's architectures/Compact. Parameters have the files' own names.
"""

from __future__ import annotations

from .. import ops
from ..backend import mx, nn
from ..layers import Conv2d
from .blocks import BLEND, CHANNELS, PReLU, pixel_shuffle


class Compact(nn.Module):
    """Pictures (B, H, W, 3) in [0, 1] -> (B, scale H, scale W, 3), in [0, 1] apart from overshoots.

    Convolutions at the small size; the result is added to the picture enlarged by nearest neighbour.
    """

    multiple = 1
    supports_half = True

    def __init__(self, channels: int, convolutions: int, scale: int):
        super().__init__()
        self.body: list[nn.Module] = [Conv2d(CHANNELS, channels), PReLU(channels)]
        for _ in range(convolutions):
            self.body += [Conv2d(channels, channels), PReLU(channels)]
        self.body.append(Conv2d(channels, CHANNELS * scale**2))
        self.scale = scale
        self.margin = convolutions + 2  # a pixel reaches as far as there are convolutions
        self.overlap = 2 * self.margin + BLEND
        self.values_per_pixel = 4 * channels + 4 * CHANNELS * scale**2

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        for layer in self.body:
            y = layer(y)
        base = ops.upsample_nearest(x, self.scale * x.shape[1], self.scale * x.shape[2])
        return pixel_shuffle(y, self.scale) + base

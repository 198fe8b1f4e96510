"""RRDBNet, the network of ESRGAN (Wang et al. 2018, arXiv:1809.00219), Real-ESRGAN (2021) and BSRGAN.

The reference is spandrel's architectures/ESRGAN. Parameters have the names of Real-ESRGAN's files.
"""

from __future__ import annotations

from .. import ops
from ..backend import mx, nn
from ..layers import Conv2d
from .blocks import CHANNELS, leaky_relu, padded, pixel_unshuffle

RESIDUAL = 0.2  # how much of a block's output is added to its input


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads the outputs of all before it."""

    def __init__(self, channels: int, growth: int, plus: bool):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (Conv2d(channels + i * growth, growth) for i in range(4))
        self.conv5 = Conv2d(channels + 4 * growth, channels)
        if plus:
            self.conv1x1 = nn.Linear(channels, growth, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        features = [x]
        for i, conv in enumerate((self.conv1, self.conv2, self.conv3, self.conv4), 1):
            y = leaky_relu(conv(mx.concatenate(features, axis=-1)))
            if "conv1x1" in self:  # ESRGAN+ (Rakotonirina and Rasoanaivo 2020)
                y = y + self.conv1x1(x) if i == 2 else y + features[2] if i == 4 else y
            features.append(y)
        return self.conv5(mx.concatenate(features, axis=-1)) * RESIDUAL + x


class ResidualBlock(nn.Module):
    """Three dense blocks with a residual around them."""

    def __init__(self, channels: int, growth: int, plus: bool):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth, plus) for _ in range(3))

    def __call__(self, x: mx.array) -> mx.array:
        return self.rdb3(self.rdb2(self.rdb1(x))) * RESIDUAL + x


class RRDBNet(nn.Module):
    """Pictures (B, H, W, 3) in [0, 1] -> (B, s H, s W, 3), in [0, 1] apart from overshoots.

    s is 2^doublings / unshuffle: Real-ESRGAN's smaller scales read a picture whose pixels became channels.
    """

    overlap = 32  # of tiles, in pixels; farther pixels hardly count, although 350 are connected
    margin = 8
    supports_half = True

    def __init__(self, channels: int, growth: int, blocks: int, doublings: int, unshuffle: int, plus: bool):
        super().__init__()
        self.conv_first = Conv2d(CHANNELS * unshuffle**2, channels)
        self.body = [ResidualBlock(channels, growth, plus) for _ in range(blocks)]
        self.conv_body = Conv2d(channels, channels)
        for i in range(1, doublings + 1):
            self[f"conv_up{i}"] = Conv2d(channels, channels)
        self.conv_hr = Conv2d(channels, channels)
        self.conv_last = Conv2d(channels, CHANNELS)
        self.doublings = doublings
        self.multiple = unshuffle
        self.scale = 2**doublings // unshuffle
        self.values_per_pixel = 3 * channels * self.scale**2 + (2 * channels + 8 * growth) // unshuffle**2

    def __call__(self, x: mx.array) -> mx.array:
        height, width = (side * self.scale for side in x.shape[1:3])
        if self.multiple > 1:
            x = pixel_unshuffle(padded(x, self.multiple), self.multiple)
        x = self.conv_first(x)
        y = x
        for block in self.body:
            y = block(y)
        x = x + self.conv_body(y)
        del y
        for i in range(1, self.doublings + 1):
            x = ops.upsample_nearest(x, 2 * x.shape[1], 2 * x.shape[2])
            x = leaky_relu(self[f"conv_up{i}"](x))
        x = leaky_relu(self.conv_hr(x))
        return self.conv_last(x)[:, :height, :width]

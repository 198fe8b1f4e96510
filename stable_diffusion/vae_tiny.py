"""The tiny autoencoder (TAESD, Ollin Boer Bohan 2023): picture <-> latents with a few convolutions, for previews.

The reference is diffusers' AutoencoderTiny (autoencoder_tiny.py, vae.py). Parameters keep the files' own names.
"""

from __future__ import annotations

from . import ops
from .backend import mx, nn
from .config import AutoencoderTinyConfig
from .layers import Conv2d


class Activation(nn.Module):
    """A layer without parameters, so that the other layers keep their indices in the file."""

    def __init__(self, name: str):
        super().__init__()
        self.act = ops.ACTIVATIONS[name]

    def __call__(self, x: mx.array) -> mx.array:
        return self.act(x)


class Double(nn.Module):
    """Nearest-neighbour upsampling by a factor."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def __call__(self, x: mx.array) -> mx.array:
        return ops.upsample_nearest(x, x.shape[1] * self.factor, x.shape[2] * self.factor)


class BareConv2d(Conv2d):
    """A convolution without bias."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride=stride)
        del self.bias

    def __call__(self, x: mx.array, plus: mx.array | None = None) -> mx.array:
        bias = mx.zeros(self.weight.shape[:1], self.weight.dtype)
        return ops.conv2d(x, self.weight, bias, self.stride, self.padding, plus)


class TinyBlock(nn.Module):
    """Three convolutions with a residual."""

    def __init__(self, channels: int, act: str):
        super().__init__()
        self.conv = [
            Conv2d(channels, channels),
            Activation(act),
            Conv2d(channels, channels),
            Activation(act),
            Conv2d(channels, channels),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        return ops.ACTIVATIONS["relu"](_through(self.conv, x) + x)


class TinyEncoder(nn.Module):
    """Picture (B, H, W, 3) in [0, 1] -> latents (B, H/8, W/8, latent_channels)."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        self.layers: list[nn.Module] = []
        for i, channels in enumerate(config.encoder_block_out_channels):
            first = Conv2d(config.in_channels, channels) if i == 0 else BareConv2d(channels, channels, stride=2)
            blocks = [TinyBlock(channels, config.act_fn) for _ in range(config.num_encoder_blocks[i])]
            self.layers += [first, *blocks]
        self.layers.append(Conv2d(config.encoder_block_out_channels[-1], config.latent_channels))

    def __call__(self, x: mx.array) -> mx.array:
        return _through(self.layers, x)


class TinyDecoder(nn.Module):
    """Latents (B, h, w, latent_channels) -> picture (B, 8h, 8w, 3), in [0, 1] apart from overshoots."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        channels = config.decoder_block_out_channels
        self.layers: list[nn.Module] = [Conv2d(config.latent_channels, channels[0]), Activation(config.act_fn)]
        for i, width in enumerate(channels):
            self.layers += [TinyBlock(width, config.act_fn) for _ in range(config.num_decoder_blocks[i])]
            if i < len(channels) - 1:
                self.layers += [Double(config.upsampling_scaling_factor), BareConv2d(width, width)]
        self.layers.append(Conv2d(channels[-1], config.out_channels))

    def __call__(self, x: mx.array) -> mx.array:
        return _through(self.layers, mx.tanh(x / 3) * 3)


class TinyAutoencoder(nn.Module):
    """Pictures (B, H, W, 3) in [-1, 1] <-> latents (B, H/8, W/8, latent_channels), of about unit variance."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def encode(self, picture: mx.array, noise: mx.array | None = None) -> mx.array:
        """A picture's latents; there is no posterior, so `noise` is ignored."""
        x = (picture + 1) / 2
        z = self.encoder(x.astype(self.encoder.layers[0].weight.dtype))
        return z.astype(mx.float32) * self.config.scaling_factor

    def decode(self, latents: mx.array) -> mx.array:
        """Latents (B, h, w, latent_channels) -> picture (B, 8h, 8w, 3), in [-1, 1] apart from overshoots."""
        z = latents / self.config.scaling_factor
        return self.decoder(z.astype(self.decoder.layers[0].weight.dtype)) * 2 - 1


def _through(layers: list[nn.Module], x: mx.array) -> mx.array:
    for layer in layers:
        x = layer(x)
    return x

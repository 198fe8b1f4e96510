"""The autoencoder of latent diffusion (Kingma and Welling 2014; Rombach et al. 2022): picture <-> latents.

The reference is diffusers' AutoencoderKL (autoencoder_kl.py, vae.py).
"""

from __future__ import annotations

import itertools

from . import ops
from .backend import mx, nn
from .config import AutoencoderConfig
from .layers import Attention, Conv2d, Downsample, GroupNorm, ResnetBlock, Upsample

EPS = 1e-6  # of every group norm in the autoencoder
OUTPUT_ACT = "silu"  # before the last convolutions; act_fn applies to the resnets only


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of a feature map (B, H, W, C), with a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, EPS)
        self.attention = Attention(channels, channels, heads=1, head_dim=channels, bias=True)

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        y = self.group_norm(x).reshape(batch, height * width, channels)
        return x + self.attention(y).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels: int, config: AutoencoderConfig):
        super().__init__()
        self.resnets = [_resnet(channels, channels, config) for _ in range(2)]
        if config.mid_block_add_attention:
            self.attentions = [SpatialAttention(channels, config.norm_num_groups)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resnets[0](x)
        if "attentions" in self:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Level(nn.Module):
    """The resnets at one resolution, then a downsample or upsample if there is one."""

    def __init__(self, inputs: int, outputs: int, layers: int, config: AutoencoderConfig):
        super().__init__()
        self.resnets = [_resnet(inputs if i == 0 else outputs, outputs, config) for i in range(layers)]

    def layers(self) -> list[nn.Module]:
        """To be called one after another. (A single call would keep the input in memory to the end.)"""
        return [*self.resnets, *(self[name] for name in ("downsample", "upsample") if name in self)]


class Encoder(nn.Module):
    """Picture (B, H, W, 3) -> the moments before `quant_conv`, (B, H/8, W/8, 2 latent_channels)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = Conv2d(config.in_channels, channels[0])
        self.down_blocks = []
        for i, outputs in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], outputs, config.layers_per_block, config)
            if i < len(channels) - 1:
                level.downsample = Downsample(outputs, padding=0)
            self.down_blocks.append(level)
        self.mid_block = MidBlock(channels[-1], config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], EPS, OUTPUT_ACT)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for layer in itertools.chain(*(level.layers() for level in self.down_blocks)):
            x = layer(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_norm_out(x))


class Decoder(nn.Module):
    """Latents after `post_quant_conv` (B, h, w, latent_channels) -> picture (B, 8h, 8w, 3)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = Conv2d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], config)
        self.up_blocks = []
        for i, outputs in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], outputs, config.layers_per_block + 1, config)
            if i < len(channels) - 1:
                level.upsample = Upsample(outputs)
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], EPS, OUTPUT_ACT)
        self.conv_out = Conv2d(channels[-1], config.out_channels)

    def __call__(self, z: mx.array) -> mx.array:
        return self.conv_out(self.features(z))

    def features(self, z: mx.array) -> mx.array:
        """What the last layer reads, (B, 8h, 8w, block_out_channels[0])."""
        z = self.mid_block(self.conv_in(z))
        for layer in itertools.chain(*(level.layers() for level in self.up_blocks)):
            z = layer(z)
        return self.conv_norm_out(z)


class Autoencoder(nn.Module):
    """Pictures (B, H, W, 3) in [-1, 1] <-> latents (B, H/8, W/8, latent_channels), of about unit variance."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = nn.Linear(2 * channels, 2 * channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Linear(channels, channels)

    def moments(self, picture: mx.array) -> tuple[mx.array, mx.array]:
        """The posterior's mean and standard deviation, unscaled, (B, H/8, W/8, latent_channels) each, float32."""
        x = ops.by_blocks(self.encoder, picture.astype(self.encoder.conv_in.weight.dtype))
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, log_variance = mx.split(x.astype(mx.float32), 2, axis=-1)
        return mean, mx.exp(0.5 * mx.clip(log_variance, -30.0, 20.0))

    def encode(self, picture: mx.array, noise: mx.array) -> mx.array:
        """Scaled latents of a picture (B, H, W, 3) in [-1, 1]: a sample of the posterior with unit `noise`."""
        mean, deviation = self.moments(picture)
        return self._scale(mean + deviation * noise)

    def decode(self, latents: mx.array) -> mx.array:
        """Scaled latents (B, h, w, latent_channels) -> picture (B, 8h, 8w, 3), in [-1, 1] apart from overshoots."""
        z = self._unscale(latents).astype(self.decoder.conv_in.weight.dtype)
        if "post_quant_conv" in self:
            z = self.post_quant_conv(z)
        return ops.by_blocks(self.decoder, z)

    def _scale(self, z: mx.array) -> mx.array:
        config = self.config
        if config.latents_mean is not None and config.latents_std is not None:
            return (z - mx.array(config.latents_mean)) * config.scaling_factor / mx.array(config.latents_std)
        return (z - (config.shift_factor or 0.0)) * config.scaling_factor

    def _unscale(self, latents: mx.array) -> mx.array:
        config = self.config
        if config.latents_mean is not None and config.latents_std is not None:
            return latents * mx.array(config.latents_std) / config.scaling_factor + mx.array(config.latents_mean)
        return latents / config.scaling_factor + (config.shift_factor or 0.0)


def _resnet(inputs: int, outputs: int, config: AutoencoderConfig) -> ResnetBlock:
    return ResnetBlock(inputs, outputs, config.norm_num_groups, EPS, config.act_fn)

"""A diffusion model from scratch, in pixels: Ho et al. 2020, arXiv:2006.11239, algorithms 1 and 2.

Everything is here on purpose, so that it can be read in one sitting: the noise schedule, a small U-Net, a training step
and sampling. Pictures are (B, H, W, C) in [-1, 1]. The larger model of this program is trained by diffusion.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..backend import mx, nn
from ..diffusion.noise import NoiseStream
from ..errors import ConfigError
from ..layers import Attention, Conv2d, Downsample, GroupNorm, ResnetBlock, Upsample
from ..unet import TimestepEmbedding, sinusoidal_embedding

GROUPS = 8  # of the group norms


@dataclass(frozen=True)
class DDPMConfig:
    """What must be known to rebuild the network and its noise.

    `widths` are the U-Net's channels at full size, half, a quarter and so on; `labels` the classes by name, none for an
    unconditional model.
    """

    size: int = 28
    channels: int = 1
    widths: tuple[int, ...] = (24, 48, 48)
    labels: tuple[str, ...] = ()
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not self.widths or any(width % GROUPS for width in self.widths):
            raise ConfigError(f"widths = {self.widths} should be multiples of {GROUPS}, one for each level.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"beta_start = {self.beta_start:g} and beta_end = {self.beta_end:g} should rise between 0 and 1."
            )

    @cached_property
    def betas(self) -> np.ndarray:
        """The variance of the noise that each step adds, (T,), linear in time (section 4 of the paper)."""
        return np.linspace(self.beta_start, self.beta_end, self.timesteps)

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """What is left of the picture's variance after steps 1 to t, (T,)."""
        return np.cumprod(1 - self.betas)


class PixelUNet(nn.Module):
    """eps_theta(x_t, t, label): a U-Net that says which part of a noisy picture is noise.

    One residual block per level on the way down and up, joined by skips; self-attention in the middle. A label's
    embedding is added to the time's (Dhariwal and Nichol 2021, section 3).
    """

    def __init__(self, config: DDPMConfig):
        super().__init__()
        widths, self.features = config.widths, config.widths[0] * 2
        time = 4 * config.widths[0]
        self.time = TimestepEmbedding(self.features, time, "silu")
        self.label = nn.Embedding(len(config.labels) + 1, time)  # the last one means "no label"
        self.conv_in = Conv2d(config.channels, widths[0])
        self.down = [_block(a, b, time) for a, b in zip((widths[0], *widths[:-1]), widths, strict=True)]
        self.halve = [Downsample(width, padding=1) for width in widths[:-1]]
        self.middle = _block(widths[-1], widths[-1], time)
        self.norm = GroupNorm(GROUPS, widths[-1], 1e-5)
        self.attention = Attention(widths[-1], widths[-1], heads=2, head_dim=widths[-1] // 2)
        self.up = [
            _block(above + width, width, time) for width, above in zip(widths, (*widths[1:], widths[-1]), strict=True)
        ]
        self.double = [Upsample(width) for width in widths[1:]]
        self.norm_out = GroupNorm(GROUPS, widths[0], 1e-5, "silu")
        self.conv_out = Conv2d(widths[0], config.channels)
        self.conv_out.weight = mx.zeros_like(self.conv_out.weight)
        self.config = config

    def __call__(self, x: mx.array, t: mx.array, labels: mx.array) -> mx.array:
        """Predict the noise in x (B, H, W, C) at times t (B,), from 0, with labels (B,); len(labels) is none."""
        time = self.time(sinusoidal_embedding(t, self.features, flip_sin_to_cos=False, freq_shift=0))
        time = nn.silu(time + self.label(labels))
        y, skips = self.conv_in(x), []
        for level, block in enumerate(self.down):
            y = block(y, time)
            skips.append(y)
            if level < len(self.halve):
                y = self.halve[level](y)
        y = self.middle(y, time)
        batch, height, width, channels = y.shape
        y = y + self.attention(self.norm(y).reshape(batch, height * width, channels)).reshape(y.shape)
        for level in reversed(range(len(self.up))):
            y = self.up[level](mx.concatenate([y, skips[level]], axis=-1), time)
            if level:
                y = self.double[level - 1](y, (skips[level - 1].shape[1], skips[level - 1].shape[2]))
        return self.conv_out(self.norm_out(y))


def _block(inputs: int, outputs: int, time: int) -> ResnetBlock:
    return ResnetBlock(inputs, outputs, GROUPS, 1e-5, time_channels=time)


def noised(x_0: mx.array, t: mx.array, eps: mx.array, config: DDPMConfig) -> mx.array:
    """x_t after t + 1 steps of noise in one jump: sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (equation 4)."""
    abar = mx.array(config.alpha_bars.astype(np.float32))[t][:, None, None, None]
    return mx.sqrt(abar) * x_0 + mx.sqrt(1 - abar) * eps


def training_loss(model: PixelUNet, x_0: mx.array, t: mx.array, eps: mx.array, labels: mx.array) -> mx.array:
    """Algorithm 1, its line 5: the squared error of the predicted noise (equation 14).

    Lines 2 to 4, which draw x_0 from the data, t uniformly and eps from N(0, I), are up to the caller.
    """
    x_t = noised(x_0, t, eps, model.config)
    return mx.square(eps - model(x_t, t, labels)).mean()


def sample(
    model: PixelUNet, labels: Sequence[int | None], seed: int = 0, guidance: float = 1.0, steps: int | None = None
) -> Iterator[tuple[int, mx.array, mx.array]]:
    """Algorithm 2: yields (t, x_t, estimate of x_0) after each step, t from T - 1 down to 0; arrays are lazy.

    One picture (H, W, C) per label, None for any. `guidance` above 1 follows the labels more closely, at twice the
    work. x_0's estimate is clipped to [-1, 1], as in the paper's code. Fewer `steps` than T take evenly spaced times
    (Nichol and Dhariwal 2021, arXiv:2102.09672, section 4).
    """
    config = model.config
    none = len(config.labels)
    rows = mx.array([none if label is None else label for label in labels])
    noise = NoiseStream(range(seed, seed + len(labels)), (config.size, config.size, config.channels))
    x = noise()  # 1: x_T ~ N(0, I)
    chosen = np.linspace(0, config.timesteps - 1, steps or config.timesteps).round().astype(int).tolist()
    for t, before in zip(reversed(chosen), [*reversed(chosen[:-1]), None], strict=True):  # 2: for t = T, ..., 1
        times = mx.full((len(labels),), t)
        eps = model(x, times, rows)
        if guidance > 1 and none:
            free = model(x, times, mx.full(rows.shape, none))
            eps = free + guidance * (eps - free)
        x_0, mean, deviation = posterior(x, eps, t, before, config)
        x = mean + deviation * noise() if before is not None else mean  # 3, 4: the last step adds no noise
        yield t, x, x_0


def posterior(
    x: mx.array, eps: mx.array, t: int, before: int | None, config: DDPMConfig
) -> tuple[mx.array, mx.array, float]:
    """The estimate of x_0, and mean and deviation of x at the time before, given it and x_t (equations 7 and 15).

    `before` is t - 1, an earlier time if some are left out, or None for the clean picture. Without the clipping the
    mean is equation 11, (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t).
    """
    abar = float(config.alpha_bars[t])
    abar_before = 1.0 if before is None else float(config.alpha_bars[before])
    beta = 1 - abar / abar_before  # of one step, beta_t
    x_0 = mx.clip((x - (1 - abar) ** 0.5 * eps) / abar**0.5, -1, 1)
    mean = (abar_before**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - abar_before) * x) / (1 - abar)
    return x_0, mean, ((1 - abar_before) / (1 - abar) * beta) ** 0.5

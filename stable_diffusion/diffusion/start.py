"""Where a generation starts: noise, a picture or latents; and inpainting in the latents.

The kept part of the latents is restored at every step, or given to an inpainting network as further channels.

The reference is diffusers' StableDiffusionInpaintPipeline (pipeline_stable_diffusion_inpaint.py) and its SDXL form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..backend import mx
from ..errors import InputError
from ..pictures import MASKED_CONTENTS
from ..pictures.inpainting import filled, to_mask
from ..pictures.reading import as_input, as_picture, fit
from .denoiser import Denoiser, NetworkCall
from .noise import NoiseStream
from .samplers.base import Step
from .schedule import NoiseLevel, Plan


@dataclass(frozen=True)
class Mask:
    """Where to repaint, (1, H, W, 1) bool, and what that part begins from."""

    white: mx.array
    content: str
    downscale: int  # pixels per latent

    @property
    def latent(self) -> mx.array:
        """The mask (1, h, w, 1), scaled down as in the reference: by each square's first pixel."""
        return self.white[:, :: self.downscale, :: self.downscale]


@dataclass(frozen=True)
class InputPicture:
    """A picture to begin from, (1, H, W, 3) in [-1, 1], with the masked part filled in if that is wanted."""

    pixels: mx.array
    mask: Mask | None = None


@dataclass(frozen=True)
class InputLatents:
    """Clean latents x_0 to begin from, (1 or B, h, w, C)."""

    x_0: mx.array


@dataclass(frozen=True)
class FirstPass:
    """What an earlier pass paints, enlarged to `size` (width, height) by `upscaler`, then cropped around its middle."""

    upscaler: str
    size: tuple[int, int]

    def cropped(self, latents: mx.array, height: int, width: int) -> mx.array:
        """Enlarged latents (B, h, w, C) without what the target's shape lacks; an odd one goes at the end."""
        top, left = (latents.shape[1] - height) // 2, (latents.shape[2] - width) // 2
        return latents[:, top : top + height, left : left + width]


def read_input(picture: Any, mask: Any, content: str, width: int, height: int, downscale: int) -> InputPicture | None:
    """The picture and mask of a call, checked and cropped to the size; None for text to image."""
    if content not in MASKED_CONTENTS:
        raise InputError(f"masked_content = {content!r} should be one of {', '.join(MASKED_CONTENTS)}.")
    if picture is None:
        if mask is not None:
            raise InputError("mask_image says where to repaint, but there is no input_image: give that too.")
        return None
    if mask is None:
        return InputPicture(mx.array(as_input(picture, width, height))[None])
    picture = as_picture(picture)
    grey = to_mask(mask, picture.size)
    if grey.size != (width, height):
        grey = ImageOps.fit(grey, (width, height), Image.Resampling.NEAREST)
        picture = fit(picture, width, height)
    if content == "fill":
        picture = filled(picture, grey)
    white = Mask(mx.array(np.asarray(grey)[None, :, :, None] > 0), content, downscale)
    if not mx.any(white.latent):
        raise InputError(
            f"The mask's white is too thin: none of it falls on the latents' grid, one point every {downscale} pixels "
            f"of {width} x {height}. stable_diffusion.Inpainting thickens it."
        )
    return InputPicture(mx.array(as_input(picture, width, height))[None], white)


def check_task(
    name: str, channels: int, latent_channels: int, start: InputPicture | InputLatents | FirstPass | None
) -> None:
    """Raise `InputError` for a network that needs further inputs: a mask, or something unknown."""
    if channels == latent_channels:
        return
    if channels != 2 * latent_channels + 1:
        raise InputError(
            f"{name!r} is not a text-to-image model: its network takes {channels} channels, the latents have "
            f"{latent_channels}. Choose another model."
        )
    if not isinstance(start, InputPicture) or start.mask is None:
        raise InputError(
            f"{name!r} is an inpainting checkpoint ({channels} channels), which repaints a part of a picture: give the "
            "picture and a mask (input_image and mask_image), or choose another model."
        )


@dataclass(frozen=True)
class Kept:
    """The kept part of the latents, (B, h, w, C): its x_0, and its noise at every level."""

    mask: mx.array  # (1, h, w, 1) bool, True: repainted
    x_0: mx.array
    eps: mx.array
    free: NoiseLevel | None  # the level at which nothing is restored: the first, if that is pure noise

    def put_back(self, x: mx.array, level: NoiseLevel) -> mx.array:
        """x at a level, with the kept part noised to that level."""
        return x if level == self.free else mx.where(self.mask, x, level.noised(self.x_0, self.eps))


@dataclass(frozen=True)
class Start:
    """Where the sampler starts: latents x (B, h, w, C) at the plan's first level, and a denoiser aware of the mask."""

    x: mx.array
    denoiser: Denoiser
    kept: Kept | None = None

    @classmethod
    def from_latents(cls, x_0: mx.array, noise: mx.array, plan: Plan, denoiser: Denoiser) -> Start:
        """Start from clean latents, noised to the first level."""
        return cls(plan.renoise(x_0, noise), denoiser)

    def shown(self, step: Step) -> tuple[mx.array, mx.array]:
        """(x_t, x_0) of a step for the caller, with the kept part in both."""
        kept = self.kept
        if kept is None:
            return step.x, step.x_0
        x_0 = mx.where(kept.mask, step.x_0, kept.x_0)
        if step.index == step.total:  # clean, even if the sampler's last level is not
            return mx.where(kept.mask, step.x, kept.x_0), x_0
        return kept.put_back(step.x, NoiseLevel.from_ve_sigma(step.t, step.sigma)), x_0


def start_from(
    given: InputPicture | InputLatents | None,
    plan: Plan,
    denoiser: Denoiser,
    noise: NoiseStream,
    given_noise: mx.array | None,
    encode: Callable[[mx.array, mx.array], mx.array],
    inpainting_network: bool,
) -> Start:
    """The first latents of a generation. `given_noise` replaces the first noise; `encode` is the autoencoder's.

    Draws in the reference's order: the picture's posterior, the noise, the masked picture's posterior. Input latents
    skip the posterior's draw, so that those of a picture give the same result as the picture. At strength 1 inpainting
    begins with pure noise, image to image with the noised picture.
    """

    def first() -> mx.array:
        return noise.varied() if given_noise is None else given_noise

    if given is None:
        return Start(plan.prior(first()), denoiser)
    if isinstance(given, InputLatents):
        noise()
        return Start.from_latents(given.x_0, first(), plan, denoiser)
    picture = given
    if picture.mask is None:
        return Start.from_latents(encode(picture.pixels, noise()), first(), plan, denoiser)
    mask = picture.mask.latent
    pure = not plan.first
    if pure and inpainting_network:
        x = plan.prior(first())
    else:
        x_0, eps = encode(picture.pixels, noise()), first()
        content = mx.where(mask, noise(), x_0) if picture.mask.content == "noise" else x_0
        x = plan.prior(eps) if pure else plan.renoise(content, eps)
        if not inpainting_network:
            kept = Kept(mask, x_0, eps, plan.start if pure else None)
            return Start(x, dataclasses.replace(denoiser, seen=kept.put_back), kept)
    masked = encode(mx.where(picture.mask.white, 0.0, picture.pixels), noise())
    rows = mx.broadcast_to(mask.astype(mx.float32), (*masked.shape[:3], 1))
    channels = mx.concatenate([rows, masked], axis=-1)
    return Start(x, _with_channels(denoiser, channels))


def _with_channels(denoiser: Denoiser, channels: mx.array) -> Denoiser:
    """The denoiser, and its refiner, with further channels (B, h, w, n) appended to the latents of their networks."""
    refiner = None if denoiser.refiner is None else _with_channels(denoiser.refiner, channels)
    return dataclasses.replace(denoiser, network=_appending(denoiser.network, channels), refiner=refiner)


def _appending(network: NetworkCall, channels: mx.array) -> NetworkCall:
    """A network with further channels (B, h, w, n) appended to latents whose rows are a multiple of B."""

    def call(x: mx.array, t: float, step: int) -> mx.array:
        more = mx.concatenate([channels] * (x.shape[0] // channels.shape[0]))
        return network(mx.concatenate([x, more], axis=-1), t, step)

    return call

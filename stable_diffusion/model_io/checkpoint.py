"""A loaded checkpoint: its parts, checked to fit one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .. import families
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from ..diffusion.network import TextReader
from ..errors import ConfigError
from ..text.tokenizer import Tokenizer
from ..unet import UNet
from ..vae import Autoencoder


class CheckpointWarning(UserWarning):
    """A checkpoint's marks contradict each other; the message says what was assumed, and which option changes it."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. SDXL has two text encoders and tokenizers, the others and its refiner one.

    Files give a U-Net, an AutoencoderKL and CLIP. Other networks that satisfy the protocols of diffusion/network.py
    may take their places.
    """

    family: str  # a key of families.FAMILIES
    unet: UNet
    vae: Autoencoder  # without weights if another one is going to replace it
    text_encoders: tuple[CLIPTextModel, ...]
    tokenizers: tuple[Tokenizer, ...]
    scheduler: SchedulerConfig
    force_zeros_for_empty_prompt: bool
    reader: TextReader | None = None  # of the texts, where that is not CLIP's text encoders
    # By component, a function that reads its weights from the files again, lazily; only for weights that can be.
    reloads: Mapping[str, Callable[[], None]] = field(default_factory=dict)

    @property
    def pooled(self) -> bool:
        """Whether the U-Net is also conditioned on a pooled text vector and on sizes, as SDXL's is."""
        return families.get(self.family).pooled

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks by the names of their folders in diffusers' form."""
        texts = zip(families.get(self.family).encoders, self.text_encoders, strict=False)
        return {"unet": self.unet, "vae": self.vae, **dict(texts)}

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) in pixels, the size that the U-Net was trained for."""
        height, width = self.unet.sample_size
        return width * self.vae.config.downscale, height * self.vae.config.downscale


def assemble(
    where: str,
    family: str,
    unet: UNet,
    vae: Autoencoder,
    text_encoders: Sequence[CLIPTextModel],
    tokenizers: Sequence[Tokenizer],
    scheduler: SchedulerConfig,
    force_zeros_for_empty_prompt: bool,
) -> Checkpoint:
    """Assemble the parts; `where` names the checkpoint in errors. Raises `ConfigError` if they do not fit."""
    configs = [encoder.config for encoder in text_encoders]
    _check_widths(where, unet.config, configs, vae.config, families.get(family).time_ids)
    row = families.get(family)
    scheduler = dataclasses.replace(scheduler, aligned_sigmas=row.aligned_sigmas)
    if row.steps_offset is not None:
        scheduler = dataclasses.replace(scheduler, steps_offset=row.steps_offset)
    return Checkpoint(
        family, unet, vae, tuple(text_encoders), tuple(tokenizers), scheduler, force_zeros_for_empty_prompt
    )


def vae_dtype(family: str, config: AutoencoderConfig, dtype: mx.Dtype) -> mx.Dtype:
    """The precision in which a family's autoencoder runs when the rest is `dtype`."""
    return mx.float32 if families.get(family).float32_vae and config.force_upcast else dtype


def family_of(config: UNetConfig, text_encoders: Sequence[str]) -> str:
    """The family's key, from the U-Net's configuration and the folders of the text encoders."""
    pooled = config.addition_embed_type == "text_time" or len(text_encoders) == 2
    return families.of_network(config.per_block("cross_attention_dim")[0], pooled, text_encoders).key


def _check_widths(
    where: str, unet: UNetConfig, encoders: list[CLIPTextConfig], vae: AutoencoderConfig, time_ids: int
) -> None:
    """Refuse parts that load but do not fit each other, such as one family's text encoder with another's U-Net."""
    context = sum(config.hidden_size for config in encoders)
    if any(width != context for width in unet.per_block("cross_attention_dim")):
        raise ConfigError(
            f"{where}: the U-Net expects text of width {unet.cross_attention_dim} (cross_attention_dim), but "
            f"the text encoder gives {context} (hidden_size). They belong to different families."
        )
    if unet.out_channels != vae.latent_channels:
        raise ConfigError(
            f"{where}: the U-Net makes latents of {unet.out_channels} channels, the autoencoder reads "
            f"{vae.latent_channels}."
        )
    if unet.addition_embed_type == "text_time":
        assert unet.addition_time_embed_dim and encoders[-1].projection_dim
        expected = encoders[-1].projection_dim + time_ids * unet.addition_time_embed_dim
        if unet.projection_class_embeddings_input_dim != expected or not encoders[-1].with_projection:
            raise ConfigError(
                f"{where}: projection_class_embeddings_input_dim = "
                f"{unet.projection_class_embeddings_input_dim} does not match the text encoder's projection and "
                f"{time_ids} time ids, which make {expected}."
            )

"""What a single file can express: it has no configurations, and loaders derive them from the tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .. import families
from ..backend import mx
from ..config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from ..errors import ConfigError, InputError, UnsupportedCheckpointError, WeightsError
from . import ldm, names
from .checkpoint import Checkpoint
from .describe import OriginalConfig
from .quantised import plain_parameters

# Keys that change no result at inference, or follow from the rest.
UNET_FREE = ("sample_size", "upcast_attention", "attention_head_dim", "num_attention_heads", "time_embedding_dim",
             "reverse_transformer_layers_per_block")  # fmt: skip
VAE_FREE = ("sample_size", "force_upcast", "down_block_types", "up_block_types")
TEXT_FREE = ("eos_token_id", "architectures", "projection_dim")
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def check_terms(checkpoint: Checkpoint, tensors: Mapping[str, mx.array]) -> None:
    """Raise `InputError` if a loader would derive another configuration from the tensors than the checkpoint's."""
    family, no_file = families.get(checkpoint.family), OriginalConfig()
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    unet, vae = (
        {key.removeprefix(prefix): shape for key, shape in given.items() if key.startswith(prefix)}
        for prefix in (names.UNET_PREFIX, names.VAE_PREFIX)
    )
    prediction = checkpoint.scheduler.prediction_type
    pooled = checkpoint.text_encoders[-1].config.projection_dim
    try:
        unet_shapes = ldm.Shapes.read(unet, names.original_unet_of(names.unet_layout(unet)))
        vae_shapes = ldm.Shapes.read(vae, names.original_vae(names.vae_levels(vae)))
        derived_unet = ldm.unet_config(unet_shapes, family, no_file, 64, pooled)
        derived_vae = ldm.vae_config(vae_shapes, family, no_file, 64)
        derived_schedule = ldm.scheduler_config(
            family, prediction, checkpoint.scheduler.rescale_betas_zero_snr, no_file
        )
        pairs = [
            ("U-Net", _unet(checkpoint.unet.config), _unet(UNetConfig.from_dict(derived_unet))),
            ("VAE", _less(checkpoint.vae.config, VAE_FREE), _less(AutoencoderConfig.from_dict(derived_vae), VAE_FREE)),
            ("schedule", _schedule(checkpoint.scheduler), _schedule(SchedulerConfig.from_dict(derived_schedule))),
        ]
        for known, encoder in zip(family.text_encoders, checkpoint.text_encoders, strict=True):
            found = {name: tuple(value.shape) for name, value in plain_parameters(encoder).items()}
            shapes = ldm.Shapes(found, names.SAME)
            derived_text = CLIPTextConfig.from_dict(ldm.text_encoder_config(shapes, known.kind))
            pairs.append(("text encoder", _less(encoder.config, TEXT_FREE), _less(derived_text, TEXT_FREE)))
    except (ConfigError, UnsupportedCheckpointError, WeightsError) as error:
        raise InputError(f"A single file cannot hold this checkpoint; write a folder instead. {error}") from None
    for what, own, derived in pairs:
        bad = [f"{key} = {own[key]!r} (not {derived[key]!r})" for key in own if own[key] != derived[key]]
        if bad:
            raise InputError(
                f"A single file cannot express that the {what} has {', '.join(bad[:3])}; write a folder instead."
            )
    if prediction not in ("epsilon", "v_prediction"):
        raise InputError(
            f"A single file cannot express that the U-Net predicts {prediction!r}; write a folder instead."
        )


def _less(config: Any, free: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in free}


def _unet(config: UNetConfig) -> dict[str, Any]:
    """A U-Net's configuration in one canonical spelling."""
    values = _less(config, UNET_FREE)
    layers = config.per_block("layers_per_block")
    attends = [kind.startswith("CrossAttn") for kind in config.down_block_types]
    attends[-1] = True  # as its middle does
    depths = [
        each if isinstance(each, tuple) else (each,) * n
        for each, n in zip(config.per_block("transformer_layers_per_block"), layers, strict=True)
    ]
    up = zip(config.reverse_transformer_layers_per_block or depths[::-1], layers[::-1], attends[::-1], strict=True)
    whole = [(each if isinstance(each, tuple) else (each,) * (n + 1), used) for each, n, used in up]
    values["up_depths"] = [each if len(set(each)) > 1 else each[:1] for each, used in whole if used]
    values |= {key: config.per_block(key) for key in ("cross_attention_dim", "only_cross_attention")}
    values["layers_per_block"] = layers
    values["transformer_layers_per_block"] = [each for each, used in zip(depths, attends, strict=True) if used]
    values["heads"] = [each for each, used in zip(config.heads, attends, strict=True) if used]
    values["down_block_types"], values["up_block_types"] = list(config.down_block_types), list(config.up_block_types)
    return values


def _schedule(config: SchedulerConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in SCHEDULE}

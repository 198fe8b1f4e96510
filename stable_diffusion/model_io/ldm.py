"""The original layout of single files (LDM's, and SGM's for SDXL): configurations from the tensors' shapes.

Reference: diffusers/loaders/single_file_utils.py, and the model code of CompVis, Stability AI and OpenCLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import NO_MIDDLE, ONE_RESNET
from ..errors import UnsupportedCheckpointError, WeightsError
from ..families import OPEN_CLIP, Family
from .describe import OriginalConfig
from .name_table import Names

NORM_GROUPS = 32
HEAD_CHANNELS = 64  # per attention head where the family does not say, and in all of CLIP's text encoders


@dataclass(frozen=True)
class Shapes:
    """Shapes of a part's tensors in the file, by the names of the parameters here; `names` translates for errors."""

    found: Mapping[str, tuple[int, ...]]
    names: Names

    @classmethod
    def read(cls, given: Mapping[str, tuple[int, ...]], names: Names) -> Shapes:
        """From shapes by the file's names, with no fused tensors among them."""
        return cls({place.ours: shape for key, shape in given.items() for place in names.read(key)}, names)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def side(self, name: str, axis: int) -> int:
        """One side of a tensor's shape. Raises `WeightsError` if the tensor is missing or has too few axes."""
        shape = self.found.get(name)
        if shape is None:
            raise WeightsError(f"The tensor {self.names.write(name).theirs} is missing; the file is not complete.")
        if len(shape) <= axis or shape[axis] < 1:
            raise UnsupportedCheckpointError(
                f"The tensor {self.names.write(name).theirs} has the shape {shape}, which makes no sense."
            )
        return shape[axis]

    def count(self, name: str) -> int:
        """The number of tensors of a name with `{}` for a number, counted from 0."""
        n = 0
        while name.format(n) in self.found:
            n += 1
        return n


def unet_config(
    shapes: Shapes, family: Family, original: OriginalConfig, sample_size: int, pooled: int | None
) -> dict[str, Any]:
    """unet/config.json as diffusers would write it for these tensors; `pooled` is the pooled text's width."""
    levels = shapes.count("down_blocks.{}.resnets.0.conv1.weight")
    layers = shapes.count("down_blocks.0.resnets.{}.conv1.weight")
    found = _transformer_depths(shapes)
    depths, up_depths = (
        [tuple(found.get(f"{way}_blocks.{i}.attentions.{j}", 0) for j in range(n)) for i in range(levels)]
        for way, n in (("down", layers), ("up", layers + 1))
    )
    attends = [any(level) for level in depths]
    mirrored = all(len({*up, *down}) == 1 for up, down in zip(up_depths[::-1], depths, strict=True) if any(down))
    depths, up_depths = ([tuple(max(n, 1) for n in level) for level in each] for each in (depths, up_depths))
    if not attends[-1]:  # this level then holds the middle's depth
        depths[-1] = (found.get("mid_block.attentions.0", 1),) * layers
    channels = [shapes.side(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)]
    keys = [key for key in shapes.found if key.endswith(".attn2.to_k.weight")]
    if not keys:
        raise WeightsError("The U-Net attends to no text. The file is damaged, or of a kind that is not known here.")
    config = {
        "sample_size": sample_size,
        "in_channels": shapes.side("conv_in.weight", 1),
        "out_channels": shapes.side("conv_out.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attending else "UpBlock2D" for attending in attends[::-1]],
        "transformer_layers_per_block": _as_short(depths),
        "cross_attention_dim": shapes.side(keys[0], 1),
        "attention_head_dim": _heads(channels, family, original),
        "norm_num_groups": NORM_GROUPS,
        "use_linear_projection": family.linear_projection,
        "upcast_attention": family.upcast_attention,
        "time_embedding_dim": shapes.side("time_embedding.linear_1.weight", 0),
    }
    if not mirrored:
        config["reverse_transformer_layers_per_block"] = _as_short(up_depths)
    if "mid_block.attentions.0.norm.weight" not in shapes:
        has_resnet = "mid_block.resnets.0.conv1.weight" in shapes
        config["mid_block_type"] = ONE_RESNET if has_resnet else NO_MIDDLE
    if "time_embedding.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes.side("time_embedding.cond_proj.weight", 1)
    if family.pooled:
        config["addition_embed_type"] = "text_time"
        inputs = shapes.side("add_embedding.linear_1.weight", 1)
        config["projection_class_embeddings_input_dim"] = inputs
        config["addition_time_embed_dim"] = max((inputs - (pooled or 0)) // family.time_ids, 1)
    return config


def _as_short(depths: list[tuple[int, ...]]) -> list[Any]:
    """One number for each level whose layers are alike."""
    return [each[0] if len(set(each)) == 1 else list(each) for each in depths]


def _heads(channels: list[int], family: Family, original: OriginalConfig) -> list[int]:
    """Shapes do not show the number of heads; the .yaml next to the file does, or the family."""
    heads = original.num_heads or family.heads
    if original.num_head_channels or not heads:
        return [max(each // (original.num_head_channels or HEAD_CHANNELS), 1) for each in channels]
    return [heads] * len(channels)


def _transformer_depths(shapes: Shapes) -> dict[str, int]:
    """A transformer's name -> the number of its blocks."""
    depths: dict[str, int] = {}
    for key in shapes.found:
        name, blocks, rest = key.partition(".transformer_blocks.")
        number = rest.partition(".")[0]
        if blocks and number.isdecimal() and len(number) < 4:
            depths[name] = max(depths.get(name, 0), int(number) + 1)
    return depths


def vae_config(shapes: Shapes, family: Family, original: OriginalConfig, sample_size: int) -> dict[str, Any]:
    """vae/config.json as diffusers would write it for these tensors."""
    return {
        **vae_sizes(shapes),
        "in_channels": shapes.side("encoder.conv_in.weight", 1),
        "out_channels": shapes.side("decoder.conv_out.weight", 0),
        "norm_num_groups": NORM_GROUPS,
        "sample_size": sample_size * family.downscale,
        "scaling_factor": original.scale_factor or family.scaling_factor,
        "force_upcast": True,
    }


def usual_vae_config(family: Family) -> dict[str, Any]:
    """vae/config.json of the family's original checkpoint."""
    channels = [128, 256, 512, 512]
    return {
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "latent_channels": family.latent_channels,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": family.latent_side * family.downscale,
        "scaling_factor": family.scaling_factor,
        "force_upcast": True,
    }


def vae_sizes(shapes: Shapes) -> dict[str, Any]:
    """The part of an autoencoder's configuration that its tensors determine."""
    levels = shapes.count("encoder.down_blocks.{}.resnets.0.conv1.weight")
    return {
        "block_out_channels": [
            shapes.side(f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)
        ],
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": shapes.side("decoder.conv_in.weight", 1),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.attention.to_q.weight" in shapes,
    }


def text_encoder_config(shapes: Shapes, kind: str) -> dict[str, Any]:
    """text_encoder/config.json as transformers would write it for these tensors."""
    hidden = shapes.side("token_embedding.weight", 1)
    config = {
        "vocab_size": shapes.side("token_embedding.weight", 0),
        "hidden_size": hidden,
        "intermediate_size": shapes.side("layers.0.fc1.weight", 0),
        "num_hidden_layers": shapes.count("layers.{}.fc1.weight"),
        "num_attention_heads": max(hidden // HEAD_CHANNELS, 1),
        "max_position_embeddings": shapes.side("position_embedding.weight", 0),
        "hidden_act": "gelu" if kind == OPEN_CLIP else "quick_gelu",
        "eos_token_id": 2,  # transformers' sign for the highest id, which in CLIP's vocabulary is the end of text
        "architectures": ["CLIPTextModel"],
    }
    if "text_projection.weight" in shapes:
        config["architectures"] = ["CLIPTextModelWithProjection"]
        config["projection_dim"] = shapes.side("text_projection.weight", 0)
    return config


def scheduler_config(
    family: Family, prediction_type: str, zero_terminal_snr: bool, original: OriginalConfig
) -> dict[str, Any]:
    """scheduler/scheduler_config.json of the folder that diffusers' from_single_file uses for the family.

    Zero terminal SNR needs steps that start at the very last time (Lin et al. 2023).
    """
    config = {
        "num_train_timesteps": 1000,
        "beta_start": original.linear_start or 0.00085,
        "beta_end": original.linear_end or 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        **family.schedule,
    }
    if zero_terminal_snr:
        config |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    return config


def sample_size(family: Family, prediction_type: str, pixels: int | None) -> int:
    """The side of the latents that the model was trained on."""
    if pixels:
        return pixels // family.downscale
    return (family.latent_side_of_eps if prediction_type == "epsilon" else None) or family.latent_side

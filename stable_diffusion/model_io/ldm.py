"""The original layout of single files (LDM's, and SGM's for SDXL): names as tables, sizes told from shapes.

Reference: diffusers/loaders/single_file_utils.py, and the model code of CompVis, Stability AI and OpenCLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UnsupportedCheckpointError, WeightsError
from . import mapping
from .describe import TEXT_ENCODERS, UNET, VAE, OriginalConfig
from .mapping import NameMap

Shapes = Mapping[str, tuple[int, ...]]

# Keys beside the three networks that hold nothing of theirs: training, averages, losses, and the schedule, which the
# configuration gives anew. Everything that is not named here has to be a parameter.
IGNORED = (
    r"^model_ema\.",
    r"^(betas|alphas_cumprod(_prev)?|sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod)$",
    r"^(posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor)$",
    r"^(denoiser|sigma_sampler|loss_fn)\.|^(denoiser\.)?sigmas$",
    r"^first_stage_model\.(loss|model_ema|discriminator)\.",
    r"^(optimizer|optimizer_states|lr_schedulers?|callbacks|loops)(\.|$)",
    r"^(epoch|global_step|iteration|v_pred|ztsnr)$",
    r"^(cond_stage_model|conditioner\.embedders\.\d+)\.(model\.)?(logit_scale|attn_mask)$",
    r"^(cond_stage_model|conditioner\.embedders\.0)\.text_projection$|^embedding_manager\.",
    r"^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_projection\.weight|logit_scale)$",
    r"^(cond_stage_model|conditioner\.embedders\.\d+)\.(model\.visual|transformer\.vision_model)\.",
    r"^cond_stage_model\.model\.(text_projection(\.weight)?|transformer\.resblocks\.23\..*)$",  # SD 2.x leaves them out
    r"\.position_ids$",  # 0, 1, 2, ...
)

FAMILY_SIZES = {"sd1": 64, "sd2": 96, "sdxl": 128}  # latents' side, for which the U-Net was trained
SIZE_OF_SD2_BASE = 64  # which predicts eps
NORM_GROUPS = 32
SD1_HEADS = 8
HEAD_CHANNELS = 64  # of every other attention: SD 2.x's and SDXL's U-Nets, and all of CLIP's text encoders

HF_CLIP = mapping.TEXT_ENCODER

OPEN_CLIP = NameMap(
    renames=(
        (r"^positional_embedding$", r"position_embedding.weight"),
        (r"^text_projection$", r"text_projection.weight"),
        (r"^ln_final\.", r"final_layer_norm."),
        (r"^transformer\.resblocks\.", r"layers."),
        (r"\.ln_([12])\.", r".layer_norm\1."),
        (r"\.attn\.(in_proj_|out_proj\.)", r".self_attn.\1"),
        (r"\.mlp\.c_fc\.", r".fc1."),
        (r"\.mlp\.c_proj\.", r".fc2."),
    ),
    splits=(
        # Query, key and value, one above the other.
        (r"\.in_proj_(weight|bias)$", (r".q_proj.\1", r".k_proj.\1", r".v_proj.\1")),
    ),
    transposed=(r"^text_projection$",),
)

_RESNET = (
    (r"(resnets\.\d+)\.in_layers\.0\.", r"\1.norm1."),
    (r"(resnets\.\d+)\.in_layers\.2\.", r"\1.conv1."),
    (r"(resnets\.\d+)\.emb_layers\.1\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.out_layers\.0\.", r"\1.norm2."),
    (r"(resnets\.\d+)\.out_layers\.3\.", r"\1.conv2."),
    (r"(resnets\.\d+)\.skip_connection\.", r"\1.conv_shortcut."),
)

_UNET = (
    (r"^input_blocks\.0\.0\.", r"conv_in."),
    (r"^time_embed\.0\.", r"time_embedding.linear_1."),
    (r"^time_embed\.2\.", r"time_embedding.linear_2."),
    (r"^time_embed\.cond_proj\.", r"time_embedding.cond_proj."),
    (r"^label_emb\.0\.0\.", r"add_embedding.linear_1."),
    (r"^label_emb\.0\.2\.", r"add_embedding.linear_2."),
    (r"^middle_block\.0\.", r"mid_block.resnets.0."),
    (r"^middle_block\.1\.", r"mid_block.attentions.0."),
    (r"^middle_block\.2\.", r"mid_block.resnets.1."),
    (r"^out\.0\.", r"conv_norm_out."),
    (r"^out\.2\.", r"conv_out."),
)

_VAE = (
    (r"coder\.norm_out\.", r"coder.conv_norm_out."),
    (r"coder\.mid\.block_1\.", r"coder.mid_block.resnets.0."),
    (r"coder\.mid\.block_2\.", r"coder.mid_block.resnets.1."),
    (r"coder\.mid\.attn_1\.norm\.", r"coder.mid_block.attentions.0.group_norm."),
    (r"coder\.mid\.attn_1\.([qkv])\.", r"coder.mid_block.attentions.0.attention.to_\1."),
    (r"coder\.mid\.attn_1\.proj_out\.", r"coder.mid_block.attentions.0.attention.to_out."),
    (r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
)


def unet_names(levels: int, layers: int) -> NameMap:
    """LDM counts the U-Net's blocks through, way down and way up; here they are counted within their level."""
    rows = []
    for level in range(levels):
        down, up = 1 + level * (layers + 1), level * (layers + 1)
        for layer in range(layers):
            rows.append((rf"^input_blocks\.{down + layer}\.0\.", rf"down_blocks.{level}.resnets.{layer}."))
            rows.append((rf"^input_blocks\.{down + layer}\.1\.", rf"down_blocks.{level}.attentions.{layer}."))
        rows.append((rf"^input_blocks\.{down + layers}\.0\.op\.", rf"down_blocks.{level}.downsample.conv."))
        rows.append((rf"^output_blocks\.{up + layers}\.[12]\.conv\.", rf"up_blocks.{level}.upsample.conv."))
        for layer in range(layers + 1):
            rows.append((rf"^output_blocks\.{up + layer}\.0\.", rf"up_blocks.{level}.resnets.{layer}."))
            rows.append((rf"^output_blocks\.{up + layer}\.1\.", rf"up_blocks.{level}.attentions.{layer}."))
    return NameMap(renames=(*_UNET, *rows, *_RESNET, *mapping.UNET.renames))


def vae_names(levels: int) -> NameMap:
    """LDM counts the decoder's levels by their resolution, from the highest; here from the first to be run."""
    rows = tuple((rf"^decoder\.up\.{level}\.", rf"decoder.up_blocks.{levels - 1 - level}.") for level in range(levels))
    return NameMap(renames=(*_VAE, *rows))


def split_by_part(keys: Iterable[str], family: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The keys of each part, without its prefix -> the file's key; and those that belong to none."""
    prefixes = {"unet": UNET, "vae": VAE}
    for i, prefix in enumerate(TEXT_ENCODERS[family]):
        prefixes[f"text_encoder{f'_{i + 1}' * bool(i)}"] = prefix
    parts: dict[str, dict[str, str]] = {part: {} for part in prefixes}
    unknown = []
    ignored = re.compile("|".join(IGNORED))
    for key in keys:
        if ignored.search(key):
            continue
        for part, prefix in prefixes.items():
            if key.startswith(prefix):
                parts[part][key.removeprefix(prefix)] = key
                break
        else:
            unknown.append(key)
    return parts, unknown


# Sizes, from the shapes of a part's tensors, their prefix taken off


def unet_layout(shapes: Shapes) -> list[list[tuple[int, int]]]:
    """For each level of the way down, for each of its layers: channels, and blocks of its transformer."""
    levels: list[list[tuple[int, int]]] = [[]]
    depths = _transformer_depths(shapes)
    for i in range(1, len(shapes)):
        if f"input_blocks.{i}.0.in_layers.2.weight" in shapes:
            channels = _side(shapes, f"input_blocks.{i}.0.in_layers.2.weight", 0)
            levels[-1].append((channels, depths.get(f"input_blocks.{i}.1", 0)))
        elif f"input_blocks.{i}.0.op.weight" in shapes:
            levels.append([])
        else:
            break
    if not all(levels) or len({len(level) for level in levels}) != 1:
        raise WeightsError(
            f"The U-Net's levels have {', '.join(str(len(level)) for level in levels)} layers; all should have as "
            f"many. The file is damaged, or of a kind that is not known here."
        )
    return levels


def unet_config(
    shapes: Shapes, family: str, original: OriginalConfig, sample_size: int, pooled: int | None
) -> dict[str, Any]:
    """unet/config.json as diffusers would have it for these tensors; `pooled` is the text's pooled width in SDXL."""
    layout = unet_layout(shapes)
    channels = [level[0][0] for level in layout]
    attends = [any(depth for _, depth in level) for level in layout]
    depths = [tuple(max(depth, 1) for _, depth in level) for level in layout]
    if not attends[-1]:  # what then gives the middle's depth
        depths[-1] = (_transformer_depths(shapes).get("middle_block.1", 1),) * len(depths[-1])
    keys = [key for key in shapes if key.endswith(".attn2.to_k.weight")]
    if not keys:
        raise WeightsError("The U-Net attends to no text. The file is damaged, or of a kind that is not known here.")
    config = {
        "sample_size": sample_size,
        "in_channels": _side(shapes, "input_blocks.0.0.weight", 1),
        "out_channels": _side(shapes, "out.2.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": len(layout[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attending else "UpBlock2D" for attending in attends[::-1]],
        "transformer_layers_per_block": [each[0] if len(set(each)) == 1 else each for each in depths],
        "cross_attention_dim": _side(shapes, keys[0], 1),
        "attention_head_dim": _heads(channels, family, original),
        "norm_num_groups": NORM_GROUPS,
        "use_linear_projection": family != "sd1",
        "upcast_attention": family == "sd2",
        "time_embedding_dim": _side(shapes, "time_embed.0.weight", 0),
    }
    if "time_embed.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = _side(shapes, "time_embed.cond_proj.weight", 1)
    if family == "sdxl":
        config["addition_embed_type"] = "text_time"
        inputs = _side(shapes, "label_emb.0.0.weight", 1)
        config["projection_class_embeddings_input_dim"] = inputs
        config["addition_time_embed_dim"] = max((inputs - (pooled or 0)) // 6, 1)  # of each of six numbers
    return config


def _heads(channels: list[int], family: str, original: OriginalConfig) -> list[int]:
    """Shapes do not tell the heads; the family does, or the .yaml beside the file."""
    if original.num_head_channels or (family != "sd1" and not original.num_heads):
        return [max(each // (original.num_head_channels or HEAD_CHANNELS), 1) for each in channels]
    return [original.num_heads or SD1_HEADS] * len(channels)


def _transformer_depths(shapes: Shapes) -> dict[str, int]:
    """A transformer's name -> the number of its blocks."""
    depths: dict[str, int] = {}
    for key in shapes:
        name, blocks, rest = key.partition(".transformer_blocks.")
        number = rest.partition(".")[0]
        if blocks and number.isdecimal() and len(number) < 4:
            depths[name] = max(depths.get(name, 0), int(number) + 1)
    return depths


def vae_levels(shapes: Shapes) -> int:
    """The number of resolutions of the autoencoder."""
    levels = 0
    while f"encoder.down.{levels}.block.0.conv1.weight" in shapes:
        levels += 1
    return levels


def vae_config(shapes: Shapes, family: str, original: OriginalConfig, sample_size: int) -> dict[str, Any]:
    """vae/config.json as diffusers would have it for these tensors."""
    levels = vae_levels(shapes)
    layers = 0
    while f"encoder.down.0.block.{layers}.conv1.weight" in shapes:
        layers += 1
    latent_channels = _side(shapes, "decoder.conv_in.weight", 1)
    return {
        "in_channels": _side(shapes, "encoder.conv_in.weight", 1),
        "out_channels": _side(shapes, "decoder.conv_out.weight", 0),
        "block_out_channels": [_side(shapes, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": latent_channels,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": sample_size * 8,
        "scaling_factor": original.scale_factor or (0.13025 if family == "sdxl" else 0.18215),
        "force_upcast": True,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }


def text_encoder_config(shapes: Shapes, open_clip: bool) -> dict[str, Any]:
    """text_encoder/config.json; the shapes are those of the modules' own names, as OpenCLIP has others."""
    hidden = _side(shapes, "token_embedding.weight", 1)
    layers = 0
    while f"layers.{layers}.fc1.weight" in shapes:
        layers += 1
    config = {
        "vocab_size": _side(shapes, "token_embedding.weight", 0),
        "hidden_size": hidden,
        "intermediate_size": _side(shapes, "layers.0.fc1.weight", 0),
        "num_hidden_layers": layers,
        "num_attention_heads": max(hidden // HEAD_CHANNELS, 1),
        "max_position_embeddings": _side(shapes, "position_embedding.weight", 0),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "eos_token_id": 2,  # the highest id, which in CLIP's vocabulary is the end of text
        "architectures": ["CLIPTextModel"],
    }
    if "text_projection.weight" in shapes:
        config["architectures"] = ["CLIPTextModelWithProjection"]
        config["projection_dim"] = _side(shapes, "text_projection.weight", 0)
    return config


def scheduler_config(
    family: str, prediction_type: str, zero_terminal_snr: bool, original: OriginalConfig
) -> dict[str, Any]:
    """scheduler/scheduler_config.json of the folder that diffusers' from_single_file takes for the family.

    Zero terminal SNR wants steps from the very last time on (Lin et al. 2023).
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
    }
    if family == "sdxl":
        config |= {"timestep_spacing": "leading", "interpolation_type": "linear", "use_karras_sigmas": False}
    if zero_terminal_snr:
        config |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    return config


def sample_size(family: str, prediction_type: str, pixels: int | None) -> int:
    """The side of the latents that the model was trained for."""
    if pixels:
        return pixels // 8
    return SIZE_OF_SD2_BASE if (family, prediction_type) == ("sd2", "epsilon") else FAMILY_SIZES[family]


def _side(shapes: Shapes, key: str, axis: int) -> int:
    """One side of a tensor's shape; `WeightsError` where the tensor is missing or has too few axes."""
    shape = shapes.get(key)
    if shape is None:
        raise WeightsError(f"The tensor {key} is missing; the file is not complete.")
    if len(shape) <= axis or shape[axis] < 1:
        raise UnsupportedCheckpointError(f"The tensor {key} has the shape {shape}, which makes no sense.")
    return shape[axis]

"""Modules -> the tensors of a file, in diffusers' names and layout or in the original ones: the way back of loading.

The tables are rules of regular expressions, applied in order, from this engine's names to those of the file. Everything
stays lazy: what is written is computed when it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx.utils import tree_flatten

from ..backend import mx, nn
from ..config import UNetConfig
from . import describe
from .checkpoint import Checkpoint
from .quantised import dequantised

Rules = Sequence[tuple[str, str]]
Tensors = dict[str, mx.array]

# To diffusers and transformers.

_TO_FOLDER_INSIDE = (
    (r"\.to_out\.", r".to_out.0."),
    (r"\.ff\.proj_in\.", r".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", r".ff.net.2."),
)
_TO_FOLDER_SIZES = ((r"\.downsample\.", r".downsamplers.0."), (r"\.upsample\.", r".upsamplers.0."))
UNET = (*_TO_FOLDER_INSIDE, *_TO_FOLDER_SIZES)
VAE = (*_TO_FOLDER_SIZES, (r"\.attention\.to_out\.", r".to_out.0."), (r"\.attention\.", r"."))
TEXT_ENCODER = (
    (r"^(token|position)_embedding\.", r"text_model.embeddings.\1_embedding."),
    (r"^layers\.", r"text_model.encoder.layers."),
    (r"^final_layer_norm\.", r"text_model.final_layer_norm."),
    (r"\.(fc[12])\.", r".mlp.\1."),
)

# To the original layout (ldm.py reads it).

_RESNET = (
    (r"\.norm1\.", r".in_layers.0."),
    (r"\.conv1\.", r".in_layers.2."),
    (r"\.time_emb_proj\.", r".emb_layers.1."),
    (r"\.norm2\.", r".out_layers.0."),
    (r"\.conv2\.", r".out_layers.3."),
    (r"\.conv_shortcut\.", r".skip_connection."),
)
_UNET_ENDS = (
    (r"^conv_in\.", r"input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", r"time_embed.0."),
    (r"^time_embedding\.linear_2\.", r"time_embed.2."),
    (r"^time_embedding\.cond_proj\.", r"time_embed.cond_proj."),
    (r"^add_embedding\.linear_1\.", r"label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", r"label_emb.0.2."),
    (r"^mid_block\.resnets\.0\.", r"middle_block.0."),
    (r"^mid_block\.attentions\.0\.", r"middle_block.1."),
    (r"^mid_block\.resnets\.1\.", r"middle_block.2."),
    (r"^conv_norm_out\.", r"out.0."),
    (r"^conv_out\.", r"out.2."),
)
_VAE = (
    (r"\.conv_norm_out\.", r".norm_out."),
    (r"\.mid_block\.resnets\.0\.", r".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", r".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", r".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.attention\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.attention\.to_out\.", r".mid.attn_1.proj_out."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.conv_shortcut\.", r".nin_shortcut."),
)
_OPEN_CLIP = (
    (r"^position_embedding\.weight$", r"positional_embedding"),
    (r"^text_projection\.weight$", r"text_projection"),
    (r"^final_layer_norm\.", r"ln_final."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.", r".attn."),
    (r"\.fc1\.", r".mlp.c_fc."),
    (r"\.fc2\.", r".mlp.c_proj."),
    (r"^layers\.", r"transformer.resblocks."),
)
FUSED = ("q_proj", "k_proj", "v_proj")  # in OpenCLIP one tensor, one above the other


def to_folder(part: str, model: nn.Module) -> Tensors:
    """A network as diffusers' folder has it; `part` is "unet", "vae", "text_encoder" or "text_encoder_2"."""
    if part == "unet":
        return _named(model, UNET, _pointwise(model.config))
    if part == "vae":
        return _named(model, VAE, r"(conv_shortcut|quant_conv)\.weight$")
    return _named(model, TEXT_ENCODER)


def to_single_file(checkpoint: Checkpoint) -> Tensors:
    """All networks of a checkpoint as one file of the original layout has them."""
    unet, vae = checkpoint.unet, checkpoint.vae
    tensors = _prefixed(describe.UNET, _named(unet, unet_rules(unet.config), _pointwise(unet.config)))
    tensors |= _prefixed(
        describe.VAE,
        _named(vae, vae_rules(len(vae.config.block_out_channels)), r"(shortcut|quant_conv|to_\w+)\.weight$"),
    )
    for i, (prefix, encoder) in enumerate(
        zip(describe.TEXT_ENCODERS[checkpoint.family], checkpoint.text_encoders, strict=True)
    ):
        open_clip = checkpoint.family == "sd2" or i == 1
        tensors |= _prefixed(prefix, _open_clip(encoder) if open_clip else _named(encoder, TEXT_ENCODER))
    return tensors


def unet_rules(config: UNetConfig) -> Rules:
    """The original layout counts the U-Net's blocks through, way down and way up, where we count within the level."""
    levels, layers = len(config.block_out_channels), config.per_block("layers_per_block")[0]
    rows = []
    for level in range(levels):
        down, up = 1 + level * (layers + 1), level * (layers + 1)
        grown = (
            2 if config.up_block_types[level].startswith("CrossAttn") else 1
        )  # after the attention where there is one
        for layer in range(layers):
            rows.append((rf"^down_blocks\.{level}\.resnets\.{layer}\.", rf"input_blocks.{down + layer}.0."))
            rows.append((rf"^down_blocks\.{level}\.attentions\.{layer}\.", rf"input_blocks.{down + layer}.1."))
        rows.append((rf"^down_blocks\.{level}\.downsample\.conv\.", rf"input_blocks.{down + layers}.0.op."))
        rows.append((rf"^up_blocks\.{level}\.upsample\.conv\.", rf"output_blocks.{up + layers}.{grown}.conv."))
        for layer in range(layers + 1):
            rows.append((rf"^up_blocks\.{level}\.resnets\.{layer}\.", rf"output_blocks.{up + layer}.0."))
            rows.append((rf"^up_blocks\.{level}\.attentions\.{layer}\.", rf"output_blocks.{up + layer}.1."))
    inside = [(rf"(resnets\.\d+){pattern}", rf"\1{new}") for pattern, new in _RESNET]
    return (*inside, *_TO_FOLDER_INSIDE, *rows, *_UNET_ENDS)


def vae_rules(levels: int) -> Rules:
    """The original layout counts the decoder's levels by their resolution, from the highest."""
    rows = []
    for level in range(levels):
        rows.append((rf"^encoder\.down_blocks\.{level}\.", rf"encoder.down.{level}."))
        rows.append((rf"^decoder\.up_blocks\.{level}\.", rf"decoder.up.{levels - 1 - level}."))
    return (*_VAE, *rows)


def plain_parameters(model: nn.Module) -> Tensors:
    """A network's parameters by name, with quantised ones unpacked."""
    parameters: Tensors = dict(tree_flatten(model.parameters()))
    for path, layer in dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)).items():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            parameters[f"{path}.weight"] = dequantised(layer)
            del parameters[f"{path}.scales"], parameters[f"{path}.biases"]
    return parameters


def _named(model: nn.Module, rules: Rules, pointwise: str = r"(?!)") -> Tensors:
    """Parameters under their new names, kernels turned to torch's (O, I, kH, kW).

    `pointwise` finds the names of linear layers that the file holds as kernels of one pixel.
    """
    tensors = {}
    for name, value in plain_parameters(model).items():
        if value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
        elif re.search(pointwise, name):
            value = value.reshape(*value.shape, 1, 1)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[name] = value
    return tensors


def _open_clip(encoder: nn.Module) -> Tensors:
    tensors = _named(encoder, _OPEN_CLIP)
    for name in [name for name in tensors if f".attn.{FUSED[0]}." in name]:
        parts = [tensors.pop(name.replace(FUSED[0], each)) for each in FUSED]
        tensors[name.replace(f"{FUSED[0]}.", "in_proj_")] = mx.concatenate(parts)
    if "text_projection" in tensors:
        tensors["text_projection"] = tensors["text_projection"].T
    return tensors


def _pointwise(config: UNetConfig) -> str:
    return r"conv_shortcut\.weight$" if config.use_linear_projection else (
        r"(conv_shortcut|attentions\.\d+\.proj_(in|out))\.weight$"
    )  # fmt: skip


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}

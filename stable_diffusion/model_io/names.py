"""Weight names in other programs' files, each paired once with the name here. Needs no MLX.

Each line holds a piece of the file's name, our piece for it, and the tensor's form; name_table.py applies them in
either direction. No other file knows foreign names, except describe.py for the marks by which it recognises files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

from ..config import UNetConfig
from ..errors import WeightsError
from ..families import CLIP, OPEN_CLIP, Family
from .name_table import ALIAS, Names, table

# --- Folders of diffusers and transformers

_SIZES = """
    downsamplers.0    downsample
    upsamplers.0      upsample
"""
_FEED_FORWARD = """
    ff.net.0.proj    ff.proj_in
    ff.net.2         ff.proj_out
"""
_OUTPUT = """
    to_out.0    to_out
"""
_KERNELS = """
    conv_shortcut.weight      conv_shortcut.weight      kernel
    quant_conv.weight         quant_conv.weight         kernel
    post_quant_conv.weight    post_quant_conv.weight    kernel
"""
# In U-Nets without use_linear_projection.
_PROJECTIONS = """
    attentions.{n}.proj_in.weight     attentions.{n}.proj_in.weight     kernel
    attentions.{n}.proj_out.weight    attentions.{n}.proj_out.weight    kernel
"""
_VAE_ATTENTION = """
    attentions.{n}.to_q        attentions.{n}.attention.to_q
    attentions.{n}.to_k        attentions.{n}.attention.to_k
    attentions.{n}.to_v        attentions.{n}.attention.to_v
    attentions.{n}.to_out.0    attentions.{n}.attention.to_out
    attentions.{n}.query       attentions.{n}.attention.to_q      alias
    attentions.{n}.key         attentions.{n}.attention.to_k      alias
    attentions.{n}.value       attentions.{n}.attention.to_v      alias
    attentions.{n}.proj_attn   attentions.{n}.attention.to_out    alias
"""  # the aliases: before diffusers 0.17
_MLP = """
    mlp.fc{n}    fc{n}
"""
_TEXT = """
    text_model.embeddings.token_embedding       token_embedding
    text_model.embeddings.position_embedding    position_embedding
    text_model.encoder.layers                   layers
    text_model.final_layer_norm                 final_layer_norm
"""
_TEXT_BARE = """
    embeddings.token_embedding       token_embedding       alias
    embeddings.position_embedding    position_embedding    alias
    encoder.layers                   layers                alias
"""  # since transformers 5
_POSITIONS = r"(^|\.)position_ids$"  # 0, 1, 2, ...

UNET = table(_SIZES, _FEED_FORWARD, _OUTPUT, _KERNELS)
VAE = table(_SIZES, _VAE_ATTENTION, _KERNELS)
TEXT_ENCODER = table(_TEXT, _TEXT_BARE, _MLP, ignored=_POSITIONS)
SAME = Names()  # files that use the modules' own names


def unet(config: UNetConfig) -> Names:
    """`UNET`, with the form in which files store this U-Net's projections."""
    return UNET if config.use_linear_projection else table(_SIZES, _FEED_FORWARD, _OUTPUT, _KERNELS, _PROJECTIONS)


# --- Single files in the original layout: LDM's, and SGM's for SDXL

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
# Where the first and the second text encoder may lie, and whose names follow: LDM's places, then SGM's.
TEXT_PLACES = (
    (
        ("cond_stage_model.transformer.", CLIP),
        ("cond_stage_model.model.", OPEN_CLIP),
        ("conditioner.embedders.0.transformer.", CLIP),
        ("conditioner.embedders.0.model.", OPEN_CLIP),
    ),
    (("conditioner.embedders.1.model.", OPEN_CLIP), ("conditioner.embedders.1.transformer.", CLIP)),
)

_ENDS = """
    input_blocks.0.0        conv_in
    time_embed.0            time_embedding.linear_1
    time_embed.2            time_embedding.linear_2
    time_embed.cond_proj    time_embedding.cond_proj
    label_emb.0.0           add_embedding.linear_1
    label_emb.0.2           add_embedding.linear_2
    middle_block.0          mid_block.resnets.0
    middle_block.1          mid_block.attentions.0
    middle_block.2          mid_block.resnets.1
    out.0                   conv_norm_out
    out.2                   conv_out
"""
_RESNETS = """
    resnets.{n}.in_layers.0        resnets.{n}.norm1
    resnets.{n}.in_layers.2        resnets.{n}.conv1
    resnets.{n}.emb_layers.1       resnets.{n}.time_emb_proj
    resnets.{n}.out_layers.0       resnets.{n}.norm2
    resnets.{n}.out_layers.3       resnets.{n}.conv2
    resnets.{n}.skip_connection    resnets.{n}.conv_shortcut
"""
_ORIGINAL_VAE = """
    encoder.down.{n}     encoder.down_blocks.{n}
    block.{n}            resnets.{n}
    nin_shortcut         conv_shortcut
    mid.block_1          mid_block.resnets.0
    mid.block_2          mid_block.resnets.1
    mid.attn_1.norm      mid_block.attentions.0.group_norm
    mid.attn_1.q         mid_block.attentions.0.attention.to_q
    mid.attn_1.k         mid_block.attentions.0.attention.to_k
    mid.attn_1.v         mid_block.attentions.0.attention.to_v
    mid.attn_1.proj_out  mid_block.attentions.0.attention.to_out
    norm_out             conv_norm_out
"""
_ORIGINAL_VAE_KERNELS = """
    attention.to_q.weight      attention.to_q.weight      kernel
    attention.to_k.weight      attention.to_k.weight      kernel
    attention.to_v.weight      attention.to_v.weight      kernel
    attention.to_out.weight    attention.to_out.weight    kernel
"""
OPEN_CLIP_TEXT = table("""
    positional_embedding     position_embedding.weight
    text_projection          text_projection.weight              transposed
    ln_final                 final_layer_norm
    transformer.resblocks    layers
    ln_{n}                   layer_norm{n}
    attn.in_proj_weight      self_attn.{q,k,v}_proj.weight       fused
    attn.in_proj_bias        self_attn.{q,k,v}_proj.bias         fused
    attn.out_proj            self_attn.out_proj
    mlp.c_fc                 fc1
    mlp.c_proj               fc2
""")  # fmt: skip

# Keys that belong to none of the three networks: training state, averages, losses, and the schedule, which is computed
# from the configuration. Any other key has to be a parameter.
_STRAY = "|".join((
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
    r"\.position_ids$",  # 0, 1, 2, ...
))  # fmt: skip
# SD 2.x uses neither the projection nor the last layer of 24; CLIP's own text encoder has 12.
_STRAY_UNLESS_POOLED = "|".join((
    r"^(cond_stage_model|conditioner\.embedders\.0)\.model\.(text_projection(\.weight)?|transformer\.resblocks\.23\..*)$",
    r"^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_model\.)?encoder\.layers\.23\.",
))  # fmt: skip
# The same for a file that holds only an autoencoder.
_STRAY_BESIDE_VAE = r"^(loss|model_ema|discriminator|epoch|global_step|optimizer|lr_schedulers|callbacks)(\.|$)"
_VAE_PREFIXES = (VAE_PREFIX, "vae.", "")


def unet_layout(keys: Collection[str]) -> list[list[bool]]:
    """For each level of an original U-Net's way down, for each of its layers: whether it attends to the text.

    Raises `WeightsError` unless all levels have the same number of layers, at least one.
    """
    levels: list[list[bool]] = [[]]
    attending = {key.partition(".transformer_blocks.")[0] for key in keys if ".transformer_blocks." in key}
    for i in range(1, len(keys)):
        if f"input_blocks.{i}.0.in_layers.2.weight" in keys:
            levels[-1].append(f"input_blocks.{i}.1" in attending)
        elif f"input_blocks.{i}.0.op.weight" in keys:
            levels.append([])
        else:
            break
    if not all(levels) or len({len(level) for level in levels}) != 1:
        raise WeightsError(
            f"The U-Net's levels have {', '.join(str(len(level)) for level in levels)} layers; all should have the "
            f"same number. The file is damaged, or of an unknown kind."
        )
    return levels


def original_unet(config: UNetConfig) -> Names:
    """The original names of a U-Net."""
    down, up = ([kind.startswith("CrossAttn") for kind in kinds]
                for kinds in (config.down_block_types, config.up_block_types))  # fmt: skip
    blocks = _blocks(config.per_block("layers_per_block"), down, up)
    kernels = _KERNELS if config.use_linear_projection else _KERNELS + _PROJECTIONS
    return table("\n".join(blocks), _ENDS, _RESNETS, _FEED_FORWARD, _OUTPUT, kernels)


def original_unet_of(layout: Sequence[Sequence[bool]]) -> Names:
    """The same, for reading a file of which only the `unet_layout` is known."""
    attends = [any(level) for level in layout]
    blocks = _blocks([len(level) for level in layout], attends, attends[::-1])
    return table("\n".join(blocks), _ENDS, _RESNETS, _FEED_FORWARD, _OUTPUT)


def _blocks(layers: Sequence[int], down: Sequence[bool], up: Sequence[bool]) -> Iterator[str]:
    """Rows for the blocks, which the original numbers consecutively and the modules here within their level.

    `layers` per level on the way down; `down` and `up` say which levels attend to the text.
    """
    number = 1
    for i, (count, attends) in enumerate(zip(layers, down, strict=True)):
        for j in range(count):
            yield f"input_blocks.{number}.0  down_blocks.{i}.resnets.{j}"
            if attends:
                yield f"input_blocks.{number}.1  down_blocks.{i}.attentions.{j}"
            number += 1
        yield f"input_blocks.{number}.0.op  down_blocks.{i}.downsample.conv"
        number += 1
    number = 0
    for i, (count, attends) in enumerate(zip(reversed(layers), up, strict=True)):
        for j in range(count + 1):
            yield f"output_blocks.{number}.0  up_blocks.{i}.resnets.{j}"
            if attends:
                yield f"output_blocks.{number}.1  up_blocks.{i}.attentions.{j}"
            number += 1
        yield f"output_blocks.{number - 1}.{2 if attends else 1}.conv  up_blocks.{i}.upsample.conv"


def vae_levels(keys: Collection[str]) -> int:
    """The number of resolutions of an original autoencoder; 0 for names of another kind."""
    levels = 0
    while f"encoder.down.{levels}.block.0.conv1.weight" in keys:
        levels += 1
    return levels


def original_vae(levels: int) -> Names:
    """The original numbers the decoder's levels from the highest resolution down; here level 0 runs first."""
    ups = [f"decoder.up.{level}  decoder.up_blocks.{levels - 1 - level}" for level in range(levels)]
    return table("\n".join(ups), _ORIGINAL_VAE, _ORIGINAL_VAE_KERNELS, _KERNELS)


def text_encoder(kind: str) -> Names:
    """The names of a text encoder in a single file."""
    return OPEN_CLIP_TEXT if kind == OPEN_CLIP else TEXT_ENCODER


def text_place(index: int, has: Callable[[str], bool]) -> tuple[str, str] | None:
    """The prefix of a file's first (0) or second (1) text encoder, and whose names follow: CLIP or OPEN_CLIP.

    `has(prefix)` says whether any key starts so.
    """
    return next((place for place in TEXT_PLACES[index] if has(place[0])), None)


def text_places(family: Family, has: Callable[[str], bool]) -> dict[str, tuple[str, str]]:
    """The same of each of a family's text encoders that is in the file, by the names of their folders."""
    found = {part: text_place(i, has) for i, part in enumerate(family.encoders)}
    return {part: place for part, place in found.items() if place}


def split_by_part(
    keys: Iterable[str], text_places: Mapping[str, tuple[str, str]], family: Family
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """For each part, {key without prefix: the file's key}; and the keys that belong to no part."""
    prefixes = {"unet": UNET_PREFIX, "vae": VAE_PREFIX}
    prefixes |= {part: prefix for part, (prefix, _) in text_places.items()}
    parts: dict[str, dict[str, str]] = {part: {} for part in prefixes}
    unknown = []
    stray = re.compile(_STRAY if family.pooled else f"{_STRAY}|{_STRAY_UNLESS_POOLED}")
    for key in keys:
        if stray.search(key):
            continue
        for part, prefix in prefixes.items():
            if key.startswith(prefix):
                parts[part][key.removeprefix(prefix)] = key
                break
        else:
            unknown.append(key)
    return parts, unknown


def vae_keys(keys: Collection[str]) -> dict[str, str]:
    """An autoencoder's {key without prefix: the file's key}, in its own file or a checkpoint; {} if there is no VAE."""
    for prefix in _VAE_PREFIXES:
        found = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
        if "decoder.conv_in.weight" in found:
            return {name: key for name, key in found.items() if not re.search(_STRAY_BESIDE_VAE, name)}
    return {}


# LDM's averaged weights of the U-Net have its names with the dots removed.
_AVERAGES = "model_ema." + UNET_PREFIX.removeprefix("model.").replace(".", "")
_WORD = re.compile(
    r"(?<=transformer_blocks)\d+|\d+(?=\d)|\d|input_blocks|middle_block|output_blocks|transformer_blocks|"
    r"time_embed|label_emb|cond_proj|(in|emb|out)_layers|skip_connection|proj_(in|out)|norm[123]?|attn[12]|to_(out|[qkv])|"
    r"ff|net|proj|conv|out|op|weight|bias"
)


def averaged_name(key: str) -> str:
    """The U-Net's own name of an average: "model_ema.diffusion_modelout2bias" is "model.diffusion_model.out.2.bias".

    Other keys are returned unchanged.
    """
    words = [found[0] for found in _WORD.finditer(key.removeprefix(_AVERAGES))]
    return UNET_PREFIX + ".".join(words) if words and _AVERAGES + "".join(words) == key else key


def has_averages_alone(keys: Container[str]) -> bool:
    """Whether a file holds averaged weights of the U-Net but not the U-Net itself."""
    first = "input_blocks.0.0.weight"
    return UNET_PREFIX + first not in keys and _AVERAGES + first.replace(".", "") in keys


# --- Adapters: LoRA and its relatives

# Before peft, diffusers named a text encoder's attention like the U-Net's.
_OLD_ATTENTION = """
    self_attn.to_q      self_attn.q_proj
    self_attn.to_k      self_attn.k_proj
    self_attn.to_v      self_attn.v_proj
    self_attn.to_out    self_attn.out_proj
"""
_BARE = _TEXT_BARE.replace(ALIAS, "")


def flat(name: str) -> str:
    """A module's name as kohya writes it; not reversible."""
    return name.replace(".", "_")


def unet_spellings(config: UNetConfig) -> tuple[Names, ...]:
    """The tables by which adapter files name a U-Net's modules: diffusers, diffusers before peft, the original."""
    return UNET, table(_SIZES, _FEED_FORWARD), original_unet(config)


def text_spellings() -> tuple[Names, ...]:
    """The same for a text encoder: transformers with and without "text_model.", each also as before peft."""
    return tuple(table(text, _MLP, attention) for text in (_TEXT, _BARE) for attention in ("", _OLD_ATTENTION))

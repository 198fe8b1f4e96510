"""Whose weights the tensors of an adapter's file change: tables, to be read by people.

A key is cut into a component, a module and a part: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight` is the
U-Net's, `mid_block.attentions.0.proj_in`'s, `down`. kohya writes a module's dots as underscores, which cannot be
undone; so every module of the loaded networks is listed under all the names that it has elsewhere, written likewise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..backend import nn
from ..clip import CLIPTextModel
from ..unet import UNet

UNET, TEXT, TEXT_2, ANY = "unet", "text_encoder", "text_encoder_2", ""

# How a key begins, and whose it is; the first that fits. ANY: whoever has a module of that name.
PREFIXES = (
    (r"lora_unet[_.]", UNET),  # kohya, OneTrainer
    (r"lora_te1?[_.]", TEXT),
    (r"lora_te2[_.]", TEXT_2),
    (r"lycoris_", ANY),  # LyCORIS without kohya
    (r"unet\.(?:base_model\.model\.)?", UNET),  # diffusers
    (r"text_encoder\.(?:base_model\.model\.)?", TEXT),
    (r"text_encoder_2\.(?:base_model\.model\.)?", TEXT_2),
    (r"(?:model\.)?diffusion_model\.", UNET),
    (r"base_model\.model\.", ANY),  # peft
    (r"", ANY),  # diffusers, before it had prefixes
)

# How a key ends, and what it is of the module's adapter.
PARTS = (
    (r"\.lora_down\.weight", "down"),  # kohya
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_A(?:\.\w+)?\.weight", "down"),  # peft; an adapter's name may stand before "weight"
    (r"\.lora_B(?:\.\w+)?\.weight", "up"),
    (r"[._]lora\.down\.weight", "down"),  # diffusers, before peft
    (r"[._]lora\.up\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"[._]lora\.alpha", "alpha"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?", "magnitude"),
    (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", r"\1"),  # LyCORIS
    (r"\.(diff_b|diff|w_norm|b_norm)", r"\1"),
)

# Parts of adapters that are not built here, and their names.
OTHER_FORMS = {
    r"\.(oft_blocks|oft_diag|oft_r|boft_\w+)(\.|$)": "OFT",
    r"\.(a1|a2|b1|b2|bm)\.weight$": "GLoRA",
    r"\.on_input$": "(IA)3",
    r"\.(hada|lokr)_(m|S|T)\w*$": "an unknown LyCORIS form",
}

# This engine's names -> diffusers' (the way back of model_io/mapping.py).
TO_DIFFUSERS = (
    (r"\.downsample\.", r".downsamplers.0."),
    (r"\.upsample\.", r".upsamplers.0."),
    (r"\.to_out$", r".to_out.0"),
    (r"\.ff\.proj_in$", r".ff.net.0.proj"),
    (r"\.ff\.proj_out$", r".ff.net.2"),
)
TEXT_TO_TRANSFORMERS = (
    (r"^(layers\.|final_layer_norm)", r"encoder.\1"),
    (r"^encoder\.final_layer_norm", r"final_layer_norm"),
    (r"\.(fc[12])$", r".mlp.\1"),
    (r"^(token|position)_embedding$", r"embeddings.\1_embedding"),
)
# diffusers' names -> those of the original U-Net, inside a resnet block, and outside of all blocks.
RESNET_TO_LDM = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER_TO_LDM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@dataclass(frozen=True)
class Part:
    """What one key says."""

    key: str
    component: str  # UNET, TEXT, TEXT_2 or ANY
    module: str  # as the file writes it
    part: str

    @property
    def flat(self) -> str:
        """The module, dots as underscores."""
        return self.module.replace(".", "_")


def parse(key: str) -> Part | None:
    """Cut a key; None where its ending is of no adapter that is known here."""
    found = ((match, name) for ending, name in PARTS if (match := re.search(ending + "$", key)))
    match, name = next(found, (None, ""))
    if match is None:
        return None
    start, component = next((begin.end(), whose) for prefix, whose in PREFIXES if (begin := re.match(prefix, key)))
    module = key[start : match.start()].replace(".processor.", ".")
    return Part(key, component, module, match.expand(name))


def other_form(keys: Iterable[str]) -> str | None:
    """The name of the form that keys belong to, where it is one that is not built here."""
    for key in keys:
        for pattern, name in OTHER_FORMS.items():
            if re.search(pattern, key):
                return name
    return None


def unet_modules(unet: UNet) -> dict[str, str]:
    """Every name of every layer of a U-Net, dots as underscores -> its path here."""
    names: dict[str, str] = {}
    blocks = dict(_ldm_blocks(unet))
    for path in _layers(unet):
        diffusers = _renamed(path, TO_DIFFUSERS)
        aliases = [diffusers, diffusers.removesuffix(".0") if path.endswith(".to_out") else diffusers]
        aliases += [name for name in [_ldm_name(path, diffusers, blocks)] if name]
        for alias in aliases:
            names[alias.replace(".", "_")] = path
    return names


def text_modules(encoder: CLIPTextModel) -> dict[str, str]:
    """The same of a text encoder."""
    names: dict[str, str] = {}
    for path in _layers(encoder):
        name = _renamed(path, TEXT_TO_TRANSFORMERS)
        old = re.sub(r"\.self_attn\.(q|k|v|out)_proj$", r".self_attn.to_\1", name)  # diffusers, before peft
        for alias in (name, old):
            names[alias.replace(".", "_")] = path
            names["text_model_" + alias.replace(".", "_")] = path
    return names


def _layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if path and "weight" in module]


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _ldm_name(path: str, diffusers: str, blocks: dict[str, str]) -> str | None:
    if path in OUTER_TO_LDM:
        return OUTER_TO_LDM[path]
    match = re.match(r"(?:\w+_blocks\.\d+|mid_block)\.(?:(?:resnets|attentions)\.\d+|(?:down|up)sample)", path)
    if not match or match[0] not in blocks:
        return None
    inside = path[match.end() + 1 :]
    if ".resnets." in match[0]:
        return f"{blocks[match[0]]}.{RESNET_TO_LDM[inside]}"
    if ".attentions." in match[0]:
        return blocks[match[0]] + diffusers[match.end() :]
    return blocks[match[0]]  # the one convolution of a down- or upsampler


def _ldm_blocks(unet: UNet) -> Iterator[tuple[str, str]]:
    """Block by block, the path here and the original U-Net's, which numbers the blocks of a way through."""
    number = 1
    for i, level in enumerate(unet.down_blocks):
        for j in range(len(level.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if "downsample" in level:
            yield f"down_blocks.{i}.downsample", f"input_blocks.{number}.0.op"
            number += 1
    for path, place in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        yield f"mid_block.{path}", f"middle_block.{place}"
    number = 0
    for i, level in enumerate(unet.up_blocks):
        for j in range(len(level.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            number += 1
        if "upsample" in level:
            yield f"up_blocks.{i}.upsample", f"output_blocks.{number - 1}.{2 if level.attentions else 1}.conv"

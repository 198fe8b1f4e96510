"""Which weights the tensors of an adapter file change: tables of how its keys begin and end.

A key splits into a component, a module and a part: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight` is the
`down` part of the U-Net's `mid_block.attentions.0.proj_in`. kohya writes a module's dots as underscores, which cannot
be undone; so every module of the loaded networks is listed under all names that model_io/names.py has for it, written
the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..backend import nn
from ..model_io import names

UNET, TEXT, TEXT_2, ANY = "unet", "text_encoder", "text_encoder_2", ""

# How a key begins -> its component; the first match counts. ANY: whichever has a module of that name.
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

# How a key ends -> its part of the module's adapter.
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

# Parts of adapters that are not supported, and their names.
OTHER_FORMS = {
    r"\.(oft_blocks|oft_diag|oft_r|boft_\w+)(\.|$)": "OFT",
    r"\.(a1|a2|b1|b2|bm)\.weight$": "GLoRA",
    r"\.on_input$": "(IA)3",
    r"\.(hada|lokr)_(m|S|T)\w*$": "an unknown LyCORIS form",
}


@dataclass(frozen=True)
class Part:
    """A key, split."""

    key: str
    component: str  # UNET, TEXT, TEXT_2 or ANY
    module: str  # as the file writes it
    part: str

    @property
    def flat(self) -> str:
        """The module, with dots as underscores."""
        return names.flat(self.module)


def parse(key: str) -> Part | None:
    """Split a key; None if its ending belongs to no known adapter."""
    found = ((match, name) for ending, name in PARTS if (match := re.search(ending + "$", key)))
    match, name = next(found, (None, ""))
    if match is None:
        return None
    start, component = next((begin.end(), whose) for prefix, whose in PREFIXES if (begin := re.match(prefix, key)))
    module = key[start : match.start()].replace(".processor.", ".")
    return Part(key, component, module, match.expand(name))


def other_form(keys: Iterable[str]) -> str | None:
    """The unsupported form that keys belong to, by name; None if there is no such key."""
    for key in keys:
        for pattern, name in OTHER_FORMS.items():
            if re.search(pattern, key):
                return name
    return None


def modules(component: str, model: nn.Module) -> dict[str, str]:
    """Every name of every layer of a network in adapter files, dots as underscores -> its path here."""
    tables = names.unet_spellings(model.config) if component == UNET else names.text_spellings()
    layers = [path for path, module in model.named_modules() if path and "weight" in module]
    return {names.flat(table.write(path).theirs): path for path in layers for table in tables}

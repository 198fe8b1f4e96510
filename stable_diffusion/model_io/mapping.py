"""How the names in Hugging Face's weight files differ from the modules' here: tables, to be read by people.

A rename is a regular expression and its replacement, applied in order; what no rule touches keeps its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class NameMap:
    """The renames of one component's file, and the keys in it that hold no weights of the model."""

    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    def target(self, key: str) -> str | None:
        """The parameter that a file's key stands for; None for a key to be passed over."""
        if any(re.search(pattern, key) for pattern in self.ignored):
            return None
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


UNET = NameMap(
    renames=(
        (r"\.downsamplers\.0\.", r".downsample."),
        (r"\.upsamplers\.0\.", r".upsample."),
        (r"\.to_out\.0\.", r".to_out."),
        (r"\.ff\.net\.0\.proj\.", r".ff.proj_in."),
        (r"\.ff\.net\.2\.", r".ff.proj_out."),
    ),
)

VAE = NameMap(
    renames=(
        (r"\.downsamplers\.0\.", r".downsample."),
        (r"\.upsamplers\.0\.", r".upsample."),
        (r"\.to_out\.0\.", r".to_out."),
        (r"(\.attentions\.\d+)\.(to_q|to_k|to_v|to_out)\.", r"\1.attention.\2."),
        # Files from before diffusers 0.17.
        (r"(\.attentions\.\d+)\.query\.", r"\1.attention.to_q."),
        (r"(\.attentions\.\d+)\.key\.", r"\1.attention.to_k."),
        (r"(\.attentions\.\d+)\.value\.", r"\1.attention.to_v."),
        (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.attention.to_out."),
    ),
)

TEXT_ENCODER = NameMap(
    renames=(
        (r"^text_model\.", r""),  # files from before transformers 5
        (r"^embeddings\.", r""),
        (r"^encoder\.", r""),
        (r"\.mlp\.(fc[12])\.", r".\1."),
    ),
    ignored=(r"(^|\.)position_ids$",),  # 0, 1, 2, ...
)

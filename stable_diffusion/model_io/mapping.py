"""How the names in Hugging Face's weight files differ from the modules' here: tables, to be read by people.

A rename is a regular expression and its replacement, applied in order; what no rule touches keeps its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A parameter, and what of a file's tensor it takes: all, or one of several equal parts along the first axis."""

    target: str
    part: tuple[int, int] | None = None  # index and number of parts
    transposed: bool = False


@dataclass(frozen=True)
class NameMap:
    """The renames of one component's file, and the keys in it that hold no weights of the model.

    `splits` renames one key to several, whose parameters lie one after another in the tensor; `transposed` names
    matrices, by the file's key, that it holds the other way round.
    """

    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    transposed: tuple[str, ...] = ()

    def places(self, key: str) -> list[Place]:
        """The parameters that a file's key gives: none for a key to be passed over, several for a fused one."""
        if any(re.search(pattern, key) for pattern in self.ignored):
            return []
        turned = any(re.search(pattern, key) for pattern in self.transposed)
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        for pattern, replacements in self.splits:
            if re.search(pattern, key):
                n = len(replacements)
                return [Place(re.sub(pattern, each, key), (i, n), turned) for i, each in enumerate(replacements)]
        return [Place(key, None, turned)]

    def target(self, key: str) -> str | None:
        """The parameter that a key stands for, in files that fuse none; None for a key to be passed over."""
        places = self.places(key)
        return places[0].target if places else None


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

"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W stays, and W + (alpha / r) up down is learnt.

up (O, r) begins as zeros, so that the network begins unchanged; down (r, I) is drawn as peft draws it. A convolution's
down is a convolution to r channels, and up a 1x1 one after it (LoCon: Yeh et al. 2023, arXiv:2309.14859).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ... import ops
from ...backend import mx, nn
from ...layers import Conv2d

# Which layers of the U-Net are changed, by the ends of their paths.
LAYERS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out)$",
    "cross-attention": r"\.attn2\.to_(q|k|v|out)$",
    "transformer": r"\.attentions\.\d+\.(proj_in|proj_out|.*\.(to_(q|k|v|out)|ff\.proj_(in|out)))$",
}
CONVOLUTIONS = r"\.resnets\.\d+\.(conv[12]|conv_shortcut)$|\.(down|up)sample\.conv$"
TEXT_LAYERS = r"^layers\.\d+\.(self_attn\.\w+_proj|fc[12])$"


class LowRank(nn.Module):
    """A linear layer or a convolution, `base`, with a low-rank change beside it. `scale` is alpha / r."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, rng: np.random.Generator):
        super().__init__()
        self.base = base
        outputs, inputs = base.weight.shape[0], base.weight.size // base.weight.shape[0]
        bound = 1 / math.sqrt(inputs)
        shape = (rank, *base.weight.shape[1:])
        self.down = mx.array(rng.uniform(-bound, bound, shape).astype(np.float32))
        self.up = mx.zeros((outputs, rank))
        self.scale = alpha / rank
        self.freeze()
        self.unfreeze(keys=["down", "up"], recurse=False)

    def __call__(self, x: mx.array, *plus: Any) -> mx.array:
        """x (..., I), or of a convolution (B, H, W, I); computed in the type of x."""
        down, up = self.down.astype(x.dtype), self.up.astype(x.dtype)
        if isinstance(self.base, Conv2d):
            low = ops.conv2d(x, down, mx.zeros((len(down),), x.dtype), self.base.stride, self.base.padding)
        else:
            low = x @ down.T
        return self.base(x, *plus) + (low @ up.T) * self.scale


def insert(model: nn.Module, pattern: str, rank: int, alpha: float, seed: int) -> dict[str, LowRank]:
    """Put a `LowRank` in the place of each layer whose path matches, in this model itself; returns them by path."""
    modules = dict(model.named_modules())
    found = {path: module for path, module in modules.items() if path and re.search(pattern, f"{path}")}
    changed = {}
    for i, path in enumerate(sorted(found)):
        parent, _, last = path.rpartition(".")
        changed[path] = LowRank(found[path], rank, alpha, np.random.default_rng((seed, i, 3)))
        modules[parent][last] = changed[path]
    return changed

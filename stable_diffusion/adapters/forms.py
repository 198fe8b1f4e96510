"""One module's adapter tensors -> the change of its weight, in torch's layout: (O, I) or (O, I, kH, kW).

LoRA (Hu et al. 2021), LoCon, LoHa and LoKr (Yeh et al. 2023, LyCORIS), DoRA (Liu et al. 2024). The reference is
lycoris/functional/ of lycoris-lora, for kohya's alpha sd-scripts' networks/lora.py. Everything is float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..backend import mx

Parts = Mapping[str, mx.array]

# The parts that each form requires; the first complete one counts.
FORMS: tuple[tuple[str, ...], ...] = (
    ("up", "down"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("lokr_w1", "lokr_w2"),
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    ("diff",),
    ("w_norm",),
    ("diff_b",),
    ("b_norm",),
)
OPTIONAL = {"mid", "alpha", "dora_scale", "magnitude", "hada_t1", "hada_t2", "lokr_t2", "diff_b", "b_norm"}


@dataclass
class Layer:
    """The adapter of one module: its tensors by part, as in the file, lazy.

    `alpha` comes from the file's metadata, for files without a tensor of it; `root` divides by the rank's square root
    instead of the rank (rsLoRA, Kalajdzievski 2023).
    """

    module: str = ""  # as the file writes it
    parts: dict[str, mx.array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # part -> the file's key, for messages
    alpha: float | None = None
    given_rank: float | None = None  # in metadata; peft's LoKr has it where the tensors show none
    root: bool = False

    def form(self) -> tuple[str, ...] | None:
        """The parts that make up this layer's form; None if they form none."""
        return next((form for form in FORMS if self.parts.keys() >= set(form)), None)

    def left_over(self) -> list[str]:
        """The keys of parts that its form does not use."""
        used = set(self.form() or ()) | OPTIONAL
        return [self.keys[part] for part in self.parts if part not in used]

    @property
    def rank(self) -> int | None:
        """The inner size r of the products, by which alpha is divided; None without a product."""
        for part in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if part in self.parts:
                return self.parts[part].shape[0]
        return None

    def scale(self) -> mx.array | float:
        """alpha / r; 1 without an alpha or a rank."""
        alpha = self.parts["alpha"].astype(mx.float32).reshape(()) if "alpha" in self.parts else self.alpha
        rank: float | None = self.rank
        if rank is None and "alpha" not in self.parts:
            rank = self.given_rank
        if alpha is None or rank is None:
            return 1.0
        return alpha / (rank**0.5 if self.root else rank)

    def weight_change(self, weight: mx.array) -> mx.array | None:
        """What to add to `weight` (O, I) or (O, I, kH, kW) at strength 1, in its shape.

        None if only the bias changes. Raises ValueError for parts whose shapes do not fit each other.
        """
        parts = self.parts
        if (self.form() or ("",))[0] in ("diff_b", "b_norm"):
            return None
        change = _as_shape(self.product() * self.scale(), weight.shape)
        if "dora_scale" in parts or "magnitude" in parts:
            change = _decomposed(weight, weight + change, parts) - weight
        return change

    def product(self) -> mx.array:
        """The form's value before scaling: (O, I) or (O, I, kH, kW)."""
        form = self.form()
        assert form, "a layer without a form"
        parts = {part: self.parts[part].astype(mx.float32) for part in self.parts}
        build = BUILDERS.get(form[0].partition("_")[0])
        return build(parts) if build else parts[form[0]]

    def bias_change(self) -> mx.array | None:
        """What to add to the bias at strength 1, (O,)."""
        for name in ("diff_b", "b_norm"):
            if name in self.parts:
                return self.parts[name].astype(mx.float32)
        return None


def low_rank(parts: Parts) -> mx.array:
    """up down, or up mid down for a convolution in Tucker's form."""
    up, down = parts["up"], parts["down"]
    up = up.reshape(up.shape[0], -1)
    if "mid" in parts:
        return mx.einsum("mnkl,om,ni->oikl", parts["mid"], up, down.reshape(down.shape[0], -1))
    return (up @ down.reshape(down.shape[0], -1)).reshape(up.shape[0], *down.shape[1:])


def hadamard(parts: Parts) -> mx.array:
    """(w1_a w1_b) * (w2_a w2_b), element by element; each product in Tucker's form if it has a core t."""
    if "hada_t1" in parts:
        one, two = (
            mx.einsum("pqkl,po,qi->oikl", parts[f"hada_t{i}"], parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"])
            for i in (1, 2)
        )
    else:
        one, two = (_product(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]) for i in (1, 2))
    return one * two


def kronecker(parts: Parts) -> mx.array:
    """The Kronecker product of w1 and w2, each of which may itself be a product."""
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else _product(parts["lokr_w1_a"], parts["lokr_w1_b"])
    if "lokr_w2" in parts:
        w2 = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        w2 = mx.einsum("pqkl,po,qi->oikl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    else:
        w2 = _product(parts["lokr_w2_a"], parts["lokr_w2_b"])
    kernel = w2.shape[2:]
    (a, c), (b, d) = w1.shape[:2], w2.shape[:2]
    blocks = w1.reshape(a, 1, c, 1, *(1 for _ in kernel)) * w2.reshape(1, b, 1, d, *kernel)
    return blocks.reshape(a * b, c * d, *kernel)


BUILDERS = {"up": low_rank, "hada": hadamard, "lokr": kronecker}


def _product(a: mx.array, b: mx.array) -> mx.array:
    """a (O, r) times b (r, I, ...)."""
    a = a.reshape(a.shape[0], -1)
    return (a @ b.reshape(b.shape[0], -1)).reshape(a.shape[0], *b.shape[1:])


def _as_shape(change: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The same numbers in the weight's shape; only a 1x1 or a flattened kernel may differ."""
    same_rank = change.ndim == len(shape)
    if change.shape[0] != shape[0] or change.size != math.prod(shape) or (same_rank and change.shape != shape):
        raise ValueError(f"{change.shape} for a weight of {shape}")
    return change.reshape(shape)


def _decomposed(weight: mx.array, changed: mx.array, parts: Parts) -> mx.array:
    """DoRA: the changed weight with its rows (in old files its columns) scaled to the learnt lengths.

    `dora_scale` is (O, 1, ...) or (1, I, ...) (kohya, LyCORIS), `magnitude` (O,) or (1, O, 1, 1) (peft).
    """
    if "magnitude" in parts:
        lengths = parts["magnitude"].astype(mx.float32).reshape(-1)
        by_row = True
    else:
        lengths = parts["dora_scale"].astype(mx.float32)
        by_row = lengths.shape[0] == weight.shape[0]
        lengths = lengths.reshape(-1)
    axes = tuple(range(1, weight.ndim)) if by_row else (0, *range(2, weight.ndim))
    if lengths.shape[0] != weight.shape[0 if by_row else 1]:
        raise ValueError(f"{lengths.shape[0]} lengths for a weight of {weight.shape}")
    norm = mx.sqrt(mx.square(changed).sum(axis=axes, keepdims=True))
    return changed * (lengths.reshape(norm.shape) / mx.maximum(norm, 1e-12))

"""The few operations whose best form depends on the machine. Networks call these and know nothing about machines.

plain.py says what each operation means. cpu.py (with winograd.py and lanes.py) is for a CPU on which MLX's exp is slow,
gpu.py fuses kernels, heads.py fits attention to the kernels that a GPU has, learning.py has gradients where cpu.py has
none. tables.py lists which form belongs to which machine; `with ops.use("plain"):`, or STABLE_DIFFUSION_OPS=plain for a
whole process, selects a table by name. edges.py says what lies beyond the edges of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..backend import mx, nn
from .edges import around, padded, wrapping
from .plain import Activation, AdamW, upsample_nearest
from .tables import OPS_VARIABLE, TABLES, Forms, forms, use

__all__ = [
    "ACTIVATIONS",
    "OPS_VARIABLE",
    "TABLES",
    "Activation",
    "AdamW",
    "Forms",
    "adamw",
    "attention",
    "by_batch",
    "by_blocks",
    "conv2d",
    "forms",
    "geglu",
    "group_norm",
    "padded",
    "quantized_matmul",
    "upsample_nearest",
    "use",
    "wrapping",
]


@dataclass(frozen=True)
class _Activation:
    """An activation for networks to keep: its form is looked up at each call."""

    name: str

    @property
    def form(self) -> Activation:
        return getattr(forms(), self.name)

    def __call__(self, x: mx.array) -> mx.array:
        return self.form(x)


# By the names of the configuration files.
ACTIVATIONS: dict[str, Activation] = {
    "silu": _Activation("silu"),
    "swish": _Activation("silu"),
    "gelu": _Activation("gelu"),
    "quick_gelu": _Activation("quick_gelu"),
    "mish": _Activation("mish"),
    "relu": _Activation("relu"),
}


def by_batch(function: Callable[..., Any], batch: int, network: nn.Module, *inputs: Any) -> Any:
    """`plain.by_batch` in its current form."""
    return forms().by_batch(function, batch, network, *inputs)


def by_blocks(function: Callable[..., Any], *inputs: Any) -> Any:
    """`plain.by_blocks` in its current form."""
    return forms().by_blocks(function, *inputs)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    """`plain.attention` in its current form."""
    return forms().attention(q, k, v, mask)


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: Activation | None = None
) -> mx.array:
    """`plain.group_norm` in its current form, which computes the table's own SiLU in the same pass."""
    return forms().group_norm(x, weight, bias, groups, eps, act.form if isinstance(act, _Activation) else act)


def geglu(x: mx.array) -> mx.array:
    """`plain.geglu` in its current form."""
    return forms().geglu(x)


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    stride: int = 1,
    padding: int = 0,
    plus: mx.array | None = None,
) -> mx.array:
    """`plain.conv2d` in its current form; inside `wrapping` its padding is of the opposite edges."""
    if padding and around():
        x, padding = padded(x, padding, padding), 0
    return forms().conv2d(x, weight, bias, stride, padding, plus)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """`plain.quantized_matmul` in its current form."""
    return forms().quantized_matmul(x, weight, scales, biases, group_size, bits)


def adamw(
    p: mx.array, average: mx.array, m: mx.array, v: mx.array, g: mx.array, scale: mx.array, numbers: AdamW
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """`plain.adamw` in its current form."""
    return forms().adamw(p, average, m, v, g, scale, numbers)

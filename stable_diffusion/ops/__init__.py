"""The few operations whose best form depends on the device. The networks call these and know nothing of it.

plain.py says what each operation means. cpu.py has the forms for a CPU on which MLX's exp is slow, and they are taken
there (winograd.py is one of them); STABLE_DIFFUSION_OPS=plain takes the plain ones everywhere.
"""

from __future__ import annotations

import os

from .. import backend
from ..backend import mx
from . import cpu, plain
from .plain import Activation, upsample_nearest

__all__ = [
    "ACTIVATIONS",
    "OPS_VARIABLE",
    "Activation",
    "attention",
    "conv2d",
    "geglu",
    "group_norm",
    "quantized_matmul",
    "upsample_nearest",
]

OPS_VARIABLE = "STABLE_DIFFUSION_OPS"

_on_cpu = backend.scalar_functions() and os.environ.get(OPS_VARIABLE, "").strip().lower() != "plain"


def _fused(function: Activation) -> Activation:
    """Compile an element-wise function where that gains; on a CPU it would call for a C++ compiler at run time."""
    return mx.compile(function, shapeless=True) if backend.has_gpu() else function


attention = cpu.attention if _on_cpu else plain.attention
conv2d = cpu.conv2d if _on_cpu else plain.conv2d
geglu = cpu.geglu if _on_cpu else plain.geglu
group_norm = cpu.group_norm if _on_cpu else plain.group_norm
quantized_matmul = plain.quantized_matmul if backend.has_gpu() else cpu.quantized_matmul
_silu, _gelu, _quick_gelu = (
    (cpu.silu, cpu.gelu, cpu.quick_gelu) if _on_cpu else map(_fused, (plain.silu, plain.gelu, plain.quick_gelu))
)

# By the names of the configuration files.
ACTIVATIONS: dict[str, Activation] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "quick_gelu": _quick_gelu,
    "mish": _fused(plain.mish),
    "relu": plain.relu,
}

"""The few operations whose best form depends on the device. The networks call these and know nothing of it.

plain.py says what each operation means. cpu.py has the forms for a CPU on which MLX's exp is slow, and they are taken
there (winograd.py is one of them); STABLE_DIFFUSION_OPS=plain takes the plain ones everywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .. import backend
from ..backend import mx
from . import cpu, gpu, lanes, learning, plain
from .plain import Activation, AdamW, upsample_nearest

__all__ = [
    "ACTIVATIONS",
    "OPS_VARIABLE",
    "Activation",
    "AdamW",
    "adamw",
    "attention",
    "by_batch",
    "by_blocks",
    "conv2d",
    "differentiable",
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


by_batch = lanes.by_batch if _on_cpu else plain.by_batch
by_blocks = lanes.by_blocks if _on_cpu else plain.by_blocks
attention = cpu.attention if _on_cpu else plain.attention
conv2d = cpu.conv2d if _on_cpu else plain.conv2d
_elsewhere = gpu if backend.has_gpu() else plain
geglu = cpu.geglu if _on_cpu else _elsewhere.geglu
group_norm = cpu.group_norm if _on_cpu else _elsewhere.group_norm
adamw = learning.adamw if _on_cpu else plain.adamw
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


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Networks that are built *and* called inside have forms with gradients: learning.py's where cpu.py's are taken."""
    if not _on_cpu:
        yield
        return
    names = ("attention", "conv2d", "geglu", "group_norm")
    before, activations = {name: globals()[name] for name in ("by_batch", "by_blocks", *names)}, dict(ACTIVATIONS)
    globals().update({name: getattr(learning, name) for name in names})
    globals().update(by_batch=plain.by_batch, by_blocks=plain.by_blocks)
    ACTIVATIONS.update(silu=learning.silu, swish=learning.silu, gelu=learning.gelu, quick_gelu=learning.quick_gelu)
    try:
        yield
    finally:
        globals().update(before)
        ACTIVATIONS.update(activations)

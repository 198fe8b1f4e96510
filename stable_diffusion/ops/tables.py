"""The forms of every operation as tables, one for each kind of machine, and which table is current.

Nothing is decided at import: the machine is asked when the first operation runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .. import backend
from ..backend import mx
from . import cpu, gpu, heads, lanes, learning, plain
from .plain import Activation

OPS_VARIABLE = "STABLE_DIFFUSION_OPS"


@dataclass(frozen=True)
class Forms:
    """One form of each operation; the functions of plain.py say what each computes and takes."""

    by_batch: Callable[..., Any]
    by_blocks: Callable[..., Any]
    attention: Callable[..., mx.array]
    conv2d: Callable[..., mx.array]
    geglu: Activation
    group_norm: Callable[..., mx.array]
    quantized_matmul: Callable[..., mx.array]
    adamw: Callable[..., tuple[mx.array, mx.array, mx.array, mx.array]]
    silu: Activation
    gelu: Activation
    quick_gelu: Activation
    mish: Activation
    relu: Activation


PLAIN = Forms(**{name: getattr(plain, name) for name in Forms.__dataclass_fields__})
GPU = replace(
    PLAIN,
    attention=heads.attention,
    conv2d=gpu.conv2d,
    geglu=gpu.geglu,
    group_norm=gpu.group_norm,
    quantized_matmul=gpu.quantized_matmul,
    silu=gpu.silu,
    gelu=gpu.gelu,
    quick_gelu=gpu.quick_gelu,
    mish=gpu.mish,
)
CPU = replace(
    PLAIN,
    by_batch=lanes.by_batch,
    by_blocks=lanes.by_blocks,
    attention=cpu.attention,
    conv2d=cpu.conv2d,
    geglu=cpu.geglu,
    group_norm=cpu.group_norm,
    adamw=learning.adamw,
    silu=cpu.silu,
    gelu=cpu.gelu,
    quick_gelu=cpu.quick_gelu,
)
# CPU's forms have no gradients, because they leave MLX's graph. These have, and replace them in training.
LEARNING = replace(
    PLAIN,
    attention=learning.attention,
    conv2d=learning.conv2d,
    geglu=learning.geglu,
    group_norm=learning.group_norm,
    adamw=learning.adamw,
    silu=learning.silu,
    gelu=learning.gelu,
    quick_gelu=learning.quick_gelu,
)
TABLES = {"plain": PLAIN, "cpu": CPU, "gpu": GPU, "learning": LEARNING}

_current: Forms | None = None  # of the whole process, because lanes run operations in their own threads


def forms() -> Forms:
    """The current table; outside `use`, the one that suits this machine or that STABLE_DIFFUSION_OPS names."""
    global _current
    if _current is None:
        _current = _usual()
    return _current


@contextlib.contextmanager
def use(table: str | Forms) -> Iterator[None]:
    """Make a table current inside the `with` block, in every thread of the process.

    `table` is "plain", "cpu", "gpu", "learning", "usual" or a table of your own. "usual" is this machine's, for what
    needs no gradients. "learning" has gradients on every machine: where the usual forms already have them (all but
    "cpu"), they stay. Networks look operations up when they are called, so one that was built outside may be called
    inside, and the reverse.
    """
    global _current
    before = _current
    if table == "usual" or (table == "learning" and _usual() is not CPU):
        table = _usual()
    _current = TABLES[table] if isinstance(table, str) else table
    try:
        yield
    finally:
        _current = before


def _usual() -> Forms:
    asked = os.environ.get(OPS_VARIABLE, "").strip().lower()
    if asked in TABLES:
        return TABLES[asked]
    if backend.has_gpu():
        return GPU
    return CPU if backend.scalar_functions() else PLAIN

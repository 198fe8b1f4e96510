"""What a selftest says of the machine, and the ways to compute that the machine has."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__, backend, ops
from ..backend import mx

GIB = 1 << 30
FIRST_WITH_TF32 = 5  # Apple's M5
# The largest differences allowed, relative to the largest value, between two ways to compute one network.
ALLOWED = {mx.float32: 5e-5, mx.float16: 2e-2}
ALLOWED_ON_GPU, ALLOWED_TF32 = 2e-4, 1e-2  # in float32


@dataclass(frozen=True)
class Way:
    """A device, a table of operations and a precision."""

    title: str
    table: str
    device: Any
    dtype: mx.Dtype = mx.float32

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside, everything is computed in this way."""
        with mx.stream(self.device), ops.use(self.table):
            yield

    @property
    def allowed(self) -> float:
        """How far a network's result may be from the reference's."""
        if self.device == mx.gpu and self.dtype == mx.float32:
            return ALLOWED_TF32 if tf32() else ALLOWED_ON_GPU
        return ALLOWED[self.dtype]


def reference() -> Way:
    """What everything is compared with."""
    return Way("plain forms on the CPU", "plain", mx.cpu)


def ways() -> list[Way]:
    """What is compared with it: on a GPU that, in both precisions and with plain forms; else the CPU's own forms."""
    if backend.has_gpu():
        return [
            Way("GPU, float32", "gpu", mx.gpu),
            Way("GPU, float32, plain forms", "plain", mx.gpu),
            Way("GPU, float16", "gpu", mx.gpu, mx.float16),
        ]
    return [Way("this CPU's forms", "cpu", mx.cpu)]


def tf32() -> bool:
    """Whether float32 products are computed with 10 bits of mantissa (TF32) here: on an M5 or later, and with CUDA."""
    if os.environ.get("MLX_ENABLE_TF32", "1").strip() == "0" or not backend.has_gpu():
        return False
    chip = re.search(r"Apple M(\d+)", str(mx.device_info().get("device_name", "")))
    return backend.gpu_kind() == "cuda" or (chip is not None and int(chip[1]) >= FIRST_WITH_TF32)


def describe() -> dict[str, str]:
    """What an issue should say of the machine."""
    mac = platform.mac_ver()[0]
    system = f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
    memory = backend.device_memory() if backend.has_gpu() else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = f"{memory / GIB:.1f} GiB" if memory else "unknown"
    versions = f"stable_diffusion {__version__}, Python {platform.python_version()}, numpy {np.__version__}"
    return {
        "machine": f"{system}, {platform.machine()}, {os.cpu_count()} cores, memory: {size}",
        "versions": versions,
        "computes": backend.describe(),
        "compared": f"{'; '.join(way.title for way in ways())}; each with {reference().title}",
    }


def notes() -> list[str]:
    """What one should know of this machine's results."""
    found = []
    if tf32():
        found.append(
            "float32 products are TF32 on this GPU: an error of 1e-3 is usual, and pictures differ a little from those "
            "of other machines. MLX_ENABLE_TF32=0 in the environment computes them in full."
        )
    if not backend.has_gpu():
        found.append("There is no GPU here: the CPU's own forms were compared with the plain ones.")
    if asked := os.environ.get(ops.OPS_VARIABLE, "").strip():
        found.append(f"{ops.OPS_VARIABLE}={asked}: generations take these forms, the comparisons those that they name.")
    return found


def peaks() -> dict[str, float]:
    """The most memory so far in GiB, as MLX counts it and as the system counts the whole process."""
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"MLX": mx.get_peak_memory() / GIB, "the process": whole / GIB}

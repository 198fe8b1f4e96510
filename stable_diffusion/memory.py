"""How much memory a generation needs, and how much there is: what cannot fit is refused before it starts.

The estimates are linear in the pixels, as all operations are, but for attention's scores on a GPU, of which never more
than a few blocks exist (ops/heads.py); their factors were measured (benchmarks/growth.py, docs/performance.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.utils import tree_reduce

from . import backend
from .backend import give_back_memory, has_gpu, mx
from .diffusion.network import DenoisingNetwork, LatentSpace
from .errors import CheckpointError, InputError
from .ops import heads

MEMORY_VARIABLE = "STABLE_DIFFUSION_MEMORY"
# Peak values per pixel of a decoded picture, in multiples of the first level's channels. The GPU's, without blocks,
# is not measured.
DECODER_VALUES = 12 if has_gpu() else 8
TILE, OVERLAP = 64, 16  # of the latents, if a picture is decoded in tiles
STEP = 64  # pixels between proposed sizes
GIB = 1 << 30
LARGE = GIB  # above this, a CPU paints for a minute: the text encoders are unloaded once the texts are encoded


@dataclass(frozen=True)
class Needs:
    """A model's memory for weights and activations, from the shapes of its networks."""

    values_per_latent: int  # `DenoisingNetwork.values_per_latent`
    vae: LatentSpace
    weights: int  # bytes resident while the denoising network runs
    item_size: int  # of a value in that network, in bytes
    vae_item_size: int
    decoder_weights: int | None = None  # bytes resident while a picture is decoded; None: the same
    one_by_one: bool = False  # the rows of a batch in turn

    def network_bytes(self, rows: int, width: int, height: int) -> int:
        """Bytes for one call of the denoising network; rows are pictures times texts."""
        at_once, latents = 1 if self.one_by_one else rows, width * height // self.vae.downscale**2
        values = at_once * latents * self.values_per_latent
        return values * self.item_size + heads.scores_bytes(at_once, latents, self.item_size)

    def decoder_bytes(self, width: int, height: int) -> int:
        """Bytes for decoding one picture without tiles."""
        values = width * height * DECODER_VALUES * self.vae.block_out_channels[0] * self.vae_item_size
        return values + heads.scores_bytes(1, width * height // self.vae.downscale**2, self.vae_item_size)

    def in_tiles(self, width: int, height: int) -> bool:
        """Whether a picture needs tiles: whole, it would not fit, or take most of a GPU's working set."""
        there, working_set = available(), backend.working_set()
        needed = self.decoder_bytes(width, height)
        if working_set is not None and needed > working_set // 2:
            return True
        return there is not None and self._decoder_weights + needed > there

    def check(self, rows: int, n_images: int, width: int, height: int, with_low_memory: Needs | None = None) -> None:
        """Raise `InputError` if a generation cannot fit, with what would; `rows` are those of a network's call.

        `with_low_memory` are the needs of the same model with `low_memory`, if that may be proposed.
        """
        there = available()
        if there is None or self._bytes(rows, width, height) <= there:
            return
        texts = rows // n_images
        fewer = next((n for n in range(n_images - 1, 0, -1) if self._bytes(n * texts, width, height) <= there), 0)
        saves = with_low_memory is not None and with_low_memory._bytes(rows, width, height) <= there
        fitting = ["the same with --low-memory (low_memory=True)"] * saves
        fitting += [f"{fewer} picture{'s' * (fewer > 1)} at a time"] * bool(fewer)
        fitting += [f"{w} x {h}" for w, h in _smaller(width, height) if self._bytes(rows, w, h) <= there][:1]
        proposal = f"{' or '.join(fitting)} would fit" if fitting else "a smaller or a quantised model might fit"
        raise InputError(
            f"{width} x {height} pixels, {n_images} at a time, need about {_gib(self._bytes(rows, width, height))} of "
            f"memory, and {_gib(there)} are available: {proposal}. (${MEMORY_VARIABLE}, in GiB, overrides that.)"
        )

    def _bytes(self, rows: int, width: int, height: int) -> int:
        tile = TILE * self.vae.downscale
        decoder = self.decoder_bytes(min(width, tile), min(height, tile))  # larger ones are decoded in tiles
        return max(self.weights + self.network_bytes(rows, width, height), self._decoder_weights + decoder)

    @property
    def _decoder_weights(self) -> int:
        return self.weights if self.decoder_weights is None else self.decoder_weights


class Unloader:
    """Drops weights that can be read again from their files."""

    def __init__(self, networks: Iterable[Any], reloads: Sequence[tuple[Any, Callable[[], None]]]):
        """`reloads` pairs each such network with a function that gives it its weights again, lazily."""
        self._sizes = {id(network): weight_bytes(network) for network in networks}
        self._reloads = {id(network): reload for network, reload in reloads}

    @property
    def weights(self) -> int:
        """Bytes of all weights, if none are dropped."""
        return sum(self._sizes.values())

    def keep(self, network: Any) -> None:
        """From now on do not drop this one, whose weights are no longer those of its file."""
        self._reloads.pop(id(network), None)
        self._sizes[id(network)] = weight_bytes(network)

    def drop(self, *networks: Any) -> None:
        """Drop the weights of those that can be read again, and release free memory.

        Weights whose file is gone stay.
        """
        for network in networks:
            if id(network) in self._reloads:
                with contextlib.suppress(CheckpointError, OSError):
                    self._reloads[id(network)]()
        give_back_memory()

    def held_without(self, *networks: Any) -> int:
        """Bytes of weights still resident after these are dropped, if they can be."""
        return self.weights - sum(self._sizes.get(id(each), 0) for each in networks if id(each) in self._reloads)


def largest_product(network: DenoisingNetwork, vae: LatentSpace, n_images: int, width: int, height: int) -> int:
    """Approximate multiply-adds of a guided generation's largest matrix product, decoding included."""
    channels = vae.block_out_channels
    decoder = width * height * 9 * channels[0] * channels[min(1, len(channels) - 1)]
    return max(network.largest_product(2 * n_images, width * height // vae.downscale**2), decoder)


def weight_bytes(*modules: Any) -> int:
    """Bytes of the parameters once evaluated."""
    return sum(tree_reduce(lambda size, value: size + value.nbytes, each.parameters(), 0) for each in modules)


def available() -> int | None:
    """Bytes available to a model, including what it uses already; None if unknown."""
    chosen = os.environ.get(MEMORY_VARIABLE, "").strip()
    if chosen:
        with contextlib.suppress(ValueError):
            return int(float(chosen) * GIB)
        raise InputError(f"${MEMORY_VARIABLE} = {chosen!r} should be a number of GiB, such as 12.")
    if has_gpu():
        return backend.device_memory()
    free = min(_free(), default=None)
    return None if free is None else free + mx.get_active_memory() + mx.get_cache_memory()


def _free() -> Iterator[int]:
    """The machine's and the container's free memory, on Linux."""
    lines = _read("/proc/meminfo").splitlines()
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        lines = _read("/sys/fs/cgroup/memory.stat").splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith(("active_file ", "inactive_file ")))
        yield int(limit) - int(used) + files


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _smaller(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Sizes of about the same shape, from larger to smaller."""
    for longer in range(max(width, height) // STEP * STEP, 0, -STEP):
        sides = [max(STEP, round(side * longer / max(width, height) / STEP) * STEP) for side in (width, height)]
        if sides[0] * sides[1] < width * height:
            yield sides[0], sides[1]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

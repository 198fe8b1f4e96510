"""A picture made larger by an upscaler, to a factor or to a size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from .. import backend, memory, ops
from ..backend import mx
from ..errors import InputError, NotFiniteError, UnsupportedCheckpointError
from ..pictures.arrays import to_uint8
from ..pictures.reading import as_picture
from ..tiles import bands_of_tiles, starts
from . import upscalers
from .settings import Upscaling, enlarged_size
from .upscalers import NETWORK, NONE, Upscaler

MAX_PASSES = 3  # of a network whose scale is smaller than the factor, as in A1111
TILES = (512, 384, 256, 192, 128, 96, 64)  # pixels of the input, from the fastest to the most frugal
TILE_BYTES = 1 << 30  # of a network's values on a CPU, where larger tiles gain nothing
BLENDED_BYTES = 16  # of a pixel in the tiles that are being blended: three colours and a weight

# Parts that are done, and how many there are. It may raise, which ends the work.
Progress = Callable[[int, int], None]


def enlarge(
    picture: Any,
    upscaler: str | Upscaler = "Lanczos",
    by: float | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """Enlarge a picture by a factor, or to a size (width, height) whatever its shape; `Enlarger` for several.

    `picture` is a PIL image or a uint8 array (H, W, 3) or (H, W, 4); the result is RGB, or RGBA if it has transparency.
    `progress(done, total)` is called from the first part on to the last, and may raise. Raises `InputError`, and
    `CheckpointError` for an upscaler that is unknown or whose file cannot be used.
    """
    return Enlarger(upscaler)(picture, by, size, progress)


class Enlarger:
    """An upscaler for several pictures, whose file is read once. It belongs to the thread that made it."""

    def __init__(self, upscaler: str | Upscaler = "Lanczos", half: bool | None = None):
        """`half` asks for float16, where a network allows it (None: on a GPU). Raises `CheckpointError`."""
        self.upscaler = upscalers.find(upscaler) if isinstance(upscaler, str) else upscaler
        if self.upscaler.problem:
            raise UnsupportedCheckpointError(f"The upscaler {self.upscaler.name!r}: {self.upscaler.problem}")
        self._network = None
        if self.upscaler.kind == NETWORK:
            from .loading import load_network

            assert self.upscaler.path is not None
            self._network = load_network(self.upscaler.path, half)

    def __call__(
        self,
        picture: Any,
        by: float | None = None,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> Image.Image:
        """`enlarge` with this upscaler: a network as often as it takes, at most thrice, then Lanczos to the size."""
        picture = as_picture(picture, alpha=True)
        wanted = enlarged_size(picture.size, by, size)
        report = progress or (lambda done, total: None)
        if self._network is None:
            report(0, 1)
            result = picture.resize(wanted, Image.Resampling[self.upscaler.filter])
            report(1, 1)
            return result
        result = _Work(self._network, picture, wanted).run(report)
        return result if result.size == wanted else result.resize(wanted, Image.Resampling.LANCZOS)

    def parts(self, picture: Image.Image, size: tuple[int, int]) -> int:
        """How many parts `progress` will count. Raises `InputError` for what cannot fit into memory."""
        return 1 if self._network is None else _Work(self._network, picture, size).total


class Upscale:
    """An upscaling of several pictures: its upscalers' files are read once. It belongs to the thread that made it."""

    def __init__(self, settings: Upscaling, load: Callable[[Upscaler], Enlarger] = Enlarger):
        """`load` may return one that was made before. Raises `CheckpointError`."""
        self.settings = settings
        self._enlargers = [load(each) for each in settings.found() if each is not None]

    def __call__(self, picture: Any, progress: Progress | None = None) -> Image.Image:
        """A picture as `enlarge` takes and returns it. "None" leaves it as it is, as in A1111. Raises `InputError`."""
        picture = as_picture(picture, alpha=True)
        if self._enlargers[0].upscaler.name == NONE:
            return picture
        settings = self.settings
        size = settings.size_of(picture.size)
        parts = [enlarger.parts(picture, size) for enlarger in self._enlargers]
        before = 0
        results = []
        for enlarger, own in zip(self._enlargers, parts, strict=True):

            def report(done: int, total: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, sum(parts))

            results.append(enlarger(picture, size=size, progress=report))
            before += own
        first, *second = results
        result = Image.blend(first, second[0], settings.visibility) if second else first
        if settings.crop and settings.to is not None:
            left, top = ((have - want) // 2 for have, want in zip(result.size, settings.to, strict=True))
            result = result.crop((left, top, left + settings.to[0], top + settings.to[1]))
        return result


class _Work:
    """A network on one picture: how often, in which tiles; refused if it cannot fit into memory."""

    def __init__(self, network: Any, picture: Image.Image, wanted: tuple[int, int]):
        self.network = network
        self.picture = picture
        self.sizes = _sizes(picture.size, wanted, network.scale)
        # Transparency that is the same everywhere needs no network.
        alpha = picture.getchannel("A").getextrema() if picture.mode == "RGBA" else (255, 255)
        self.alpha_varies = alpha[0] != alpha[1]
        self.tile = _tile_size(network, self.sizes, wanted)
        tiles = sum(len(self._starts(width)) * len(self._starts(height)) for width, height in self.sizes)
        self.total = max(1, tiles * (1 + self.alpha_varies))
        self.done = 0

    def run(self, progress: Progress) -> Image.Image:
        """The picture at the last of the sizes."""

        def step() -> None:
            self.done += 1
            progress(self.done, self.total)

        progress(0, self.total)
        picture = self.picture
        colours = self._enlarged(np.asarray(picture.convert("RGB")), step)
        result = Image.fromarray(colours)
        if picture.mode == "RGBA":
            alpha = np.asarray(picture.getchannel("A"))
            if self.alpha_varies:
                grey = np.repeat(alpha[:, :, None], 3, axis=2)
                result.putalpha(Image.fromarray(self._enlarged(grey, step)).convert("L"))
            else:
                result.putalpha(int(alpha[0, 0]))
        if not self.sizes:  # nothing for the network to do
            step()
        return result

    def _enlarged(self, pixels: np.ndarray, step: Callable[[], None]) -> np.ndarray:
        for _ in self.sizes:
            pixels = self._once(pixels, step)
        return pixels

    def _once(self, pixels: np.ndarray, step: Callable[[], None]) -> np.ndarray:
        """(H, W, 3) uint8 -> (scale H, scale W, 3) uint8."""
        network, (height, width, _) = self.network, pixels.shape

        def part(rows: slice, columns: slice) -> np.ndarray:
            values = _values(network, pixels[rows, columns])
            step()
            return values

        result = np.empty((height * network.scale, width * network.scale, 3), np.uint8)
        row = 0
        overlap, margin, multiple = network.overlap, network.margin, network.multiple
        for band in bands_of_tiles(part, height, width, self.tile, overlap, margin, multiple):
            result[row : row + len(band)] = to_uint8(band)
            row += len(band)
        return result

    def _starts(self, side: int) -> list[int]:
        return starts(side, self.tile, self.network.overlap, self.network.multiple)


def _values(network: Any, pixels: np.ndarray) -> np.ndarray:
    """A tile's values, float32, again in float32 if they overflow in float16; raises `NotFiniteError`."""
    values = _computed(network, pixels)
    if not np.isfinite(values).all() and _dtype(network) == mx.float16:
        warnings.warn("The upscaler overflowed in float16, so it runs in float32 from now on.", stacklevel=6)
        network.set_dtype(mx.float32)
        values = _computed(network, pixels)
    if not np.isfinite(values).all():
        raise NotFiniteError("The upscaler gave NaN or infinite numbers: its file may be damaged.", "upscaler")
    return values


def _computed(network: Any, pixels: np.ndarray) -> np.ndarray:
    x = (mx.array(pixels)[None].astype(mx.float32) / 255).astype(_dtype(network))
    return np.asarray(ops.by_blocks(network, x)[0].astype(mx.float32))


def _dtype(network: Any) -> mx.Dtype:
    parameters: list[Any] = tree_flatten(network.parameters())  # type: ignore[assignment]
    return parameters[0][1].dtype


def _sizes(size: tuple[int, int], wanted: tuple[int, int], scale: int) -> list[tuple[int, int]]:
    """The sizes of the pictures that the network is given in turn: until what comes out is large enough.

    A network that does not enlarge works once; one that enlarges does not, where nothing becomes larger.
    """
    if scale == 1:
        return [size]
    sizes: list[tuple[int, int]] = []
    while (size[0] < wanted[0] or size[1] < wanted[1] or (not sizes and size == wanted)) and len(sizes) < MAX_PASSES:
        sizes.append(size)
        size = size[0] * scale, size[1] * scale
    return sizes


def _tile_size(network: Any, sizes: list[tuple[int, int]], wanted: tuple[int, int]) -> int:
    """The largest tile that suits the machine. Raises `InputError` if nothing fits."""
    there, working_set = memory.available(), backend.working_set()
    largest = max(([side * network.scale for side in size] for size in sizes), default=list(wanted))
    whole = 2 * 4 * max(largest[0] * largest[1], wanted[0] * wanted[1])  # two pictures, of four channels at most
    most = TILE_BYTES if working_set is None else working_set // 4
    needed = 0
    for tile in TILES:
        inside = min(tile, max(map(max, sizes), default=tile))
        values = inside**2 * network.values_per_pixel * _dtype(network).size
        needed = whole + values + BLENDED_BYTES * largest[0] * inside * network.scale + memory.weight_bytes(network)
        if (values <= most or tile == TILES[-1]) and (there is None or needed <= there):
            return tile
    raise InputError(
        f"Enlarging to {wanted[0]} x {wanted[1]} pixels needs about {needed / memory.GIB:.1f} GiB of memory, and "
        f"{(there or 0) / memory.GIB:.1f} GiB are available: choose a smaller factor or size. "
        f"(${memory.MEMORY_VARIABLE}, in GiB, overrides that.)"
    )

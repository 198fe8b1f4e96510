"""Hires fix: paint small, enlarge, and paint over it a second time. What is asked for; needs neither MLX nor numpy.

Names, sizes and steps are those of A1111 (its modules/processing.py, StableDiffusionProcessingTxt2Img).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import checks
from .errors import InputError

MAX_SCALE = 8.0
# Upscalers that enlarge the latents themselves: A1111's names, torch's modes of `interpolate`, and its `antialias`.
LATENT_MODES: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}


@dataclass(frozen=True)
class Hires:
    """The second pass of a generation: the first picture enlarged, and denoised again at that size.

    The target is `scale` times the first size, or `width` and `height` in pixels, of which one may be None to keep the
    shape; if both are given, the enlarged picture is cropped to them around its middle. Sides are rounded down to what
    the model can paint. `upscaler` is one of `LATENT_MODES` or of `stable_diffusion.upscaling`. `steps` are run, 0
    meaning as many as in the first pass, from the noise level that `strength` reaches. What is None is the first
    pass's own: `sampler`, `cfg`, and the texts `prompt` and `negative`.

    Raises `InputError` for numbers out of range.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    upscaler: str = "Latent"
    steps: int = 0
    strength: float = 0.7
    sampler: Any = None  # a name, or a `Sampler`
    cfg: float | None = None
    prompt: str | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        if self.scale is None and self.width is None and self.height is None:
            raise InputError("Hires needs a scale, or the width or height of its target: scale=2, say.")
        if self.scale is not None:
            checks.number("hires scale", self.scale, 1.0, MAX_SCALE)
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                checks.whole(f"hires {name}", side, 1, checks.MAX_SIDE, "pixels")
        checks.text("hires upscaler", self.upscaler)
        checks.whole("hires steps", self.steps, 0, 1000)
        if not checks.number("hires strength", self.strength, 0.0, 1.0):
            raise InputError("hires strength = 0 repaints nothing: give more, or only enlarge the finished picture.")

    def sizes(self, first: tuple[int, int], multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) to which a first picture is enlarged, and to which that is cropped; both in multiples.

        Raises `InputError` for a target that is smaller than the first picture, or too large.
        """
        width, height = self._enlarged(first)
        wanted = self.width or width, self.height or height
        if width < first[0] or height < first[1]:
            raise InputError(
                f"The hires target of {wanted[0]} x {wanted[1]} pixels is smaller than the first picture, "
                f"{first[0]} x {first[1]}: choose a larger one, or paint the first smaller."
            )
        if max(wanted) > checks.MAX_SIDE:
            raise InputError(
                f"The hires target of {wanted[0]} x {wanted[1]} pixels is too large: a side has at most "
                f"{checks.MAX_SIDE}."
            )
        enlarged, target = ((w // multiple * multiple, h // multiple * multiple) for w, h in ((width, height), wanted))
        if not all(target):
            raise InputError(f"The hires target of {wanted[0]} x {wanted[1]} pixels has no side of {multiple} or more.")
        return enlarged, target

    def _enlarged(self, first: tuple[int, int]) -> tuple[int, int]:
        width, height = first
        if self.width is None and self.height is None:
            assert self.scale is not None
            return int(width * self.scale), int(height * self.scale)
        if self.height is None or (self.width is not None and width * self.height <= height * self.width):
            assert self.width is not None
            return self.width, self.width * height // width
        return self.height * width // height, self.height

    def total_steps(self, first: int) -> tuple[int, int]:
        """(run, total): the second pass runs the last `run` of a schedule of `total` steps; `first` is the first's.

        A1111's setup_img2img_steps where the steps are asked for.
        """
        run = self.steps or first
        return run, int(run / min(self.strength, 0.999))

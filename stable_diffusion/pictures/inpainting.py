"""Inpainting, as far as pictures go: masks, what to begin with under them, crops, and the way back into the picture.

White is repainted, black is kept. Nothing here needs the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .. import checks
from ..errors import InputError, PictureError
from .reading import as_picture, from_array, to_rgb

WHITE = 128  # the least grey of a mask that counts as white
MAX_BLUR = 256  # pixels
GRID = 8  # pixels to a latent: a mask for the engine is white or black in whole squares of this side

Box = tuple[int, int, int, int]  # left, top, right, bottom; may stand out of the picture


class Inpainting:
    """A picture and its mask made ready to generate, and the generated picture's way back into it.

    `picture` and `mask` (PIL images of any mode, or arrays of uint8; a mask of any size) become `self.picture` and
    `self.mask` of `width` x `height` pixels, what `generate_latents` takes; `finish` puts what was generated from them
    into the original. `mask_blur` is the standard deviation in the picture's pixels with which the repainted part fades
    out around the white; what is white is repainted wholly. `only_masked` generates the mask's surroundings alone, with
    `padding` pixels around the white, at the full size; otherwise the whole picture is seen. `invert` keeps the white.

    `feather` (L, the picture's size) says how much of each pixel is repainted: where it is 0, the original's pixel
    stays as it is. `box` is the part of the picture that is generated: it has the aspect ratio of width x height, and
    where it stands out of the picture, the edge's colours go on.

    Raises `InputError` for a size, blur or padding out of range and for a mask with nothing to repaint, `PictureError`
    for what is no picture.
    """

    def __init__(
        self,
        picture: Any,
        mask: Any,
        width: int,
        height: int,
        mask_blur: float = 4,
        only_masked: bool = False,
        padding: int = 32,
        invert: bool = False,
    ):
        for name, side in (("width", width), ("height", height)):
            if checks.whole(name, side, 0, checks.MAX_SIDE, "pixels") % GRID or not side:
                raise InputError(f"{name} = {side!r} should be a multiple of {GRID}, and not 0.")
        checks.whole("padding", padding, 0, checks.MAX_SIDE, "pixels")
        mask_blur = checks.number("mask_blur", mask_blur, 0, MAX_BLUR, "pixels")
        self.original = as_picture(picture)
        white = np.asarray(to_mask(mask, self.original.size, invert)) > 0
        self.feather = _feather(white, mask_blur)
        self.box = self._box(width, height, padding if only_masked else None)
        self.picture = _cut(self.original, self.box, "edge").resize((width, height), Image.Resampling.LANCZOS)
        self.mask = self._squares(white, width, height)

    def finish(self, generated: Image.Image) -> Image.Image:
        """The original with what was generated in its place; raises `PictureError` for another size."""
        if generated.size != self.picture.size:
            raise PictureError(
                f"A generated picture of {generated.width} x {generated.height} pixels cannot be put back; "
                f"{self.picture.width} x {self.picture.height} was asked for."
            )
        left, top, right, bottom = self.box
        patch = to_rgb(generated).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        result = self.original.copy()
        painted = self.original.copy()
        painted.paste(patch, (left, top))
        result.paste(painted, (0, 0), self.feather)
        return result

    def _box(self, width: int, height: int, padding: int | None) -> Box:
        if padding is None:
            box = (0, 0, *self.original.size)
        else:
            bounds = self.feather.getbbox()
            assert bounds is not None, "a mask with white in it has a feather"
            box = (bounds[0] - padding, bounds[1] - padding, bounds[2] + padding, bounds[3] + padding)
        return _grown(box, width, height, self.original.size)

    def _squares(self, white: np.ndarray, width: int, height: int) -> Image.Image:
        """The mask of the size to generate, white in every square of the latents' grid that white touches."""
        touched = _cut(Image.fromarray(white.astype(np.uint8) * 255), self.box, "constant")
        touched = touched.convert("F").resize((width, height), Image.Resampling.BOX)
        squares = np.asarray(touched).reshape(height // GRID, GRID, width // GRID, GRID).max((1, 3)) > 0
        return Image.fromarray(squares.repeat(GRID, 0).repeat(GRID, 1).astype(np.uint8) * 255)


def to_mask(mask: Any, size: tuple[int, int] | None = None, invert: bool = False) -> Image.Image:
    """A mask as black and white (mode L, 0 and 255), stretched to `size`.

    `mask` is a PIL image of any mode or an array (H, W), (H, W, 1), 3 or 4 of uint8 or bool; what is transparent is
    black, and its colours count by their luminance: from 128 on a pixel is white. Raises `InputError` where no pixel
    is white, `PictureError` for what is no picture.
    """
    grey = _grey(mask)
    if size is not None and grey.size != size:
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(grey)
    white = values < WHITE if invert else values >= WHITE
    if not white.any():
        value = values.min() if invert else values.max()
        shade = "darkest" if invert else "brightest"
        raise InputError(
            f"The mask leaves nothing to repaint: of its {grey.width} x {grey.height} pixels the {shade} is {value} "
            f"of 255, and {f'below {WHITE}' if invert else f'{WHITE} or more'} is what counts. Paint white what should "
            "change" + (", or don't invert." if invert else ", or invert the mask.")
        )
    return Image.fromarray(white.astype(np.uint8) * 255)


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture (RGB) with the surroundings' colours run into the mask's white (L, same size), coarse to fine."""
    known = (np.asarray(mask) == 0)[:, :, None].astype(np.float32)
    if not known.any():
        return Image.new("RGB", picture.size, (128, 128, 128))
    colours = _pulled_and_pushed(np.asarray(picture, np.float32) * known, known)
    fill = Image.fromarray(np.clip(np.rint(colours), 0, 255).astype(np.uint8))
    return Image.composite(fill, picture, mask)


def outpaint(
    picture: Any, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Image.Image, Image.Image]:
    """(canvas, mask) with so many more pixels on each side, for `Inpainting`; white is what has been added.

    The canvas goes on with the edge's colours, smeared outwards, and some noise. Raises `InputError` for sides that are
    no whole numbers from 0 on, or all 0.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, side in sides.items():
        checks.whole(name, side, 0, checks.MAX_SIDE, "pixels")
    if not any(sides.values()):
        raise InputError("left, right, top and bottom are all 0: say on which side to add how many pixels.")
    picture = as_picture(picture)
    box = (-left, -top, picture.width + right, picture.height + bottom)
    smeared = np.asarray(_cut(picture, box, "edge"), np.float32)
    noise = np.random.default_rng(0).normal(0, 12, smeared.shape)
    canvas = Image.fromarray(np.clip(smeared + noise, 0, 255).astype(np.uint8))
    canvas.paste(picture, (left, top))
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + picture.width, top + picture.height))
    return canvas, mask


def suitable_size(size: tuple[int, int], default_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) to generate a whole picture of `size` at: its shape, the model's area, multiples of 8."""
    scale = (default_size[0] * default_size[1] / (size[0] * size[1])) ** 0.5
    width, height = (max(round(side * scale / GRID), 1) * GRID for side in size)
    return width, height


def _grey(mask: Any) -> Image.Image:
    """Any mask as mode L, what is transparent black."""
    if isinstance(mask, np.ndarray):
        with_alpha = mask.dtype == np.uint8 and mask.ndim == 3 and mask.shape[2] == 4
        plain = mask.dtype == bool and mask.ndim == 2
        mask = Image.fromarray(mask) if with_alpha or plain else from_array(mask)
    if not isinstance(mask, Image.Image):
        raise PictureError(f"A mask should be a PIL image or an array of uint8 or bool, not {type(mask).__name__}.")
    if not mask.width or not mask.height:
        raise PictureError(f"The mask is empty: {mask.width} x {mask.height} pixels.")
    return to_rgb(mask, under="black").convert("L")


def _feather(white: np.ndarray, mask_blur: float) -> Image.Image:
    """How much is repainted: 255 where it is white, then falling as the blurred mask does, twice as high."""
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    if not mask_blur:
        return mask
    blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(mask_blur)), np.int32)
    return Image.fromarray(np.where(white, 255, np.minimum(2 * blurred, 255)).astype(np.uint8))


def _grown(box: Box, width: int, height: int, size: tuple[int, int]) -> Box:
    """The least box around `box` of the shape width x height, moved into a picture of `size` as far as it can be."""
    w, h = box[2] - box[0], box[3] - box[1]
    w, h = max(w, -(-h * width // height)), max(h, -(-w * height // width))
    left = _moved(box[0] - (w - (box[2] - box[0])) // 2, w, size[0])
    top = _moved(box[1] - (h - (box[3] - box[1])) // 2, h, size[1])
    return left, top, left + w, top + h


def _moved(start: int, length: int, side: int) -> int:
    """Where a stretch begins so that it stands out of 0 .. side as little, and as evenly, as it can."""
    return (side - length) // 2 if length >= side else min(max(start, 0), side - length)


def _cut(image: Image.Image, box: Box, mode: Any) -> Image.Image:
    """The box out of an image; outside of it the edge goes on ("edge"), or black ("constant")."""
    left, top, right, bottom = box
    outside = (max(-top, 0), max(bottom - image.height, 0)), (max(-left, 0), max(right - image.width, 0))
    inside = image.crop((max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))
    if outside == ((0, 0), (0, 0)):
        return inside
    pixels = np.asarray(inside)
    return Image.fromarray(np.pad(pixels, (*outside, (0, 0))[: pixels.ndim], mode))


def _pulled_and_pushed(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3), already times their weights (H, W, 1), with those of weight 0 out of coarser copies."""
    height, width = weights.shape[:2]
    known = colours / np.maximum(weights, 1e-6)
    if weights.all():
        return known
    even = ((0, height % 2), (0, width % 2), (0, 0))
    halves = [
        np.pad(each, even).reshape(-(-height // 2), 2, -(-width // 2), 2, each.shape[2]).sum((1, 3))
        for each in (colours, weights)
    ]
    share = np.maximum(halves[1], 1)  # weights stay within 0 to 1
    coarse = _pulled_and_pushed(halves[0] / share, halves[1] / share)
    size = (width, height)
    layers = [
        np.asarray(Image.fromarray(np.ascontiguousarray(coarse[:, :, i])).resize(size, Image.Resampling.BILINEAR))
        for i in range(3)
    ]
    return known * weights + np.stack(layers, axis=2) * (1 - weights)

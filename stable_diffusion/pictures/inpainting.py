"""The picture side of inpainting: masks, what to start from under them, crops, and pasting back into the picture.

White is repainted, black is kept. Does not import the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .. import checks
from ..errors import InputError, PictureError
from .reading import as_picture, from_array, to_rgb

WHITE = 128  # grey levels from here on count as white
MAX_BLUR = 256  # pixels
GRID = 8  # pixels per latent; a mask for the engine is black or white in whole squares of this size

Box = tuple[int, int, int, int]  # left, top, right, bottom; may extend beyond the picture


class Inpainting:
    """A picture and its mask prepared for generation; `finish` pastes the result back into the picture.

    `picture` and `mask` (PIL images of any mode, or arrays of uint8; a mask of any size) become `self.picture` and
    `self.mask` of `width` x `height` pixels, ready for `generate_latents`; `finish` pastes what was generated from them
    into the original. `mask_blur` is the standard deviation, in pixels of the picture, of the repainted part's fade-out
    around the white; white itself is fully repainted. `only_masked` generates only the mask's surroundings, with
    `padding` pixels around the white, at the full size; otherwise the whole picture is used. `invert` keeps the white.

    `feather` (L, the picture's size) is how much of each pixel is repainted: where it is 0, the original pixel is
    unchanged. `box` is the part of the picture that is generated: it has the aspect ratio of width x height, and beyond
    the picture the edge's colours are repeated.

    Raises `InputError` for a size, blur or padding out of range and for a mask with nothing to repaint, `PictureError`
    if `picture` or `mask` is not a picture.
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
        """Paste a generated picture into the original. Raises `PictureError` if its size differs."""
        if generated.size != self.picture.size:
            raise PictureError(
                f"A generated picture of {generated.width} x {generated.height} pixels cannot be put back; "
                f"{self.picture.width} x {self.picture.height} was expected."
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
        """The mask at the generated size, white in every cell of the latents' grid that white touches."""
        touched = _cut(Image.fromarray(white.astype(np.uint8) * 255), self.box, "constant")
        touched = touched.convert("F").resize((width, height), Image.Resampling.BOX)
        squares = np.asarray(touched).reshape(height // GRID, GRID, width // GRID, GRID).max((1, 3)) > 0
        return Image.fromarray(squares.repeat(GRID, 0).repeat(GRID, 1).astype(np.uint8) * 255)


def to_mask(mask: Any, size: tuple[int, int] | None = None, invert: bool = False) -> Image.Image:
    """A mask as black and white (mode L, 0 and 255), stretched to `size`.

    `mask` is a PIL image of any mode or a uint8 or bool array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Transparent
    pixels are black; others are white from a luminance of 128 on. Raises `InputError` if no pixel is white,
    `PictureError` if it is not a picture.
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
    """Fill the mask's white (L, same size) in the picture (RGB) with the surrounding colours, coarse to fine."""
    known = (np.asarray(mask) == 0)[:, :, None].astype(np.float32)
    if not known.any():
        return Image.new("RGB", picture.size, (128, 128, 128))
    colours = _pulled_and_pushed(np.asarray(picture, np.float32) * known, known)
    fill = Image.fromarray(np.clip(np.rint(colours), 0, 255).astype(np.uint8))
    return Image.composite(fill, picture, mask)


def outpaint(
    picture: Any, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Extend a picture by pixels on each side: (canvas, mask) for `Inpainting`, with the added part white.

    The added part repeats the edge's colours, with some noise. Raises `InputError` if a side is not an integer of at
    least 0, or if all are 0.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, side in sides.items():
        checks.whole(name, side, 0, checks.MAX_SIDE, "pixels")
    if not any(sides.values()):
        raise InputError(
            "left, right, top and bottom are all 0: give the number of pixels to add on at least one side."
        )
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
    """(width, height) for generating a whole picture of `size`: its aspect ratio, the model's area, multiples of 8."""
    scale = (default_size[0] * default_size[1] / (size[0] * size[1])) ** 0.5
    width, height = (max(round(side * scale / GRID), 1) * GRID for side in size)
    return width, height


def _grey(mask: Any) -> Image.Image:
    """Any mask as mode L, transparent pixels black."""
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
    """How much is repainted: 255 where the mask is white, falling off around it as twice the blurred mask."""
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    if not mask_blur:
        return mask
    blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(mask_blur)), np.int32)
    return Image.fromarray(np.where(white, 255, np.minimum(2 * blurred, 255)).astype(np.uint8))


def _grown(box: Box, width: int, height: int, size: tuple[int, int]) -> Box:
    """The smallest box around `box` of aspect ratio width : height, moved into a picture of `size` if possible."""
    w, h = box[2] - box[0], box[3] - box[1]
    w, h = max(w, -(-h * width // height)), max(h, -(-w * height // width))
    left = _moved(box[0] - (w - (box[2] - box[0])) // 2, w, size[0])
    top = _moved(box[1] - (h - (box[3] - box[1])) // 2, h, size[1])
    return left, top, left + w, top + h


def _moved(start: int, length: int, side: int) -> int:
    """The start of a stretch, moved into 0 .. side; one that is too long is centred."""
    return (side - length) // 2 if length >= side else min(max(start, 0), side - length)


def _cut(image: Image.Image, box: Box, mode: Any) -> Image.Image:
    """Crop a box; beyond the image, repeat the edge ("edge") or fill with black ("constant")."""
    left, top, right, bottom = box
    outside = (max(-top, 0), max(bottom - image.height, 0)), (max(-left, 0), max(right - image.width, 0))
    inside = image.crop((max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))
    if outside == ((0, 0), (0, 0)):
        return inside
    pixels = np.asarray(inside)
    return Image.fromarray(np.pad(pixels, (*outside, (0, 0))[: pixels.ndim], mode))


def _pulled_and_pushed(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fill colours (H, W, 3), premultiplied by weights (H, W, 1), where the weight is 0, from coarser copies."""
    height, width = weights.shape[:2]
    known = colours / np.maximum(weights, 1e-6)
    if weights.all():
        return known
    even = ((0, height % 2), (0, width % 2), (0, 0))
    halves = [
        np.pad(each, even).reshape(-(-height // 2), 2, -(-width // 2), 2, each.shape[2]).sum((1, 3))
        for each in (colours, weights)
    ]
    share = np.maximum(halves[1], 1)  # keeps weights within 0 to 1
    coarse = _pulled_and_pushed(halves[0] / share, halves[1] / share)
    size = (width, height)
    layers = [
        np.asarray(Image.fromarray(np.ascontiguousarray(coarse[:, :, i])).resize(size, Image.Resampling.BILINEAR))
        for i in range(3)
    ]
    return known * weights + np.stack(layers, axis=2) * (1 - weights)

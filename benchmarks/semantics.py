"""What the words do, measured on postcards-tiny: whether a picture changes as its prompt, or a mask, asks.

    python benchmarks/semantics.py                                 every part: minutes on a CPU
    python benchmarks/semantics.py inpainting --sheet sheet.png    one part, and what it painted

Each part prints rows of a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image, ImageDraw

import utils
from stable_diffusion import Blend, StableDiffusion
from stable_diffusion.inpaint import Inpainting
from stable_diffusion.training.postcards import Postcard, describe, paint

SEEDS = 16
Pictures = list[Image.Image]
Measure = Callable[[Image.Image], float]


def generate(sd: StableDiffusion, text: str, seed: int, **options) -> Image.Image:
    """One picture, with the model's usual settings."""
    *_, last = sd.generate_latents(text, seed=seed, **{"num_steps": 20, "cfg_weight": 5.0, **options})
    return utils.to_picture(np.asarray(sd.decode(last.latents))[0])


def share_of_red(picture: Image.Image, where: np.ndarray) -> float:
    """The share of the pixels of `where` whose red is strong, and half as strong again as green and blue."""
    pixels = np.asarray(picture, np.float32)[where]
    return float(((pixels[:, 0] > 100) & (pixels[:, 0] > 1.5 * pixels[:, 1:].max(axis=1))).mean())


def inpainting(sd: StableDiffusion) -> Pictures:
    """A red balloon into the skies of painted postcards that have none."""
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).ellipse((64, 4, 120, 66), fill=255)
    white = np.asarray(mask) > 0
    cards = [
        Postcard("day", place, thing, "white", "clear", seed)
        for seed, (place, thing) in enumerate([("green hills", "house"), ("sea", "sailboat"), ("desert", "tent")] * 6)
    ][:SEEDS]
    postcards = [paint(card) for card in cards]
    sheet = postcards[:]
    print("| text | red under the mask before | after (range) | pictures with more | changed elsewhere, of 255 |")
    print("|---|---|---|---|---|")
    for text in ("a red balloon", "a red hot-air balloon where and when the postcard is"):
        before, after, elsewhere = [], [], 0
        for seed, (card, postcard) in enumerate(zip(cards, postcards, strict=True)):
            job = Inpainting(postcard, mask, 128, 128)
            asked = {"input_image": job.picture, "mask_image": job.mask, "denoising_strength": 1.0}
            balloon = Postcard(card.time, card.place, "hot-air balloon", "red", card.sky)
            result = job.finish(generate(sd, text if text == "a red balloon" else describe(balloon), seed, **asked))
            before.append(share_of_red(postcard, white))
            after.append(share_of_red(result, white))
            change = np.abs(np.asarray(result, np.int16) - np.asarray(postcard, np.int16)).max(axis=2)
            elsewhere = max(elsewhere, int(change[np.asarray(job.feather) == 0].max()))
            sheet.append(result)
        more = sum(a > b + 0.05 for a, b in zip(after, before, strict=True))
        print(
            f"| {text} | {np.mean(before):.1%} | {np.mean(after):.1%} ({min(after):.1%} to {max(after):.1%}) "
            f"| {more} of {SEEDS} | {elsewhere} |"
        )
    return sheet


def row(sd: StableDiffusion, text: str | Blend, **options) -> Pictures:
    """The pictures of the seeds 0, 1, ..., with the model's usual settings."""
    pictures = []
    for seed in range(0, SEEDS, 8):
        options = {"num_steps": 20, "cfg_weight": 5.0, **options}
        *_, last = sd.generate_latents(text, seed=seed, n_images=8, **options)
        pictures += [utils.to_picture(each) for each in np.asarray(sd.decode(last.latents))]
    return pictures


def measured(pictures: Pictures, measure: Measure) -> np.ndarray:
    """One number for each picture."""
    return np.array([measure(picture) for picture in pictures])


def share_of(hue: float, width: float, saturation: float = 0.45, value: float = 90) -> Measure:
    """The share of a picture that has about this hue, in degrees, and is neither pale nor dark."""

    def measure(picture: Image.Image) -> float:
        hsv = np.asarray(picture.convert("HSV"), np.float32)
        away = np.abs((hsv[..., 0] * 360 / 255 - hue + 180) % 360 - 180)
        return float(((away < width) & (hsv[..., 1] > 255 * saturation) & (hsv[..., 2] > value)).mean())

    return measure


def clouds(picture: Image.Image) -> float:
    """The share of the sky, the picture's upper third, that is nearly white."""
    sky = np.asarray(picture, np.float32)[: picture.height // 3]
    return float(((sky.min(axis=-1) > 195) & (np.ptp(sky, axis=-1) < 45)).mean())


COLOURS = {"red": share_of(0, 20), "yellow": share_of(50, 15), "purple": share_of(275, 25, 0.3)}


def weights(sd: StableDiffusion) -> Pictures:
    """A colour's weight, and its share in the picture."""
    sheet: Pictures = []
    print("| prompt | the colour's share at weight 0.5 | 1 | 1.5 | pictures with less at 0.5 | with more at 1.5 |")
    print("|---|---|---|---|---|---|")
    for colour, measure in COLOURS.items():
        rows = [row(sd, f"a ({colour}:{weight}) house on green hills by day") for weight in (0.5, 1, 1.5)]
        low, usual, high = (measured(pictures, measure) for pictures in rows)
        sheet += [picture for pictures in rows for picture in pictures]
        print(
            f"| a ({colour}:w) house on green hills by day | {low.mean():.2%} | {usual.mean():.2%} | {high.mean():.2%} "
            f"| {(low < usual).sum()} of {SEEDS} | {(high > usual).sum()} of {SEEDS} |",
            flush=True,
        )
    return sheet


PARTS: dict[str, Callable[[StableDiffusion], Pictures]] = {"weights": weights, "inpainting": inpainting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="postcards-tiny", metavar="NAME", help="(default: postcards-tiny)")
    parser.add_argument("--sheet", metavar="FILE", help="write all pictures into one")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sd = StableDiffusion(args.model)
    pictures = [picture for part in args.parts or PARTS for picture in PARTS[part](sd)]
    if args.sheet:
        utils.save_picture(utils.grid(pictures, columns=SEEDS), args.sheet)


if __name__ == "__main__":
    main()

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
from stable_diffusion import StableDiffusion
from stable_diffusion.inpaint import Inpainting
from stable_diffusion.training.postcards import Postcard, describe, paint

SEEDS = 16
Pictures = list[Image.Image]


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


PARTS: dict[str, Callable[[StableDiffusion], Pictures]] = {"inpainting": inpainting}


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

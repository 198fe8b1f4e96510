"""What the words do, measured on postcards-tiny: whether a picture changes as the prompt or the mask asks.

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

from stable_diffusion import Blend, StableDiffusion
from stable_diffusion.pictures import arrays
from stable_diffusion.pictures.inpainting import Inpainting
from stable_diffusion.record import picture_files

SEEDS = 16
Pictures = list[Image.Image]
Measure = Callable[[np.ndarray], float]  # of a picture (H, W, 3), float in [0, 255]


def generate(sd: StableDiffusion, text: str, seed: int, **options) -> Image.Image:
    """One picture, with the model's usual settings."""
    *_, last = sd.generate_latents(text, seed=seed, **{"num_steps": 20, "cfg_weight": 5.0, **options})
    return arrays.to_picture(np.asarray(sd.decode(last.latents))[0])


def share_of_red(picture: Image.Image, where: np.ndarray) -> float:
    """The share of the pixels of `where` whose red is above 100 and 1.8 times green and blue: orange does not count."""
    pixels = np.asarray(picture, np.float32)[where]
    return float(((pixels[:, 0] > 100) & (pixels[:, 0] > 1.8 * pixels[:, 1:].max(axis=1))).mean())


def inpainting(sd: StableDiffusion) -> Pictures:
    """A red balloon into skies without one; and with the same seeds a clear sky, for comparison."""
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).ellipse((34, 4, 94, 68), fill=255)
    white = np.asarray(mask) > 0
    day, night = (
        row(sd, "a white house on green hills by day, a clear sky"),
        row(sd, "a white tent at night, a clear sky"),
    )
    skies = [*day[: SEEDS // 2], *night[: SEEDS // 2]]
    before = [share_of_red(sky, white) for sky in skies]
    sheet = skies[:]
    print("| text | red under the mask before | after: mean, median | pictures with red | changed elsewhere, of 255 |")
    print("|---|---|---|---|---|")
    for text in ("a red balloon", "a clear sky"):
        after, elsewhere = [], 0
        for seed, sky in enumerate(skies):
            job = Inpainting(sky, mask, *sky.size)
            asked = {"input_image": job.picture, "mask_image": job.mask, "denoising_strength": 1.0, "cfg_weight": 7.5}
            result = job.finish(generate(sd, text, SEEDS + seed, **asked))
            after.append(share_of_red(result, white))
            change = np.abs(np.asarray(result, np.int16) - np.asarray(sky, np.int16)).max(axis=2)
            elsewhere = max(elsewhere, int(change[np.asarray(job.feather) == 0].max()))
            sheet.append(result)
        found = sum(a > b + 0.02 for a, b in zip(after, before, strict=True))
        print(
            f"| {text} | {np.mean(before):.1%} | {np.mean(after):.1%}, {np.median(after):.1%} | {found} of {SEEDS} "
            f"| {elsewhere} |",
            flush=True,
        )
    return sheet


def row(sd: StableDiffusion, text: str | Blend, negative: str | None = None) -> Pictures:
    """The pictures of the seeds 0, 1, ...: DPM++ 2M, 10 steps, CFG 5."""
    pictures = []
    for seed in range(0, SEEDS, 8):
        options = {"num_steps": 10, "cfg_weight": 5.0, "sampler": "dpmpp_2m", "n_images": 8}
        *_, last = sd.generate_latents(text, negative, seed=seed, **options)
        pictures += [arrays.to_picture(each) for each in np.asarray(sd.decode(last.latents))]
    return pictures


def measured(pictures: Pictures, measure: Measure) -> np.ndarray:
    """One number for each picture."""
    return np.array([measure(np.asarray(picture, np.float32)) for picture in pictures])


def redness(pixels: np.ndarray) -> float:
    """How far red stands above green and blue, of 255, on average where it does."""
    return float(np.maximum(pixels[..., 0] - pixels[..., 1:].mean(axis=-1), 0).mean())


def clouds(pixels: np.ndarray) -> float:
    """The share of the sky, the upper half, that is pale: a drawn sunset has 17 to 20 % with clouds, 0 % without."""
    return float((pixels[: len(pixels) // 2].min(axis=-1) > 175).mean())


def balloon(pixels: np.ndarray) -> float:
    """The share of the upper two thirds that is a strong red or orange."""
    sky = pixels[: len(pixels) * 2 // 3]
    return float(((sky[..., 0] > 180) & (sky[..., 2] < 0.5 * sky[..., 0])).mean())


def sea(pixels: np.ndarray) -> float:
    """The share of the lowest quarter that is a deep blue."""
    ground = pixels[len(pixels) * 3 // 4 :]
    return float(((ground[..., 2] > 110) & (ground[..., 0] < 0.45 * ground[..., 2])).mean())


def weights(sd: StableDiffusion) -> Pictures:
    """A colour's weight, and how much of the colour there is."""
    usual = row(sd, "a red house on green hills by day, with a clear sky")
    before = measured(usual, redness)
    sheet = usual[:]
    print("| prompt | redness at weight 0.5 | 1 | 1.5 | pictures with less at 0.5 | with more at 1.5 |")
    print("|---|---|---|---|---|---|")
    for text in ("a (red:{}) house on green hills by day, with a clear sky",
                 "a (red house on green hills by day:{}), with a clear sky"):  # fmt: skip
        rows = [row(sd, text.format(weight)) for weight in (0.5, 1.5)]
        low, high = (measured(pictures, redness) for pictures in rows)
        sheet += [picture for pictures in rows for picture in pictures]
        print(
            f"| {text.format('w')} | {low.mean():.2f} | {before.mean():.2f} | {high.mean():.2f} "
            f"| {(low < before).sum()} of {SEEDS} | {(high > before).sum()} of {SEEDS} |",
            flush=True,
        )
    return sheet


def negative(sd: StableDiffusion) -> Pictures:
    """Clouds that a prompt leaves open, and the negative prompt that takes them away; a moon is pale, too: look."""
    rows = [row(sd, "a white house on green hills at sunset", negative) for negative in (None, "clouds")]
    print("| negative prompt | pale share of the sky | pictures with 2 % or more |")
    print("|---|---|---|")
    for name, pictures in zip(("none", "clouds"), rows, strict=True):
        found = measured(pictures, clouds)
        print(f"| {name} | {found.mean():.2%} | {(found > 0.02).sum()} of {SEEDS} |", flush=True)
    return [picture for pictures in rows for picture in pictures]


def halfway(sd: StableDiffusion) -> Pictures:
    """The picture half-way between two prompts; drawn, a balloon takes 14 % of its part, and the sea 73 % of its."""
    start, end = "a red balloon over green hills by day", "a sailboat on the sea by day"
    print("| text | balloon (red and orange above) | sea (deep blue below) | pictures with both |")
    print("|---|---|---|---|")
    sheet: Pictures = []
    for name, text in (("start", start), ("half-way", Blend(start, end, 0.5)), ("end", end)):
        pictures = row(sd, text)
        above, below = measured(pictures, balloon), measured(pictures, sea)
        both = ((above > 0.08) & (below > 0.4)).sum()
        print(f"| {name} | {above.mean():.2%} | {below.mean():.2%} | {both} of {SEEDS} |", flush=True)
        sheet += pictures
    return sheet


PARTS: dict[str, Callable[[StableDiffusion], Pictures]] = {
    "weights": weights,
    "negative": negative,
    "halfway": halfway,
    "inpainting": inpainting,
}


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
        picture_files.save_picture(arrays.grid(pictures, columns=SEEDS), args.sheet)


if __name__ == "__main__":
    main()

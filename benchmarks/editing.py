"""Editing postcards: what appears, and what stays.

    python benchmarks/editing.py imagic --sheet imagic.png     tunes ten postcards, paints several amounts: minutes
    python benchmarks/editing.py words --sheet words.png       the same seed with other words, and prompt-to-prompt
    python benchmarks/editing.py inversion                     DDIM inversion: how exactly six postcards come back
    python benchmarks/editing.py variation --sheet v.png       ... and what another text makes of their noise, alone and
                                                               by prompt-to-prompt

The judge is that of adherence.py. "Outside" are the pixels in which the painter's own pictures of the card before and
after the change agree: where nothing should change.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks.adherence import ROOT, a_judge, tell
from benchmarks.judge import ATTRIBUTES, Classifier
from stable_diffusion import PromptEdit, StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.pictures import arrays
from stable_diffusion.training.imagic import Settings, tune
from stable_diffusion.training.postcards.painter import Postcard, describe, paint

MODEL = "postcards-tiny"
# Each card, and what is asked of it.
CHANGES: list[tuple[Postcard, dict[str, str]]] = [
    (Postcard("day", "green hills", "house", "red", "clear", 11), {"sky": "rainbow"}),
    (Postcard("day", "sea", "lighthouse", "white", "clear", 12), {"sky": "rainbow"}),
    (Postcard("day", "snowy mountains", "tent", "yellow", "clear", 13), {"sky": "rainbow"}),
    (Postcard("day", "desert", "cactus", "green", "clear", 14), {"sky": "sun"}),
    (Postcard("day", "green hills", "windmill", "blue", "clear", 15), {"sky": "clouds"}),
    (Postcard("night", "sea", "sailboat", "orange", "clear", 16), {"sky": "moon"}),
    (Postcard("night", "snowy mountains", "tree", "green", "clear", 17), {"sky": "stars"}),
    (Postcard("sunset", "desert", "hot-air balloon", "purple", "clear", 18), {"sky": "birds"}),
    (Postcard("day", "green hills", "house", "blue", "clouds", 19), {"colour": "red"}),
    (Postcard("sunset", "sea", "sailboat", "white", "sun", 20), {"colour": "purple"}),
]
AMOUNTS = (0.0, 1.0, 1.15, 1.4, 1.7)
EDGE = 8  # of 255: a smaller difference of the painter's pictures is none


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Of uint8 pictures, in dB; `where` (H, W) chooses pixels."""
    squares = np.square(a.astype(np.float64) - b)
    mean = squares.mean() if where is None else squares[where].mean()
    return float(10 * np.log10(255**2 / max(mean, 1e-12)))


class Edits:
    """Pictures of changed cards, judged: a row of a table for each way of changing them."""

    def __init__(self, judge: Classifier):
        self.judge = judge
        self.found: dict[str, list[tuple[bool, bool, float]]] = {}
        self.sheet: list[Image.Image] = []

    def add(self, way: str, number: int, picture: np.ndarray) -> None:
        card, change = CHANGES[number]
        before = np.asarray(paint(card))
        agree = np.abs(before.astype(int) - np.asarray(paint(dataclasses.replace(card, **change)))).max(-1) < EDGE
        read = {name: found[0] for name, found in self.judge.read(picture[None])[1].items()}
        there = all(read[name] == wanted for name, wanted in change.items())
        kept = all(read[name] == getattr(card, name) for name in ATTRIBUTES if name not in change)
        self.found.setdefault(way, []).append((there, kept, psnr(picture, before, agree)))
        self.sheet.append(Image.fromarray(picture))

    def print(self, first: str) -> None:
        print_table(first, self.found, "PSNR outside")


def print_table(first: str, found: dict[str, list[tuple[bool, bool, float]]], last: str) -> None:
    """A row for each way, of what was found for each card: the change is there, the rest is kept, and a PSNR."""
    print(f"| {first} | asked for, and there | the rest is kept | both | {last}: median (range) |")
    print("|---|---|---|---|---|")
    for way, of_way in found.items():
        there, kept, decibels = (np.array(each) for each in zip(*of_way, strict=True))
        sums = [f"{each.sum()} of {len(each)}" for each in (there, kept, there & kept)]
        spread = f"{np.median(decibels):.1f} ({decibels.min():.1f} to {decibels.max():.1f}) dB"
        print(f"| {way} | {' | '.join(sums)} | {spread} |", flush=True)


def changed(number: int) -> str:
    card, change = CHANGES[number]
    return describe(dataclasses.replace(card, **change))


def imagic(options: argparse.Namespace) -> None:
    edits = Edits(a_judge(options.cache, options.judge_steps))
    sd = StableDiffusion(MODEL)
    settings = Settings(
        **{name: getattr(options, name) for name in ("text_steps", "text_rate", "unet_steps", "unet_rate")}
    )
    for i in range(options.pictures):
        card = paint(CHANGES[i][0])
        cpu = time.process_time()
        tuned = tune(sd, card, changed(i), settings)
        tell(f"{changed(i)}: tuned in {time.process_time() - cpu:.0f} CPU s")
        edits.sheet.append(card)
        for amount in options.amounts:
            edits.add(f"{amount:g}", i, np.asarray(tuned.paint(sd, amount, cfg_weight=options.cfg).image))
    edits.print("amount")
    save_sheet(edits.sheet, len(options.amounts) + 1, options.sheet)


def words(options: argparse.Namespace) -> None:
    judge, sd = a_judge(options.cache, options.judge_steps), StableDiffusion(MODEL)
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    sheet = []
    for i, (card, change) in enumerate(CHANGES[: options.pictures]):
        for shares in ((0.0, 0.0), (0.4, 0.2), (0.8, 0.4), (1.0, 1.0)):
            for pair in sd.edit(
                describe(card), changed(i), PromptEdit(*shares), seed=i, num_steps=options.steps[0], cfg_weight=5.0
            ):
                latents = [step.latents for step in pair]
            before, after = (arrays.to_uint8(np.array(sd.decode(each))[0]) for each in latents)
            sheet += [Image.fromarray(each) for each in ([before, after] if shares == (0.0, 0.0) else [after])]
            read = {name: options[0] for name, options in judge.read(after[None])[1].items()}
            wanted = dataclasses.replace(card, **change)
            right = {name: read[name] == getattr(wanted, name) for name in ATTRIBUTES}
            there, kept = (all(right[name] for name in right if (name in change) is asked) for asked in (True, False))
            found.setdefault(f"cross {shares[0]:g}, layout {shares[1]:g}", []).append(
                (there, kept, psnr(after, before))
            )
    print_table("kept attention", found, "PSNR to the first picture")
    save_sheet(sheet, 5, options.sheet)


def inversion(options: argparse.Namespace) -> None:
    sd = StableDiffusion(MODEL)
    cards = [np.asarray(paint(card)) for card, _ in CHANGES[: options.pictures]]
    through = [arrays.to_uint8(np.array(sd.decode(mean_latents(sd, card))[0])) for card in cards]
    print("| steps | corrections | PSNR to what the VAE alone gives back | to the picture | deviation of the noise |")
    print("|---|---|---|---|---|")
    print(f"| the VAE alone | | | {mean_psnr(through, cards):.1f} dB | |")
    for steps in options.steps:
        for corrections in options.corrections:
            backs, deviations = [], []
            for card, (shown, _) in zip(cards, CHANGES, strict=False):
                noise = inverted(sd, card, describe(shown), steps, corrections)
                deviations.append(noise.std())
                backs.append(repainted(sd, noise, describe(shown), steps, 1.0))
            figures = mean_psnr(backs, through), mean_psnr(backs, cards)
            spread = f"{min(deviations):.2f} to {max(deviations):.2f}"
            print(f"| {steps} | {corrections} | {figures[0]:.1f} dB | {figures[1]:.1f} dB | {spread} |", flush=True)


def variation(options: argparse.Namespace) -> None:
    edits = Edits(a_judge(options.cache, options.judge_steps))
    sd = StableDiffusion(MODEL)
    steps = options.steps[0]
    for i, (shown, _) in enumerate(CHANGES[: options.pictures]):
        card = paint(shown)
        noise = inverted(sd, np.asarray(card), describe(shown), steps, options.corrections[-1])
        edits.sheet.append(card)
        for cfg in (1.0, 3.0):
            edits.add(f"guidance {cfg:g}", i, repainted(sd, noise, changed(i), steps, cfg))
            for shares in ((0.4, 0.2), (0.8, 0.4)):
                how = PromptEdit(*shares)
                edits.add(f"{cfg:g}, cross {shares[0]}, layout {shares[1]}", i,
                          edited(sd, noise, describe(shown), changed(i), how, steps, cfg))  # fmt: skip
    edits.print("")
    save_sheet(edits.sheet, 7, options.sheet)


def mean_latents(sd: StableDiffusion, picture: np.ndarray) -> mx.array:
    """What an inversion begins with: the picture's latents without the encoder's noise."""
    return next(iter(sd.invert(picture, "", 1))).denoised


def inverted(sd: StableDiffusion, picture: np.ndarray, caption: str, steps: int, corrections: int) -> np.ndarray:
    for step in sd.invert(picture, caption, steps, corrections):
        latents = step.latents
    return np.array(latents)


def repainted(sd: StableDiffusion, noise: np.ndarray, text: str, steps: int, cfg: float) -> np.ndarray:
    made = sd.generate(text, latents=noise, sampler="ddim", num_steps=steps, cfg_weight=cfg, seed=0)
    return np.asarray(next(iter(made)).image)


def edited(
    sd: StableDiffusion, noise: np.ndarray, before: str, after: str, how: PromptEdit, steps: int, cfg: float
) -> np.ndarray:
    for _, step in sd.edit(before, after, how, latents=noise, sampler="ddim", num_steps=steps, cfg_weight=cfg, seed=0):
        latents = step.latents
    return arrays.to_uint8(np.array(sd.decode(latents))[0])


def mean_psnr(pictures: list[np.ndarray], others: list[np.ndarray]) -> float:
    return float(np.mean([psnr(a, b) for a, b in zip(pictures, others, strict=True)]))


def save_sheet(pictures: list[Image.Image], columns: int, path: Path | None) -> None:
    if path is not None:
        arrays.grid(pictures, columns, gap=4).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"imagic": imagic, "inversion": inversion, "words": words, "variation": variation}
    parser.add_argument("way", choices=ways)
    parser.add_argument("--pictures", type=int, default=len(CHANGES))
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100], help="of an inversion")
    parser.add_argument("--corrections", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--amounts", type=float, nargs="+", default=AMOUNTS)
    parser.add_argument("--cfg", type=float, default=4.0)
    for name in ("text_steps", "text_rate", "unet_steps", "unet_rate"):
        usual = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(usual), default=usual, help="of Imagic")
    parser.add_argument("--cache", type=Path, default=ROOT / "outputs" / "adherence", help="where the judge is kept")
    parser.add_argument("--judge-steps", type=int, default=4000)
    parser.add_argument("--sheet", type=Path, help="a contact sheet")
    options = parser.parse_args()
    ways[options.way](options)


if __name__ == "__main__":
    main()

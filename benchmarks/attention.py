"""Whether a word acts where its thing is: attention maps of painted postcards against the painter's own masks.

    python benchmarks/attention.py                       100 postcards, five noise levels: minutes on a CPU
    python benchmarks/attention.py --cards 8 --sheet x.png   a quick look
    python benchmarks/attention.py --time                what recording costs

Each postcard is encoded, noised to five levels and given to the network once with its own caption. Of the attention of
the word that names the thing, the share inside the thing's mask is compared with the share of the picture that the mask
covers: a map that knows nothing has a ratio of 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from stable_diffusion import AttentionMaps, PictureMaps, StableDiffusion
from stable_diffusion.pictures import arrays, heat
from stable_diffusion.record import picture_files
from stable_diffusion.sampler import sampler_by_name
from stable_diffusion.training.postcards.painter import (
    THINGS,
    Postcard,
    describe,
    is_pine,
    paint,
    random_postcard,
    thing_mask,
)

STREAM = 4004  # of postcards that no training draws from
ALL, FINEST = "all levels", "up_blocks.1"  # of the network
STEPS = 5  # noise levels: the first steps of the last 1, 2, ... of five


def name_of(card: Postcard) -> str:
    """The words of the caption that name the thing."""
    return "pine tree" if is_pine(card) else card.thing.replace("-", " ")


def noised_and_read(sd: StableDiffusion, card: Postcard, picture: Image.Image, level: int) -> PictureMaps:
    """The maps of one call of the network with the picture noised to a level, from 1 to STEPS."""
    maps = AttentionMaps()
    options = {"input_image": picture, "denoising_strength": level / STEPS, "num_steps": STEPS}
    with closing(sd.generate_latents(describe(card), cfg_weight=1.0, sampler="ddim", seed=card.seed, attention=maps,
                                     **options)) as steps:  # fmt: skip
        np.asarray(next(steps).latents)
    return maps.pictures[0]


def share_inside(weights: np.ndarray, mask: np.ndarray) -> float:
    """The share of a map's weight that lies inside a mask of the same size."""
    weights = np.maximum(weights, 0)  # bicubic interpolation undershoots
    return float((weights * mask).sum() / weights.sum())


def measure(sd: StableDiffusion, cards: list[Postcard]) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The masks' areas (cards,), and the shares inside, (cards, noise levels), for each word and level of the network.

    The words are the thing's name, and that with its colour.
    """
    width, height = sd.default_size
    areas, inside = np.zeros(len(cards)), defaultdict(lambda: np.zeros((len(cards), STEPS)))
    begun = time.monotonic()
    for i, card in enumerate(cards):
        picture, mask = paint(card, width), thing_mask(card, width)
        areas[i] = mask.mean()
        for level in range(1, STEPS + 1):
            maps = noised_and_read(sd, card, picture, level)
            names = {"the thing": name_of(card), "colour and thing": f"{card.colour} {name_of(card)}"}
            for name in (ALL, *maps.levels):
                for what, words in names.items():
                    chosen = None if name == ALL else [name]
                    weights = maps.heat_map(words, levels=chosen, size=(width, height))
                    inside[what, name][i, level - 1] = share_inside(weights, mask)
        if (i + 1) % 20 == 0:
            left = (time.monotonic() - begun) / (i + 1) * (len(cards) - i - 1)
            print(f"{i + 1} of {len(cards)} postcards, {left:.0f} s left", file=sys.stderr, flush=True)
    return areas, inside


def table(sd: StableDiffusion, areas: np.ndarray, inside: dict[tuple[str, str], np.ndarray]) -> str:
    """Markdown: the mean share inside as a multiple of the mean area, by word, network level and noise level."""
    heads = ["word", "level", *(f"time {t}" for t in times(sd)), "all times", "cards at 2 and more"]
    rows = [heads, ["---"] * len(heads)]
    for (what, name), shares in inside.items():
        ratios = [*shares.mean(axis=0) / areas.mean(), shares.mean() / areas.mean()]
        twice = f"{int((shares.mean(axis=1) >= 2 * areas).sum())} of {len(areas)}"
        rows.append([what, name, *(f"{ratio:.2f}" for ratio in ratios), twice])
    return markdown(rows)


def by_thing(cards: list[Postcard], areas: np.ndarray, inside: dict[tuple[str, str], np.ndarray]) -> str:
    """Markdown: the same for each kind of thing, over all noise levels."""
    columns = list(inside)
    rows = [["thing", "cards", *(f"{what}, {name}" for what, name in columns)], ["---"] * (2 + len(columns))]
    for thing in THINGS:
        own = np.array([card.thing == thing for card in cards])
        if own.any():
            ratios = [inside[key][own].mean() / areas[own].mean() for key in columns]
            rows.append([thing, f"{own.sum()}", *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def times(sd: StableDiffusion) -> list[str]:
    """The time of each of the noise levels, in training steps."""
    levels = sampler_by_name("ddim").plan(sd.scheduler_config, STEPS).levels
    return [f"{level.t:g}" for level in levels[::-1]]


def sheet(sd: StableDiffusion, cards: list[Postcard]) -> Image.Image:
    """Each postcard, and the overlays of its thing at the five levels."""
    width, _ = sd.default_size
    cells = []
    for card in cards:
        picture = paint(card, width)
        cells.append(picture)
        for level in range(1, STEPS + 1):
            maps = noised_and_read(sd, card, picture, level)
            cells.append(heat.overlay(picture, maps.heat_map(name_of(card))))
    return arrays.grid([np.asarray(cell) / 255 for cell in cells], columns=STEPS + 1)


def cost(sd: StableDiffusion, rounds: int = 7) -> str:
    """Seconds of a whole generation with and without recording, in turns."""
    card = random_postcard(np.random.default_rng(STREAM))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for recording in (True, False):
            begun = time.perf_counter()
            maps = AttentionMaps() if recording else None
            for step in sd.generate_latents(describe(card), seed=1, attention=maps):
                np.asarray(step.latents)
            seconds[recording].append(time.perf_counter() - begun)
    with_maps, without = (np.array(seconds[recording][1:]) for recording in (True, False))
    return (
        f"with maps {np.median(with_maps):.2f} s, without {np.median(without):.2f} s, "
        f"ratio {np.median(with_maps / without):.2f} (median of {rounds})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, default=100, metavar="N", help="(default: 100)")
    parser.add_argument("--sheet", metavar="FILE", help="write the overlays of the first eight postcards")
    parser.add_argument("--time", action="store_true", help="measure the time instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # that five steps are few
    sd = StableDiffusion()
    if args.time:
        print(cost(sd))
        return
    rng = np.random.default_rng(STREAM)
    cards = [random_postcard(rng) for _ in range(args.cards)]
    if args.sheet:
        picture_files.save_picture(sheet(sd, cards[:8]), args.sheet)
    areas, inside = measure(sd, cards)
    print(f"{len(cards)} postcards; the thing covers {areas.mean():.1%} of the picture.\n")
    print(table(sd, areas, inside))
    print()
    chosen = {key: shares for key, shares in inside.items() if key[1] in (ALL, FINEST)}
    print(by_thing(cards, areas, chosen))


if __name__ == "__main__":
    main()

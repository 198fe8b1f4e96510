"""Fit the linear map latents -> RGB that previews use (`RGB_FACTORS` in families.py), by least squares.

    python benchmarks/fit_latent_rgb.py [--model postcards-tiny] [--pictures 192]

Paints pictures, averages each 8 x 8 block of pixels, and fits rgb = latents @ factors + bias in [-1, 1]. A third of the
pictures is held out. R^2, the share of the variance explained, is printed for both sets: for the final latents, and for
the estimates of x_0 at a quarter and at half of the steps. Run it again after replacing the checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from stable_diffusion import StableDiffusion, catalogue

TIMES = "by day|on a bright day|at sunset|in the evening|at night|on a dark night"
PLACES = "green hills|rolling hills|snowy mountains|the mountains|the desert|desert dunes|the sea|the ocean"
THINGS = "house|tree|pine tree|tent|hot air balloon|windmill|cactus|sailboat|lighthouse"
COLOURS = "red|blue|yellow|white|purple|orange|pink|black"
SKIES = "a clear sky|clouds|the sun|a rainbow|birds|stars|the moon|a full moon"


def captions(count: int) -> list[str]:
    """Different captions such as the embedded model was trained on, the same at every run."""
    every = list(itertools.product(*(words.split("|") for words in (COLOURS, THINGS, PLACES, TIMES, SKIES))))
    return [
        f"a {colour} {thing} on {place} {time}, with {sky}"
        for colour, thing, place, time, sky in random.Random(0).sample(every, count)
    ]


def blocks(pictures: np.ndarray, size: int) -> np.ndarray:
    """(B, H, W, 3) in [0, 1] -> the mean of each block, (B, h, w, 3) in [-1, 1]."""
    b, height, width, _ = pictures.shape
    return 2 * pictures.reshape(b, height // size, size, width // size, size, 3).mean((2, 4)) - 1


def paint(sd: StableDiffusion, prompt: str, seed: int, defaults: catalogue.Defaults) -> dict[str, tuple]:
    """Latents and block colours of one picture, by the part of the way."""
    found = {}
    steps = sd.generate_latents(prompt, num_steps=defaults.steps, cfg_weight=defaults.cfg, seed=seed)
    for step in steps:
        for name, at in (("a quarter", step.total // 4), ("half", step.total // 2), ("the end", step.total)):
            if step.index == at:
                latents = step.latents if step.index == step.total else step.denoised
                found[name] = (np.array(latents), blocks(np.array(sd.decode(latents)), sd.downscale))
    return found


def with_one(latents: np.ndarray) -> np.ndarray:
    """(..., C) -> (N, C + 1), the last column 1 for the bias."""
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    return np.c_[flat, np.ones(len(flat))]


def explained(factors: np.ndarray, latents: np.ndarray, colours: np.ndarray) -> float:
    """R^2 over all three colours."""
    colours = colours.reshape(-1, 3)
    residual = with_one(latents) @ factors - colours
    return 1 - (residual**2).sum() / ((colours - colours.mean(0)) ** 2).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=catalogue.DEFAULT)
    parser.add_argument("--pictures", type=int, default=96)
    args = parser.parse_args()
    model = catalogue.find(args.model)
    sd = StableDiffusion(model.source)
    painted = [paint(sd, prompt, seed, model.defaults) for seed, prompt in enumerate(captions(args.pictures))]
    split = args.pictures * 2 // 3
    data = {
        name: [np.concatenate(part) for part in zip(*(one[name] for one in painted), strict=True)]
        for name in painted[0]
    }

    latents, colours = data["the end"]
    trial = np.linalg.lstsq(with_one(latents[:split]), colours[:split].reshape(-1, 3), rcond=None)[0]
    print(f"R^2 of {split} fitted pictures: {explained(trial, latents[:split], colours[:split]):.3f}")
    for name, (x, y) in data.items():
        print(f"R^2 of {args.pictures - split} held out, at {name}: {explained(trial, x[split:], y[split:]):.3f}")
    factors = np.linalg.lstsq(with_one(latents), colours.reshape(-1, 3), rcond=None)[0]
    print(f"Fitted to all {args.pictures}: R^2 {explained(factors, latents, colours):.3f}; for models.py:")
    rows = [f"({', '.join(f'{value:.4f}' for value in row)})" for row in factors]
    print(f'    "{model.name}": (\n        ({", ".join(rows[:-1])}),\n        {rows[-1]},\n    ),')


if __name__ == "__main__":
    main()

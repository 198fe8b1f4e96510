"""A morph: from one prompt to another, and from one seed to another, as a GIF.

python examples/morph.py [--frames 8] [--steps 12] [--output FILE.gif]
"""

import argparse
from pathlib import Path

import numpy as np

from stable_diffusion import StableDiffusion
from stable_diffusion.pictures.arrays import to_picture
from stable_diffusion.record import film
from stable_diffusion.text.blend import frames

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--frames", type=int, default=8)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--output", type=Path, default=Path("outputs/morph.gif"))
args = parser.parse_args()

sd = StableDiffusion("postcards-tiny")
pictures = []
# Texts are blended in a straight line between their embeddings, noise along an arc, which keeps its variance.
for frame in frames("a red house on green hills by day", "a blue sailboat on the sea at night", args.frames, 7, 8):
    *_, step = sd.generate_latents(**frame.arguments, num_steps=args.steps, cfg_weight=5.0)
    pictures.append(to_picture(np.array(sd.decode(step.latents))[0]))
    print(f"{frame.share:4.0%} of the way")

print(film.save(pictures, args.output, fps=4))

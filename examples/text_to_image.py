"""Text to image with the latents shown: a sheet of x_t and of the estimates of x_0, and the finished picture.

python examples/text_to_image.py [--prompt TEXT] [--steps 20] [--output FOLDER]
"""

import argparse
from pathlib import Path

import numpy as np

from stable_diffusion import StableDiffusion
from stable_diffusion.pictures.arrays import grid, latent_picture, to_picture

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--prompt", default="a red house on green hills at sunset, with clouds")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--output", type=Path, default=Path("outputs/text_to_image"))
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)

sd = StableDiffusion("postcards-tiny")
noisy, estimates = [], []
for step in sd.generate_latents(args.prompt, num_steps=args.steps, cfg_weight=5.0, seed=7):
    print(f"step {step.index:2} of {step.total}: t {step.t:5.1f}, sigma {step.sigma:6.3f}")
    if step.index % max(1, args.steps // 4) == 0:
        noisy.append(latent_picture(np.array(step.latents)[0], scale=4, columns=2))  # the four channels of x_t
        estimates.append(to_picture(np.array(sd.decode(step.denoised))[0]))  # what the U-Net takes x_0 for

grid(noisy + estimates, columns=len(noisy)).save(args.output / "steps.png")
to_picture(np.array(sd.decode(step.latents))[0]).save(args.output / "picture.png")
print(f"{args.output}/steps.png, {args.output}/picture.png")

"""An own sampler: deterministic DDIM steps that stir in a little fresh noise, compared with Euler on one seed.

python examples/own_sampler.py [--steps 20] [--output FILE.png]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stable_diffusion import StableDiffusion
from stable_diffusion.diffusion.samplers.base import step_reached
from stable_diffusion.pictures.arrays import grid, to_picture
from stable_diffusion.sampler import SimpleEulerSampler


@dataclass(frozen=True)
class StirredSampler(SimpleEulerSampler):
    """Euler's levels; at each one a share of the noise is replaced by fresh noise of the same variance.

    x' = alpha' x_0 + sigma' (sqrt(1 - share^2) eps + share z), z ~ N(0, 1): at share 0 this is Euler's method.
    """

    share: float = 0.3

    key = "stirred"
    title = "Stirred"

    def sample(self, denoiser, x, plan, noise):
        for i in range(plan.first, len(plan.levels)):
            prediction = denoiser(x, plan.levels[i], plan.number(i))
            eps = (1 - self.share**2) ** 0.5 * prediction.eps + self.share * noise()
            x = plan.ends[i].noised(prediction.x_0, eps)
            yield step_reached(plan, i, x, prediction.x_0)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--output", type=Path, default=Path("outputs/own_sampler.png"))
args = parser.parse_args()
args.output.parent.mkdir(parents=True, exist_ok=True)

sd = StableDiffusion("postcards-tiny")
pictures = []
for sampler in ("euler", StirredSampler(share=0.0), StirredSampler(share=0.3), StirredSampler(share=0.6)):
    *_, step = sd.generate_latents(
        "a white lighthouse by the sea by day", num_steps=args.steps, cfg_weight=5.0, seed=7, sampler=sampler
    )
    pictures.append(to_picture(np.array(sd.decode(step.latents))[0]))

grid(pictures, columns=len(pictures)).save(args.output)
print(args.output)

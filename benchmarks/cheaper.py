"""What cheaper steps save and cost: guidance in a part of the steps, DeepCache, both, and simply fewer steps.

    python benchmarks/cheaper.py                          postcards-tiny: time, distance, and what a judge reads off
    python benchmarks/cheaper.py --sheet sheet.png        and a contact sheet: a row for each setting
    python benchmarks/cheaper.py sd15 --size 32 --steps 6    Stable Diffusion 1.5's shape, random weights: time alone

The settings take turns at each prompt, all from the same noise. Times are ratios of the process's CPU seconds, which a
busy machine disturbs less; those of postcards-tiny include decoding. The distance is the root mean square of the
pixels' difference from the first row's picture, in levels of 255.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks.adherence import ROOT, a_judge, judged, prompted, shares, tell
from benchmarks.judge import ATTRIBUTES
from stable_diffusion import StableDiffusion, backend
from stable_diffusion.backend import mx
from stable_diffusion.config import AutoencoderConfig, SchedulerConfig, UNetConfig
from stable_diffusion.diffusion.network import Conditioning
from stable_diffusion.model_io.checkpoint import Checkpoint
from stable_diffusion.pictures import arrays
from stable_diffusion.selftest import published
from stable_diffusion.training.postcards.painter import describe
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

SETTINGS: dict[str, dict[str, Any]] = {
    "every step whole": {},
    "guidance from 0.2": {"guidance_start": 0.2},
    "guidance until 0.8": {"guidance_end": 0.8},
    "guidance from 0.2 until 0.8": {"guidance_start": 0.2, "guidance_end": 0.8},
    "guidance down to sigma 1": {"guidance_min_sigma": 1.0},
    "DeepCache 2": {"deepcache_interval": 2},
    "DeepCache 3": {"deepcache_interval": 3},
    "DeepCache 5": {"deepcache_interval": 5},
    "DeepCache 3, branch 3": {"deepcache_interval": 3, "deepcache_branch": 3},
    "DeepCache 2, guidance until 0.8": {"deepcache_interval": 2, "guidance_end": 0.8},
}
SHEET = 8  # pictures in a row


class RandomReader:
    """Random hidden states of CLIP's shape for any text."""

    encoders, tokenizers = (), ()

    def replaced(self, **changes: Any) -> RandomReader:
        return self

    def read(self, texts: Any) -> list[Conditioning]:
        return [Conditioning(mx.random.normal((1, 77, 768))) for _ in texts]

    def n_chunks(self, texts: Any) -> int:
        return 1


def sd15() -> StableDiffusion:
    checkpoint = Checkpoint(
        family="sd1",
        unet=UNet(UNetConfig.from_dict(published.UNETS["SD 1.5"])),
        vae=Autoencoder(AutoencoderConfig.from_dict(published.VAE)),
        text_encoders=(),
        tokenizers=(),
        scheduler=SchedulerConfig(),
        force_zeros_for_empty_prompt=False,
        reader=RandomReader(),
    )
    return StableDiffusion.from_checkpoint(checkpoint, "random", float16=False)


def latents_of(sd: StableDiffusion, text: str, **settings: Any) -> mx.array:
    for step in sd.generate_latents(text, **settings):
        mx.eval(step.latents)
    return step.latents


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All settings, with the number of steps; the last two are fewer steps."""
    found = {name: {"num_steps": options.steps, **changes} for name, changes in SETTINGS.items()}
    fewer = [options.steps * 3 // 4, options.steps // 2]
    return found | {f"{n} steps": {"num_steps": n} for n in fewer}


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def ratios(spent: dict[str, list[float]]) -> dict[str, str]:
    """Each setting's time, as the median over the turns of its ratio to the first one's, with the quartiles."""
    first = np.array(next(iter(spent.values())))
    found = {}
    for name, seconds in spent.items():
        low, middle, high = np.percentile(np.array(seconds) / first, (25, 50, 75))
        found[name] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return found


def time_sd15(options: argparse.Namespace) -> None:
    sd, settings = sd15(), settings_of(options)
    side = 8 * (options.size or 32)
    spent: dict[str, list[float]] = {name: [] for name in settings}
    mx.eval(sd._unet.parameters())
    latents_of(sd, "a", num_steps=1, width=side, height=side)
    for turn in range(options.pictures or 3):
        for name, each in settings.items():
            start = time.process_time()
            latents_of(sd, "a", seed=turn, cfg_weight=7.5, width=side, height=side, **each)
            spent[name].append(time.process_time() - start)
        tell(f"turn {turn + 1}: {sum(map(sum, spent.values())):.0f} CPU seconds so far")
    row(f"SD 1.5's shape, {side}x{side}, {options.steps} steps", "CPU time")
    row("---", "---")
    for name, ratio in ratios(spent).items():
        row(name, ratio)


def measure_postcards(options: argparse.Namespace) -> None:
    judge = a_judge(ROOT / "outputs" / "adherence", options.judge_steps)
    sd, settings = StableDiffusion("postcards-tiny", float16=False), settings_of(options)
    cards, _ = prompted(options.pictures or 60, options.seed)
    spent: dict[str, list[float]] = {name: [] for name in settings}
    pictures: dict[str, list[np.ndarray]] = {name: [] for name in settings}
    sd.decode(latents_of(sd, "a house", num_steps=1))
    for i, card in enumerate(cards):
        for name, each in settings.items():
            start = time.process_time()
            latents = latents_of(sd, describe(card), seed=options.seed + i, cfg_weight=options.cfg, **each)
            pictures[name].append(arrays.to_uint8(np.array(sd.decode(latents)[0])))
            spent[name].append(time.process_time() - start)
        if (i + 1) % 10 == 0:
            tell(f"{i + 1} of {len(cards)} prompts")
    whole = np.stack(next(iter(pictures.values()))).astype(np.float64)
    row(
        f"{len(cards)} postcards, {options.steps} steps, CFG {options.cfg:g}",
        "CPU time",
        "distance",
        *ATTRIBUTES,
        "all five",
    )
    row(*["---"] * (4 + len(ATTRIBUTES)))
    times = ratios(spent)
    for name, each in pictures.items():
        found = np.stack(each)
        distance = np.sqrt(np.square(found - whole).mean((1, 2, 3))).mean()
        row(name, times[name], f"{distance:.1f}", *shares(judged(judge, found, cards)[1]))
    if options.sheet:
        lines = [Image.fromarray(picture) for each in pictures.values() for picture in each[:SHEET]]
        arrays.grid(lines, min(SHEET, len(cards)), gap=4).save(options.sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("postcards", "sd15"), default="postcards")
    parser.add_argument("--pictures", type=int, help="prompts, or turns of sd15 (default: 60, or 3)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, help="side of sd15's latents (default: 32)")
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge-steps", type=int, default=4000)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    print(backend.describe(), file=sys.stderr)
    (time_sd15 if options.what == "sd15" else measure_postcards)(options)


if __name__ == "__main__":
    main()

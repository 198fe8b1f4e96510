"""A whole picture of Stable Diffusion 1.5's shapes, compared with diffusers: seconds, and peak memory.

    python benchmarks/picture.py                       512x512, 20 steps with guidance: many minutes on a CPU
    python benchmarks/picture.py --size 256            the same, smaller
    python benchmarks/picture.py --low-memory          ours with --low-memory as a third row
    python benchmarks/picture.py --folder /tmp/model   keep the model there, for the next run

The weights are random, in a folder in diffusers' form, in float16 as most are, and run in float32. Each picture is a
process of its own, the engines in turns. Needs requirements-parity.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import loading
from engine import CFG_WEIGHT, ENGINES, PROMPT, STEPS, peak_mib, versions

FRUGAL = "ours, low memory"


def paint_ours(folder: str, side: int, steps: int, low_memory: bool) -> tuple[float, float]:
    """Seconds from here to the loaded model, and from there to the picture."""
    start = time.perf_counter()
    import numpy as np

    from stable_diffusion import StableDiffusion

    sd = StableDiffusion(folder, float16=False, low_memory=low_memory)
    loaded = time.perf_counter()
    size = {"width": side, "height": side}
    for step in sd.generate_latents(PROMPT, num_steps=steps, cfg_weight=CFG_WEIGHT, seed=1, **size):
        np.asarray(step.latents)
    np.asarray(sd.decode(step.latents))
    return loaded - start, time.perf_counter() - loaded


def paint_diffusers(folder: str, side: int, steps: int) -> tuple[float, float]:
    start = time.perf_counter()
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    pipeline(PROMPT, num_inference_steps=steps, guidance_scale=CFG_WEIGHT, width=side, height=side)
    return loaded - start, time.perf_counter() - loaded


def write(folder: Path) -> None:
    """A folder in float16, by way of a single file."""
    from stable_diffusion.__main__ import main as command

    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        file = loading.write(Path(temporary))
        command(["convert", str(file), str(folder), "--float16", "--quiet"])


def measure(engine: str, folder: str, side: int, steps: int) -> list[float]:
    if engine == "diffusers":
        seconds = paint_diffusers(folder, side, steps)
    else:
        seconds = paint_ours(folder, side, steps, engine == FRUGAL)
    return [*seconds, peak_mib(resource.getrusage(resource.RUSAGE_SELF))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the picture (default: 512)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"(default: {STEPS})")
    parser.add_argument("--repeats", type=int, default=1, help="pictures of each engine (default: 1)")
    parser.add_argument("--folder", type=Path, help="where the model is kept (default: nowhere)")
    parser.add_argument("--low-memory", action="store_true", help="also measure ours with --low-memory")
    parser.add_argument("--only", choices=(*ENGINES, FRUGAL), help="one row alone")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return write(options.write)
    if options.measure:
        return print(json.dumps(measure(options.measure, str(options.folder), options.size, options.steps)))
    rows = (options.only,) if options.only else (*ENGINES, *[FRUGAL] * options.low_memory)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not (folder / "model_index.json").is_file():
            loading.run("--write", str(folder), script=__file__)
        print(versions(), f"load average {os.getloadavg()[0]:.1f}", f"{options.steps} steps\n", sep="; ")
        common = ["--folder", str(folder), "--size", str(options.size), "--steps", str(options.steps)]
        found: dict[str, list[list[float]]] = {row: [] for row in rows}
        for _ in range(options.repeats):
            for row, results in found.items():
                results.append(json.loads(loading.run("--measure", row, *common, script=__file__)))
    print(f"| {options.size}x{options.size} | loaded, s | picture, s: median (range) | peak MiB |\n|---|---|---|---|")
    medians = {}
    for row, results in found.items():
        loads, times, peaks = zip(*results, strict=True)
        medians[row] = statistics.median(times), max(peaks)
        print(
            f"| {row} | {statistics.median(loads):.1f} | {medians[row][0]:.1f} ({min(times):.1f} to {max(times):.1f}) "
            f"| {max(peaks):.0f} |"
        )
    for row in medians:
        if row != "diffusers" and "diffusers" in medians:
            ratios = [f"{a / b:.2f}" for a, b in zip(medians[row], medians["diffusers"], strict=True)]
            print(f"| {row} to diffusers | | {' | '.join(ratios)} |")
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

"""From a single file to the first step, compared with diffusers' from_single_file: seconds and peak memory.

    python benchmarks/loading.py                 a file of 2.1 GB in float16, of Stable Diffusion 1.5's shapes
    python benchmarks/loading.py --float16       run in float16 as well, as one does on a GPU
    python benchmarks/loading.py --folder /tmp   keep the file there, for the next run

The weights are random, and written first, in a temporary folder. Each load is a process of its own, the engines in
turns; the file is in the system's cache for both. The picture is small (64x64 pixels), so that loading is measured and
not painting. CPU seconds are those of the whole process, and say more on a busy machine. Peak memory is its largest
resident set, which includes mapped pages of the file.
Needs requirements-parity.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine import ENGINES, PROMPT, TEXT, VAE, environment, peak_mib, versions

FILE = "sd15-random.safetensors"
SIDE = 64
STEPS = 20


class Enough(Exception):
    """The first step has been made."""


def load_ours(path: Path, float16: bool) -> tuple[float, float]:
    """Seconds from here to the loaded model, and to the first step."""
    start = time.perf_counter()
    from stable_diffusion import StableDiffusion
    from stable_diffusion.backend import mx

    sd = StableDiffusion(path, float16=float16)
    loaded = time.perf_counter() - start
    steps = sd.generate_latents(PROMPT, num_steps=STEPS, width=SIDE, height=SIDE, seed=1)
    mx.eval(next(steps).latents)
    return loaded, time.perf_counter() - start


def load_diffusers(path: Path, float16: bool) -> tuple[float, float]:
    start = time.perf_counter()
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(path.parent),
        local_files_only=True,
        torch_dtype=torch.float16 if float16 else torch.float32,
        safety_checker=None,
        feature_extractor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - start

    def stop(*step):
        raise Enough

    try:
        pipe(PROMPT, num_inference_steps=STEPS, width=SIDE, height=SIDE, callback_on_step_end=stop)
    except Enough:
        return loaded, time.perf_counter() - start
    raise RuntimeError("the pipeline made no step")


def write(folder: Path) -> Path:
    """Write the single file, and next to it the configurations that diffusers would fetch from the hub."""
    from stable_diffusion.backend import mx
    from stable_diffusion.clip import CLIPTextModel
    from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
    from stable_diffusion.model_io import export
    from stable_diffusion.model_io.checkpoint import Checkpoint
    from stable_diffusion.model_io.safetensors_file import write_safetensors
    from stable_diffusion.unet import UNet
    from stable_diffusion.vae import Autoencoder

    mx.random.seed(1)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    checkpoint = Checkpoint(
        "sd1",
        UNet(UNetConfig(cross_attention_dim=768, sample_size=64)),
        Autoencoder(AutoencoderConfig.from_dict(VAE)),
        (CLIPTextModel(CLIPTextConfig(**TEXT)),),
        (),
        SchedulerConfig(**schedule),
        True,
    )
    path = folder / FILE
    for name, content in export.folder_texts(checkpoint, path, own=False).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    ((tensors, metadata),) = export.single_file_weights(checkpoint, mx.float16, "random").values()
    del checkpoint
    temporary = folder / f"{FILE}.part"
    temporary.unlink(missing_ok=True)
    write_safetensors(temporary, tensors, metadata, lambda count: None)
    temporary.rename(path)
    return path


def run(*arguments: str, script: str = __file__) -> str:
    """A script again, this one or another, in a process of its own; returns its last line, if any."""
    process = subprocess.run([sys.executable, script, *arguments], env=environment(), capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{arguments} failed:\n{process.stderr[-2000:]}")
    return (process.stdout.splitlines() or [""])[-1]


def table(path: Path, float16: bool, repeats: int) -> None:
    found: dict[str, list[list[float]]] = {engine: [] for engine in ENGINES}
    with path.open("rb") as file:  # into the system's cache
        while file.read(1 << 24):
            pass
    for _ in range(repeats):
        for engine, results in found.items():
            results.append(json.loads(run("--measure", engine, str(path), *["--float16"] * float16)))
    print("| | loaded, s | first step, s: median (range) | of processors, s | peak MiB |\n|---|---|---|---|---|")
    medians = {}
    for engine, results in found.items():
        loaded, first, processors, peaks = zip(*results, strict=True)
        medians[engine] = statistics.median(first), statistics.median(processors), max(peaks)
        print(
            f"| {engine} | {statistics.median(loaded):.2f} | {medians[engine][0]:.2f} ({min(first):.2f} to "
            f"{max(first):.2f}) | {medians[engine][1]:.2f} | {max(peaks):.0f} |"
        )
    ratios = [f"{ours / theirs:.2f}" for ours, theirs in zip(*(medians[engine] for engine in ENGINES), strict=True)]
    print(f"| ratio | | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the file is kept (default: nowhere)")
    parser.add_argument("--float16", action="store_true", help="run in float16 (default: float32, as on a CPU)")
    parser.add_argument("--repeats", type=int, default=3, help="loads of each engine (default: 3)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write)
        return print("written")
    if options.measure:
        engine, path = options.measure
        seconds = (load_ours if engine == "ours" else load_diffusers)(Path(path), options.float16)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return print(json.dumps([*seconds, usage.ru_utime + usage.ru_stime, peak_mib(usage)]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / FILE).is_file():
            run("--write", str(folder))
        size = (folder / FILE).stat().st_size
        print(versions(), f"load average {os.getloadavg()[0]:.1f}", f"file of {size / 1e9:.2f} GB\n", sep="; ")
        table(folder / FILE, options.float16, options.repeats)
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

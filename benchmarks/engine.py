"""This engine compared with diffusers: seconds and peak memory, measured in turns in one run.

    python benchmarks/engine.py                      a postcards-tiny picture, cold and warm
    python benchmarks/engine.py unet --size 32       one U-Net call of Stable Diffusion 1.5's shape, random weights
    python benchmarks/engine.py decode encode text   the VAE and the text encoder of that shape
    python benchmarks/engine.py all --full           all of these, at 64x64 latents (512x512 pixels): minutes
    python benchmarks/engine.py sdxl --size 128      a U-Net call of SDXL's shape: 10 GB of weights, twice

Each engine runs in a process of its own and waits while the other is timed (--only: if memory does not hold both).
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stable_diffusion.selftest import published  # noqa: E402

CHECKPOINT = ROOT / "stable_diffusion" / "checkpoints" / "postcards-tiny"
PROMPT = "a red house on green hills at sunset, with clouds"
STEPS, CFG_WEIGHT = 20, 7.5
GROUPS = {"postcards": ("cold", "warm"), "all": ("cold", "warm", "unet", "decode", "encode", "text")}
PARTS = (*GROUPS["all"], "sdxl")
ENGINES = ("ours", "diffusers")


@dataclass(frozen=True)
class Work:
    """What one row of the table measures; `size` is the side of the latents, `batch` that of the U-Net call."""

    part: str
    size: int
    batch: int

    def __str__(self) -> str:
        pixels = 8 * self.size
        return {
            "cold": f"postcards-tiny, new process, {STEPS} steps",
            "warm": f"postcards-tiny, loaded, {STEPS} steps",
            "unet": f"U-Net call, batch {self.batch}, {self.size}x{self.size}",
            "decode": f"VAE decode to {pixels}x{pixels}",
            "encode": f"VAE encode of {pixels}x{pixels}",
            "text": "text encoder, (2, 77)",
            "sdxl": f"SDXL's U-Net, a call, batch {self.batch}, {self.size}x{self.size}",
        }[self.part]


# Each maker builds what it needs and returns the call to be timed.


def make_ours(work: Work) -> Callable[[], object]:
    from stable_diffusion.backend import mx

    if work.part == "warm":
        from stable_diffusion import StableDiffusion

        sd = StableDiffusion("postcards-tiny")

        def picture():
            for step in sd.generate_latents(PROMPT, num_steps=STEPS, cfg_weight=CFG_WEIGHT, seed=1):
                mx.eval(step.latents)
            mx.eval(sd.decode(step.latents))

        return picture

    from stable_diffusion.clip import CLIPTextModel
    from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, UNetConfig
    from stable_diffusion.unet import UNet
    from stable_diffusion.vae import Autoencoder

    size = work.size
    if work.part == "text":
        text = CLIPTextModel(CLIPTextConfig(**TEXT))
        ids = mx.random.randint(0, 49407, (2, 77))
        mx.eval(text.parameters(), ids)
        return lambda: mx.eval(text(ids).last_hidden_state)
    if work.part in UNETS:
        config = UNetConfig.from_dict(UNETS[work.part])
        unet, x = UNet(config), mx.random.normal((work.batch, size, size, 4))
        words = mx.random.normal((work.batch, 77, config.cross_attention_dim))
        context = unet.project_text(words)  # once for each prompt, in the pipeline too
        pooled = (mx.zeros((work.batch, 1280)), mx.zeros((work.batch, 6))) if work.part == "sdxl" else ()
        mx.eval(unet.parameters(), x, context)
        return lambda: mx.eval(unet(x, mx.array([500.0]), context, *pooled))
    vae = Autoencoder(AutoencoderConfig.from_dict(VAE))
    latents, pixels = mx.random.normal((1, size, size, 4)), mx.random.uniform(-1, 1, (1, 8 * size, 8 * size, 3))
    mx.eval(vae.parameters(), latents, pixels)
    if work.part == "decode":
        return lambda: mx.eval(vae.decode(latents))
    return lambda: mx.eval(vae.moments(pixels))


def make_diffusers(work: Work) -> Callable[[], object]:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    size = work.size
    if work.part == "warm":
        pipeline = load_pipeline(StableDiffusionPipeline)
        return lambda: pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=CFG_WEIGHT)
    if work.part == "text":
        text = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
        ids = torch.randint(0, 49407, (2, 77))
        return lambda: text(ids).last_hidden_state
    if work.part in UNETS:
        unet = UNet2DConditionModel(**UNETS[work.part]).eval()
        x, words = torch.randn(work.batch, 4, size, size), torch.randn(work.batch, 77, unet.config.cross_attention_dim)
        pooled = {"text_embeds": torch.zeros(work.batch, 1280), "time_ids": torch.zeros(work.batch, 6)}
        return lambda: unet(x, 500, encoder_hidden_states=words, added_cond_kwargs=pooled).sample
    vae = AutoencoderKL(**VAE).eval()
    latents, pixels = torch.randn(1, 4, size, size), torch.rand(1, 3, 8 * size, 8 * size) * 2 - 1
    if work.part == "decode":
        return lambda: vae.decode(latents).sample
    return lambda: vae.encode(pixels).latent_dist.parameters


def load_pipeline(kind):
    import torch

    pipeline = kind.from_pretrained(str(CHECKPOINT)).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_picture(path: str) -> None:
    """What a short script with diffusers does, the counterpart of `python -m stable_diffusion txt2img`."""
    from diffusers import StableDiffusionPipeline

    pipeline = load_pipeline(StableDiffusionPipeline)
    pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=CFG_WEIGHT).images[0].save(path)


UNETS = {"unet": published.UNETS["SD 1.5"], "sdxl": published.UNETS["SDXL"]}
TEXT, VAE = published.TEXTS["SD 1.5"], published.VAE


def serve(engine: str, work: Work) -> None:
    """A worker's life: build, call once to warm up, then one timed call for each line that comes in."""
    call = (make_ours if engine == "ours" else make_diffusers)(work)
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, peak_mib(resource.getrusage(resource.RUSAGE_SELF))]), flush=True)


def peak_mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Worker:
    """A process that holds one engine, ready for the call of one part."""

    def __init__(self, engine: str, work: Work) -> None:
        command = [sys.executable, __file__, "--serve", json.dumps([engine, asdict(work)])]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the worker lives)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment()
        )
        self._answer()

    def __call__(self) -> tuple[float, float]:
        print("go", file=self.process.stdin, flush=True)
        seconds, peak = json.loads(self._answer())
        return seconds, peak

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise SystemExit(
                f"a worker ended with exit code {code}:\n{self.errors.read().decode(errors='replace')[-2000:]}"
            )
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


class ColdStart:
    """A whole process for each call: from the command to the picture on the disk."""

    def __init__(self, engine: str, folder: str) -> None:
        path = os.path.join(folder, f"{engine}.png")
        if engine == "ours":
            self.command = [sys.executable, "-m", "stable_diffusion", "txt2img", PROMPT, "--steps", str(STEPS),
                            "--cfg", str(CFG_WEIGHT), "--seed", "1", "--output", path]  # fmt: skip
        else:
            self.command = [sys.executable, __file__, "--picture", path]
        self.path = path
        self()  # the files are in the system's cache from here on

    def __call__(self) -> tuple[float, float]:
        Path(self.path).unlink(missing_ok=True)
        start = time.perf_counter()
        process = subprocess.Popen(
            self.command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not os.path.exists(self.path):
            raise SystemExit(f"{self.command} failed:\n{errors.decode(errors='replace')[-2000:]}")
        return seconds, peak_mib(usage)

    def close(self) -> None:
        pass


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def measure(work: Work, repeats: int, engines: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """(seconds, peak MiB) of each engine's calls, taken in turns so that a busy machine disturbs both alike."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {e: ColdStart(e, folder) if work.part == "cold" else Worker(e, work) for e in engines}
        results: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
        for _ in range(repeats):
            for engine in engines:
                results[engine].append(calls[engine]())
        for call in calls.values():
            call.close()
    return results


def row(work: Work, results: dict[str, list[tuple[float, float]]]) -> str:
    cells = [str(work)]
    medians, peaks = [], []
    for samples in results.values():
        times = [seconds for seconds, _ in samples]
        medians.append(statistics.median(times))
        peaks.append(max(peak for _, peak in samples))
        cells.append(f"{medians[-1]:.3f} ({min(times):.3f} to {max(times):.3f})")
    ratio = [f"{a / b:.2f}" for a, b in (medians, peaks)] if len(medians) == 2 else ["-", "-"]
    return "| " + " | ".join([*cells, ratio[0], *(f"{peak:.0f}" for peak in peaks), ratio[1]]) + " |"


def header(engines: tuple[str, ...]) -> Iterator[str]:
    titles = ["", *(f"{e}, s: median (range)" for e in engines), "ratio", *(f"{e}, peak MiB" for e in engines), "ratio"]
    yield "| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"


def versions() -> str:
    code = (
        "from stable_diffusion import backend; import sys, torch, diffusers, transformers;"
        "print(backend.describe(), f'Python {sys.version.split()[0]}', f'torch {torch.__version__}',"
        "f'diffusers {diffusers.__version__}', f'transformers {transformers.__version__}', sep='; ')"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["postcards"], help=f"of {', '.join((*GROUPS, *PARTS))}")
    parser.add_argument("--size", type=int, help="side of the latents (default: 32, with --full 64)")
    parser.add_argument("--batch", type=int, default=2, help="of the U-Net call (default: 2, as guidance needs it)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each engine (default: 5)")
    parser.add_argument("--full", action="store_true", help="at 64x64 latents, the size that pictures of 512x512 have")
    parser.add_argument("--only", choices=ENGINES, help="one engine alone")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--picture", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        engine, work = json.loads(options.serve)
        return serve(engine, Work(**work))
    if options.picture:
        return diffusers_picture(options.picture)
    unknown = [part for part in options.parts if part not in (*GROUPS, *PARTS)]
    if unknown or options.repeats < 1:
        parser.error(f"unknown part {unknown[0]!r}" if unknown else "--repeats should be 1 or more")
    engines = (options.only,) if options.only else ENGINES
    size = options.size or (64 if options.full else 32)
    print(versions(), f"load average at the start {os.getloadavg()[0]:.1f}\n", sep="; ")
    print(*header(engines), sep="\n", flush=True)
    for part in dict.fromkeys(p for name in options.parts for p in GROUPS.get(name, (name,))):
        work = Work(part, size, options.batch)
        print(row(work, measure(work, options.repeats, engines)), flush=True)
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

"""One step of each training compared with the same networks in PyTorch (diffusers, transformers), in one process.

    python benchmarks/training.py                    both trainings, with their own batches
    python benchmarks/training.py diffusion --batch 32 --repeats 5

A step is the gradient, its norm, AdamW and the average of the weights. Both take turns. Wall time counts on a quiet
machine, CPU time on a busy one. Needs requirements-parity.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np

from stable_diffusion import backend, ops
from stable_diffusion.backend import mx
from stable_diffusion.training import networks
from stable_diffusion.training.loop import averaged_gradients, resumed, set_weights
from stable_diffusion.training.runs import RUNS

VOCABULARY = 700
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="vae, diffusion (default: both)")
    parser.add_argument("--batch", type=int, help="examples of a step (default: the recipe's)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{backend.describe()}; load average {os.getloadavg()[0]:.1f}")
    print("| | ours, s | torch, s | ratio | ours, CPU s | torch, CPU s | ratio | ours, pictures/s |\n|" + "---|" * 8)
    for part in args.parts or ("vae", "diffusion"):
        batch = args.batch or RUNS[part].recipe.batch
        with ops.use("learning"):
            makers = (ours_vae, torch_vae) if part == "vae" else (ours_diffusion, torch_diffusion)
            times = measured([make(batch) for make in makers], args.repeats)
        (wall, cpu), (torch_wall, torch_cpu) = ([statistics.median(each) for each in side] for side in times)
        figures = [wall, torch_wall, wall / torch_wall, cpu, torch_cpu, cpu / torch_cpu, batch / wall]
        print(f"| {part}, batch {batch} | " + " | ".join(f"{value:.2f}" for value in figures) + " |", flush=True)


def measured(steps: list[Step], repeats: int) -> list[tuple[list[float], list[float]]]:
    """Wall and CPU seconds of each, without the first turn."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in steps]
    for turn in range(repeats + 1):
        for step, (wall, cpu) in zip(steps, times, strict=True):
            before = time.perf_counter(), time.process_time()
            step()
            if turn:
                wall.append(time.perf_counter() - before[0])
                cpu.append(time.process_time() - before[1])
    return times


# --- Ours: the loop's own functions, with prepared examples


def ours_vae(batch: int) -> Step:
    from stable_diffusion.training.vae import CROP, AutoencoderTask

    task = AutoencoderTask(None, networks.new_autoencoder(networks.VAE, 0), Path(), batch)
    return ours(task, (pictures(batch, CROP), np.zeros((batch, CROP // 8, CROP // 8, 4), np.float32)))


def ours_diffusion(batch: int) -> Step:
    from stable_diffusion.training.diffusion import DiffusionTask

    class Task(DiffusionTask):
        def __init__(self) -> None:
            text = dataclasses.replace(networks.TEXT_ENCODER, vocab_size=VOCABULARY, eos_token_id=VOCABULARY - 1)
            self.model = networks.TextToLatents(text, networks.UNET, 0)
            self.scheduler = networks.SCHEDULER
            self.alpha_bars = np.linspace(0.999, 0.001, 1000, dtype=np.float32)
            self.weights = np.ones(1000, np.float32)

    return ours(Task(), (latents(batch), latents(batch), np.arange(batch) * 1000 // batch, ids(batch)))


def ours(task, inputs: tuple[np.ndarray, ...]) -> Step:
    state, group, recipe = resumed(task.model, Path("none")), mx.distributed.init(), RUNS[task.name].recipe

    def step() -> None:
        loss, _, gradients = averaged_gradients(task, [inputs], group)
        norm = state.update(gradients, recipe, 1e-4)
        mx.eval(state.arrays(), loss, norm)
        set_weights(task.model, state.layout, state.parameters)

    return step


# --- PyTorch's


def torch_vae(batch: int) -> Step:
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**configured(networks.VAE))
    x = torch.from_numpy(pictures(batch, 64)).permute(0, 3, 1, 2).contiguous()

    def loss() -> torch.Tensor:
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.sample()).sample - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.square().mean() + 0.1 * edges + 2e-4 * posterior.kl().mean()

    return torch_step([model], loss)


def torch_diffusion(batch: int) -> Step:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(**configured(networks.UNET))
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            eos_token_id=VOCABULARY - 1,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=128,
        )
    )
    x, target = (torch.from_numpy(latents(batch)).permute(0, 3, 1, 2).contiguous() for _ in range(2))
    t, words = torch.arange(batch) * 1000 // batch, torch.from_numpy(ids(batch)).long()

    def loss() -> torch.Tensor:
        answer = unet(x, t, encoder_hidden_states=encoder(words).last_hidden_state).sample
        return (answer - target).square().mean()

    return torch_step([unet, encoder], loss)


def torch_step(models: list, loss: Callable) -> Step:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    parameters = [p for model in models for p in model.train().parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    averages = [p.detach().clone() for p in parameters]

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 0.001)

    return step


def configured(config) -> dict:
    """What diffusers' constructors take: the keys that they know."""
    left_out = {"shift_factor", "latents_mean", "latents_std"}
    return {k: v for k, v in dataclasses.asdict(config).items() if v is not None and k not in left_out}


# --- Examples


def pictures(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def latents(batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 16, 16, 4), np.float32)


def ids(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, 77)).astype(np.int32)


if __name__ == "__main__":
    main()

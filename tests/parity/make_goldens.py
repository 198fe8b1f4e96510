"""Writes tests/goldens/: what diffusers and transformers make of the networks and prompts that tests/ compares with.

Run as `python -m tests.parity.make_goldens` with requirements-parity.txt installed. Weights and inputs are drawn by
name (tests/drawn.py), so that outputs, and the names and shapes of the weights, are all that is stored.
"""

from __future__ import annotations

import importlib.metadata
import json

import diffusers
import numpy as np
import torch
from PIL import Image

from .. import shapes
from ..conftest import EMBEDDED
from ..test_goldens import CFG_WEIGHT, COLUMNS, GOLDENS, NUM_STEPS, POSTCARDS, noise_for
from . import pipelines


def networks() -> dict[str, np.ndarray]:
    """Outputs as "kind/name/output", and as "kind/name" the weights' names and shapes."""
    results: dict[str, np.ndarray] = {}

    def store(kind: str, name: str, model: torch.nn.Module, outputs: dict[str, np.ndarray]) -> None:
        results[f"{kind}/{name}"] = np.array(json.dumps({key: list(p.shape) for key, p in model.named_parameters()}))
        results.update({f"{kind}/{name}/{key}": value for key, value in outputs.items()})

    for name in shapes.UNETS:
        model = pipelines.unet(name)
        store("unet", name, model, {"out": pipelines.run_unet(model, shapes.unet_inputs(name, 9, 7))})
    for name in shapes.VAES:
        model = pipelines.vae(name)
        store("vae", name, model, pipelines.run_vae(model, shapes.vae_inputs()))
    for name, config in shapes.TEXTS.items():
        for with_projection in (False, True):
            model = pipelines.text_encoder(config, with_projection)
            outputs = pipelines.run_text_encoder(model, shapes.text_ids())
            # One channel in four is enough to tell a mistake.
            outputs = {key: value[..., ::4] for key, value in outputs.items()}
            store("text", f"{name}{'_projected' * with_projection}", model, outputs)
    return results


def postcards() -> Image.Image:
    """The embedded model's pictures of POSTCARDS, in a grid."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for prompt, negative, seed in POSTCARDS:
        latents = torch.from_numpy(noise_for(seed).transpose(0, 3, 1, 2).copy())
        result = pipe(
            prompt,
            negative_prompt=negative or None,
            num_inference_steps=NUM_STEPS,
            guidance_scale=CFG_WEIGHT,
            latents=latents,
            output_type="np",
        )
        pictures.append(np.rint(result.images[0] * 255).astype(np.uint8))
    rows = [np.concatenate(pictures[i : i + COLUMNS], axis=1) for i in range(0, len(pictures), COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
    np.savez_compressed(GOLDENS / "networks.npz", versions=np.array(json.dumps(versions)), **networks())
    postcards().save(GOLDENS / "postcards.png", optimize=True)
    (GOLDENS / "README.md").write_text(
        "Outputs of the reference, written by `python -m tests.parity.make_goldens` with "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".\n"
    )

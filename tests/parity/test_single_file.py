"""Single files in the original layout against diffusers' from_single_file: one picture, in every family and form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402

from . import original_layout  # noqa: E402
from .test_pipeline import HEIGHT, NEGATIVE, PROMPT, WIDTH, assert_same_pictures, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

FORMS = ("safetensors", "ckpt", "legacy")
PIPELINES = {"sdxl": diffusers.StableDiffusionXLPipeline, "lcm": diffusers.LatentConsistencyModelPipeline}


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """`make(name)` gives a pipeline's tensors in the original layout, and a folder of its settings for diffusers."""
    made: dict[str, tuple[dict, Path]] = {}

    def get(name: str) -> tuple[dict, Path]:
        if name not in made:
            parts = original_layout.build(name)
            weights = name == "lcm"  # whose single files the reference does not load
            folder = original_layout.save_folder(tmp_path_factory.mktemp(name), name, parts, weights)
            made[name] = original_layout.state_dict(name, parts), folder
        return made[name]

    return get


def write(folder: Path, tensors: dict, form: str, metadata: dict | None = None, **beside) -> Path:
    """Write a single file in one of the forms; `beside` goes into a pickle beside its state dict."""
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata)
        return folder / "model.safetensors"
    path = folder / "model.ckpt"
    torch.save({"state_dict": tensors, **beside}, path, _use_new_zipfile_serialization=form == "ckpt")
    return path


def reference(path: Path, folder: Path, name: str):
    kind = PIPELINES.get(name, diffusers.StableDiffusionPipeline)
    options = {} if name == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    if name == "lcm":
        pipe = kind.from_pretrained(folder, local_files_only=True, **options)
    else:
        pipe = kind.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
    scheduler = diffusers.LCMScheduler if name == "lcm" else diffusers.EulerDiscreteScheduler
    pipe.scheduler = scheduler.from_config(scheduler.load_config(folder / "scheduler"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(path: Path, folder: Path, name: str, **scheduler_options) -> np.ndarray:
    pipe = reference(path, folder, name)
    if scheduler_options:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler_options)
    negative = {} if name == "lcm" else {"negative_prompt": NEGATIVE}
    return pipe(
        PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=5, guidance_scale=7.5, output_type="np", **negative
    ).images


def ours(path: Path, name: str, **options) -> np.ndarray:
    sd = StableDiffusion(path, float16=False, **options)
    sampler = "lcm" if name == "lcm" else "euler"
    for step in sd.generate_latents(  # noqa: B007
        PROMPT, negative_text=NEGATIVE, seed=5, num_steps=5, width=WIDTH, height=HEIGHT, sampler=sampler
    ):
        pass
    return np.array(sd.decode(step.latents))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "lcm"])
def test_pictures(name, form, make, tmp_path, same_noise):  # noqa: F811
    tensors, folder = make(name)
    tensors = tensors | original_layout.stray(original_layout.FAMILIES.get(name, name))
    path = write(tmp_path, tensors, form, epoch=3)
    picture = ours(path, name)
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, name))

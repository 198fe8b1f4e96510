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
from stable_diffusion.backend import mx  # noqa: E402
from stable_diffusion.model_io.load_file import load_single_file  # noqa: E402

from .. import drawn, networks  # noqa: E402
from . import original_layout, pipelines  # noqa: E402
from .test_pipeline import HEIGHT, NEGATIVE, PROMPT, WIDTH, assert_same_pictures, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

FORMS = ("safetensors", "ckpt", "legacy")
PIPELINES = {
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "distilled": diffusers.StableDiffusionXLPipeline,
    "lcm": diffusers.LatentConsistencyModelPipeline,
}


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
    options: dict = {} if name in ("sdxl", "distilled") else {"safety_checker": None, "feature_extractor": None}
    if name == "lcm":
        pipe = kind.from_pretrained(folder, local_files_only=True, **options)
    else:
        pipe = kind.from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32, **options
        )
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
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "lcm", "distilled"])
def test_pictures(name, form, make, tmp_path, same_noise):  # noqa: F811
    tensors, folder = make(name)
    tensors = tensors | original_layout.stray(original_layout.FAMILIES.get(name, name))
    path = write(tmp_path, tensors, form, epoch=3)
    picture = ours(path, name)
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_precisions(form, dtype, make, tmp_path, same_noise):  # noqa: F811
    tensors, folder = make("sd1")
    path = write(tmp_path, {key: value.to(dtype) for key, value in tensors.items()}, form)
    picture = ours(path, "sd1")
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, "sd1"))


def test_averaged_weights_beside_the_others(make, tmp_path, same_noise):  # noqa: F811
    """The reference takes the others; a picture of the averaged ones is another one."""
    tensors, folder = make("sd1")
    unet = {key: value for key, value in tensors.items() if key.startswith("model.")}
    averaged = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value / 2 for key, value in unet.items()}
    path = write(tmp_path, tensors | averaged, "ckpt")
    picture = ours(path, "sd1")
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, "sd1"))
    halved = write(tmp_path, tensors | {key: value / 2 for key, value in unet.items()}, "safetensors")
    of_the_averaged = ours(halved, "sd1")
    assert np.abs(picture - of_the_averaged).max() > 0.05


def test_marks_of_v_prediction(make, tmp_path, same_noise):  # noqa: F811
    tensors, folder = make("sdxl")
    path = write(tmp_path, tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, "safetensors")
    picture = ours(path, "sdxl")
    same_noise(5, 1)
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_same_pictures(picture, theirs(path, folder, "sdxl", **options))


def test_the_caller_knows_better(make, tmp_path, same_noise):  # noqa: F811
    tensors, folder = make("sd1")
    path = write(tmp_path, tensors, "safetensors")
    picture = ours(path, "sd1", prediction_type="v_prediction")
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, "sd1", prediction_type="v_prediction"))


def test_sd2_base(make, tmp_path, same_noise):  # noqa: F811
    """Stable Diffusion 2.0's base model predicts eps; its file says how long it was trained."""
    tensors, folder = make("sd2")
    path = write(tmp_path, tensors, "ckpt", global_step=875000)
    picture = ours(path, "sd2")
    same_noise(5, 1)
    assert_same_pictures(picture, theirs(path, folder, "sd2", prediction_type="epsilon"))


def test_inpainting(make, tmp_path):
    """The U-Net of nine channels, as from_single_file loads it."""
    tensors, folder = make("inpainting")
    path = write(tmp_path, tensors, "safetensors")
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(path), config=str(folder), subfolder="unet", local_files_only=True
    ).eval()
    inputs = {"x": drawn.normal("x", 2, 9, 13, 9), "t": np.array([601.0, 3.0], np.float32),
              "text": drawn.normal("text", 2, 77, 64)}  # fmt: skip
    loaded = load_single_file(path, mx.float32).unet
    assert networks.relative_error(networks.run_unet(loaded, inputs), pipelines.run_unet(unet, inputs)) < 1e-5

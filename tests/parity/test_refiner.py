"""SDXL's refiner alone and after a base model, against diffusers; and other models as refiners, with its schedulers."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.diffusion.noise import NoiseStream  # noqa: E402
from stable_diffusion.model_io.convert import convert  # noqa: E402

from . import original_layout  # noqa: E402
from .test_pipeline import (  # noqa: E402
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SCHEDULERS,
    WIDTH,
    assert_same_pictures,
    folders,  # noqa: F401
    same_noise,  # noqa: F401
    scheduler_file,
    with_scheduler,
)

pytestmark = pytest.mark.parity

PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """A random refiner's folder, as diffusers has it, and the same as a single file."""
    networks = original_layout.build("refiner")
    folder = original_layout.save_folder(tmp_path_factory.mktemp("refiner"), "refiner", networks)
    single = tmp_path_factory.mktemp("single") / "refiner.safetensors"
    tensors = {
        key: value.detach().contiguous() for key, value in original_layout.state_dict("refiner", networks).items()
    }
    save_file(tensors, single)
    return folder, single


def pipeline(folder):
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    assert pipe.config.requires_aesthetics_score
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(source, **options) -> np.ndarray:
    sd = StableDiffusion(source, float16=False)
    assert sd.family == "sdxl_refiner"
    options = {"input_image": PICTURE, "seed": 7, "num_steps": 12, "width": WIDTH, "height": HEIGHT, **options}
    *_, last = sd.generate_latents(PROMPT, **options)
    return np.array(sd.decode(last.latents))


@pytest.mark.parametrize("form", ["folder", "single file"])
@pytest.mark.parametrize("negative, cfg", [(NEGATIVE, 7.0), (None, 7.0), (PROMPT, 7.0), (NEGATIVE, 1.0)])
def test_pictures(form, negative, cfg, refiner, same_noise):  # noqa: F811
    """The negative has a score of its own, even where it is the prompt."""
    folder, single = refiner
    picture = ours(
        single if form == "single file" else folder, negative_text=negative, cfg_weight=cfg, denoising_strength=0.5
    )
    same_noise(7, 1)
    expected = pipeline(folder)(
        PROMPT, image=torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 255, strength=0.5, num_inference_steps=12,
        guidance_scale=cfg, negative_prompt=negative, output_type="np",
    ).images  # fmt: skip
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("destination", ["folder", "again.safetensors", "own"])
def test_conversions(destination, refiner, tmp_path):
    """From the single file; a folder names the pipeline that diffusers needs."""
    _, single = refiner
    converted = convert(single, tmp_path / destination, mlx=destination == "own")
    assert np.array_equal(ours(converted), ours(single))
    if destination == "folder":
        assert json.loads((converted / "model_index.json").read_text())["requires_aesthetics_score"]
        pipeline(converted)


# --- The ensemble of experts


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    networks = original_layout.build("sdxl")
    return original_layout.save_folder(tmp_path_factory.mktemp("base"), "sdxl", networks)


def steps_of(pipe, recorded: list, **arguments) -> torch.Tensor:
    """Run a pipeline to its latents, and record those of each step in the form of its scheduler."""

    def record(pipe, i, t, found):
        recorded.append(found["latents"].numpy().transpose(0, 2, 3, 1))
        return {}

    return pipe(output_type="latent", callback_on_step_end=record, **arguments).images


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "ddpm"])
@pytest.mark.parametrize("switch", [0.8, 0.35])
def test_base_and_refiner(sampler, switch, base, refiner, same_noise):  # noqa: F811
    """Step by step within 1e-4: denoising_end of the one, denoising_start of the other."""
    sd, second = (StableDiffusion(each, float16=False) for each in (base, refiner[0]))
    found = [
        (np.array(step.latents), step.sigma)
        for step in sd.generate_latents(
            PROMPT, NEGATIVE, seed=5, num_steps=10, width=WIDTH, height=HEIGHT, sampler=sampler, cfg_weight=5.0,
            refiner=second, refiner_switch=switch,
        )
    ]  # fmt: skip
    same_noise(5, 1)
    first = diffusers.StableDiffusionXLPipeline.from_pretrained(base, local_files_only=True)
    expected: list[np.ndarray] = []
    shared = {"num_inference_steps": 10, "guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    pipes = [with_scheduler(pipe, base, sampler) for pipe in (first, pipeline(refiner[0]))]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    latents = steps_of(pipes[0], expected, prompt=PROMPT, height=HEIGHT, width=WIDTH, denoising_end=switch, **shared)
    assert 0 < len(expected) < 10
    steps_of(pipes[1], expected, prompt=PROMPT, image=latents, denoising_start=switch, **shared)
    assert len(expected) == len(found) == 10
    for (ours, sigma), theirs in zip(found, expected, strict=True):
        scaled = ours * (np.sqrt(sigma**2 + 1) if sampler.startswith("euler") else 1.0)
        assert np.abs(scaled - theirs).max() <= 1e-4 * np.abs(theirs).max()


@torch.no_grad()
def one_scheduler(folders_of_both, sampler: str, switch: float, noise: np.ndarray, num_steps: int) -> np.ndarray:
    """The latents of a loop of one scheduler, whose model changes at a time, as A1111 has it."""
    pipes = [diffusers.DiffusionPipeline.from_pretrained(each, local_files_only=True) for each in folders_of_both]
    scheduler = with_scheduler(pipes[0], folders_of_both[0], sampler).scheduler
    texts = [torch.cat(pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)[::-1]) for pipe in pipes]
    scheduler.set_timesteps(num_steps)
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        late = t < round((1 - switch) * 1000)
        scaled = scheduler.scale_model_input(x, t)
        negative, text = pipes[late].unet(torch.cat([scaled] * 2), t, texts[late]).sample.chunk(2)
        output = negative + 7.5 * (text - negative)
        kinds = [pipe.scheduler.config.prediction_type for pipe in pipes]
        if late and kinds[0] != kinds[1]:
            alpha, sigma = scheduler.alphas_cumprod[int(t)].sqrt(), (1 - scheduler.alphas_cumprod[int(t)]).sqrt()
            output = alpha * output + sigma * scaled if kinds[0] == "epsilon" else (output - sigma * scaled) / alpha
        x = scheduler.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


CASES = [
    *((sampler, "epsilon", "epsilon") for sampler in SCHEDULERS if sampler not in ("lcm", "ddpm", "euler_a")),
    *((sampler, *kinds) for sampler in ("ddim", "pndm", "dpmpp_2m", "unipc")
      for kinds in (("epsilon", "v_prediction"), ("v_prediction", "epsilon"))),
]  # fmt: skip


@pytest.mark.parametrize("sampler, first, second", CASES)
def test_any_model_of_the_same_latents(sampler, first, second, folders):  # noqa: F811
    """One scheduler, whose history goes on; a model may predict something else than the first."""
    both = folders["sd1"], folders["sd2"]
    noise = np.array(NoiseStream([5], (HEIGHT // 8, WIDTH // 8, 4))())
    with scheduler_file(both[0], prediction_type=first), scheduler_file(both[1], prediction_type=second):
        expected = one_scheduler(both, sampler, 0.55, noise, 12)
        one, two = (StableDiffusion(each, float16=False) for each in both)
    *_, last = one.generate_latents(
        PROMPT, NEGATIVE, latents=noise, num_steps=12, width=WIDTH, height=HEIGHT, sampler=sampler, refiner=two,
        refiner_switch=0.55,
    )  # fmt: skip
    assert np.abs(np.array(last.latents) - expected).max() <= 1e-4 * np.abs(expected).max()

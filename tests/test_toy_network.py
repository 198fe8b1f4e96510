"""A model of another kind than Stable Diffusion, made for these tests, drives what is there for all.

It is a flow-matching network for latents of 16 channels, in patches of 2 x 2, told its texts by an encoder that is not
CLIP, with an autoencoder of 4 pixels to a latent. Nothing in the package knows of it.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx, nn
from stable_diffusion.config import SchedulerConfig
from stable_diffusion.diffusion.denoiser import Denoiser
from stable_diffusion.diffusion.network import Conditioning, Extras
from stable_diffusion.diffusion.noise import NoiseStream
from stable_diffusion.diffusion.schedule import NoiseLevel, NoiseSchedule
from stable_diffusion.errors import ConfigError, InputError, UnsupportedCheckpointError
from stable_diffusion.model_io.checkpoint import Checkpoint
from stable_diffusion.record import picture_files
from stable_diffusion.sampler import sampler_names
from stable_diffusion.service import worker as service
from stable_diffusion.service.jobs import Request, State

from .pretend import over

CHANNELS, PATCH, PIXELS, WIDTH = 16, 2, 4, 16
SIZE = 32  # pixels
FLOW = SchedulerConfig.from_dict({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
RED, BLUE = "red", "blue"


def vector(text: str) -> np.ndarray:
    """A text's bytes as numbers."""
    return np.random.default_rng(zlib.crc32(text.encode())).uniform(-1, 1, WIDTH).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ToyReader:
    """Hashes texts to vectors; a weight multiplies its piece's."""

    clip_skip: int | None = None
    encoders: tuple = ()
    tokenizers: tuple = ()

    def __post_init__(self):
        if self.clip_skip is not None:
            raise InputError("clip_skip means nothing to a model without CLIP.")

    def replaced(self, **changes):
        return dataclasses.replace(self, **changes)

    def n_chunks(self, texts):
        return 1

    def read(self, texts):
        return [Conditioning(mx.array(self.of(text))[None, None]) for text in texts]

    @staticmethod
    def of(text):
        pieces = text.pieces if text is not None else ()
        return np.sum([piece.weight * vector(piece.text) for piece in pieces] + [np.zeros(WIDTH)], 0, np.float32)


class ToyNetwork(nn.Module):
    """The best possible network for data of normal distribution around the text's vector, one to a channel.

    It works on patches, so that a size that is not a multiple of them cannot pass.
    """

    in_channels, patch, sample_size, embeds_guidance, values_per_latent = CHANNELS, PATCH, (8, 8), False, 64
    branches = 0

    def __init__(self, std: float = 0.0):
        super().__init__()
        self.std = std
        self.scale = mx.ones((1,))
        self.times: list[float] = []

    def largest_product(self, rows, latents):
        return rows * latents * WIDTH

    def prepare(self, texts, width, height, dtype, cfg_weight):
        return {"mean": mx.concatenate([each.text for each in texts]).astype(dtype), "size": (height, width)}

    def predict(self, x, t, context, extras=None):
        if extras is not None:
            extras.refuse_all_but("The toy")
        assert x.shape[1:3] == tuple(side // PIXELS for side in context["size"])
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, CHANNELS)
        self.times.append(t.item())
        s = t.item() / 1000
        mean = context["mean"].reshape(batch, 1, 1, 1, 1, WIDTH) * self.scale
        shrink = (1 - s) * self.std**2 / (((1 - s) * self.std) ** 2 + s**2)
        x_0 = mean + shrink * (x - (1 - s) * mean)
        return ((x - x_0) / s).reshape(batch, height, width, CHANNELS)


@dataclasses.dataclass(frozen=True)
class ToySpace:
    latent_channels: int = CHANNELS
    downscale: int = PIXELS
    block_out_channels: tuple[int, ...] = (8, 8, 8)


class ToyAutoencoder(nn.Module):
    """The first three channels are colours; each latent is 4 x 4 pixels of one colour."""

    config = ToySpace()

    def encode(self, picture, noise):
        batch, height, width, _ = picture.shape
        z = picture.reshape(batch, height // PIXELS, PIXELS, width // PIXELS, PIXELS, 3).mean((2, 4))
        return mx.concatenate([z, mx.zeros((*z.shape[:3], CHANNELS - 3))], axis=-1) + 0 * noise

    def decode(self, latents):
        return mx.repeat(mx.repeat(latents[..., :3], PIXELS, axis=1), PIXELS, axis=2)


def toy(std: float = 0.0, **changes) -> StableDiffusion:
    checkpoint = Checkpoint(
        family="toy",
        unet=ToyNetwork(std),
        vae=ToyAutoencoder(),
        text_encoders=(),
        tokenizers=(),
        scheduler=dataclasses.replace(FLOW, **changes),
        force_zeros_for_empty_prompt=False,
        reader=ToyReader(),
    )
    return StableDiffusion.from_checkpoint(checkpoint, "toy")


def run(sd: StableDiffusion, text: str = RED, **options) -> list:
    return list(sd.generate_latents(text, **{"num_steps": 8, "seed": 1, "cfg_weight": 1.0, **options}))


class TestFlow:
    LEVEL = NoiseLevel.from_ve_sigma(0.0, 1.5)  # s = 0.6

    def test_the_network_is_asked_in_its_own_terms(self):
        """x_s = (1 - s) x_0 + s eps at the time 1000 s, and u = eps - x_0."""
        x_0, eps, asked = mx.array([[[[0.5]]]]), mx.array([[[[-2.0]]]]), []

        def network(x, t, step):
            asked.append((x.item(), t, step))
            return eps - x_0

        found = Denoiser(network, "flow")(self.LEVEL.noised(x_0, eps), self.LEVEL, 3)
        (x, t, step) = asked[0]
        assert (x, t, step) == (pytest.approx(0.4 * 0.5 + 0.6 * -2), pytest.approx(600), 3)
        assert found.x_0.item() == pytest.approx(0.5) and found.eps.item() == pytest.approx(-2)
        assert found.output.item() == -2.5

    def test_it_stands_at_pure_noise(self):
        eps, pure = mx.array([[[[-2.0]]]]), NoiseLevel.from_alpha_bar(999.0, 0.0)
        found = Denoiser(lambda x, t, step: x - 0.5, "flow")(eps, pure, 1)
        assert found.x_0.item() == pytest.approx(0.5) and found.eps.item() == pytest.approx(-2)

    @pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
    def test_the_schedule_is_of_the_same_ratios(self, shift):
        config = dataclasses.replace(FLOW, shift=shift)
        exact, floored = NoiseSchedule.from_config(config), NoiseSchedule.from_config(config, floored=True)
        assert len(exact) == 1000 and exact.alpha_bars[-1] == 0 and 0 < floored.alpha_bars[-1] <= 2**-24
        assert (np.diff(floored.ve_sigmas) > 0).all()
        for i in (0, 499, 998):
            s = (i + 1) / 1000
            s = shift * s / (1 + (shift - 1) * s)
            level = exact.level(i)
            assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
            assert level.ve_sigma == pytest.approx(s / (1 - s), rel=1e-9)
            assert floored.ve_sigmas[i] == pytest.approx(s / (1 - s), rel=1e-9)

    def test_the_configuration(self):
        assert (FLOW.prediction_type, FLOW.shift, FLOW.timestep_spacing) == ("flow", 3.0, "linspace")
        name = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        for bad, said in (
            ({**name, "shift": 0}, "shift = 0"),
            ({**name, "shift": "3"}, "shift = '3'"),
            ({**name, "num_train_timesteps": 500}, "num_train_timesteps = 500"),
            ({**name, "use_karras_sigmas": True}, "use_karras_sigmas"),
            ({**name, "use_beta_sigmas": True}, "use_beta_sigmas"),
            ({"shift": 3.0}, "belongs to flow matching"),
        ):
            with pytest.raises(ConfigError, match=said):
                SchedulerConfig.from_dict(bad)
        for key in ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas", "use_flow_sigmas"):
            with pytest.raises(UnsupportedCheckpointError, match=key):
                SchedulerConfig.from_dict({**name, key: True})


@pytest.mark.parametrize("sampler", sampler_names())
def test_every_sampler_reaches_the_text(sampler):
    """Data of one point: wherever the noise lies, x_0 is the text's vector."""
    steps = run(toy(), sampler=sampler)
    assert [step.index for step in steps] == list(range(1, 9))
    found = np.asarray(steps[-1].denoised)
    assert found.shape == (1, 8, 8, CHANNELS)
    # LCM leaves the boundary condition's small share of x_t in its estimate.
    np.testing.assert_allclose(
        found, np.broadcast_to(vector(RED), found.shape), atol=1e-2 if sampler == "lcm" else 1e-3
    )


@pytest.mark.parametrize(
    "sampler, error",
    [
        ("euler", 0.05),
        ("ddim", 0.04),
        ("pndm", 0.02),
        ("dpmpp_2m", 0.01),
        ("unipc", 3e-3),
        ("heun", 2e-3),
        ("lms", 2e-4),
    ],
)
def test_samplers_follow_the_flow_of_a_gaussian(sampler, error):
    """Its probability flow is known: x stays as many standard deviations from the mean as it was."""
    sd = toy(std=0.5, skip_prk_steps=True)
    (first, *_, last) = run(sd, sampler=sampler, num_steps=100)
    eps = np.asarray(NoiseStream([1], (8, 8, CHANNELS))())
    np.testing.assert_allclose(np.asarray(last.latents), vector(RED) + 0.5 * eps, atol=error)
    assert first.sigma > last.sigma == pytest.approx(0, abs=2e-3)


def test_the_network_is_asked_at_times_of_its_training():
    sd = toy()
    run(sd, num_steps=4)
    s = np.linspace(1, 0.001, 4)
    expected = 1000 * 3 * s / (1 + 2 * s)
    np.testing.assert_allclose(sd._unet.times, expected, rtol=2e-3)


class TestThePipeline:
    def test_guidance_and_the_language_of_prompts(self):
        sd = toy()
        guided = np.asarray(run(sd, negative_text=BLUE, cfg_weight=2.0)[-1].denoised)[0, 0, 0]
        np.testing.assert_allclose(guided, 2 * vector(RED) - vector(BLUE), atol=1e-3)
        weighed = np.asarray(run(sd, f"({RED}:1.5)")[-1].denoised)[0, 0, 0]
        np.testing.assert_allclose(weighed, 1.5 * vector(RED), atol=1e-3)
        both = np.asarray(run(sd, f"{RED} AND {BLUE}:0.5")[-1].denoised)[0, 0, 0]
        np.testing.assert_allclose(both, vector(f"{RED}") + 0.5 * vector(f" {BLUE}"), atol=1e-3)
        steps = run(sd, f"[{RED}:{BLUE}:4]")
        for step, text in ((4, RED), (5, BLUE)):
            np.testing.assert_allclose(np.asarray(steps[step - 1].denoised)[0, 0, 0], vector(text), atol=1e-3)

    def test_a_batch_is_its_pictures(self):
        sd = toy(std=0.5)
        batch = np.asarray(run(sd, n_images=2, seed=5)[-1].latents)
        for i in range(2):
            np.testing.assert_allclose(batch[i], np.asarray(run(sd, seed=5 + i)[-1].latents)[0], atol=1e-5)

    def test_sizes_are_of_whole_patches(self):
        sd = toy()
        assert (sd.default_size, sd.downscale, sd.size_multiple, sd.latent_channels) == ((SIZE, SIZE), 4, 8, 16)
        assert run(sd, width=40, height=16)[-1].latents.shape == (1, 4, 10, CHANNELS)
        with pytest.raises(InputError, match="width = 36 should be a multiple of 8, such as 32 or 40"):
            run(sd, width=36)

    def test_decode_preview_and_encode(self):
        sd = toy()
        step = run(sd)[-1]
        picture = np.asarray(sd.decode(step.latents))
        assert picture.shape == (1, SIZE, SIZE, 3)
        np.testing.assert_allclose(picture[0, 0, 0], vector(RED)[:3] / 2 + 0.5, atol=1e-3)
        np.testing.assert_array_equal(np.asarray(sd.preview(step.latents)), picture)
        plain = Image.new("RGB", (SIZE, SIZE), (255, 0, 128))
        np.testing.assert_allclose(np.asarray(sd.encode(plain))[0, 0, 0, :3], [1, -1, 128 / 127.5 - 1], atol=1e-6)

    def test_image_to_image_and_masks(self):
        sd = toy(std=0.5)
        plain = Image.new("RGB", (SIZE, SIZE), (255, 0, 128))
        near = run(sd, input_image=plain, denoising_strength=0.2, num_steps=10)
        assert len(near) == 2
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (0, 0, 16, SIZE))
        masked = np.asarray(run(sd, input_image=plain, mask_image=mask, denoising_strength=1.0)[-1].latents)
        kept = np.asarray(sd.encode(plain))
        assert np.array_equal(masked[:, :, 4:], kept[:, :, 4:]) and not np.allclose(masked[:, :, :4], kept[:, :, :4])

    def test_low_memory(self, monkeypatch):
        sd = toy(std=0.5)
        expected = np.asarray(run(sd, negative_text=BLUE, cfg_weight=3.0)[-1].latents)
        sd.low_memory = True
        found = np.asarray(run(sd, negative_text=BLUE, cfg_weight=3.0)[-1].latents)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_too_little_memory(self, monkeypatch):
        monkeypatch.setenv("STABLE_DIFFUSION_MEMORY", "0.0001")
        with pytest.raises(InputError, match=r"would fit|might fit"):
            run(toy(), width=512, height=512)

    def test_what_it_cannot_take_is_refused_by_name(self, tmp_path):
        sd = toy()
        (tmp_path / "a.safetensors").write_bytes(b"")
        sd.lora_folders[:] = [tmp_path]
        for lay_over in (lambda: sd.set_loras({"a": 1.0}), lambda: run(sd, "red <lora:a:1>")):
            with pytest.raises(UnsupportedCheckpointError, match="LoRAs are for U-Nets, and 'toy' has another"):
                lay_over()
        sd.set_loras({})
        with pytest.raises(InputError, match="clip_skip"):
            run(sd, clip_skip=2)
        sd.embedding_folders[:] = [tmp_path]
        assert run(sd, "a")
        with pytest.raises(InputError, match="The toy takes no residuals or other extras"):
            sd._unet.predict(mx.zeros((1, 2, 2, 16)), mx.array([5.0]), {}, Extras(residuals=[mx.zeros((1,))]))


def test_the_worker_paints_with_it(monkeypatch, tmp_path):
    monkeypatch.setattr(service, "load_model", lambda name, progress: toy(std=0.3))
    worker = service.Worker(tmp_path)
    try:
        requests = [
            Request(RED, model="toy", steps=4, seed=3, n_images=2, previews=("latents", "full")),
            Request(BLUE, model="toy", steps=4, cfg=3.0, negative=RED, width=16, height=40, sampler="dpmpp_2m_karras"),
        ]
        jobs = [worker.submit(request) for request in requests]
        over(*jobs)
        assert [(job.state, job.error) for job in jobs] == [(State.DONE, "")] * 2
        for job, request in zip(jobs, requests, strict=True):
            for picture in job.pictures:
                width, height = request.width or SIZE, request.height or SIZE
                assert Image.open(Path(picture.path)).size == (width, height)
                assert len(picture.frames) == 5 and picture.frames[0].latents.shape == (height // 4, width // 4, 16)
                parameters = picture_files.read_parameters(picture.path)
                assert (parameters.model, parameters.prompt) == ("toy", request.prompt)
        task = worker.decode(jobs[0], jobs[0].pictures[0].frames[1])
        over(task)
        assert task.state is State.DONE
    finally:
        worker.close()

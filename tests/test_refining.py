"""A second model that takes over: from where on, with what memory, what is recorded, and what is refused."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import Hires, StableDiffusion, backend, memory
from stable_diffusion.backend import mx
from stable_diffusion.diffusion.schedule import with_zero_terminal_snr
from stable_diffusion.errors import InputError
from stable_diffusion.model_io.locate import EMBEDDED, load
from stable_diffusion.record import keys

PROMPT = "a red house on green hills at sunset"
CALL = {"num_steps": 5, "width": 64, "height": 64, "seed": 3, "sampler": "ddim"}


def other(**changes) -> StableDiffusion:
    """The embedded model with another scale of its answers, which is another model of the same latents."""
    checkpoint = dataclasses.replace(load(EMBEDDED / "postcards-tiny", mx.float32), **changes)
    checkpoint.unet.conv_out.weight = checkpoint.unet.conv_out.weight * 0.8
    return StableDiffusion.from_checkpoint(checkpoint, "other", float16=False)


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture(scope="module")
def second() -> StableDiffusion:
    return other()


def latents(sd: StableDiffusion, **options) -> list[np.ndarray]:
    return [np.array(step.latents) for step in sd.generate_latents(PROMPT, **CALL | options)]


@pytest.mark.filterwarnings("ignore:'other' refines nothing")
@pytest.mark.parametrize("switch, own", [(1.0, 5), (0.8, 4), (0.5, 3), (0.0, 0)])
def test_the_steps_of_each(sd, second, switch, own):
    """Those at times from (1 - switch) 1000 on are the first model's: DDIM's times are 801, 601, 401, 201 and 1."""
    alone, refined = latents(sd), latents(sd, refiner=second, refiner_switch=switch)
    assert [np.array_equal(a, b) for a, b in zip(alone, refined, strict=True)] == [i < own for i in range(5)]


def test_from_the_beginning_it_is_the_second_model_alone(sd, second):
    assert np.array_equal(latents(sd, refiner=second, refiner_switch=0.0)[-1], latents(second)[-1])


def test_a_model_that_refines_itself_changes_nothing(sd):
    assert np.array_equal(latents(sd, refiner=sd, refiner_switch=0.5)[-1], latents(sd)[-1])


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "dpmpp_2m", "pndm", "unipc", "lms"])
def test_other_samplers(sd, second, sampler):
    first, both, last = (
        latents(engine, sampler=sampler, num_steps=6, **options)[-1]
        for engine, options in ((sd, {}), (sd, {"refiner": second, "refiner_switch": 0.5}), (second, {}))
    )
    assert np.isfinite(both).all() and not np.array_equal(both, first) and not np.array_equal(both, last)


def test_a_batch_and_a_composition(sd, second):
    options = {"num_steps": 4, "width": 64, "height": 64, "refiner": second, "refiner_switch": 0.5, "n_images": 2}
    *_, batch = sd.generate_latents("a red house AND a blue tent", "fog", seed=1, **options)
    *_, single = sd.generate_latents("a red house AND a blue tent", "fog", seed=2, **options | {"n_images": 1})
    assert np.abs(np.array(batch.latents)[1] - np.array(single.latents)[0]).max() < 1e-4


def test_the_kept_part_of_a_picture_is_kept(sd, second):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    given = {"input_image": picture, "mask_image": mask, "denoising_strength": 0.8}
    alone, refined = (latents(sd, **given, **more)[-1] for more in ({}, {"refiner": second, "refiner_switch": 0.6}))
    assert np.array_equal(alone[:, :, 4:], refined[:, :, 4:]) and not np.array_equal(alone[:, :, :4], refined[:, :, :4])


def test_what_is_reported_and_recorded(sd, second):
    (picture,) = sd.generate(PROMPT, **CALL, refiner=second, refiner_switch=0.6)
    assert picture.parameters.extra[keys.REFINER] == "other"
    assert picture.parameters.extra["Refiner switch at"] == "0.6"
    (alone,) = sd.generate(PROMPT, **CALL)
    assert not {keys.REFINER, "Refiner switch at"} & alone.parameters.extra.keys()


def test_with_hires_it_works_in_the_second_pass(sd, second):
    hires = Hires(scale=1.5, strength=0.8)
    alone, refined = (latents(sd, hires=hires, **more) for more in ({}, {"refiner": second, "refiner_switch": 0.0}))
    same = [np.array_equal(a, b) for a, b in zip(alone, refined, strict=True)]
    assert same == [True] * 5 + [False] * (len(same) - 5) and len(same) > 5
    (picture,) = sd.generate(PROMPT, **CALL, hires=hires, refiner=second, refiner_switch=0.4)
    assert (picture.parameters.extra[keys.REFINER], picture.parameters.extra["Refiner switch at"]) == ("other", "0.4")


def test_titles():
    assert keys.titled("sd_xl_refiner_1.0 [7440042bbd]") == ("sd_xl_refiner_1.0", "7440042bbd")
    assert keys.titled("a [b] c") == ("a [b] c", None) and keys.titled("org/name") == ("org/name", None)


def test_a_refiner_that_refines_nothing_is_told(sd, second):
    with pytest.warns(UserWarning, match=r"'other' refines nothing: no step begins after 0\.95"):
        generation = sd.generate_latents(PROMPT, **CALL | {"num_steps": 2}, refiner=second, refiner_switch=0.95)
    assert "'other' refines nothing" in generation.notes[0]


class TestRefused:
    def refused(self, sd, match, **options):
        with pytest.raises(InputError, match=match):
            sd.generate_latents(PROMPT, **CALL | options)

    @pytest.mark.parametrize("switch", [-0.1, 1.1, float("nan"), "0.5", None])
    def test_switches(self, sd, second, switch):
        self.refused(sd, "refiner_switch", refiner=second, refiner_switch=switch)

    def test_what_is_no_model(self, sd):
        self.refused(sd, "refiner = 'postcards-tiny' should be a loaded model", refiner="postcards-tiny")

    def test_other_latents(self, sd):
        vae = load(EMBEDDED / "postcards-tiny", mx.float32).vae
        vae.config = dataclasses.replace(vae.config, scaling_factor=0.13025)
        match = r"'other' \(SD 1.x\) cannot refine what 'postcards-tiny' .* begins: their latents differ"
        self.refused(sd, match, refiner=other(vae=vae))

    def test_an_inpainting_checkpoint(self, sd):
        checkpoint = load(EMBEDDED / "postcards-tiny", mx.float32)
        checkpoint.unet.config = dataclasses.replace(checkpoint.unet.config, in_channels=9)
        self.refused(sd, "one of them is an inpainting", refiner=StableDiffusion.from_checkpoint(checkpoint, "other"))


def test_another_prediction_type_and_another_schedule(sd, second):
    """v and eps of one prediction are the same step; and a time is that of the same noise."""
    scheduler = load(EMBEDDED / "postcards-tiny", mx.float32).scheduler
    zero = with_zero_terminal_snr(scheduler, True)
    assert scheduler.prediction_type == "v_prediction"
    differing = other(scheduler=dataclasses.replace(zero, timestep_spacing=scheduler.timestep_spacing))
    same, shifted = (latents(sd, refiner=each, refiner_switch=0.5, num_steps=10)[-1] for each in (second, differing))
    assert 0 < np.abs(same - shifted).max() < 0.5  # times a little aside
    wrong = other(scheduler=dataclasses.replace(scheduler, prediction_type="epsilon"))
    assert np.abs(same - latents(sd, refiner=wrong, refiner_switch=0.5, num_steps=10)[-1]).max() > 0.5


@pytest.fixture(scope="module")
def frugal() -> tuple[StableDiffusion, ...]:
    with pytest.MonkeyPatch.context() as patch:  # what is the whole process's stays as it is
        patch.setattr(backend, "keep_little_memory", lambda: None)
        return tuple(StableDiffusion(low_memory=True, float16=False) for _ in range(2))


class TestMemory:
    def test_two_models_need_more(self, sd, second, frugal):
        alone, both = sd._needs_with(False), sd._needs_with(False, second)
        used = second._unet, *second._conditioner.encoders  # its VAE is dropped
        assert both.weights == alone.weights + sum(map(memory.weight_bytes, used))
        first, refiner = frugal
        unet, vae = memory.weight_bytes(first._unet), memory.weight_bytes(first._vae)
        assert first._needs_with(True, refiner).weights == first._needs_with(True).weights == unet
        assert first._needs_with(True, refiner).decoder_weights == vae
        assert first._needs_with(False, refiner).weights > unet

    def test_a_refiner_that_does_not_fit_is_refused_at_the_call(self, sd, second, monkeypatch):
        needed = memory.Needs._bytes
        size = needed(sd._needs_with(False), 2, 64, 64)
        monkeypatch.setenv(memory.MEMORY_VARIABLE, str((size + (1 << 20)) / memory.GIB))
        sd.generate_latents(PROMPT, **CALL)
        with pytest.raises(InputError, match="need about"):
            sd.generate_latents(PROMPT, **CALL, refiner=second)

    def test_low_memory_holds_one_u_net_at_a_time(self, frugal):
        first, refiner = frugal

        def held() -> int:
            gc.collect()
            return mx.get_active_memory()

        first.decode(mx.zeros((1, 4, 4, 4)))
        before, unet, some = held(), memory.weight_bytes(first._unet), 6 << 20
        for step in first.generate_latents(PROMPT, **CALL, refiner=refiner, refiner_switch=0.5):
            mx.eval(step.latents)
            assert held() - before < unet + some
        first.decode(step.latents)
        assert held() - before < some

    def test_low_memory_paints_the_same(self, sd, frugal):
        pairs = (sd, StableDiffusion(float16=False)), frugal
        normal, spared = (latents(one, refiner=two, refiner_switch=0.5)[-1] for one, two in pairs)
        assert np.abs(normal - spared).max() <= 1e-5 * np.abs(normal).max()

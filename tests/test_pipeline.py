"""StableDiffusion on the embedded model: seeds, batches, sizes, laziness, and every argument that is refused."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import GenerationStep, Hires, SimpleEulerSampler, StableDiffusion, backend, ops
from stable_diffusion.backend import mx
from stable_diffusion.diffusion.noise import NoiseStream
from stable_diffusion.errors import InputError, PictureError, SamplerError
from stable_diffusion.model_io.locate import EMBEDDED, load
from stable_diffusion.pictures.arrays import to_picture
from stable_diffusion.pictures.reading import fit
from stable_diffusion.text.conditioning import PromptTruncatedWarning, TextConditioner
from stable_diffusion.unet import UNet

from . import drawn

PROMPT = "a red house on green hills at sunset"
SMALL = {"num_steps": 4, "width": 64, "height": 64, "seed": 9}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def run(sd: StableDiffusion, text: str = PROMPT, **options) -> GenerationStep:
    """The last step of a short generation at a small size."""
    options = {"num_steps": 3, "width": 64, "height": 64, "seed": 1, **options}
    for step in sd.generate_latents(text, **options):
        mx.eval(step.latents)
    return step


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_the_steps(sd):
    steps = list(sd.generate_latents(PROMPT, num_steps=4, seed=9))
    assert [(step.index, step.total, step.seed) for step in steps] == [(i, 4, 9) for i in (1, 2, 3, 4)]
    assert all(step.latents.shape == step.denoised.shape == (1, 16, 16, 4) for step in steps)
    assert all(step.latents.dtype == mx.float32 for step in steps)
    assert [step.sigma for step in steps] == sorted((step.sigma for step in steps), reverse=True)
    assert steps[-1].sigma == 0 and steps[-1].t == 0
    assert mx.allclose(steps[-1].latents, steps[-1].denoised)


class TestWithStart:
    """What a pass begins with, ahead of the network's first call."""

    def test_noise_at_the_first_level(self, sd, monkeypatch):
        without = list(sd.generate_latents(PROMPT, **SMALL))
        start, *steps = sd.generate_latents(PROMPT, with_start=True, **SMALL)
        assert [step.begins_pass for step in (start, *steps)] == [True, *[False] * 4]
        assert (start.index, start.total, start.pass_number, start.ends_pass) == (0, 4, 1, False)
        assert start.t > steps[0].t and start.sigma > steps[0].sigma
        assert all(mx.array_equal(a.latents, b.latents) for a, b in zip(steps, without, strict=True))
        noise = drawn.normal("noise", 1, 8, 8, 4)
        monkeypatch.setattr(UNet, "predict", None)
        first = next(sd.generate_latents(PROMPT, latents=noise, with_start=True, **SMALL))
        assert np.allclose(first.latents, noise, atol=0.01) and mx.array_equal(first.denoised, first.latents)

    def test_the_noised_input(self, sd):
        x_0, noise = drawn.normal("x_0", 1, 8, 8, 4), drawn.normal("noise", 1, 8, 8, 4)
        given = {"input_latents": x_0, "latents": noise, "denoising_strength": 0.5}
        start, *rest = sd.generate_latents(PROMPT, with_start=True, **given, **SMALL)
        alpha = 1 / np.sqrt(1 + start.sigma**2)
        assert np.allclose(start.latents, alpha * (x_0 + start.sigma * noise), atol=1e-5)
        assert (start.total, len(rest)) == (2, 2)

    def test_what_a_second_pass_begins_with(self, sd):
        steps = list(sd.generate_latents(PROMPT, with_start=True, hires=Hires(2, steps=2), **SMALL))
        assert [(step.index, step.pass_number, step.begins_pass) for step in steps] == [
            (0, 1, True), *[(i, 1, False) for i in (1, 2, 3, 4)], (4, 2, True), (5, 2, False), (6, 2, False)
        ]  # fmt: skip
        assert steps[5].latents.shape == (1, 16, 16, 4) and steps[5].sigma > steps[6].sigma

    def test_a_finished_picture_has_no_such_step(self, sd):
        with pytest.raises(TypeError, match="with_start"):
            sd.generate(PROMPT, with_start=True)


def test_decode(sd):
    pictures = sd.decode(mx.array(drawn.normal("latents", 2, 5, 7, 4)))
    assert pictures.shape == (2, 40, 56, 3) and pictures.dtype == mx.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
    with pytest.raises(InputError, match=r"\(5, 7, 4\)"):
        sd.decode(mx.zeros((5, 7, 4)))
    with pytest.raises(InputError, match="cannot be decoded"):
        sd.decode(mx.zeros((1, 5, 7, 9)))


def test_the_default_size_is_the_checkpoints_own(sd):
    assert sd.default_size == (128, 128)
    assert next(sd.generate_latents(PROMPT)).latents.shape == (1, 16, 16, 4)
    assert next(sd.generate_latents(PROMPT, width=72, height=40)).latents.shape == (1, 5, 9, 4)


def test_the_same_call_gives_the_same_picture(sd):
    assert mx.array_equal(run(sd).latents, run(sd).latents)
    assert not mx.allclose(run(sd).latents, run(sd, seed=2).latents, atol=0.1)


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_sde"])
@pytest.mark.parametrize("image", [False, True])
def test_image_i_of_a_batch_is_the_image_of_seed_plus_i(sd, sampler, image):
    options = {"sampler": sampler, "input_image": picture() if image else None, "num_steps": 4}
    batch = run(sd, seed=20, n_images=3, **options).latents
    for i in range(3):
        alone = run(sd, seed=20 + i, **options).latents[0]
        assert mx.abs(batch[i] - alone).max() < 1e-4


def test_a_drawn_seed_is_told_and_repeats(sd):
    first, second = run(sd, seed=None), run(sd, seed=None)
    assert first.seed != second.seed
    assert mx.array_equal(run(sd, seed=first.seed).latents, first.latents)


def test_own_noise(sd):
    noise = drawn.normal("noise", 2, 8, 8, 4)
    a = run(sd, latents=noise, n_images=2).latents
    b = run(sd, latents=mx.array(noise), n_images=2, seed=77).latents
    assert mx.array_equal(a, b)
    seeded = NoiseStream([5], (8, 8, 4))()
    assert mx.array_equal(run(sd, latents=seeded).latents, run(sd, seed=5).latents)


def test_the_prompt_counts(sd):
    assert not mx.allclose(run(sd).latents, run(sd, "a blue tent at night").latents, atol=0.1)
    assert not mx.allclose(run(sd).latents, run(sd, negative_text="clouds").latents, atol=1e-2)
    assert mx.array_equal(run(sd).latents, run(sd, negative_text="").latents)


def test_without_guidance_the_unet_sees_each_latent_once(sd, monkeypatch):
    batches = []
    predict = UNet.predict
    monkeypatch.setattr(UNet, "predict", lambda self, x, *rest: batches.append(len(x)) or predict(self, x, *rest))
    run(sd, cfg_weight=1.0)
    run(sd, cfg_weight=0.0)
    assert batches == [1] * 6
    batches.clear()
    run(sd, cfg_weight=1.5, n_images=2)
    assert batches == [4] * 3


@pytest.mark.parametrize("sampler, calls", [("euler", 1), ("heun", 2), ("dpmpp_sde", 2)])
def test_guidance_in_an_interval_halves_the_other_steps(sd, monkeypatch, sampler, calls):
    batches = []
    predict = UNet.predict
    monkeypatch.setattr(UNet, "predict", lambda self, x, *rest: batches.append(len(x)) or predict(self, x, *rest))
    options = {"num_steps": 5, "sampler": sampler, "negative_text": "clouds", "n_images": 2}
    found = run(sd, guidance_start=0.2, guidance_end=0.8, **options).latents
    assert batches == ([2] * 2 * calls + [4] * 2 * calls + [2] * calls)[: 5 * calls - calls // 2]
    monkeypatch.undo()
    assert not mx.allclose(found, run(sd, **options).latents, atol=1e-2)
    never = run(sd, guidance_end=0.0, **options).latents
    assert mx.abs(never - run(sd, cfg_weight=1.0, **options).latents).max() < 1e-4


def test_prompts_of_steps_keep_their_places_outside_the_interval(sd):
    """Schedules, alternations and AND: with no guidance in any step, they are what they are without a negative."""
    prompt = "a [red:blue:0.5] [house|tent] at night AND green hills :0.7"
    found = run(sd, prompt, num_steps=4, negative_text="[rain:snow:0.5]", guidance_end=0.0).latents
    other = run(sd, prompt, num_steps=4, negative_text="a lighthouse", guidance_end=0.0).latents
    assert mx.array_equal(found, other)
    early = run(sd, prompt, num_steps=4, negative_text="[rain:snow:0.5]", guidance_start=0.5).latents
    snow = run(sd, prompt, num_steps=4, negative_text="snow", guidance_start=0.5).latents
    assert mx.array_equal(early, snow) and not mx.array_equal(early, found)


def test_the_text_is_encoded_once(sd, monkeypatch):
    texts = []
    encode = TextConditioner.__call__
    monkeypatch.setattr(TextConditioner, "__call__", lambda self, text: texts.append(text) or encode(self, text))
    run(sd, negative_text="clouds", n_images=2)
    assert sorted(each.text for each in texts) == [PROMPT, "clouds"]


@ops.use("plain")
def test_nothing_is_evaluated_that_nobody_asked_for():
    """A generation whose arrays nobody looks at costs the building of its graph, where forms are lazy."""
    sd = StableDiffusion()
    run(sd)  # the weights are on the device now
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    steps = list(sd.generate_latents(PROMPT, num_steps=10, width=256, height=256))
    assert mx.get_peak_memory() - before < 1e6
    assert len(steps) == 10


def test_threads_suit_the_largest_product(sd, monkeypatch):
    """Small products gain nothing by threads, and lose much where another program has a core."""
    asked = []
    monkeypatch.setattr(backend, "fit_threads", asked.append)
    run(sd, width=128, height=128)
    assert 0 < asked[0] < backend.SMALL_PRODUCT
    next(sd.generate_latents(PROMPT, width=512, height=512, n_images=4))
    assert asked[1] > backend.SMALL_PRODUCT


def test_dropping_the_generator_frees_what_it_held(sd):
    steps = sd.generate_latents(PROMPT, num_steps=5)
    latents = weakref.ref(next(steps))
    del steps
    gc.collect()
    assert latents() is None


def test_a_long_prompt_in_plain_language_is_cut_and_says_so(sd):
    with pytest.warns(PromptTruncatedWarning, match="75 tokens.*tent"):
        run(sd, "a red house " * 40 + "a tent", prompt_language="plain")


class TestImageToImage:
    def test_strength_says_how_many_steps_are_left(self, sd):
        steps = list(sd.generate_latents(PROMPT, input_image=picture(), num_steps=20, denoising_strength=0.3))
        assert [step.index for step in steps] == [1, 2, 3, 4, 5, 6] and steps[0].total == 6

    def test_a_little_strength_keeps_the_picture(self, sd):
        image = sd.decode(run(sd, num_steps=20, width=128, height=128).latents)
        source = np.rint(np.array(image[0]) * 255).astype(np.uint8)

        def change(strength: float) -> float:
            options = {"input_image": source, "num_steps": 20, "width": 128, "height": 128, "seed": 3}
            result = sd.decode(run(sd, denoising_strength=strength, **options).latents)
            return float(np.abs(np.array(result[0]) - source / 255).mean())

        assert change(0.1) < change(0.5) < change(1.0)
        assert change(0.1) < 0.05

    def test_any_mode_and_size(self, sd):
        for image in (picture(30, 90), picture().convert("L"), picture().convert("RGBA"), np.array(picture(17, 5))):
            assert run(sd, input_image=image).latents.shape == (1, 8, 8, 4)

    def test_a_strength_that_leaves_no_step(self, sd):
        with pytest.raises(
            InputError, match=r"denoising_strength = 0\.04 leaves none of 20 steps; it takes at least 0\.05"
        ):
            sd.generate_latents(PROMPT, input_image=picture(), denoising_strength=0.04)
        assert len(list(sd.generate_latents(PROMPT, input_image=picture(), denoising_strength=0.05))) == 1

    @pytest.mark.parametrize("mask", [None, Image.new("L", (64, 64), 255)])
    def test_at_strength_0_the_picture_stays_and_no_network_is_run(self, sd, monkeypatch, mask):
        for network in ("_unet", "_vae", "_conditioner"):
            monkeypatch.setattr(type(getattr(sd, network)), "__call__", None)
        given = {"input_image": picture(90, 64), "denoising_strength": 0.0, "width": 64, "height": 64, "seed": 4}
        generation = sd.generate_latents(PROMPT, **given, mask_image=mask and picture(90, 64).convert("1"))
        assert list(generation) == [] and generation.used.model == "postcards-tiny"
        first, second = sd.generate(PROMPT, n_images=2, **given)
        resized = np.asarray(fit(picture(90, 64), 64, 64))
        assert np.array_equal(np.asarray(first.image), resized) and np.array_equal(np.asarray(second.image), resized)
        assert (first.parameters.strength, second.parameters.seed) == (0.0, 5)

    def test_at_strength_0_latents_stay(self, sd):
        x_0 = sd.encode(picture(), 64, 64, seed=11)
        (made,) = sd.generate(PROMPT, input_latents=x_0, width=64, height=64, denoising_strength=0)
        assert np.array_equal(np.asarray(made.image), np.asarray(to_picture(sd.decode(x_0)[0])))

    @pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_sde"])
    @pytest.mark.parametrize("strength", [0.5, 1.0])
    def test_a_pictures_latents_lead_where_it_does(self, sd, sampler, strength):
        options = {"denoising_strength": strength, "sampler": sampler, "num_steps": 4, "seed": 11}
        x_0 = sd.encode(picture(), 64, 64, seed=11)
        expected = run(sd, input_image=picture(), **options).latents
        assert mx.array_equal(run(sd, input_latents=x_0, **options).latents, expected)
        assert mx.array_equal(run(sd, input_latents=np.array(x_0), **options).latents, expected)
        varied = options | {"variation_seed": 3, "variation_strength": 0.3}
        expected = run(sd, input_image=picture(), **varied).latents
        assert mx.array_equal(run(sd, input_latents=x_0, **varied).latents, expected)

    def test_latents_of_a_batch(self, sd):
        """One for all, or one for each; a picture has a draw of its own for each."""
        x_0 = [sd.encode(picture(), 64, 64, seed=seed) for seed in (11, 12)]
        options = {"n_images": 2, "seed": 11, "denoising_strength": 0.7}
        both = run(sd, input_latents=mx.concatenate(x_0), **options).latents
        assert mx.array_equal(both, run(sd, input_image=picture(), **options).latents)
        shared = run(sd, input_latents=x_0[0], **options).latents
        assert mx.array_equal(shared[0], both[0]) and not mx.array_equal(shared[1], both[1])

    def test_one_generation_goes_on_with_the_others_latents(self, sd):
        first = run(sd, num_steps=8).latents
        steps = list(
            sd.generate_latents(PROMPT, input_latents=first, width=64, height=64, denoising_strength=0.1, seed=2)
        )
        assert len(steps) == 2
        assert mx.abs(steps[-1].latents - first).mean() < 0.3 * mx.abs(run(sd, seed=2).latents - first).mean()

    @pytest.mark.parametrize(
        "options, match",
        [
            ({"input_latents": np.zeros((1, 8, 8, 3))}, r"input_latents of shape \(1, 8, 8, 3\).*\(1, 8, 8, 4\)"),
            ({"input_latents": np.zeros((3, 8, 8, 4)), "n_images": 2}, r"input_latents of shape .*\(2, 8, 8, 4\)"),
            ({"input_latents": np.zeros((1, 8, 8, 4)), "input_image": picture()}, "input_image and input_latents"),
            ({"input_latents": np.zeros((1, 8, 8, 4)), "mask_image": picture()}, "no input_image"),
            ({"input_latents": np.zeros((1, 8, 8, 4)), "denoising_strength": 0.01}, "leaves none"),
        ],
    )
    def test_latents_that_are_refused(self, sd, options, match):
        with pytest.raises(InputError, match=match):
            run(sd, **options)

    @pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan"), "0.5", None])
    def test_strengths_out_of_range(self, sd, strength):
        with pytest.raises(InputError, match="denoising_strength"):
            sd.generate_latents(PROMPT, input_image=picture(), denoising_strength=strength)

    @pytest.mark.parametrize("image", ["picture.png", b"", 3, np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8, 3))])
    def test_what_is_no_picture(self, sd, image):
        with pytest.raises(PictureError):
            sd.generate_latents(PROMPT, input_image=image)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"text": 3}, "text should be a string, not 3"),
        ({"text": None}, "text should be a string"),
        ({"negative_text": 3}, "negative_text"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"num_steps": -5}, "num_steps = -5"),
        ({"num_steps": 1001}, "num_steps = 1001"),
        ({"num_steps": 2.5}, r"num_steps = 2\.5"),
        ({"num_steps": "20"}, "num_steps = '20'"),
        ({"num_steps": True}, "num_steps = True"),
        ({"cfg_weight": -1}, "cfg_weight = -1"),
        ({"cfg_weight": float("nan")}, "cfg_weight = nan"),
        ({"cfg_weight": float("inf")}, "cfg_weight = inf"),
        ({"cfg_weight": "high"}, "cfg_weight = 'high'"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale = 1\.5"),
        ({"guidance_start": 1.5}, r"guidance_start = 1\.5"),
        ({"guidance_end": -0.1}, r"guidance_end = -0\.1"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, r"guidance_start = 0\.6 lies after guidance_end = 0\.5"),
        ({"deepcache_interval": 0}, "deepcache_interval = 0 should be a whole number from 1"),
        ({"deepcache_interval": 1.5}, r"deepcache_interval = 1\.5"),
        ({"deepcache_branch": -1}, "deepcache_branch = -1"),
        ({"deepcache_interval": 2, "deepcache_branch": 99}, r"deepcache_branch = 99 should be .* from 0 to \d+\."),
        ({"guidance_min_sigma": -1}, "guidance_min_sigma = -1"),
        ({"guidance_min_sigma": "high"}, "guidance_min_sigma = 'high'"),
        ({"n_images": 0}, "n_images = 0"),
        ({"n_images": 1000}, "n_images = 1000"),
        ({"n_images": 1.0}, r"n_images = 1\.0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**64}, f"seed = {2**64}"),
        ({"seed": 2**64 - 1, "n_images": 2}, "seed"),
        ({"seed": "7"}, "seed = '7'"),
        ({"width": 100}, "width = 100 should be a multiple of 8, such as 96 or 104"),
        ({"height": 4}, "height = 4"),
        ({"height": -64}, "height = -64"),
        ({"width": 10**6}, "width = 1000000"),
        ({"width": 64.0}, r"width = 64\.0"),
        ({"latents": np.zeros((1, 8, 8, 4))}, r"latents of shape \(1, 8, 8, 4\).*\(1, 16, 16, 4\)"),
        ({"latents": np.zeros((1, 16, 16, 4)), "n_images": 2}, r"\(2, 16, 16, 4\)"),
    ],
)
def test_arguments_out_of_range_are_refused_at_the_call(sd, options, match):
    with pytest.raises(InputError, match=match):
        sd.generate_latents(**{"text": PROMPT, **options})


@pytest.mark.parametrize("sampler, match", [("eulr", "euler"), ("ddim_karras", "ddim"), (3, "3"), ("", "sampler")])
def test_unknown_samplers(sd, sampler, match):
    with pytest.raises(SamplerError, match=match):
        sd.generate_latents(PROMPT, sampler=sampler)


def test_a_sampler_made_with_its_options(sd):
    assert not mx.allclose(run(sd, sampler=SimpleEulerSampler(spacing="leading")).latents, run(sd).latents, atol=1e-2)


def test_a_checkpoint_that_is_loaded_already(sd):
    made = StableDiffusion.from_checkpoint(load(EMBEDDED / "postcards-tiny", mx.float32), "mine", float16=False)
    assert (made.name, made.family, made.default_size) == ("mine", sd.family, sd.default_size)
    assert mx.array_equal(run(made).latents, run(sd).latents)
    assert made.generate_latents(PROMPT).used.model == "mine"
    assert isinstance(made, StableDiffusion)


def test_float16_stays_close(sd):
    half = StableDiffusion(float16=True)
    step = run(half)
    assert step.latents.dtype == mx.float32
    assert mx.abs(step.latents - run(sd).latents).max() < 0.1


def test_an_inpainting_checkpoint_is_named(sd, monkeypatch):
    import dataclasses

    monkeypatch.setattr(sd._unet, "config", dataclasses.replace(sd._unet.config, in_channels=9))
    with pytest.raises(InputError, match="inpainting"):
        sd.generate_latents(PROMPT)


def test_a_long_prompt_needs_no_negative_one(sd):
    """Nothing against the prompt is the empty text, filled up to the prompt's chunks."""
    first = [
        next(sd.generate_latents("house " * 200, negative_text=negative, num_steps=1, seed=1)).latents
        for negative in (None, "")
    ]
    assert np.array_equal(*map(np.asarray, first))

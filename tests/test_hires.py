"""Hires fix: sizes and steps, both passes as one generation, records, and what is kept if the second is stopped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import Hires, StableDiffusion, memory
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.commands import generation as painting_commands
from stable_diffusion.diffusion.noise import NoiseStream
from stable_diffusion.errors import CheckpointNotFoundError, InputError, NotFiniteError, SamplerError
from stable_diffusion.pictures.arrays import to_picture
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request, read_record, to_options
from stable_diffusion.service import painting
from stable_diffusion.service.jobs import Cancelled, Job
from stable_diffusion.setting import HIRES
from stable_diffusion.upscaling.enlarging import enlarge

from . import drawn

PROMPT = "a red house on green hills at sunset"
SMALL = {"num_steps": 2, "width": 32, "height": 32, "seed": 3, "cfg_weight": 1.0}
TWICE = Hires(2, steps=2, strength=0.5)


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def run(sd, text=PROMPT, **options):
    """All steps of a short generation, evaluated."""
    steps = []
    for step in sd.generate_latents(text, **SMALL | options):
        mx.eval(step.latents)
        steps.append(step)
    return steps


# --- Sizes and steps


@pytest.mark.parametrize(
    ("asked", "enlarged", "target"),
    [
        ({"scale": 2}, (1024, 1536), (1024, 1536)),
        ({"scale": 1.3}, (664, 992), (664, 992)),
        ({"width": 1024}, (1024, 1536), (1024, 1536)),
        ({"height": 1024}, (680, 1024), (680, 1024)),
        ({"width": 1024, "height": 1024}, (1024, 1536), (1024, 1024)),
        ({"width": 600, "height": 1200, "scale": 7}, (800, 1200), (600, 1200)),
        ({"scale": 1}, (512, 768), (512, 768)),
    ],
)
def test_sizes_are_a1111s(asked, enlarged, target):
    assert Hires(**asked).sizes((512, 768), 8) == (enlarged, target)


@pytest.mark.parametrize(("steps", "strength", "run_total"), [(0, 0.5, (20, 40)), (10, 0.7, (10, 14)), (7, 1, (7, 7))])
def test_as_many_steps_are_run_as_are_asked_for(steps, strength, run_total):
    assert Hires(2, steps=steps, strength=strength).total_steps(20) == run_total


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "needs a scale"),
        ({"scale": 0}, "hires scale = 0"),
        ({"scale": 100}, "hires scale = 100"),
        ({"scale": float("nan")}, "hires scale"),
        ({"width": 20_000, "height": 20_000}, "hires width = 20000"),
        ({"scale": 2, "strength": 0}, "repaints nothing"),
        ({"scale": 2, "strength": 1.5}, "hires strength"),
        ({"scale": 2, "steps": 1001}, "hires steps"),
        ({"scale": 2, "upscaler": None}, "hires upscaler"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        Hires(**wrong)


@pytest.mark.parametrize(
    ("hires", "error", "words"),
    [
        (Hires(width=16), InputError, "smaller than the first picture, 32 x 32"),
        (Hires(2, upscaler="Latnet"), CheckpointNotFoundError, "Near it: Latent"),
        (Hires(2, upscaler="lanzcos"), CheckpointNotFoundError, "Near it: Lanczos"),
        (Hires(2, sampler="oiler"), SamplerError, "Did you mean"),
        (Hires(2, steps=500, strength=0.1), InputError, "num_steps"),
        (Hires(2, cfg=-1), InputError, "cfg_weight"),
        (Hires(2, prompt="<lora:nowhere:1>"), CheckpointNotFoundError, "nowhere"),
        ("2", InputError, "Hires"),
    ],
)
def test_the_engine_refuses_it_before_the_first_pass(sd, hires, error, words):
    with pytest.raises(error, match=words):
        sd.generate_latents(PROMPT, **SMALL, hires=hires)


def test_a_picture_is_not_enlarged_by_it(sd):
    with pytest.raises(InputError, match="input_image"):
        sd.generate_latents(PROMPT, **SMALL, hires=TWICE, input_image=Image.new("RGB", (32, 32)))


def test_a_second_pass_that_cannot_fit_is_refused_before_the_first(sd, monkeypatch):
    needs = sd._needs
    monkeypatch.setattr(memory, "available", lambda: needs._bytes(2, 32, 32) + 1)
    sd.generate_latents(PROMPT, **SMALL)
    with pytest.raises(InputError, match=r"256 x 256 pixels.* need about"):
        sd.generate_latents(PROMPT, **SMALL, hires=Hires(8))


# --- Both passes


def test_two_passes_are_one_generation(sd):
    steps = run(sd, hires=dataclasses.replace(TWICE, steps=3))
    assert [(s.index, s.total, s.pass_number, s.n_passes, s.ends_pass) for s in steps] == [
        (1, 5, 1, 2, False), (2, 5, 1, 2, True), (3, 5, 2, 2, False), (4, 5, 2, 2, False), (5, 5, 2, 2, True)
    ]  # fmt: skip
    assert [s.latents.shape[1:3] for s in steps] == [(4, 4)] * 2 + [(8, 8)] * 3
    alone = run(sd)
    assert mx.array_equal(steps[1].latents, alone[-1].latents) and not steps[-1].sigma


def test_the_shape_is_cropped_around_the_middle(sd):
    steps = run(sd, hires=Hires(width=64, height=40, strength=0.5, steps=1, upscaler="Latent (nearest)"))
    assert steps[-1].latents.shape == (1, 5, 8, 4)


def test_what_a_picture_upscaler_makes_is_encoded(sd):
    """The posterior's mean of the enlarged picture, noised with the first draw at that size."""
    steps = run(sd, hires=dataclasses.replace(TWICE, upscaler="lanczos", steps=1, sampler="ddim"))
    larger = enlarge(to_picture(np.array(sd.decode(steps[1].latents))[0]), "Lanczos", size=(64, 64))
    pixels = mx.array(np.asarray(larger, np.float32) / 127.5 - 1)[None]
    x_0 = sd._vae.encode(pixels, mx.zeros((1, 8, 8, 4)))
    noise = NoiseStream([SMALL["seed"]], (8, 8, 4))()
    last = {"denoising_strength": 0.5, "sampler": "ddim", "width": 64, "height": 64}  # the last one of two steps
    other = run(sd, input_latents=x_0, latents=noise, **last)
    assert mx.abs(steps[-1].latents - other[-1].latents).max() < 1e-5


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_picture_i_of_a_batch_is_that_of_seed_plus_i(sd, upscaler):
    hires = dataclasses.replace(TWICE, upscaler=upscaler)
    batch = run(sd, hires=hires, n_images=2, sampler="euler_a")[-1].latents
    alone = run(sd, hires=hires, sampler="euler_a", seed=4)[-1].latents
    assert mx.abs(batch[1] - alone[0]).max() < 1e-4


def test_a_variation_varies_both_passes(sd):
    plain = run(sd, hires=TWICE)
    varied = run(sd, hires=TWICE, variation_seed=9, variation_strength=0.5)
    assert not mx.allclose(plain[0].latents, varied[0].latents) and not mx.allclose(plain[2].latents, varied[2].latents)


def test_low_memory_paints_the_same(sd):
    little = StableDiffusion(float16=False, low_memory=True)
    hires = dataclasses.replace(TWICE, upscaler="Lanczos")
    a, b = (run(each, hires=hires, n_images=2)[-1].latents for each in (sd, little))
    assert mx.abs(a - b).max() < 0.05


def test_the_second_prompt_brings_its_own_loras(sd, tmp_path):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = sd._unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    weights = {f"{layer}.lora_{way}.weight": 3 * drawn.normal(way, *shape) for way, shape in
               (("down", (4, width)), ("up", (width, 4)))}  # fmt: skip
    save_file(weights, tmp_path / "ink.safetensors")
    sd.lora_folders.append(tmp_path)
    try:
        generation = sd.generate_latents(PROMPT, **SMALL, hires=TWICE)
        plain = list(generation)
        tagged = sd.generate_latents(PROMPT, **SMALL, hires=dataclasses.replace(TWICE, prompt=f"{PROMPT} <lora:ink:1>"))
        assert "ink" in tagged.used.lora_hashes and "ink" not in generation.used.lora_hashes
        inked = list(tagged)
        (finished,) = sd.generate(PROMPT, **SMALL, hires=dataclasses.replace(TWICE, prompt=f"{PROMPT} <lora:ink:1>"))
    finally:
        sd.lora_folders.remove(tmp_path)
    assert mx.array_equal(plain[1].latents, inked[1].latents)
    assert not mx.allclose(plain[-1].latents, inked[-1].latents, atol=1e-3)
    assert np.array_equal(finished.image, to_picture(np.array(sd.decode(inked[-1].latents))[0]))


def test_latents_that_are_not_finite_end_it_between_the_passes(sd, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "_steps", lambda self, *rest: iter_nan())
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        list(sd.generate_latents(PROMPT, **SMALL, hires=TWICE))


def iter_nan():
    from stable_diffusion import GenerationStep

    latents = mx.full((1, 4, 4, 4), mx.nan)
    yield GenerationStep(1, 1, 0.0, 0.0, 3, latents, latents, ends_pass=True)


def test_many_prompts_in_one_call(sd):
    pictures = sd.generate([PROMPT, "a blue boat"], **SMALL, hires=dataclasses.replace(TWICE, sampler="DPM++ 2M"))
    assert [each.image.size for each in pictures] == [(64, 64)] * 2
    said = pictures[1].parameters
    assert (said.size, said.strength, said.extra["Hires upscale"]) == ("32x32", 0.5, "2")
    assert (said.extra["Hires upscaler"], said.extra["Hires sampler"]) == ("Latent", "DPM++ 2M")


# --- Records

A1111 = (
    "a castle\nNegative prompt: rain\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, "
    'Size: 512x768, Model: x, Denoising strength: 0.35, Hires prompt: "a castle, detail", Hires resize: 0x1536, '
    "Hires steps: 10, Hires upscaler: 4x-UltraSharp, Hires sampler: Euler a, Hires schedule type: Automatic, "
    "Hires CFG Scale: 5, Version: v1.10.1"
)


def test_a1111s_records_are_read():
    found, notes = read_record(Parameters.from_text(A1111))
    assert not notes and "strength" not in found
    expected = {
        "hires_strength": 0.35, "hires_prompt": "a castle, detail", "hires_height": 1536, "hires_steps": 10,
        "hires_upscaler": "4x-UltraSharp", "hires_sampler": "euler_a", "hires_cfg": 5.0, "sampler": "dpmpp_2m_karras",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected and "hires_width" not in found


@pytest.mark.parametrize(
    ("text", "words"), [("Hires resize: 9999x9999", "Hires resize"), ("Hires sampler: DPM fast", "DPM fast")]
)
def test_what_a_record_says_wrongly_is_told(text, words):
    _, notes = read_record(Parameters.from_text(f"a\nSteps: 20, Sampler: Euler, Seed: 1, Hires upscale: 2, {text}"))
    assert any(words in note for note in notes)


def test_what_is_written_is_read_back():
    asked = Request(
        PROMPT, seed=1, hires_scale=None, hires_width=96, hires_height=64, hires_upscaler="Lanczos", hires_steps=7,
        hires_strength=0.3, hires_sampler="dpmpp_2m_karras", hires_cfg=3.0, hires_prompt="a, b: c", hires_negative="d",
        width=32, height=32,
    )  # fmt: skip
    from stable_diffusion.record.used import Used

    said = asked.to_record(Used("postcards-tiny", "float32", "x"), (32, 32))
    assert said.extra["Hires resize"] == "96x64" and "Hires upscale" not in said.extra and said.strength == 0.3
    found, notes = Request.from_record(Parameters.from_text(said.to_text()))
    assert found == asked and not notes
    assert "Hires upscaler" not in asked.first_pass().to_record(Used("x", "float32", "x"), (32, 32)).extra


def test_without_it_nothing_is_recorded_or_asked_for():
    plain = Request(PROMPT, hires_steps=4, hires_upscaler="Lanczos")
    assert plain.hires is None and "hires" not in plain.to_call((32, 32)).arguments
    with_picture = Request(PROMPT, hires_scale=2.0, picture=Image.new("RGB", (32, 32)))
    assert with_picture.hires is None
    assert to_options({"hires_scale": 2.0}, [HIRES]) == ["--hires-scale=2"]


# --- Command line and worker

FEW = "--steps 2 --width 32 --height 32 --seed 7 --cfg 1 --hires-scale 2 --hires-steps 2 --hires-strength 0.5".split()


def test_the_command_line_paints_and_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--hires-upscaler", "bicubic", "--hires-sampler", "DPM++ 2M Karras", "--hires-prompt", "a blue boat"]
    assert program.main(["txt2img", PROMPT, *FEW, *more, "--output", "a.png"]) == 0
    assert Image.open("a.png").size == (64, 64)
    said = picture_files.read_parameters("a.png")
    assert (said.size, said.extra["Hires upscaler"], said.extra["Hires prompt"]) == ("32x32", "Bicubic", "a blue boat")
    assert program.main(["again", "a.png", "--output", "b.png"]) == 0
    assert "The same picture, pixel for pixel." in capsys.readouterr().err
    assert picture_files.read_parameters("b.png") == said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hires-scale", "0"], "from 1 to 8"),
        (["--hires-scale", "100"], "from 1 to 8"),
        (["--hires-width", "20000", "--hires-height", "20000"], "from 8 to 8192"),
        (["--hires-scale", "2", "--hires-upscaler", "Latnet"], "Near it: Latent"),
        (["--hires-scale", "2", "--hires-strength", "0"], "repaints nothing"),
        (["--hires-width", "16"], "smaller than the first picture"),
    ],
)
def test_the_command_line_refuses_it(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = program.main(["txt2img", PROMPT, "--width", "32", "--height", "32", *options])
    except SystemExit as stopped:
        code = stopped.code
    assert code != 0 and words in capsys.readouterr().err and not list(tmp_path.rglob("*.png"))


def stopping(sd, number, error):
    """The engine, stopped before a step."""
    real = StableDiffusion.generate_latents

    def generate_latents(text, **arguments):
        generation = real(sd, text, **arguments)
        steps = generation._steps

        def until():
            for step in steps:
                if step.index == number:
                    raise error
                yield step

        generation._steps = until()
        return generation

    return generate_latents


def test_what_the_first_pass_painted_is_kept_on_the_command_line(sd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painting_commands, "load", lambda request, quiet: sd)
    monkeypatch.setattr(sd, "generate_latents", stopping(sd, 4, KeyboardInterrupt()), raising=False)
    assert program.main(["txt2img", PROMPT, *FEW, "--output", "a.png"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert capsys.readouterr().out.startswith("a.png")
    said = picture_files.read_parameters("a.png")
    assert said.strength is None and not any(key.startswith("Hires") for key in said.extra)
    assert program.main(["again", "a.png", "--output", "b.png"]) == 0
    assert "The same picture, pixel for pixel." in capsys.readouterr().err


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("error", [Cancelled(), RuntimeError("out of memory")])
def test_what_the_first_pass_painted_is_kept_by_the_worker(sd, tmp_path, monkeypatch, number, error):
    job = Job(Request(PROMPT, seed=7, steps=2, width=32, height=32, cfg=1.0, hires_scale=2.0, hires_steps=2))
    monkeypatch.setattr(sd, "generate_latents", stopping(sd, number, error), raising=False)
    with pytest.raises(type(error)):
        painting.paint(sd, None, job, tmp_path)
    (picture,) = job.pictures
    assert picture.path is not None and picture.size == (32, 32)
    said = picture_files.read_parameters(picture.path)
    assert said.extra.keys().isdisjoint({"Hires upscale", "Hires upscaler"}) and said.size == "32x32"


def test_the_worker_paints_both_passes(sd, tmp_path):
    job = Job(Request(PROMPT, seed=7, steps=2, width=32, height=32, cfg=1.0, hires_scale=2.0, hires_steps=2))
    painting.paint(sd, None, job, tmp_path)
    (picture,) = job.pictures
    assert [(f.index, f.pass_number, f.latents.shape[0]) for f in picture.frames] == [
        (0, 1, 4), (1, 1, 4), (2, 1, 4), (2, 2, 8), (3, 2, 8), (4, 2, 8)
    ]  # fmt: skip
    assert [frame.begins for frame in picture.frames] == [True, False, False, True, False, False]
    assert picture.size == (64, 64) and picture.first is None and job.note == ""
    assert picture_files.read_parameters(picture.path).extra["Hires upscale"] == "2"

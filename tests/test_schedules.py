"""A1111's schedules by their own formulas, and generations of few steps, which begin at the top or say so."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

import stable_diffusion
from stable_diffusion import StableDiffusion, families
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.config import SchedulerConfig
from stable_diffusion.errors import ConfigError, InputError, SamplerError
from stable_diffusion.model_io.checkpoint import assemble
from stable_diffusion.model_io.locate import load
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.sampler import DDIMSampler, SimpleEulerSampler, key_of, sampler_by_name, sampler_from_a1111
from stable_diffusion.service import worker as worker_module
from stable_diffusion.service.worker import Worker

from .conftest import EMBEDDED
from .pretend import over

SD = SchedulerConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=True,
    timestep_spacing="leading", steps_offset=1,
)  # fmt: skip
COUNTS = (1, 2, 4, 7, 20, 30)
SMALL = {"width": 64, "height": 64, "seed": 1}


def sigma_table():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bars = np.cumprod(1 - betas)
    return np.sqrt((1 - alpha_bars) / alpha_bars)


def sigma_of(t):
    """k-diffusion's t_to_sigma."""
    return np.exp(np.interp(t, np.arange(1000), np.log(sigma_table())))


# modules/sd_schedulers.py of A1111, and what it takes from k-diffusion: sigmas without the 0 at the end.
FORMULAS = {
    "uniform": lambda n: sigma_of(np.linspace(999, 0, n)),  # k-diffusion's get_sigmas
    "normal": lambda n: sigma_of(np.linspace(999, 0, n)),
    "sgm_uniform": lambda n: sigma_of(np.linspace(999, 0, n + 1)[:-1]),
    "simple": lambda n: np.array([sigma_table()[-(1 + int(x * (1000 / n)))] for x in range(n)]),
    "ddim": lambda n: sigma_table()[1 :: max(1000 // n, 1)][:n][::-1],
    "karras": lambda n: (
        (
            sigma_table()[-1] ** (1 / 7)
            + np.linspace(0, 1, n) * (sigma_table()[0] ** (1 / 7) - sigma_table()[-1] ** (1 / 7))
        )
        ** 7
    ),
    "exponential": lambda n: np.exp(np.linspace(np.log(sigma_table()[-1]), np.log(sigma_table()[0]), n)),
    "polyexponential": lambda n: np.exp(
        np.linspace(1, 0, n) * np.log(sigma_table()[-1] / sigma_table()[0]) + np.log(sigma_table()[0])
    ),
    "kl_optimal": lambda n: np.tan(
        np.arange(n) / n * np.arctan(sigma_table()[0]) + (1 - np.arange(n) / n) * np.arctan(sigma_table()[-1])
    ),
    "align_your_steps": lambda n: np.exp(
        np.interp(
            np.linspace(0, 1, n), np.linspace(0, 1, 11),
            np.log([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]),
        )
    ),
}  # fmt: skip
FROM_THE_SPACING = ("karras", "exponential")  # between its ends, as in the reference
OVER_THE_WHOLE = ("dpmpp_2s_a", "restart", "dpmpp_2m", "dpmpp_2m_sde", "unipc")


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("key", ["euler", "euler_a", "heun", "lms", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "unipc",
                                 "dpmpp_2s_a", "restart", "euler_a_cfg_pp"])  # fmt: skip
def test_the_noise_levels_are_a1111s(key, schedule):
    whole = schedule not in FROM_THE_SPACING or key in OVER_THE_WHOLE
    spacing = SD if whole else dataclasses.replace(SD, timestep_spacing="linspace")
    # The reference's classes take the only time's sigma for both ends.
    for n in COUNTS if whole else COUNTS[1:]:
        plan = sampler_by_name(f"{key}_{schedule}").plan(spacing, n)
        np.testing.assert_allclose([level.ve_sigma for level in plan.levels], FORMULAS[schedule](n), rtol=2e-5)
        last = sigma_table()[0] if schedule == "kl_optimal" else 0
        assert plan.ends[-1].ve_sigma == pytest.approx(last, rel=2e-5) and plan.ends[:-1] == plan.levels[1:]


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("key", ["dpm2", "dpm2_a", "dpmpp_3m_sde"])
def test_of_one_level_more_the_last_above_the_end_is_left_out(key, schedule):
    for n in COUNTS[:-1]:
        plan = sampler_by_name(f"{key}_{schedule}").plan(SD, n)
        np.testing.assert_allclose([level.ve_sigma for level in plan.levels], FORMULAS[schedule](n + 1)[:n], rtol=2e-5)


def test_where_a1111s_ddim_schedule_has_a_step_more_the_one_at_the_top_is_left_out():
    sigmas = sigma_table()[1 :: 1000 // 30][::-1]
    assert len(sigmas) == 31
    levels = sampler_by_name("euler_ddim").plan(SD, 30).levels
    np.testing.assert_allclose([level.ve_sigma for level in levels], sigmas[1:], rtol=2e-5)
    assert len(sampler_by_name("euler_ddim").plan(SD, 1000)) == 1000


def test_align_your_steps_of_sdxl():
    table = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
    config = dataclasses.replace(SD, aligned_sigmas=families.SDXL.aligned_sigmas)
    levels = sampler_by_name("euler_align_your_steps").plan(config, 11).levels
    np.testing.assert_allclose([level.ve_sigma for level in levels], table, rtol=1e-6)
    assert families.SD1.aligned_sigmas is families.SD2.aligned_sigmas is None  # Stable Diffusion 1.5's


def test_a_checkpoint_knows_its_families_table():
    checkpoint = load(EMBEDDED, mx.float32)
    parts = checkpoint.unet, checkpoint.vae, checkpoint.text_encoders, checkpoint.tokenizers, checkpoint.scheduler
    assert assemble("it", "sdxl", *parts, False).scheduler.aligned_sigmas == families.SDXL.aligned_sigmas
    assert checkpoint.scheduler.aligned_sigmas is None


def test_a_file_may_ask_for_beta_sigmas():
    asked = sampler_by_name("euler").plan(dataclasses.replace(SD, use_beta_sigmas=True), 10).levels
    assert asked == sampler_by_name("euler_beta").plan(SD, 10).levels != sampler_by_name("euler").plan(SD, 10).levels
    with pytest.raises(ConfigError, match="use_karras_sigmas and use_beta_sigmas are both true"):
        sampler_by_name("euler").plan(dataclasses.replace(SD, use_beta_sigmas=True, use_karras_sigmas=True), 10)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize(("schedule", "times"), [
    ("uniform", lambda n: np.linspace(999, 0, n)),
    ("normal", lambda n: np.linspace(999, 0, n)),
    ("ddim", lambda n: (1 + np.arange(n) * (1000 // n))[::-1]),
    ("sgm_uniform", lambda n: np.linspace(999, 0, n + 1)[:-1]),
    ("simple", lambda n: [999 - int(x * (1000 / n)) for x in range(n)]),
])  # fmt: skip
def test_the_network_is_given_these_times(schedule, times, n):
    for key in ("euler", "dpmpp_2m"):
        plan = sampler_by_name(f"{key}_{schedule}").plan(SD, n)
        np.testing.assert_allclose([level.t for level in plan.levels], times(n), rtol=1e-6)
    for key in ("ddim", "ddpm"):  # on the training times themselves
        plan = sampler_by_name(f"{key}_{schedule}").plan(SD, n)
        assert [level.t for level in plan.levels] == [round(t) for t in times(n)]
        assert plan.ends == (*plan.levels[1:], plan.schedule.final)


def test_automatic_is_as_the_file_says():
    assert sampler_by_name("euler").plan(SD, 20).levels[0].t == 951
    trailing = dataclasses.replace(SD, timestep_spacing="trailing")
    assert sampler_by_name("euler").plan(trailing, 20).levels[0].t == 999
    named = dataclasses.replace(SD, use_karras_sigmas=True, interpolation_type="log_linear")
    plan = sampler_by_name("euler_simple").plan(named, 4)
    np.testing.assert_allclose([level.ve_sigma for level in plan.levels], FORMULAS["simple"](4), rtol=2e-5)


@pytest.mark.parametrize(("pair", "key"), [
    (("Euler", "Uniform"), "euler_uniform"),
    (("Euler", "Normal"), "euler_normal"),
    (("Euler", "SGMUniform"), "euler_sgm_uniform"),
    (("Euler a", "KL Optimal"), "euler_a_kl_optimal"),
    (("Heun", "align_your_steps"), "heun_align_your_steps"),
    (("DPM2", "DDIM"), "dpm2_ddim"),
    (("LMS", "Polyexponential"), "lms_polyexponential"),
    (("UniPC", "Beta"), "unipc_beta"),
    (("DPM++ 2M SDE", "Automatic"), "dpmpp_2m_sde_exponential"),
    (("Restart", "Automatic"), "restart_karras"),
    (("TCD", "Karras"), "tcd"),
    (("DDIM", "Beta"), "ddim"),
    (("DPM++ 2M", "SGM Uniform"), "dpmpp_2m_sgm_uniform"),
    (("DPM++ SDE", "simple"), "dpmpp_sde_simple"),
    (("DPM++ 2M Karras", "Automatic"), "dpmpp_2m_karras"),
    (("PLMS", "SGM Uniform"), "pndm"),
    (("LCM", "Simple"), "lcm"),
])  # fmt: skip
def test_schedule_types_of_a1111(pair, key):
    assert key_of(sampler_from_a1111(*pair)) == key


@pytest.mark.parametrize(("name", "near"), [
    ("karas", "karras"), ("SGM Uniformm", "sgm_uniform"), ("align your step", "align_your_steps"),
    ("KL optimum", "kl_optimal"), ("zzz", "There are automatic, uniform, karras"),
])  # fmt: skip
def test_an_unknown_schedule_names_near_ones(name, near):
    with pytest.raises(SamplerError, match=near) as caught:
        sampler_by_name("euler", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("key", ["pndm", "lcm", "tcd", "ddim", "ddpm"])
def test_where_a_schedule_does_not_apply(key):
    with pytest.raises(SamplerError, match=r"has no karras sigmas, because its times come from the checkpoint"):
        sampler_by_name(key, "karras")
    assert sampler_by_name(key, "automatic") == sampler_by_name(key)


def test_a_name_with_a_schedule_and_another_schedule():
    assert key_of(sampler_by_name("DPM++ 2M Karras", "karras")) == "dpmpp_2m_karras"
    assert key_of(sampler_by_name("DPM++ 2M Exponential", "Automatic")) == "dpmpp_2m_exponential"
    with pytest.raises(SamplerError, match=r"DPM\+\+ 2M Karras has a schedule in its name, and simple is another"):
        sampler_by_name("DPM++ 2M Karras", "Simple")


def test_a_spacing_and_a_schedule_that_replaces_it():
    with pytest.raises(SamplerError, match="exclude each other"):
        SimpleEulerSampler(spacing="leading", sigma_schedule="simple")


@pytest.fixture(scope="module")
def leading():
    """The embedded model with SD 1.x's schedule and leading spacing."""
    checkpoint = load(EMBEDDED, mx.float32)
    scheduler = dataclasses.replace(SD, prediction_type=checkpoint.scheduler.prediction_type)
    return StableDiffusion.from_checkpoint(dataclasses.replace(checkpoint, scheduler=scheduler), "led", float16=False)


def first_t(sd, **options):
    """The time at which the network is first called."""
    times = []
    predict = type(sd._unet).predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sd._unet), "predict", lambda self, x, t, *rest: times.append(t.item()) or predict(
            self, x, t, *rest))  # fmt: skip
        for step in sd.generate_latents("a house", **SMALL | options):
            mx.eval(step.latents)
    return times[0]


class TestFewSteps:
    @pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "ddpm", "pndm", "euler_karras",
                                         "dpmpp_sde_exponential"])  # fmt: skip
    def test_one_begins_at_the_top_and_says_so(self, leading, sampler):
        with pytest.warns(UserWarning, match=r"begins at time .*run from the top instead"):
            assert first_t(leading, sampler=sampler, num_steps=1) == 999

    @pytest.mark.parametrize(("num_steps", "begins"), [(2, 501), (3, 667), (4, 751)])
    def test_two_to_four_begin_where_the_reference_does_and_say_so(self, leading, num_steps, begins):
        with pytest.warns(UserWarning, match=rf"{num_steps} steps of Euler .* begin at time \d+ of 999.*sgm_uniform"):
            assert abs(first_t(leading, sampler="euler", num_steps=num_steps) - begins) <= 1

    @pytest.mark.parametrize(("sampler", "num_steps"), [
        ("euler", 5), ("dpmpp_2m", 20), ("lcm", 1), ("lcm", 4), ("euler_sgm_uniform", 1), ("ddim_simple", 2),
        ("euler_uniform", 1), ("dpmpp_2m_karras", 1),
    ])  # fmt: skip
    def test_what_begins_high_enough_stays_as_it_is(self, leading, sampler, num_steps):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = sampler_by_name(sampler).plan(leading.scheduler_config, num_steps)
            assert first_t(leading, sampler=sampler, num_steps=num_steps) == plan.levels[0].t

    def test_a_spacing_that_was_asked_for_is_kept_and_warned_of(self, leading):
        with pytest.warns(UserWarning, match="at time 1 of 999.*little but noise"):
            assert first_t(leading, sampler=DDIMSampler(spacing="leading"), num_steps=1) == 1

    def test_image_to_image_begins_where_it_should(self, leading):
        picture = Image.new("RGB", (64, 64), "red")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert first_t(leading, input_image=picture, num_steps=4, denoising_strength=0.5) == 251
            assert first_t(leading, input_image=picture, num_steps=4, denoising_strength=1.0) == 751

    def test_inpainting_at_full_strength_begins_with_noise(self, leading):
        options = {"input_image": Image.new("RGB", (64, 64), "red"), "mask_image": Image.new("L", (64, 64), 255)}
        with pytest.warns(UserWarning, match="run from the top"):
            assert first_t(leading, **options, num_steps=1, denoising_strength=1.0) == 999

    def test_zero_terminal_snr_counts_as_the_usual_top(self, leading):
        config = dataclasses.replace(leading.scheduler_config, rescale_betas_zero_snr=True)
        with pytest.warns(UserWarning, match="zero terminal SNR"):
            sd = StableDiffusion.from_checkpoint(
                dataclasses.replace(load(EMBEDDED, mx.float32), scheduler=config), "zero", float16=False
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert first_t(sd, num_steps=20, sampler="euler") == 951

    def test_the_record_says_what_was_painted(self, leading):
        with pytest.warns(UserWarning, match="SGM Uniform"):
            (picture,) = leading.generate("a house", num_steps=1, **SMALL)
        assert (picture.parameters.sampler, picture.parameters.schedule) == ("Euler", "SGM Uniform")

    def test_the_page_says_so(self, tmp_path, monkeypatch):
        def load_leading(name, progress, **options):
            checkpoint = load(EMBEDDED, mx.float32)
            scheduler = dataclasses.replace(SD, prediction_type="v_prediction")
            return StableDiffusion.from_checkpoint(dataclasses.replace(checkpoint, scheduler=scheduler), "led")

        monkeypatch.setattr(worker_module, "load_model", load_leading)
        worker = Worker(tmp_path)
        try:
            over(job := worker.submit(Request("a", steps=1, width=64, height=64, n_images=2)))
            assert job.warning.count("run from the top instead") == 1, job.error
        finally:
            worker.close()


SMALLER = ["--width", "64", "--height", "64", "--quiet", "--seed", "1"]


@pytest.mark.parametrize(("options", "pair"), [
    (["--schedule", "KL Optimal"], ("Euler", "KL Optimal")),
    (["--sampler", "DPM++ 2M", "--schedule", "automatic"], ("DPM++ 2M", "Karras")),
    (["--sampler", "heun", "--schedule", "ddim"], ("Heun", "DDIM")),
    (["--sampler", "DPM++ 2M Karras", "--schedule", "karras"], ("DPM++ 2M", "Karras")),
    (["--sampler", "tcd", "--schedule", "automatic"], ("TCD", None)),
])  # fmt: skip
def test_the_schedule_option(options, pair, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    assert program.main(["txt2img", "a", "--steps", "3", *options, *SMALLER, "--output", str(first)]) == 0
    made = picture_files.read_parameters(first)
    assert (made.sampler, made.schedule) == pair
    assert program.main(["again", str(first), "--quiet", "--output", str(second)]) == 0
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


@pytest.mark.parametrize(("options", "said"), [
    (["--schedule", "karas"], "schedule = 'karas' is not known. Did you mean karras?"),
    (["--sampler", "PNDM", "--schedule", "karras"], "PNDM has no karras sigmas"),
    (["--sampler", "Euler Karras", "--schedule", "beta"], "Euler Karras has a schedule in its name"),
])  # fmt: skip
def test_the_schedule_option_refuses(options, said, capsys):
    assert program.main(["txt2img", "a", *options, *SMALLER]) != 0
    assert said in capsys.readouterr().err


def test_the_command_lines_and_the_pages_records_say_what_was_run(tmp_path, leading, monkeypatch):
    """Where the plan is moved to the top, another schedule runs than the one that was asked for."""
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", lambda *args, **options: leading, raising=False)
    out = tmp_path / "a.png"
    assert program.main(["txt2img", "a", "--steps", "1", *SMALLER, "--output", str(out)]) == 0
    made = picture_files.read_parameters(out)
    assert (made.sampler, made.schedule) == ("Euler", "SGM Uniform")
    monkeypatch.setattr(worker_module, "load_model", lambda name, progress, **options: leading)
    worker = Worker(tmp_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            over(job := worker.submit(Request("a", steps=1, width=64, height=64, seed=1)))
        said = picture_files.read_parameters(job.pictures[0].path)
        assert (said.sampler, said.schedule) == ("Euler", "SGM Uniform"), job.error
        assert job.request.sampler == "euler"
    finally:
        worker.close()


def test_the_command_line_takes_a_schedule_and_records_it(tmp_path):
    out = tmp_path / "a.png"
    command = ["txt2img", "a", "--sampler", "DPM++ 2M SGM Uniform", "--steps", "2", "--width", "64", "--height", "64"]
    assert program.main([*command, "--quiet", "--output", str(out)]) == 0
    made = picture_files.read_parameters(out)
    assert (made.sampler, made.schedule) == ("DPM++ 2M", "SGM Uniform")
    assert Request.from_record(made)[0].sampler == "dpmpp_2m_sgm_uniform"


class TestMarks:
    """Prediction type and zero terminal SNR: each can be set, and they are checked against each other."""

    def test_zero_terminal_snr_can_be_set(self):
        sd = StableDiffusion(zero_terminal_snr=True)
        assert sd.scheduler_config.rescale_betas_zero_snr and sd.scheduler_config.timestep_spacing == "trailing"
        assert sampler_by_name("ddim").plan(sd.scheduler_config, 4).levels[0].alpha == 0
        assert not StableDiffusion(zero_terminal_snr=False).scheduler_config.rescale_betas_zero_snr
        with pytest.raises(InputError, match="zero_terminal_snr = 'yes'"):
            StableDiffusion(zero_terminal_snr="yes")

    def test_it_changes_the_picture_and_is_recorded(self):
        found = {}
        for value in (None, False, True):
            (made,) = StableDiffusion(zero_terminal_snr=value).generate("a house", num_steps=2, **SMALL)
            found[value] = np.array(made.image)
            assert made.parameters.extra.get("Zero terminal SNR") == (None if value is None else str(value))
            assert Request.from_record(made.parameters)[0].zero_terminal_snr is value
        assert np.array_equal(found[None], found[False]) and not np.array_equal(found[None], found[True])

    def test_the_command_line(self, tmp_path):
        out = tmp_path / "a.png"
        small = ["--steps", "2", "--width", "64", "--height", "64", "--quiet", "--seed", "1"]
        for option, said in (("--zero-terminal-snr", "True"), ("--no-zero-terminal-snr", "False")):
            assert program.main(["txt2img", "a", *small, option, "--output", str(out)]) == 0
            before = Image.open(out).tobytes()
            assert picture_files.read_parameters(out).extra["Zero terminal SNR"] == said
            again = tmp_path / "b.png"
            assert program.main(["again", str(out), "--quiet", "--output", str(again)]) == 0
            assert picture_files.read_parameters(again).extra["Zero terminal SNR"] == said
            assert Image.open(again).tobytes() == before

    def test_marks_that_contradict_each_other_are_warned_of(self):
        with pytest.warns(UserWarning, match=r"predicts epsilon.*--prediction-type v_prediction.*--no-zero-terminal"):
            sd = StableDiffusion(zero_terminal_snr=True, prediction_type="epsilon")
        assert len(sd.notes) == 1
        generation = sd.generate_latents("a", num_steps=5)
        assert generation.notes == sd.notes
        assert StableDiffusion(zero_terminal_snr=True, prediction_type="v_prediction").notes == ()

    def test_pure_noise_that_is_never_reached(self):
        checkpoint = load(EMBEDDED, mx.float32)
        scheduler = dataclasses.replace(checkpoint.scheduler, rescale_betas_zero_snr=True, timestep_spacing="leading")
        with pytest.warns(UserWarning, match=r"leading spacing no step begins at pure noise.*euler_sgm_uniform"):
            StableDiffusion.from_checkpoint(dataclasses.replace(checkpoint, scheduler=scheduler), "mine")


def test_latents_that_are_not_finite_are_refused(leading):
    noise = np.zeros((1, 8, 8, 4), np.float32)
    noise[0, 0, 0, 0] = np.nan
    for name in ("latents", "input_latents"):
        with pytest.raises(InputError, match=f"{name} should be finite"):
            leading.generate_latents("a", **{name: noise}, width=64, height=64)

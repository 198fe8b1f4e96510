"""All samplers in one suite, with denoisers whose answers are known in closed form; and the registry of names."""

import dataclasses
import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from stable_diffusion.config import SchedulerConfig
from stable_diffusion.diffusion.denoiser import Denoiser
from stable_diffusion.diffusion.schedule import NoiseLevel
from stable_diffusion.errors import ConfigError, InputError, SamplerError, UnsupportedCheckpointError
from stable_diffusion.sampler import (
    SAMPLERS,
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    EulerAncestralSampler,
    LCMSampler,
    LMSSampler,
    PNDMSampler,
    SimpleEulerSampler,
    TCDSampler,
    UniPCSampler,
    a1111_name,
    key_of,
    name_of,
    sampler_by_name,
    sampler_from_a1111,
    sampler_names,
    samplers,
    with_eta,
)

SD = SchedulerConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=True
)
OFTEN = (None, "karras", "exponential", "uniform", "sgm_uniform")
# Every sampler and every schedule, but not each with each.
KEYS = tuple(
    key
    for key in sampler_names()
    if sampler_by_name(key).key in ("euler", "dpmpp_2m", "ddim", "dpmpp_sde", "dpm2", "restart")
    or sampler_by_name(key).sigma_schedule in OFTEN
)
PLAIN_KEYS = tuple(known.key for known in SAMPLERS)
STOCHASTIC = ("euler_a", "ddpm", "dpmpp_sde", "dpmpp_2m_sde", "dpm2_a", "dpmpp_2s_a", "dpmpp_3m_sde", "tcd")
TWO_CALLS = ("heun", "dpmpp_sde", "dpm2", "dpm2_a", "dpmpp_2s_a", "restart")
SHAPE = (2, 4, 6, 3)


def normal(seed, shape=SHAPE):
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def noises(seed=1, shape=SHAPE):
    seeds = itertools.count(100 * seed)
    return lambda: normal(next(seeds), shape)


class Gaussian:
    """The best possible U-Net for data of normal distribution (mean, std): its x_0 is the posterior mean."""

    def __init__(self, plan, mean=0.7, std=0.5, prediction_type="epsilon"):
        self.plan, self.mean, self.std, self.calls, self.steps = plan, mean, std, [], []
        self.levels = {level.t: level for level in (*plan.middles, *plan.levels)}
        self.denoiser = Denoiser(self.unet, prediction_type)

    def unet(self, x, t, step):
        self.calls.append(t)
        self.steps.append(step)
        level = self.levels[t] if t in self.levels else self.between(t)
        shrink = level.alpha * self.std**2 / self.spread(level) ** 2
        x_0 = self.mean + shrink * (x - level.alpha * self.mean)
        eps = (x - level.alpha * x_0) / level.sigma
        if self.denoiser.prediction_type == "sample":
            return x_0
        return eps if self.denoiser.prediction_type == "epsilon" else level.alpha * eps - level.sigma * x_0

    def between(self, t):
        """The level of a time that is none of the plan's: a restart's."""
        return NoiseLevel.from_ve_sigma(t, float(self.plan.schedule.sigma_from_t(np.array(t), by_log=True)))

    def spread(self, level):
        return math.hypot(level.alpha * self.std, level.sigma)

    def solution(self, x, start, end):
        """Where the probability flow carries x from one level to another."""
        return end.alpha * self.mean + self.spread(end) / self.spread(start) * (x - start.alpha * self.mean)


def run(sampler, plan, gaussian, x, seed=1):
    return list(sampler.sample(gaussian.denoiser, x, plan, noises(seed, x.shape)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("key", KEYS)
def test_data_of_one_point_is_reached_exactly(key, prediction_type):
    sampler = sampler_by_name(key)
    config = dataclasses.replace(SD, prediction_type=prediction_type)
    for num_steps in (1, 2, 5, 20):
        plan = sampler.plan(config, num_steps)
        x_0 = np.array(run(sampler, plan, Gaussian(plan, std=0.0, prediction_type=prediction_type), normal(3))[-1].x_0)
        # LCM leaves the boundary condition's small share of x_t in its estimate, where it begins at time 19.
        np.testing.assert_allclose(x_0, np.full(SHAPE, 0.7), atol=1e-3 if key == "lcm" else 3e-4)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("lcm", "tcd")])
def test_the_last_step_leaves_no_noise(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 20)
    step = run(sampler, plan, Gaussian(plan, std=0.0), normal(3))[-1]
    if key.endswith("kl_optimal"):  # which ends at the least noise that the network was trained on
        np.testing.assert_allclose(np.array(step.x), np.full(SHAPE, 0.7), atol=0.2)
        return
    assert step.sigma == 0
    np.testing.assert_allclose(np.array(step.x), np.full(SHAPE, 0.7), atol=2e-3)


# The error in the solution of the probability flow, over the same way, of twice as many steps: 2^-order.
ORDERS = {
    "euler": 1,
    "ddim": 1,
    "heun": 2,
    "lms": 3,
    "dpmpp_2m": 2,
    "pndm": 2,
    "heun_karras": 2,
    "dpm2_karras": 2,
    "lms_karras": 3,
    "dpmpp_2m_karras": 2,
    "unipc_karras": 3,
    "unipc_exponential": 3,
    "euler_exponential": 1,
}


def flow_error(key, num_steps):
    sampler = sampler_by_name(key)
    plan = sampler.plan(dataclasses.replace(SD, num_train_timesteps=4000, beta_start=0.0002, beta_end=0.003), num_steps)
    gaussian = Gaussian(plan)
    x = normal(5)
    # Up to the last step but for one eighth, for the last step to no noise has an order of its own.
    step = run(sampler, plan, gaussian, x)[num_steps * 7 // 8 - 1]
    end = plan.ends[num_steps * 7 // 8 - 1]
    assert (step.t, step.sigma) == (end.t, pytest.approx(end.ve_sigma))
    return float(mx.max(mx.abs(step.x - gaussian.solution(x, plan.start, end))))


@pytest.mark.parametrize("key", ORDERS)
def test_the_error_falls_with_the_order(key):
    errors = [flow_error(key, num_steps) for num_steps in (16, 32, 64)]
    assert math.log2(errors[0] / errors[-1]) / 2 > ORDERS[key] - 0.2


@pytest.mark.parametrize("key", [
    "euler_a", "euler_a_karras", "ddpm", "dpmpp_sde", "dpmpp_2m_sde_karras", "dpm2_a_karras", "dpmpp_2s_a_karras",
    "dpmpp_3m_sde_exponential", "restart_karras",
])  # fmt: skip
def test_stochastic_samplers_draw_from_the_data(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(dataclasses.replace(SD, timestep_spacing="trailing"), 200)
    x = run(sampler, plan, Gaussian(plan), plan.prior(normal(5, (4, 64, 64, 4))))[-1].x
    assert float(mx.mean(x)) == pytest.approx(0.7, abs=0.02)
    assert float(mx.std(x)) == pytest.approx(0.5, rel=0.05)


def test_ddim_with_eta_draws_from_the_data_too():
    plan = DDIMSampler(eta=1.0).plan(SD, 200)
    x = run(DDIMSampler(eta=1.0), plan, Gaussian(plan), normal(5, (4, 64, 64, 4)))[-1].x
    assert float(mx.std(x)) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("key", KEYS)
def test_steps_say_what_they_reached(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 6)
    steps = run(sampler, plan, Gaussian(plan), normal(3))
    assert [(step.index, step.total) for step in steps] == [(i, 6) for i in range(1, 7)]
    assert [step.t for step in steps] == [end.t for end in plan.ends]
    sigmas = [step.sigma for step in steps]
    assert sigmas == sorted(sigmas, reverse=True)
    noisy = key == "tcd" or key.endswith("kl_optimal")
    assert steps[-1].t == 0 and steps[-1].sigma == pytest.approx(0.0292 if noisy else 0.0, abs=1e-4)
    for step in steps:
        assert isinstance(step.t, float) and isinstance(step.sigma, float)
        assert step.x.shape == step.x_0.shape == SHAPE
        assert step.x.dtype == step.x_0.dtype == mx.float32


@pytest.mark.parametrize("key", KEYS)
def test_the_same_noise_gives_the_same_latents(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 5)
    first, second = (run(sampler, plan, Gaussian(plan), normal(3))[-1].x for _ in range(2))
    assert mx.array_equal(first, second)
    other = run(sampler, plan, Gaussian(plan), normal(3), seed=2)[-1].x
    draws_noise = sampler.key in (*STOCHASTIC, "euler_a_cfg_pp", "lcm")
    assert mx.array_equal(first, other) != draws_noise


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_a_dropped_generation_asks_the_network_no_more(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 10)
    gaussian = Gaussian(plan)
    steps = sampler.sample(gaussian.denoiser, normal(3), plan, noises())
    assert gaussian.calls == []
    next(steps)
    asked = len(gaussian.calls)
    assert asked == (2 if key in (*TWO_CALLS, "pndm") else 1)
    steps.close()
    assert len(gaussian.calls) == asked


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_two_generations_do_not_disturb_each_other(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 6)
    alone = run(sampler, plan, Gaussian(plan), normal(3))
    pair = [sampler.sample(Gaussian(plan).denoiser, normal(seed), plan, noises()) for seed in (3, 4)]
    together = [steps[0] for steps in zip(*pair, strict=True)]
    for a, b in zip(alone, together, strict=True):
        assert mx.array_equal(a.x, b.x)


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_nothing_is_computed_before_it_is_asked_for(key):
    sampler = sampler_by_name(key)
    plan = sampler.plan(SD, 6)
    x = mx.zeros((1, 512, 512, 4)) + 1
    mx.clear_cache()
    before = mx.get_active_memory()
    steps = list(sampler.sample(Gaussian(plan).denoiser, x, plan, lambda: mx.ones(x.shape)))
    assert mx.get_active_memory() - before < 1_000_000
    assert len(steps) == 6


@pytest.mark.parametrize("key", KEYS)
def test_image_to_image_runs_the_tail(key):
    sampler = sampler_by_name(key)
    whole = sampler.plan(SD, 10)
    plan = whole.tail(4)
    gaussian = Gaussian(plan, std=0.0)
    x = plan.renoise(mx.full(SHAPE, 0.7), normal(3))
    steps = run(sampler, plan, gaussian, x)
    assert [(step.index, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert gaussian.calls[0] == plan.start.t == whole.levels[6].t
    np.testing.assert_allclose(np.array(steps[-1].x_0), np.full(SHAPE, 0.7), atol=1e-3)


def test_dpm_sde_noises_are_of_one_brownian_motion():
    """With a network that answers nothing, the last latents hold the sum of independent increments."""
    sampler = sampler_by_name("dpmpp_sde")
    plan = sampler.plan(SD, 10).tail(2)
    asked = []

    def unet(x, t, step):
        asked.append(x)
        return mx.zeros(x.shape)

    constant = itertools.count(1)
    draws = [mx.full((1, 1, 1, 1), float(next(constant))) for _ in range(2)]
    step = next(sampler.sample(Denoiser(unet, "sample"), mx.zeros((1, 1, 1, 1)), plan, iter(draws).__next__))
    level, middle, end = plan.levels[8], plan.middles[8], plan.ends[8]
    whole = level.ve_sigma - end.ve_sigma
    motion = (level.ve_sigma - middle.ve_sigma) ** 0.5 * 1 + (middle.ve_sigma - end.ve_sigma) ** 0.5 * 2
    up = end.ve_sigma * math.sqrt(1 - (end.ve_sigma / level.ve_sigma) ** 2)
    assert step.x.item() == pytest.approx(end.alpha * up * motion / whole**0.5, rel=1e-5)
    half_up = middle.ve_sigma * math.sqrt(1 - (middle.ve_sigma / level.ve_sigma) ** 2)
    assert asked[1].item() == pytest.approx(middle.alpha * half_up * 1, rel=1e-5)


# The checkpoint's configuration


def test_the_file_decides_unless_the_sampler_says_otherwise():
    def first(sampler, **file):
        return sampler.plan(dataclasses.replace(SD, steps_offset=1, **file), 4).levels[0].t

    assert first(sampler_by_name("euler")) == 999  # the class's own: linspace
    assert first(sampler_by_name("ddim")) == 751  # the class's own: leading
    assert first(sampler_by_name("euler"), timestep_spacing="leading") == 751
    assert first(SimpleEulerSampler(spacing="trailing"), timestep_spacing="leading") == 999
    karras = sampler_by_name("euler_karras").plan(SD, 4).levels
    assert sampler_by_name("euler").plan(dataclasses.replace(SD, use_karras_sigmas=True), 4).levels == karras
    spaced = SimpleEulerSampler(sigma_schedule="spaced").plan(dataclasses.replace(SD, use_karras_sigmas=True), 4)
    assert spaced.levels == sampler_by_name("euler").plan(SD, 4).levels


def test_a_resolved_configuration_lacks_nothing_that_its_class_reads():
    for key in PLAIN_KEYS:
        sampler = sampler_by_name(key)
        resolved = sampler.resolve(SchedulerConfig())
        assert all(getattr(resolved, name) == value for name, value in sampler.defaults.items())


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2.5, "20", True, None, math.nan])
@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_numbers_of_steps_that_make_no_sense(key, num_steps):
    with pytest.raises(InputError, match=r"1 to 1000") as caught:
        sampler_by_name(key).plan(SD, num_steps)
    assert repr(num_steps) in str(caught.value)


def test_numpy_numbers_of_steps_are_whole_numbers_too():
    assert len(sampler_by_name("euler").plan(SD, np.int64(7))) == 7


@pytest.mark.parametrize(("key", "num_steps", "file"), [
    ("ddim", 1000, {"steps_offset": 1}),
    ("pndm", 1000, {"steps_offset": 1}),
    ("ddpm", 1000, {"steps_offset": 1}),
    ("dpmpp_2m", 1000, {}),
    ("dpmpp_2m", 1000, {"timestep_spacing": "leading"}),
    ("unipc", 999, {"timestep_spacing": "leading", "steps_offset": 1}),
    ("lms", 1000, {"timestep_spacing": "leading", "steps_offset": 1}),
    ("dpmpp_sde", 1000, {"timestep_spacing": "leading", "steps_offset": 1}),
    ("lcm", 51, {}),
    ("tcd", 51, {}),
    ("pndm", 3, {"skip_prk_steps": False}),
])  # fmt: skip
def test_what_breaks_the_reference_is_refused(key, num_steps, file):
    with pytest.raises(InputError, match=str(num_steps if num_steps < 1000 else "fewer steps")):
        sampler_by_name(key).plan(dataclasses.replace(SD, **file), num_steps)


def test_runge_kutta_cannot_begin_midway():
    plan = PNDMSampler(skip_prk_steps=False).plan(SD, 10)
    assert len(plan.tail(10)) == 10
    with pytest.raises(InputError, match="skip_prk_steps"):
        plan.tail(5)
    assert len(PNDMSampler(skip_prk_steps=True).plan(SD, 10).tail(5)) == 5


@pytest.mark.parametrize(("key", "file"), [
    ("heun", {"rescale_betas_zero_snr": True}),
    ("lms", {"rescale_betas_zero_snr": True}),
    ("pndm", {"rescale_betas_zero_snr": True}),
    ("dpmpp_sde", {"rescale_betas_zero_snr": True}),
    ("ddim", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("dpmpp_2m", {"interpolation_type": "log_linear"}),
    ("heun", {"sigma_max": 700.0}),
    ("euler", {"beta_schedule": "sigmoid"}),
])  # fmt: skip
def test_keys_that_a_sampler_does_not_know_are_refused_by_name(key, file):
    with pytest.raises(SamplerError, match=f"{next(iter(file))}.*Choose another"):
        sampler_by_name(key).plan(dataclasses.replace(SD, **file), 10)


def test_zero_terminal_snr_is_floored_or_not_as_in_the_reference():
    file = dataclasses.replace(
        SD, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    for key in ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        assert sampler_by_name(key).plan(file, 5).start.ve_sigma == pytest.approx(4096, rel=1e-4)
    for key in ("ddim", "ddpm", "lcm", "tcd"):
        assert sampler_by_name(key).plan(file, 5).start.alpha == 0
        with pytest.raises(SamplerError, match="zero terminal SNR"):
            sampler_by_name(key).plan(dataclasses.replace(file, prediction_type="epsilon"), 5)


@pytest.mark.parametrize(("sampler", "file", "error", "match"), [
    (DDPMSampler(), {"variance_type": "learned_range"}, UnsupportedCheckpointError, "learned_range"),
    (DDPMSampler(), {"variance_type": "fixed_large_log"}, UnsupportedCheckpointError, "fixed_large_log"),
    (DPMSolverSampler(), {"variance_type": "learned"}, UnsupportedCheckpointError, "learned"),
    (DPMSolverSampler(), {"solver_type": "bh3"}, UnsupportedCheckpointError, "bh3"),
    (DPMSolverSampler(), {"solver_order": 4}, SamplerError, "solver_order = 4"),
    (UniPCSampler(), {"solver_type": "rk"}, UnsupportedCheckpointError, "rk"),
    (UniPCSampler(), {"solver_order": 0}, SamplerError, "solver_order = 0"),
    (UniPCSampler(lower_order_final=False), {}, SamplerError, "lower_order_final"),
    (LCMSampler(), {"original_inference_steps": 1001}, ConfigError, "1001"),
    (SimpleEulerSampler(), {"use_karras_sigmas": True, "use_exponential_sigmas": True}, ConfigError, "both true"),
    (SimpleEulerSampler(), {"interpolation_type": "log_linear", "timestep_type": "continuous",
                            "prediction_type": "v_prediction"}, UnsupportedCheckpointError, "log_linear"),
])  # fmt: skip
def test_what_a_sampler_cannot_do_with_a_file(sampler, file, error, match):
    with pytest.raises(error, match=match):
        sampler.plan(dataclasses.replace(SD, **file), 10)


@pytest.mark.parametrize("make", [
    lambda: SimpleEulerSampler(spacing="even"),
    lambda: SimpleEulerSampler(sigma_schedule="even"),
    lambda: DDIMSampler(sigma_schedule="beta"),
    lambda: DDIMSampler(sigma_schedule="karras"),
    lambda: DDIMSampler(eta=2.0),
    lambda: TCDSampler(eta=1.01),
    lambda: EulerAncestralSampler(eta=-0.1),
    lambda: with_eta(sampler_by_name("dpm2_a"), math.nan),
    lambda: with_eta(sampler_by_name("dpmpp_2s_a"), "much"),
    lambda: with_eta(sampler_by_name("dpmpp_3m_sde"), True),
    lambda: with_eta(sampler_by_name("euler"), 0.5),
    lambda: LMSSampler(order=5),
    lambda: LCMSampler(strength=0.0),
])  # fmt: skip
def test_options_that_a_sampler_does_not_have(make):
    with pytest.raises(SamplerError):
        make()


def test_churn_stirs_only_between_its_bounds():
    sampler = SimpleEulerSampler(s_churn=4.0, s_tmin=1.0, s_tmax=5.0)
    plan = sampler.plan(SD, 10)
    drawn = []
    list(sampler.sample(Gaussian(plan).denoiser, normal(3), plan, lambda: drawn.append(1) or normal(4)))
    assert len(drawn) == sum(1.0 <= level.ve_sigma <= 5.0 for level in plan.levels) > 0


def test_dpm_solver_with_a_step_of_no_length_stays():
    file = dataclasses.replace(SD, use_karras_sigmas=True, final_sigmas_type="sigma_min", solver_order=3)
    for sampler in (DPMSolverSampler(), UniPCSampler()):
        plan = sampler.plan(file, 20)
        steps = run(sampler, plan, Gaussian(plan), normal(3))
        assert bool(mx.all(mx.isfinite(steps[-1].x)))
        assert mx.allclose(steps[-1].x, steps[-2].x, atol=0.05)


def test_equal_levels_are_the_same_whoever_made_them():
    assert NoiseLevel.from_ve_sigma(3.0, 0.5) == NoiseLevel.from_ve_sigma(3.0, 0.5)
    assert SimpleEulerSampler() == sampler_by_name("euler")


# Names


@pytest.mark.parametrize(("name", "key"), [
    ("euler", "euler"),
    ("Euler", "euler"),
    ("  EULER ", "euler"),
    ("Euler a", "euler_a"),
    ("euler ancestral", "euler_a"),
    ("DPM++ 2M Karras", "dpmpp_2m_karras"),
    ("dpm++ 2m karras", "dpmpp_2m_karras"),
    ("dpmpp_2m_karras", "dpmpp_2m_karras"),
    ("DPM++ 2M SDE", "dpmpp_2m_sde"),
    ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde_exponential"),
    ("DPM++ SDE Exponential", "dpmpp_sde_exponential"),
    ("DPM++ SDE Karras", "dpmpp_sde_karras"),
    ("LMS Karras", "lms_karras"),
    ("k_lms", "lms"),
    ("Heun", "heun"),
    ("DDIM", "ddim"),
    ("DDPM", "ddpm"),
    ("PLMS", "pndm"),
    ("PNDM", "pndm"),
    ("UniPC", "unipc"),
    ("uni_pc", "unipc"),
    ("LCM", "lcm"),
    ("EulerDiscreteScheduler", "euler"),
    ("DPMSolverMultistepScheduler", "dpmpp_2m"),
    ("dpmpp_2m_k", "dpmpp_2m_karras"),
    ("DPM2", "dpm2"),
    ("DPM2 Karras", "dpm2_karras"),
    ("k_dpm_2_ka", "dpm2_karras"),
    ("DPM2 a", "dpm2_a"),
    ("DPM2 a Karras", "dpm2_a_karras"),
    ("k_dpm_2_a", "dpm2_a"),
    ("dpm_2_ancestral", "dpm2_a"),
    ("DPM++ 2S a Karras", "dpmpp_2s_a_karras"),
    ("dpmpp_2s_ancestral", "dpmpp_2s_a"),
    ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde_exponential"),
    ("DPM++ 3M SDE Karras", "dpmpp_3m_sde_karras"),
    ("Restart", "restart"),
    ("Euler a CFG++", "euler_a_cfg_pp"),
    ("euler_ancestral_cfg_pp", "euler_a_cfg_pp"),
    ("TCD", "tcd"),
    ("TCDScheduler", "tcd"),
    ("k_euler_ancestral", "euler_a"),
])  # fmt: skip
def test_samplers_are_found_by_the_names_that_users_know(name, key):
    assert key_of(name) == key
    assert key_of(sampler_by_name(name)) == key


def test_every_key_and_title_leads_back_to_its_key():
    for key, title in sampler_names().items():
        assert key_of(key) == key_of(title) == key
        assert name_of(key) == title
    assert len(set(sampler_names().values())) == len(sampler_names())


def test_a_sampler_is_itself():
    sampler = DDIMSampler(eta=0.5)
    assert sampler_by_name(sampler) is sampler
    assert key_of(sampler) == "ddim"
    assert key_of(SimpleEulerSampler(sigma_schedule="spaced")) == "euler"


@pytest.mark.parametrize(("name", "near"), [
    ("eular", "euler"), ("DPM++ 2M Karas", "dpmpp_2m_karras"), ("unipcc", "unipc"), ("xyz", "There are euler"),
])  # fmt: skip
def test_unknown_names_are_refused_with_near_ones(name, near):
    with pytest.raises(SamplerError, match=near) as caught:
        sampler_by_name(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, "", ["euler"]])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(SamplerError):
        sampler_by_name(name)


@pytest.mark.parametrize("name", ["ddim_karras", "DDIM Karras", "LCM Exponential", "PLMS Karras", "ddpm_exponential"])
def test_combinations_that_make_no_sense_are_refused_by_name(name):
    with pytest.raises(SamplerError, match=r"has no (karras|exponential) sigmas.*euler_"):
        sampler_by_name(name)


def test_pairs_of_picture_metadata():
    assert a1111_name("dpmpp_2m_karras") == ("DPM++ 2M", "Karras")
    assert a1111_name("euler") == ("Euler", None)
    assert a1111_name("pndm") == ("PLMS", None)
    for key in sampler_names():
        assert key_of(sampler_from_a1111(*a1111_name(key))) == key
    assert key_of(sampler_from_a1111("DPM++ 2M", "Automatic")) == "dpmpp_2m_karras"
    assert key_of(sampler_from_a1111("Euler a", "Automatic")) == "euler_a"
    assert key_of(sampler_from_a1111("DPM++ 2M", None)) == key_of(sampler_from_a1111("DPM++ 2M", "")) == "dpmpp_2m"
    assert key_of(sampler_from_a1111("DPM++ 2M Karras")) == "dpmpp_2m_karras"
    assert key_of(sampler_from_a1111("DDIM", "Karras")) == "ddim"
    with pytest.raises(SamplerError, match=r"'Polyexponentail' is not known\. Did you mean polyexponential"):
        sampler_from_a1111("Euler", "Polyexponentail")


def test_the_list_of_samplers_is_the_registrys():
    assert [each.key for each in samplers()] == list(PLAIN_KEYS)
    keys = [key for each in samplers() for key in (each.key, *(f"{each.key}_{name}" for name in each.schedules))]
    assert keys == list(sampler_names()) and all(sampler_by_name(key).title for key in keys)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_each_call_of_the_network_is_told_its_step(key, first, skip):
    """Those of the steps that are run count from 1, and the calls of one step lie between those of its neighbours."""
    if first and not skip:
        return  # Runge-Kutta steps cannot begin midway
    plan = sampler_by_name(key).plan(dataclasses.replace(SD, skip_prk_steps=skip), 8).tail(8 - first)
    gaussian = Gaussian(plan)
    seen = []
    for step in sampler_by_name(key).sample(gaussian.denoiser, normal(3), plan, noises()):
        assert set(gaussian.steps) == {step.index}
        seen += gaussian.steps
        gaussian.steps.clear()
    assert sorted(set(seen)) == list(range(1, 9 - first))
    twice = 7 - first if key in TWO_CALLS else (1 if skip else 9) if key == "pndm" else 0
    assert len(seen) == 8 - first + twice

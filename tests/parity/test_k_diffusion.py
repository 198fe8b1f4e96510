"""Whole trajectories against k-diffusion's own samplers, and of those that it lacks against their published formulas.

Both sides are given the same analytic network, which is nonlinear in x and depends on t, the same sigmas, the same
first latents and the same noises, so that any wrong time, weight or order of a draw shows.
"""

import dataclasses
import inspect
import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchdiffeq")

import mlx.core as mx  # noqa: E402

from stable_diffusion.config import SchedulerConfig  # noqa: E402
from stable_diffusion.diffusion.denoiser import Denoiser  # noqa: E402
from stable_diffusion.sampler import sampler_by_name, with_eta  # noqa: E402

from . import k_diffusion_alone  # noqa: E402

sampling = k_diffusion_alone.load()

pytestmark = pytest.mark.parity

SHAPE = (2, 3, 5, 4)
TOLERANCE = 1e-4
SD = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
REFERENCE = {
    "dpm2": sampling.sample_dpm_2,
    "dpm2_a": sampling.sample_dpm_2_ancestral,
    "dpmpp_2s_a": sampling.sample_dpmpp_2s_ancestral,
    "dpmpp_3m_sde": sampling.sample_dpmpp_3m_sde,
}
SCHEDULES = ["karras", "exponential", "polyexponential", "uniform", "sgm_uniform", "simple", "kl_optimal", "beta",
             "align_your_steps", "ddim"]  # fmt: skip
STEPS = [1, 2, 3, 7, 20, 40]


def table():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bars = np.cumprod(1 - betas)
    return np.sqrt((1 - alpha_bars) / alpha_bars)


def network(x, t, tanh, shift=0.0):
    """Something smooth that no two times share; `x` is a torch, numpy or MLX array."""
    return tanh(0.8 * x + 0.1 + shift) * (1 + 0.3 * math.sin(t / 170)) + 0.05 * math.cos(t / 31)


def time_of(sigma):
    return float(np.interp(math.log(sigma), np.log(table()), np.arange(1000)))


def eps_of(x, sigma, tanh, shift=0.0):
    """The network's eps for x = x_0 + sigma eps."""
    return network(x / math.sqrt(1 + sigma**2), time_of(sigma), tanh, shift)


def x_0_of(x, sigmas, **_):
    """k-diffusion's model."""
    sigma = float(sigmas[0])
    return x - sigma * eps_of(x, sigma, torch.tanh)


def draws(seed, count):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(SHAPE).astype(np.float32) for _ in range(count)]


def trajectory(sampler, plan, x, noises, denoiser=None):
    """Ours: latents after each step as x_0 + sigma eps, from such latents."""
    rest = iter(noises)
    denoiser = denoiser or Denoiser(lambda x, t, step: network(x, t, mx.tanh), "epsilon")
    x = mx.array(x * plan.start.alpha)
    steps = list(sampler.sample(denoiser, x, plan, lambda: mx.array(next(rest))))
    assert [(step.index, step.total) for step in steps] == [(i + 1, len(plan)) for i in range(len(plan))]
    return [np.array(step.x) * math.sqrt(1 + step.sigma**2) for step in steps]


def sigmas_of(plan):
    return np.array([*(level.ve_sigma for level in plan.levels[plan.first :]), plan.ends[-1].ve_sigma])


def agree(got, expected, where):
    assert len(got) == len(expected), where
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= TOLERANCE, f"{where}: step {i + 1} is off by {error:.2e}"


def k_trajectory(function, sigmas, x, noises, **options):
    """k-diffusion's latents after each step: its callback is called with those before."""
    seen, rest = [], iter(noises)
    if "noise_sampler" in inspect.signature(function).parameters:
        options["noise_sampler"] = lambda *_: torch.from_numpy(next(rest))
    last = function(
        x_0_of, torch.from_numpy(x), torch.from_numpy(sigmas.astype(np.float32)), disable=True,
        callback=lambda said: seen.append(said["x"].numpy()), **options,
    )  # fmt: skip
    return [*seen[1:], last.numpy()]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("key", REFERENCE)
def test_whole_trajectories(key, schedule):
    sampler = sampler_by_name(f"{key}_{schedule}")
    for num_steps in STEPS[key == "dpmpp_3m_sde" :]:  # whose single step has no length in the reference: NameError
        plan = sampler.plan(SD, num_steps)
        noises = draws(num_steps, num_steps + 1)
        x = noises[0] * plan.start.ve_sigma
        expected = k_trajectory(REFERENCE[key], sigmas_of(plan), x, noises[1:])
        agree(trajectory(sampler, plan, x, noises[1:]), expected, f"{key}, {schedule}, {num_steps} steps")


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("key", [*(key for key in REFERENCE if key != "dpm2"), "euler_a"])
def test_eta_and_beginning_midway(key, eta):
    sampler = with_eta(sampler_by_name(f"{key}_karras"), eta)
    plan = sampler.plan(SD, 20).tail(13)
    noises = draws(7, 14)
    x = noises[0] * plan.start.ve_sigma
    function = sampling.sample_euler_ancestral if key == "euler_a" else REFERENCE[key]
    expected = k_trajectory(function, sigmas_of(plan), x, noises[1:], eta=eta)
    agree(trajectory(sampler, plan, x, noises[1:]), expected, f"{key}, eta {eta}")


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("key", REFERENCE)
def test_other_prediction_types(key, prediction_type):
    """A network that answers v or x_0 where the reference's answers the eps of the same x_0."""
    sampler = sampler_by_name(f"{key}_karras")
    plan = sampler.plan(dataclasses.replace(SD, prediction_type=prediction_type), 12)
    noises = draws(3, 13)
    x = noises[0] * plan.start.ve_sigma
    levels = {level.t: level for level in (*plan.levels, *plan.middles)}

    def answer(x, t, step):
        level, eps = levels[t], network(x, t, mx.tanh)
        x_0 = (x - level.sigma * eps) / level.alpha
        return x_0 if prediction_type == "sample" else level.alpha * eps - level.sigma * x_0

    expected = k_trajectory(REFERENCE[key], sigmas_of(plan), x, noises[1:])
    got = trajectory(sampler, plan, x, noises[1:], Denoiser(answer, prediction_type))
    agree(got, expected, f"{key}, {prediction_type}")


@pytest.mark.parametrize("key", ["dpm2", "dpm2_a", "dpmpp_3m_sde"])
def test_the_last_level_above_zero_of_one_step_more_is_left_out(key):
    """A1111's discard_next_to_last_sigma."""
    for num_steps in STEPS:
        sigmas = sampling.get_sigmas_karras(num_steps + 1, table()[0], table()[-1]).numpy()
        plan = sampler_by_name(f"{key}_karras").plan(SD, num_steps)
        np.testing.assert_allclose(sigmas_of(plan), np.delete(sigmas, -2), rtol=2e-5)


@pytest.mark.parametrize(("schedule", "function"), [
    ("karras", sampling.get_sigmas_karras),
    ("exponential", sampling.get_sigmas_exponential),
    ("polyexponential", sampling.get_sigmas_polyexponential),
])  # fmt: skip
def test_schedules(schedule, function):
    for num_steps in STEPS:
        plan = sampler_by_name(f"dpmpp_2s_a_{schedule}").plan(SD, num_steps)
        np.testing.assert_allclose(sigmas_of(plan), function(num_steps, table()[0], table()[-1]).numpy(), rtol=2e-5)


# What k-diffusion lacks: Restart and CFG++, by their published formulas, once more in numpy


def karras(n, low, high):
    """Equation 5 of arXiv:2206.00364."""
    return (high ** (1 / 7) + np.linspace(0, 1, n) * (low ** (1 / 7) - high ** (1 / 7))) ** 7


def heun(x, start, end):
    """Algorithm 2 of arXiv:2206.00364 without noise."""
    slope = eps_of(x, start, np.tanh)
    there = x + (end - start) * slope
    if end == 0:
        return there
    return x + (end - start) * (slope + eps_of(there, end, np.tanh)) / 2


def restart(sigmas, x, noises):
    """Algorithm 1 of arXiv:2306.14878 with A1111's choices, as its documentation of the sampler has them."""
    n, rest = len(sigmas) - 1, iter(noises)
    count, times = (n // 4, 2) if n >= 36 else (9, 1) if n >= 20 else (0, 0)
    if times:
        sigmas = np.append(karras(n - count * times, sigmas[-2], sigmas[0]), 0)
    at, top = np.abs(sigmas - 0.1).argmin(), np.abs(sigmas - 2).argmin()
    latents = []

    def go(sigmas):
        nonlocal x
        for start, end in itertools.pairwise(sigmas):
            x = heun(x, start, end)
            latents.append(x)

    if not times:
        go(sigmas)
        return latents
    go(sigmas[: at + 1])
    for _ in range(times):
        x = x + math.sqrt(sigmas[top] ** 2 - sigmas[at] ** 2) * next(rest)
        go(karras(count + 1, sigmas[at], sigmas[top]))
    go(sigmas[at:])
    return latents


@pytest.mark.parametrize("schedule", ["karras", "uniform"])
@pytest.mark.parametrize("num_steps", [1, 2, 19, 20, 21, 35, 36, 50])
def test_restart(num_steps, schedule):
    sampler = sampler_by_name(f"restart_{schedule}")
    for steps in {num_steps, max(1, num_steps * 3 // 4)}:
        plan = sampler.plan(SD, num_steps).tail(steps)
        noises = [noise.astype(np.float64) for noise in draws(num_steps, 4)]
        x = noises[0] * plan.start.ve_sigma
        expected = restart(sigmas_of(plan), x, noises[1:])
        got = trajectory(sampler, plan, x.astype(np.float32), [noise.astype(np.float32) for noise in noises[1:]])
        agree(got, expected, f"{num_steps} steps, {steps} of them")


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("weight", [0.6, 1.0, 1.8])
def test_euler_a_cfg_pp(weight, eta):
    """x' = x_0 + sigma_down eps_negative + sigma_up z, where x_0 is the guided one: algorithm 2 of arXiv:2406.08070."""
    sampler = with_eta(sampler_by_name("euler_a_cfg_pp_karras"), eta)
    for num_steps in (1, 2, 20):
        plan = sampler.plan(SD, num_steps)
        noises = [noise.astype(np.float64) for noise in draws(num_steps, num_steps + 1)]
        x = noises[0] * plan.start.ve_sigma
        sigmas, expected = sigmas_of(plan), []
        y = x
        for i, (start, end) in enumerate(itertools.pairwise(sigmas)):
            negative, text = eps_of(y, start, np.tanh), eps_of(y, start, np.tanh, 0.4)
            x_0 = y - start * (negative + weight * (text - negative))
            up = min(end, eta * end * math.sqrt(start**2 - end**2) / start)
            y = x_0 + math.sqrt(end**2 - up**2) * negative + (up * noises[i + 1] if up else 0)
            expected.append(y)

        def answer(x, t, step):
            negative, text = mx.split(x, 2)
            return mx.concatenate([network(negative, t, mx.tanh), network(text, t, mx.tanh, 0.4)])

        denoiser = Denoiser(answer, "epsilon", weight, needs_negative=sampler.needs_negative)
        got = trajectory(
            sampler, plan, x.astype(np.float32), [noise.astype(np.float32) for noise in noises[1:]], denoiser
        )
        agree(got, expected, f"{num_steps} steps, weight {weight}, eta {eta}")

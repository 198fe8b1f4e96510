"""Whole trajectories of every sampler against the diffusers scheduler that it stands for.

Both sides are given the same analytic "network", the same first latents and the same noises, so that any wrong time,
level, weight or order of a draw shows. The network is nonlinear in x and depends on t.
"""

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import mlx.core as mx  # noqa: E402
from diffusers.utils import logging  # noqa: E402

from stable_diffusion import families  # noqa: E402
from stable_diffusion.config import SchedulerConfig  # noqa: E402
from stable_diffusion.diffusion.denoiser import Denoiser  # noqa: E402
from stable_diffusion.diffusion.spacing import ALIGNED_SIGMAS  # noqa: E402
from stable_diffusion.sampler import (  # noqa: E402
    DDIMSampler,
    LCMSampler,
    SimpleEulerSampler,
    TCDSampler,
    sampler_by_name,
)

logging.set_verbosity_error()

# diffusers asks torch for arrays in a way that numpy 2 has a notice about
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHAPE = (2, 3, 5, 4)
TOLERANCE = 1e-4

REFERENCE = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
    "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}
VE = {"euler", "euler_a", "heun", "lms", "dpmpp_sde"}
TWO_CALLS = {"heun", "dpmpp_sde"}
WHOLE_TIMES = set(REFERENCE) - VE
NAMED = ["euler", "heun", "lms", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "unipc"]
KNOWS_SAMPLE = set(REFERENCE) - {"euler_a", "dpmpp_sde", "pndm"}
KNOWS_ZERO_SNR = ["euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "ddim", "ddpm", "lcm", "tcd"]
SPACINGS = ["leading", "linspace", "trailing"]

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# clip_sample is false in Stable Diffusion's files, and its pipeline turns it off where it is missing.
SD = {**SD_BETAS, "clip_sample": False, "steps_offset": 1, "skip_prk_steps": True}


def network(x, t, tanh):
    """Something smooth that no two times share; `x` is a torch or an MLX array."""
    return tanh(0.8 * x + 0.1) * (1 + 0.3 * math.sin(t / 170)) + 0.05 * math.cos(t / 31)


def draws(seed, count):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(SHAPE).astype(np.float32) for _ in range(count)]


class Brownian:
    """The noise sampler of DPM++ SDE: two draws a step, the second interval holding the first."""

    def __init__(self, noises):
        self.noises, self.half = iter(noises), None

    def __call__(self, start, end):
        if self.half is None:
            self.half = (float(start - end), torch.from_numpy(next(self.noises)))
            return self.half[1]
        (first, half), self.half = self.half, None
        rest = torch.from_numpy(next(self.noises))
        whole = float(start - end)
        return math.sqrt(first / whole) * half + math.sqrt((whole - first) / whole) * rest


def make_reference(key, file):
    if key == "dpmpp_2m_sde":
        file = {**file, "algorithm_type": "sde-dpmsolver++"}
    elif key == "dpmpp_2m":
        file = {**file, "algorithm_type": "dpmsolver++"}
    return REFERENCE[key].from_config(file)


class DoubleTorch:
    """torch with float64 in the place of float32, for a scheduler that insists on float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def run_reference(key, scheduler, noises, monkeypatch, num_steps, tail=None, exact=False, **step_options):
    """(times given to the network, latents after every user-visible step in variance preserving form).

    `exact` runs it in float64: where sigma is in the thousands, x_0 + sigma eps in float32 has lost digits of x_0
    that our form keeps.
    """
    noises = [noise.astype(np.float64 if exact else np.float32) for noise in noises]
    first, rest = torch.from_numpy(noises[0]), iter(noises[2:])
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(next(rest)))
    if exact:
        scheduler.sigmas = scheduler.sigmas.double()
    scheduler.noise_sampler = Brownian(rest)
    times, begin = scheduler.timesteps, 0
    if tail is not None:
        begin = (num_steps - tail) * scheduler.order
        times = times[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if tail is None:
        x = first * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(torch.from_numpy(noises[1]) * 0.7, first, times[:1])

    asked, latents = [], []
    for t in times:
        output = network(scheduler.scale_model_input(x, t), float(t), torch.tanh)
        asked.append(float(t))
        with monkeypatch.context() as patch:
            patch.setattr(module, "torch", DoubleTorch() if exact else torch)
            x = scheduler.step(output, t, x, return_dict=False, **step_options)[0]
        scale = math.sqrt(1 + float(scheduler.sigmas[scheduler.step_index]) ** 2) if key in VE else 1.0
        latents.append((x / scale).numpy())
    return asked, visible(key, scheduler, latents)


def visible(key, scheduler, latents):
    """The latents after user-visible steps, out of those after every call."""
    if key in TWO_CALLS:
        return [*latents[1::2], *latents[-1:]]
    if key == "pndm" and not scheduler.config.skip_prk_steps:
        return [*latents[3:12:4], *latents[12:]]
    return latents[1:] if key == "pndm" and len(latents) > 1 else latents


def run_ours(sampler, plan, prediction_type, noises, tail=None):
    """The same of ours."""
    asked = []

    def unet(x, t, step):
        asked.append(t)
        return network(x, t, mx.tanh)

    first, rest = mx.array(noises[0]), iter(noises[2:])
    if tail is None:
        x = plan.prior(first)
    else:
        plan = plan.tail(tail)
        x = plan.renoise(mx.array(noises[1]) * 0.7, first)
    steps = list(sampler.sample(Denoiser(unet, prediction_type), x, plan, lambda: mx.array(next(rest))))
    assert [step.index for step in steps] == list(range(1, len(plan) + 1))
    return asked, [np.array(step.x) for step in steps]


def compare(key, file, num_steps, monkeypatch, tail=None, sampler=None, breaks=False, **step_options):
    """Hold a trajectory of ours to the reference's; where that `breaks` (NaN at its last step), ours should not."""
    noises = draws(num_steps, 2 * num_steps + 4)
    scheduler = make_reference(key, file)
    scheduler.set_timesteps(num_steps)
    exact = key in VE and float(scheduler.sigmas.max()) > 100
    times, expected = run_reference(key, scheduler, noises, monkeypatch, num_steps, tail, exact, **step_options)
    sampler = sampler or sampler_by_name(key)
    config = SchedulerConfig.from_dict(file)
    asked, got = run_ours(sampler, sampler.plan(config, num_steps), config.prediction_type, noises, tail)

    where = f"{key}, {num_steps} steps, tail {tail}, {file}"
    named = any(file.get(f"use_{name}_sigmas") for name in ("karras", "exponential", "beta"))
    continuous = file.get("timestep_type") == "continuous"
    if key in WHOLE_TIMES or not (named or continuous or key == "dpmpp_sde"):
        assert asked == times, where
    else:
        np.testing.assert_allclose(asked, times, rtol=2e-6, atol=2e-4, err_msg=where)
    assert len(got) == len(expected), where
    if breaks:
        assert np.isnan(expected.pop()).any() and np.isfinite(got.pop()).all(), where
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= TOLERANCE, f"{where}: step {i + 1} is off by {error:.2e}"


def prediction_types(key):
    return ["epsilon", "v_prediction", "sample"] if key in KNOWS_SAMPLE else ["epsilon", "v_prediction"]


STEP_COUNTS = [1, 2, 3, 7, 20, 50]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("key", REFERENCE)
def test_every_spacing(key, spacing, monkeypatch):
    for prediction_type in prediction_types(key):
        for num_steps in STEP_COUNTS:
            file = {**SD, "timestep_spacing": spacing, "prediction_type": prediction_type}
            compare(key, file, num_steps, monkeypatch)


@pytest.mark.parametrize("named", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("key", NAMED)
def test_karras_exponential_and_beta(key, spacing, named, monkeypatch):
    for prediction_type in prediction_types(key):
        for num_steps in STEP_COUNTS if prediction_type == "epsilon" else (3, 20):
            file = {**SD, "timestep_spacing": spacing, "prediction_type": prediction_type}
            file[f"use_{named}_sigmas"] = True
            compare(key, file, num_steps, monkeypatch)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("key", REFERENCE)
def test_image_to_image(key, spacing, monkeypatch):
    for num_steps, tail in ((20, 1), (20, 2), (20, 7), (20, 14), (20, 18), (20, 19), (20, 20), (7, 3), (1, 1)):
        file = {**SD, "timestep_spacing": spacing, "prediction_type": "v_prediction" if tail in (7, 18) else "epsilon"}
        compare(key, file, num_steps, monkeypatch, tail)
        if key in NAMED:
            compare(key, {**file, "use_karras_sigmas": True}, num_steps, monkeypatch, tail)


@pytest.mark.parametrize("named", ["karras", "exponential"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_ancestral_with_named_sigmas(spacing, named, monkeypatch):
    """The reference's ancestral class has no such option: k-diffusion's step over the Euler class's sigmas."""
    file = {**SD, "timestep_spacing": spacing}
    for num_steps in STEP_COUNTS:
        noises = draws(num_steps, num_steps + 4)
        scheduler, levels = (
            make_reference("euler_a", file),
            make_reference("euler", {**file, f"use_{named}_sigmas": True}),
        )
        scheduler.set_timesteps(num_steps)
        levels.set_timesteps(num_steps)
        scheduler.sigmas, scheduler.timesteps = levels.sigmas, levels.timesteps
        times, expected = run_reference("euler_a", scheduler, noises, monkeypatch, num_steps)
        sampler = sampler_by_name(f"euler_a_{named}")
        asked, got = run_ours(sampler, sampler.plan(SchedulerConfig.from_dict(file), num_steps), "epsilon", noises)
        np.testing.assert_allclose(asked, times, rtol=2e-6, atol=2e-4)
        for a, b in zip(got, expected, strict=True):
            assert np.abs(a - b).max() / np.abs(b).max() <= TOLERANCE


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("key", KNOWS_ZERO_SNR)
def test_zero_terminal_snr(key, spacing, monkeypatch):
    file = {**SD, "timestep_spacing": spacing, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    for num_steps in STEP_COUNTS:
        compare(key, file, num_steps, monkeypatch)
        compare(key, file, num_steps, monkeypatch, tail=(num_steps + 1) // 2)


@pytest.mark.parametrize("named", ["karras", "exponential"])
@pytest.mark.parametrize("key", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_zero_terminal_snr_with_named_sigmas(key, named, monkeypatch):
    file = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, f"use_{named}_sigmas": True}
    for num_steps in (2, 7, 20):
        compare(key, file, num_steps, monkeypatch)


# scheduler_config.json of well-known checkpoints, as they stand in the hub but for keys that say nothing here.
FILES = {
    "sd 1.5": {**SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
               "trained_betas": None},
    "sd 2.1": {**SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
               "prediction_type": "v_prediction", "trained_betas": None},
    "sdxl": {**SD_BETAS, "clip_sample": False, "interpolation_type": "linear", "prediction_type": "epsilon",
             "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
             "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
    "turbo": {**SD_BETAS, "clip_sample": False, "interpolation_type": "linear", "prediction_type": "epsilon",
              "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
              "timestep_spacing": "trailing", "trained_betas": None, "use_karras_sigmas": False},
    "lcm": {**SD_BETAS, "clip_sample": False, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
            "original_inference_steps": 50, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
            "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 1, "thresholding": False,
            "timestep_scaling": 10.0, "timestep_spacing": "leading", "trained_betas": None},
    "postcards-tiny": {**SD_BETAS, "clip_sample": False, "final_sigmas_type": "zero", "interpolation_type": "linear",
                       "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "sigma_max": None,
                       "sigma_min": None, "steps_offset": 1, "timestep_spacing": "leading",
                       "timestep_type": "discrete", "trained_betas": None, "use_beta_sigmas": False,
                       "use_exponential_sigmas": False, "use_karras_sigmas": False},
    "dpm solver": {**SD_BETAS, "clip_sample": False, "algorithm_type": "dpmsolver++", "solver_order": 2,
                   "solver_type": "midpoint", "lower_order_final": True, "thresholding": False,
                   "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "use_karras_sigmas": True,
                   "lambda_min_clipped": -math.inf, "variance_type": None, "euler_at_final": False},
    "nothing": {"clip_sample": False},
    "cosine": {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
    "other betas": {"clip_sample": False, "trained_betas": np.linspace(0.0004, 0.03, 400).tolist(),
                    "num_train_timesteps": 400},
    "short": {**SD_BETAS, "clip_sample": False, "num_train_timesteps": 100, "steps_offset": 1},
}  # fmt: skip


@pytest.mark.parametrize("key", REFERENCE)
@pytest.mark.parametrize("name", FILES)
def test_files_of_checkpoints(name, key, monkeypatch):
    file = FILES[name]
    for num_steps in (4, 20, 30):
        compare(key, file, num_steps, monkeypatch)
        if key != "pndm" or file.get("skip_prk_steps"):
            compare(key, file, num_steps, monkeypatch, tail=num_steps * 3 // 5)


@pytest.mark.parametrize("key", [*sorted(WHOLE_TIMES - {"lcm", "tcd"}), "euler", "euler_a", "heun"])
def test_as_many_steps_as_training_times(key, monkeypatch):
    """Every training time, or all that leading spacing has where its offset pushes the first one out."""
    short = {**SD, "num_train_timesteps": 200}
    compare(key, {**short, "timestep_spacing": "leading"}, 198, monkeypatch)
    compare(key, {**short, "timestep_spacing": "trailing"}, 200, monkeypatch)
    if key in ("ddim", "euler"):
        compare(key, {**SD, "timestep_spacing": "trailing"}, 1000, monkeypatch)
        compare(key, {**SD, "timestep_spacing": "leading"}, 999, monkeypatch)


@pytest.mark.parametrize("key", ["dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpm_solver_options(key, solver_type, monkeypatch):
    for order in (1, 2, 3):
        for options in ({}, {"lower_order_final": False}, {"euler_at_final": True}, {"final_sigmas_type": "sigma_min"},
                        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}):  # fmt: skip
            file = {**SD, "solver_order": order, "solver_type": solver_type, **options}
            # A step of no length is 0 / 0 in the reference, but for order 1 and the plain second order.
            stands = "use_karras_sigmas" in options and order > (2 if solver_type == "midpoint" else 1)
            for num_steps in (1, 2, 3, 8, 20):
                compare(key, file, num_steps, monkeypatch, breaks=stands and num_steps == 20)
            compare(key, file, 20, monkeypatch, tail=9, breaks=stands)


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
def test_unipc_options(solver_type, monkeypatch):
    for order in (1, 2, 3, 4):
        for options in ({}, {"final_sigmas_type": "sigma_min"},
                        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
                        {"final_sigmas_type": "sigma_min", "use_exponential_sigmas": True},
                        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}):  # fmt: skip
            file = {**SD, "solver_order": order, "solver_type": solver_type, **options}
            # B(h) = h is infinite where the last step ends at no noise, and the reference takes it times 0.
            breaks = solver_type == "bh1" and "final_sigmas_type" not in options
            for num_steps in (1, 2, 3, 8, 20):
                compare("unipc", file, num_steps, monkeypatch, breaks=breaks)
            compare("unipc", file, 20, monkeypatch, tail=9, breaks=breaks)


@pytest.mark.parametrize("options", [
    {"final_sigmas_type": "sigma_min"},
    {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
    {"use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
    {"interpolation_type": "log_linear"},
    {"interpolation_type": "log_linear", "use_karras_sigmas": True},
    {"interpolation_type": "log_linear", "use_karras_sigmas": True, "timestep_type": "continuous"},
    {"timestep_type": "continuous"},
    {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0},
])  # fmt: skip
def test_euler_options(options, monkeypatch):
    for prediction_type in ("epsilon", "v_prediction"):
        for spacing in SPACINGS:
            file = {**SD, "timestep_spacing": spacing, "prediction_type": prediction_type, **options}
            for num_steps in (1, 2, 20):
                compare("euler", file, num_steps, monkeypatch)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_euler_churn(prediction_type, monkeypatch):
    options = {"s_churn": 4.0, "s_tmin": 0.3, "s_tmax": 9.0, "s_noise": 1.01}
    file = {**SD, "prediction_type": prediction_type}
    compare("euler", file, 20, monkeypatch, sampler=SimpleEulerSampler(**options), **options)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_eta(eta, spacing, monkeypatch):
    for set_alpha_to_one in (True, False):
        file = {**SD, "timestep_spacing": spacing, "set_alpha_to_one": set_alpha_to_one}
        for num_steps in (1, 3, 20):
            compare("ddim", file, num_steps, monkeypatch, sampler=DDIMSampler(eta=eta), eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.55, 1.0])
def test_tcd_gamma(eta, monkeypatch):
    for file in ({}, {"original_inference_steps": 36}, {"prediction_type": "v_prediction"}):
        for num_steps in (1, 2, 4, 8, 35):
            compare("tcd", {**SD, **file}, num_steps, monkeypatch, sampler=TCDSampler(eta=eta), eta=eta)
        compare("tcd", {**SD, **file}, 8, monkeypatch, tail=5, sampler=TCDSampler(eta=eta), eta=eta)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_variances(variance_type, monkeypatch):
    for beta_schedule in ("scaled_linear", "sigmoid"):
        file = {**SD, "beta_schedule": beta_schedule, "variance_type": variance_type}
        compare("ddpm", file, 20, monkeypatch)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pndm_with_runge_kutta(prediction_type, spacing, monkeypatch):
    file = {**SD, "skip_prk_steps": False, "timestep_spacing": spacing, "prediction_type": prediction_type}
    for num_steps in (4, 5, 7, 20, 33):
        compare("pndm", file, num_steps, monkeypatch)


@pytest.mark.parametrize("original", [50, 36, 100])
def test_lcm_times(original, monkeypatch):
    for num_steps in (1, 2, 4, 8, 35):
        file = {**SD, "original_inference_steps": original, "timestep_scaling": 7.0}
        compare("lcm", file, num_steps, monkeypatch)
        for strength in (1.0, 0.8, 0.35):
            if int(original * strength) >= num_steps:
                scheduler = make_reference("lcm", file)
                scheduler.set_timesteps(num_steps, strength=strength)
                plan = LCMSampler(strength=strength).plan(SchedulerConfig.from_dict(file), num_steps)
                assert [level.t for level in plan.levels] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("key", REFERENCE)
def test_every_number_of_steps_has_the_reference_times(key):
    """Times and first latents for all numbers of steps, where rounding is easiest to get wrong."""
    for spacing in SPACINGS:
        file = {**SD, "timestep_spacing": spacing}
        for num_steps in [*range(4, 130, 3 if key == "dpmpp_sde" else 1), 250, 333, 499]:
            if key in ("lcm", "tcd") and num_steps > 50:
                continue
            scheduler = make_reference(key, file)
            scheduler.set_timesteps(num_steps)
            plan = sampler_by_name(key).plan(SchedulerConfig.from_dict(file), num_steps)
            times = scheduler.timesteps.tolist()
            if spacing == "trailing" and times[-1] == -1:
                times.pop()  # a step at time -1 that rounding let in
            if key in TWO_CALLS:
                times = times[::2]
            elif key == "pndm":
                times = [*times[:1], *times[2:]]
            got = [level.t for level in (plan.calls[:1] + plan.calls[2:] if key == "pndm" else plan.levels)]
            assert got == times, f"{num_steps} steps, {spacing}"


def test_options_of_the_sampler_win_over_the_file(monkeypatch):
    file = {**SD, "timestep_spacing": "leading", "use_karras_sigmas": True}
    for key in ("euler", "dpmpp_2m", "unipc"):
        told = {**file, "timestep_spacing": "trailing", "use_karras_sigmas": False, "use_exponential_sigmas": True}
        sampler = dataclasses.replace(sampler_by_name(f"{key}_exponential"), spacing="trailing")
        config = SchedulerConfig.from_dict(file)
        expected = sampler_by_name(key).plan(SchedulerConfig.from_dict(told), 12)
        assert sampler.plan(config, 12).levels == expected.levels
        compare(key, told, 12, monkeypatch)


@pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
@pytest.mark.parametrize("num_steps", [3, 11, 20])
def test_align_your_steps(num_steps, family, monkeypatch):
    """The reference's table, which leaves out the level before the last, and its Euler over any sigmas."""
    published = diffusers.schedulers.AysSchedules
    row = families.SDXL if family.endswith("XL") else families.SD1
    table = row.aligned_sigmas or ALIGNED_SIGMAS
    assert [*table[:-1], 0.0] == published[f"{family}Sigmas"]
    sampler = sampler_by_name("euler_align_your_steps")
    plan = sampler.plan(
        dataclasses.replace(SchedulerConfig.from_dict(SD), aligned_sigmas=row.aligned_sigmas), num_steps
    )
    if num_steps == 11:
        times = [round(level.t) for level in plan.levels[:-1]]
        np.testing.assert_allclose(times, published[f"{family}Timesteps"], atol=1)
    noises = draws(num_steps, num_steps + 4)
    scheduler = make_reference("euler", SD)
    scheduler.set_timesteps(sigmas=[*(level.ve_sigma for level in plan.levels), 0.0])
    times, expected = run_reference("euler", scheduler, noises, monkeypatch, num_steps)
    asked, got = run_ours(sampler, plan, "epsilon", noises)
    np.testing.assert_allclose(asked, times, rtol=2e-6, atol=2e-4)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() / np.abs(b).max() <= TOLERANCE

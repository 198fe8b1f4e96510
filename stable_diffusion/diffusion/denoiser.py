"""From a network's prediction to x_0 and eps: the one place that knows prediction types and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..backend import mx
from ..config import PREDICTION_TYPES
from ..errors import InputError
from .guiding import Guidance, steered
from .schedule import NoiseLevel, NoiseSchedule

FLOW_TIMES = 1000  # a flow network's time for pure noise

# (x (n B, h, w, C), t, step) -> prediction of the same shape; the rows are [negative, text, ...], B of each, or without
# guidance the texts' alone, and the step counts from 1.
NetworkCall = Callable[[mx.array, float, int], mx.array]


@dataclass(frozen=True)
class Prediction:
    """One answer of the network, (B, h, w, C) float32 each, lazy: a sampler pays only for what it uses."""

    x_0: mx.array
    eps: mx.array
    output: mx.array  # the guided answer, still of the network's own prediction type


@dataclass(frozen=True)
class GuidanceInterval:
    """The part of a generation of `steps` steps in which guidance acts; elsewhere the text's answer counts alone.

    Kynkäänniemi et al. 2024, arXiv:2404.07724. `start` and `end` are shares of the steps, compared as A1111 compares
    its skip_early_cond (modules/sd_samplers_cfg_denoiser.py). Below `min_sigma`, a ve_sigma, guidance ends as well:
    A1111's s_min_uncond with s_min_uncond_all.
    """

    steps: int = 1
    start: float = 0.0
    end: float = 1.0
    min_sigma: float = 0.0

    def holds(self, level: NoiseLevel, step: int) -> bool:
        """Whether guidance acts at a level in a step, from 1."""
        done = (step - 1) / self.steps
        begun = done > self.start or not self.start
        on = done < self.end or self.end == 1  # to the very end, whatever the number of steps
        return begun and on and level.ve_sigma >= self.min_sigma


@dataclass(frozen=True)
class Denoiser:
    """The network and its prompt as a function of latents and noise level.

    With `cfg_weight` above 1 negative and text run in one batch; otherwise, or if the network takes the weight as an
    input of its own (`embedded_guidance`, LCM), the network sees each latent once. A composition has a weight for each
    text in `weights`, and always needs the negative too; with `embedded_guidance`, which has no negative, the first
    text takes its place (A1111 modules/sd_samplers_cfg_denoiser.py), and so it does outside the `interval` in which
    guidance acts. `needs_negative` runs the negative at any weight, for samplers that ask for its own answer. `seen`
    changes the latents before the network sees them (inpainting restores the kept part). `guidance` adds a gradient to
    the answer of all texts together (guiding.py). `refiner` is another model's denoiser, with a guidance of its own,
    which answers at times below `refined_below`; `schedule` is that of the network's own training, if the plan's is
    another one. Raises `InputError` for a weight that is not finite or a `guidance_rescale` outside [0, 1].
    """

    network: NetworkCall
    prediction_type: str = "epsilon"
    cfg_weight: float = 1.0
    guidance_rescale: float = 0.0
    embedded_guidance: bool = False
    weights: tuple[float, ...] = (1.0,)
    interval: GuidanceInterval = GuidanceInterval()
    needs_negative: bool = False
    seen: Callable[[mx.array, NoiseLevel], mx.array] | None = None
    schedule: NoiseSchedule | None = None
    refiner: Denoiser | None = None
    refined_below: float = 0.0
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"prediction_type = {self.prediction_type!r} should be one of {', '.join(PREDICTION_TYPES)}."
            )
        if not math.isfinite(self.cfg_weight):
            raise InputError(f"cfg_weight = {self.cfg_weight!r} should be a finite number.")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale = {self.guidance_rescale!r} should lie between 0 and 1.")

    @property
    def guided(self) -> bool:
        """True if, within the interval, the negative text's rows precede those of the texts."""
        return (self.cfg_weight > 1 or len(self.weights) > 1 or self.needs_negative) and not self.embedded_guidance

    def __call__(self, x: mx.array, level: NoiseLevel, step: int) -> Prediction:
        """Run the network on latents x (B, h, w, C) at a level; `step` counts the steps that are run, from 1."""
        return self.prediction(self.output(x, level, step), x, level)

    def output(self, x: mx.array, level: NoiseLevel, step: int) -> mx.array:
        """The network's guided answer for x at a level, float32, still of its own prediction type."""
        if self._is_refined(level):
            return self._refined(x, level, step)
        return self._steered(self._combined(self._answers(x, level, step)), x, level)

    def with_negative(self, x: mx.array, level: NoiseLevel, step: int) -> tuple[Prediction, Prediction]:
        """The guided prediction, and the negative text's own; without guidance, the first text's takes its place."""
        if self.refiner is not None and self._is_refined(level):
            return self.refiner.with_negative(self._as_seen(x, level), level, step)
        answers = self._answers(x, level, step)
        guided = self._steered(self._combined(answers), x, level)
        return self.prediction(guided, x, level), self.prediction(answers[0], x, level)

    def _answers(self, x: mx.array, level: NoiseLevel, step: int) -> list[mx.array]:
        """The network's answer for each text, float32: if guided, the negative's first."""
        x = self._as_seen(x, level)
        t = level.t if self.schedule is None else self.schedule.t_from_ve_sigma(level.ve_sigma)
        if self.prediction_type == "flow":
            x, t = flow_latents(x, level), FLOW_TIMES * flow_share(level)
        guided = self.guided and self.interval.holds(level, step)
        rows = len(self.weights) + guided
        if rows == 1:
            return [self.network(x, t, step).astype(mx.float32)]
        return list(mx.split(self.network(mx.concatenate([x] * rows), t, step).astype(mx.float32), rows))

    def _combined(self, answers: list[mx.array]) -> mx.array:
        """The guided answer, from what `_answers` gives."""
        if len(answers) == 1:
            return answers[0]
        if len(answers) == len(self.weights):
            return composition(answers[0], answers, self.weights, 1.0)
        negative, texts = answers[0], answers[1:]
        answer = composition(negative, texts, self.weights, self.cfg_weight)
        return rescaled_guidance(answer, sum(texts[1:], texts[0]) / len(texts), self.guidance_rescale)

    def _steered(self, output: mx.array, x: mx.array, level: NoiseLevel) -> mx.array:
        """The answer, with the gradient of `guidance` if there is one."""
        if self.guidance is None or not level.alpha or not level.sigma:
            return output
        gradient = self.guidance(x, level, self.prediction(output, x, level).x_0)
        return steered(output, gradient, level, self.prediction_type)

    def _as_seen(self, x: mx.array, level: NoiseLevel) -> mx.array:
        return x if self.seen is None else self.seen(x, level)

    def _is_refined(self, level: NoiseLevel) -> bool:
        return self.refiner is not None and level.t < self.refined_below

    def _refined(self, x: mx.array, level: NoiseLevel, step: int) -> mx.array:
        """The refiner's guided answer, of this denoiser's prediction type."""
        refiner, x = self.refiner, self._as_seen(x, level)
        assert refiner is not None
        if refiner.prediction_type == self.prediction_type:
            return refiner.output(x, level, step)
        found = refiner(x, level, step)
        if self.prediction_type == "epsilon":
            return found.eps
        if self.prediction_type == "v_prediction":
            return v_from_eps(found.x_0, found.eps, level)
        return found.eps - found.x_0 if self.prediction_type == "flow" else found.x_0

    def prediction(self, output: mx.array, x: mx.array, level: NoiseLevel) -> Prediction:
        """x_0 and eps from an answer of the network, with x at `level`."""
        if self.prediction_type == "epsilon":
            return Prediction(x0_from_eps(x, output, level), output, output)
        if self.prediction_type == "v_prediction":
            return Prediction(x0_from_v(x, output, level), eps_from_v(x, output, level), output)
        if self.prediction_type == "flow":
            return Prediction(x0_from_flow(x, output, level), eps_from_flow(x, output, level), output)
        return Prediction(output, eps_from_x0(x, output, level), output)


def composition(negative: mx.array, texts: Sequence[mx.array], weights: Sequence[float], cfg_weight: float) -> mx.array:
    """negative + w sum_i w_i (text_i - negative): with one text of weight 1, classifier-free guidance.

    Ho and Salimans 2022, arXiv:2207.12598; Liu et al. 2022, arXiv:2206.01714, eq. 11.
    """
    guided = negative
    for text, weight in zip(texts, weights, strict=True):
        guided = guided + cfg_weight * weight * (text - negative)
    return guided


def rescaled_guidance(guided: mx.array, text: mx.array, guidance_rescale: float) -> mx.array:
    """Bring each image's standard deviation back towards the text's, by the share `guidance_rescale` in [0, 1].

    Equations 15 and 16 of Lin et al. 2023, arXiv:2305.08891 (diffusers rescale_noise_cfg).
    """
    if not guidance_rescale:
        return guided
    axes = tuple(range(1, guided.ndim))
    scale = mx.std(text, axis=axes, keepdims=True) / mx.std(guided, axis=axes, keepdims=True)
    return guided * (guidance_rescale * scale + (1 - guidance_rescale))


def x0_from_eps(x: mx.array, eps: mx.array, level: NoiseLevel) -> mx.array:
    """x_0 = (x_t - sigma eps) / alpha; needs alpha > 0."""
    return (x - level.sigma * eps) / level.alpha


def x0_from_v(x: mx.array, v: mx.array, level: NoiseLevel) -> mx.array:
    """x_0 = alpha x_t - sigma v. Appendix D of Salimans and Ho 2022, arXiv:2202.00512."""
    return level.alpha * x - level.sigma * v


def eps_from_v(x: mx.array, v: mx.array, level: NoiseLevel) -> mx.array:
    """eps = alpha v + sigma x_t."""
    return level.alpha * v + level.sigma * x


def v_from_eps(x_0: mx.array, eps: mx.array, level: NoiseLevel) -> mx.array:
    """v = alpha eps - sigma x_0."""
    return level.alpha * eps - level.sigma * x_0


def flow_share(level: NoiseLevel) -> float:
    """s of x_s = (1 - s) x_0 + s eps, flow matching's straight path, at a level's signal-to-noise ratio."""
    return level.sigma / (level.alpha + level.sigma)


def flow_latents(x: mx.array, level: NoiseLevel) -> mx.array:
    """x_s = x_t / (alpha + sigma)."""
    return x / (level.alpha + level.sigma)


def x0_from_flow(x: mx.array, u: mx.array, level: NoiseLevel) -> mx.array:
    """x_0 = x_s - s u, where u = eps - x_0.

    Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """
    return flow_latents(x, level) - flow_share(level) * u


def eps_from_flow(x: mx.array, u: mx.array, level: NoiseLevel) -> mx.array:
    """eps = x_s + (1 - s) u."""
    return flow_latents(x, level) + (1 - flow_share(level)) * u


def eps_from_x0(x: mx.array, x_0: mx.array, level: NoiseLevel) -> mx.array:
    """eps = (x_t - alpha x_0) / sigma; needs sigma > 0."""
    return (x - level.alpha * x_0) / level.sigma

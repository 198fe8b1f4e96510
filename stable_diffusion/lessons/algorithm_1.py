"""Algorithm 1 with one digit: noise, prediction, loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..training import ddpm
from ..training.ddpm_run import DDPMTask
from .common import DDPM
from .digits_model import CONFIG, a_digit, load
from .drawing import lines, png
from .lesson import Block, Chart, Lesson, Options, Report, Say, Shown, Side, Slider, Strip, Values

TIMES = (1, 20, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000)  # from 1, as in the paper


@dataclass(frozen=True)
class Examples:
    """One digit at several times: x_t, the network's prediction of its noise, (n, 28, 28) each, and the losses."""

    x_0: np.ndarray
    eps: np.ndarray
    x_t: np.ndarray
    predicted: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """The mean squared error at each time, (n,)."""
        return np.square(self.predicted - self.eps).mean((1, 2))


def compute(model: object, report: Report, values: Values) -> Examples:
    """Run the network of digits on one digit at several times."""
    import mlx.core as mx

    label = int(values["digit"])
    x_0 = a_digit(label)
    eps = np.random.default_rng(0).standard_normal(x_0.shape)
    n, t = len(TIMES), mx.array(TIMES) - 1
    first, noise = (mx.array(np.repeat(each[None].astype(np.float32), n, 0)) for each in (x_0, eps))
    x_t = ddpm.noised(first, t, noise, CONFIG)
    predicted = load()(x_t, t, mx.full((n,), label))
    return Examples(x_0[:, :, 0], eps[:, :, 0], np.array(x_t)[..., 0], np.array(predicted)[..., 0])


def show(found: Examples, values: Values) -> Sequence[Block]:
    i = int(np.abs(np.array(TIMES) - values["t"]).argmin())
    t, abar = TIMES[i], float(CONFIG.alpha_bars[TIMES[i] - 1])
    estimate = (found.x_t[i] - (1 - abar) ** 0.5 * found.predicted[i]) / abar**0.5
    pictures = (
        (found.x_0, 1, "x_0", "x₀, the data (line 2)"),
        (found.eps, 3, "the noise", "ε (line 4)"),
        (found.x_t[i], 2, "x_t", f"xₜ, t = {t} (line 3)"),
        (found.predicted[i], 3, "the predicted noise", "ε_θ(xₜ, t) (line 5)"),
        (estimate, 1, "what that says about the digit", "x̂₀"),
    )
    return [
        Side(
            [
                [
                    Strip(
                        [
                            Shown(png(array, 4, -span, span), f"A digit: {alt}", caption)
                            for array, span, alt, caption in pictures
                        ]
                    ),
                    Say(f"The loss of this example: **{found.losses[i]:.4f}**. Saying zero would cost about 1."),
                ],
                [Chart(lines({"loss": (TIMES, found.losses)}, "time t", "loss"), "The loss at each time")],
            ]
        )
    ]


LESSON = Lesson(
    key="algorithm-1",
    title="Algorithm 1: training",
    text=(
        "Training a diffusion model is five lines, repeated. Take a picture. Draw a time and noise. Mix them in one "
        "jump, and ask the network for the noise. Move every weight a little against the squared error. The code below "
        "is what `stable-diffusion train ddpm` runs; with it this network of digits was trained, on drawings made by "
        "this program. Look at one example at several times. At a large time nearly everything is noise, and the "
        "network only repeats it: the loss is small. At a small time the noise hides in the strokes' edges and is hard "
        "to tell."
    ),
    equations=(
        r"\nabla_\theta \left\lVert \varepsilon - \varepsilon_\theta\left(\sqrt{\bar\alpha_t}\, x_0 + "
        r"\sqrt{1 - \bar\alpha_t}\, \varepsilon,\; t\right) \right\rVert^2, \qquad t \sim U(1, T)",
    ),
    compute=compute,
    show=show,
    asks=(Options("digit", "Digit", tuple(range(10)), 3),),
    views=(Slider("t", "Time t", 1, 1000, 150),),
    papers=(DDPM,),
    code=(DDPMTask.batch, ddpm.noised, ddpm.training_loss),
    needs_model=False,
)

"""A teacher and its student from one noise: many steps, the same steps left out, and few that were learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..catalogue import DEFAULT, STUDENT
from ..training.distil import distillation_loss
from .common import CFG, PROMPT, Settings, decoded, painted, picture_of
from .drawing import lines
from .lesson import Block, Chart, Choose, Lesson, Paper, Report, Say, Shown, Slider, Strip, Values

TEACHER, PUPIL = "teacher", "student"
STEPS = (1, 2, 4, 8)
LIMIT = 32  # of the teacher: where its first student's lessons began
CFG_WEIGHT = 5.0


@dataclass(frozen=True)
class Few:
    """Pictures by who painted them and in how many steps, and their root mean square distance to `whole`."""

    whole: bytes
    pictures: dict[tuple[str, int], bytes]
    distances: dict[tuple[str, int], float]


def compute(model: Any, report: Report, values: Values) -> Few:
    """Paint one noise with both embedded models, whatever model is loaded."""
    from ..pipeline import StableDiffusion  # here, since it brings MLX

    teacher, student = (StableDiffusion(name) for name in (DEFAULT, STUDENT))
    how = {"settings": Settings(cfg=CFG_WEIGHT, seed=int(values["seed"]), sampler="ddim"), "prompt": values["prompt"]}
    latents = painted(teacher, report, how, f"The teacher, {LIMIT} steps", num_steps=LIMIT)
    goal, whole = picture_of(teacher, latents), decoded(teacher, latents)
    pictures, distances = {}, {}
    for name, painter in ((TEACHER, teacher), (PUPIL, student)):
        for steps in STEPS:
            latents = painted(painter, report, how, f"The {name}, {steps} steps", num_steps=steps)
            pictures[name, steps] = decoded(painter, latents)
            distances[name, steps] = float(np.sqrt(np.square(picture_of(painter, latents) - goal).mean()))
    return Few(whole, pictures, distances)


def steps_of(found: Few) -> list[int]:
    """The numbers of steps that were tried."""
    return sorted({steps for _, steps in found.pictures})


def usual_of(found: Few) -> int:
    """The place of the number that the student was trained for."""
    return steps_of(found).index(4)


def rows_of(name: str, steps: int) -> int:
    """What a picture costs: guidance takes the teacher two rows a step, and the student none of its own."""
    return 2 * steps if name == TEACHER else steps


def show(found: Few, values: Values) -> Sequence[Block]:
    tried = steps_of(found)
    steps = tried[usual_of(found) if values.get("steps") is None else values["steps"]]
    pair = [
        Shown(
            found.pictures[name, steps],
            f"The {name}'s picture of {steps} steps",
            f"{name}, {steps} steps: {rows_of(name, steps)} rows  \ndistance {found.distances[name, steps]:.3f}",
        )
        for name in (TEACHER, PUPIL)
    ]
    whole = Shown(
        found.whole,
        f"The teacher's picture of {LIMIT} steps",
        f"teacher, {LIMIT} steps: {rows_of(TEACHER, LIMIT)} rows",
    )
    curves = {
        name: ([rows_of(name, each) for each in tried], [found.distances[name, each] for each in tried])
        for name in (TEACHER, PUPIL)
    }
    return [
        Strip([whole, *pair]),
        Chart(
            lines(curves, "rows of the network", f"distance to the teacher's {LIMIT} steps", log_x=True),
            "The distance of both models' pictures to the teacher's with many steps, over the rows that they cost",
        ),
        Say(
            "The student was trained for 4 steps. With other numbers it is asked for strides, or at times, that it has "
            "not learnt."
        ),
    ]


LESSON = Lesson(
    key="fewer-steps",
    title="Fewer steps",
    text=(
        "A sampler with few steps cuts the corners of a curve, and the picture blurs. But the end of two steps can be "
        "learnt: a *student*, which begins as a copy of its *teacher*, is shown noisy latents and where two of the "
        "teacher's steps lead from there, and learns to get there in one. Then it becomes the teacher, and another "
        "student halves the steps again: 32, 16, 8, 4. This is *progressive distillation*. In the first round the "
        "student also learns guidance, with the weight w as an input (*guided distillation*), so that it is asked "
        "once a step, not twice: four rows instead of sixty-four. The price is a training, and a model that is good at "
        "one number of steps."
    ),
    equations=(
        r"\tilde x = \frac{x_{t''} - (\sigma_{t''} / \sigma_t)\, x_t}"
        r"{\alpha_{t''} - (\sigma_{t''} / \sigma_t)\, \alpha_t}",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT, Slider("seed", "Seed", 1, 20, 1)),
    views=(Choose("steps", "Steps", lambda found: [str(each) for each in steps_of(found)], usual_of),),
    papers=(
        Paper("Salimans and Ho 2022, Progressive distillation for fast sampling", "https://arxiv.org/abs/2202.00512"),
        Paper("Meng et al. 2023, On distillation of guided diffusion models", "https://arxiv.org/abs/2210.03142"),
        CFG,
    ),
    code=(distillation_loss,),
    needs_model=False,
)

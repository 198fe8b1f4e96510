"""Distillation: a student's target, its grid, guidance as an input, refused teachers, and a folder at the end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import ClassVar

import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion, catalogue, ops
from stable_diffusion.backend import mx, nn
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.errors import ConfigError, InputError, UnsupportedCheckpointError
from stable_diffusion.model_io.load_folder import load_folder
from stable_diffusion.model_io.parts import part_folder
from stable_diffusion.model_io.quantised import quantise
from stable_diffusion.sampler import sampler_by_name
from stable_diffusion.training import distil_run
from stable_diffusion.training.distil import (
    Guided,
    ddim_step,
    distillation_loss,
    grid,
    levels_of,
    nested_grids,
    reached,
    truncated_snr,
    v_from_x0,
    x0_to_reach,
)
from stable_diffusion.training.distil_run import check_teacher, new_task, student_of
from stable_diffusion.training.loop import Intervals, Limit
from stable_diffusion.training.networks import (
    SCHEDULER,
    TextToLatents,
    new_autoencoder,
    write_index,
    write_json,
    write_part,
)
from stable_diffusion.training.recipe import Recipe
from stable_diffusion.training.runs import RUNS
from stable_diffusion.training.vocabulary import write_tokenizer
from stable_diffusion.unet import UNet

from . import shapes
from .networks import to_numpy

VAE = AutoencoderConfig.from_dict({**shapes.VAE, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1})
TEXT = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
UNET = UNetConfig.from_dict(
    {**shapes.UNET, "block_out_channels": (16, 16, 16), "norm_num_groups": 8, "layers_per_block": 1,
     "cross_attention_dim": 16, "attention_head_dim": 2}
)  # fmt: skip
STUDENT = dataclasses.replace(SCHEDULER, set_alpha_to_one=True)
SELDOM = Intervals(report=1, save=1e9, look=1e9)
HALVINGS = [(32, 16), (16, 8), (8, 4)]


class Plain:
    """Six pictures of one colour each."""

    size = 64
    COLOURS: ClassVar = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}

    def __len__(self) -> int:
        return 6

    def example(self, index: int) -> tuple[np.ndarray, str]:
        name = list(self.COLOURS)[index % 3]
        return np.full((self.size, self.size, 3), self.COLOURS[name], np.uint8), f"all {name}"

    def batch(self, indices):
        pictures, captions = zip(*map(self.example, indices), strict=True)
        return np.stack(pictures), list(captions)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A small checkpoint whose U-Net heeds its text: untrained, but with a last layer that is not zero."""
    folder = tmp_path_factory.mktemp("small") / "teacher"
    write_tokenizer(folder / "tokenizer", [Plain().example(i)[1] for i in range(6)])
    text = dataclasses.replace(TEXT, vocab_size=len(json.loads((folder / "tokenizer" / "vocab.json").read_text())))
    model = TextToLatents(dataclasses.replace(text, eos_token_id=text.vocab_size - 1), UNET, 0)
    for name, value in tree_flatten(model.unet.parameters()):
        if not value.any() and value.ndim > 1:
            model.unet.load_weights([(name, 0.2 * mx.random.normal(value.shape))], strict=False)
    write_part(folder, "unet", model.unet, sample_size=8)
    write_part(folder, "text_encoder", model.text_encoder)
    write_part(folder, "vae", new_autoencoder(VAE, 0))
    write_index(folder, SCHEDULER)
    return folder


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory) -> Path:
    """A student of two steps of training, 32 -> 16."""
    folder = tmp_path_factory.mktemp("small") / "student"
    RUNS["distil"].train(Plain(), folder, Limit(steps=2), Recipe(batch=2, warm_up=1), teacher=str(teacher),
                         prompts=["all red"] * 2, intervals=SELDOM)  # fmt: skip
    return folder


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape, np.float32))


class Gaussian:
    """A guided teacher in closed form: x_0 ~ N(1, 0.25) with a text, N(0, 1) without, for which v is 0."""

    def __init__(self):
        alpha_bars = sampler_by_name("ddim").plan(STUDENT, 4).schedule.alpha_bars
        self.tables = mx.array(np.sqrt(alpha_bars)), mx.array(np.sqrt(1 - alpha_bars))

    def context(self, text, no_text):
        return None

    def __call__(self, x, t, w, context):
        alpha, sigma = (table[t.astype(mx.int32)][:, None, None, None] for table in self.tables)
        x_0 = 1 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - alpha)
        return w[:, None, None, None] * (alpha * x - x_0) / sigma


class Affine(nn.Module):
    """v = a x + b, a and b quadratic in w, at each of four times."""

    def __init__(self):
        super().__init__()
        self.a, self.b = mx.zeros((4, 3)), mx.zeros((4, 3))

    def context(self, text, no_text):
        return None

    def __call__(self, x, t, w, context):
        place, u = t.astype(mx.int32) // 250, (w - 4.5) / 3.5
        powers = mx.stack([mx.ones_like(u), u, u * u], axis=-1)
        a, b = ((table[place] * powers).sum(-1)[:, None, None, None] for table in (self.a, self.b))
        return a * x + b


# --- The target


@pytest.mark.parametrize("steps", HALVINGS, ids=str)
def test_one_step_of_the_student_lands_where_two_of_the_teacher_do(steps):
    """With a teacher in closed form, the guided one of Gaussians: at every place of the grid, to 1e-5."""

    v = Gaussian()
    rows = mx.array(nested_grids(STUDENT, *steps).astype(np.float32))
    levels = [levels_of(rows[:, i]) for i in range(rows.shape[1])]
    x = normal(len(rows), 4, 4, 4)
    w = mx.full((len(x),), 3.0)
    there = reached(v, x, levels, w, None)
    assert float(mx.abs(there - ddim_step(x, v(x, levels[0].t, w, None), levels[0], levels[-1])).max()) > 1e-3
    target = v_from_x0(x, x0_to_reach(x, there, levels[0], levels[-1]), levels[0])
    assert float(mx.abs(ddim_step(x, target, levels[0], levels[-1]) - there).max()) < 1e-5


@pytest.mark.parametrize("steps", [4, 8])
def test_the_students_grid_is_the_samplers(steps):
    """At every step it is asked where it was trained, and goes as far as it was trained to."""
    plan = sampler_by_name("ddim").plan(STUDENT, steps)
    rows = nested_grids(STUDENT, 2 * steps, steps)
    for place, level, end in zip(rows, plan.levels, plan.ends, strict=True):
        assert place[0].tolist() == [level.t, level.alpha, level.sigma]
        assert place[-1, 1:].tolist() == [end.alpha, end.sigma]
    assert [level.t for level in plan.levels][-1] == 1000 // steps - 1 and plan.ends[-1].sigma == 0


def test_grids_lie_within_one_another():
    times = {steps: [level.t for level in grid(STUDENT, steps)] for steps in (32, 16, 8, 4)}
    assert times[4] == [999, 749, 499, 249, 0]
    assert all(times[2 * steps][::2] == times[steps] for steps in (16, 8, 4))


@pytest.mark.parametrize("steps", [(32, 12), (16, 16), (8, 16), (33, 11)], ids=str)
def test_steps_that_share_no_times_are_refused(steps):
    with pytest.raises(InputError, match=f"{steps[1]} steps of the student do not divide {steps[0]}"):
        nested_grids(STUDENT, *steps)


def test_the_weight_is_equation_9s():
    """max(SNR, 1) |x_0 error|^2, written for v."""
    level = levels_of(mx.array([[0, 0.8, 0.6], [0, 0.28, 0.96]]))
    errors_of_v = mx.array([0.1, 0.1])
    errors_of_x = np.array([0.6, 0.96]) * 0.1
    expected = np.maximum(np.array([0.64 / 0.36, 0.0784 / 0.9216]), 1) * errors_of_x**2
    ours = to_numpy(truncated_snr(level).reshape(-1) * errors_of_v**2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# --- Guidance as an input


def test_the_teacher_is_guided_by_two_rows(teacher):
    unet = load_folder(teacher, mx.float32).unet
    text, no_text, x = normal(2, 77, 16), normal(1, 77, 16, seed=1), normal(2, 8, 8, 4, seed=2)
    t, guided = mx.array([700.0, 30.0]), Guided(unet)
    answer = guided(x, t, mx.array([5.0, 1.0]), guided.context(text, no_text))
    with_text, without = unet(x, t, unet.project_text(text)), unet(x, t, unet.project_text(no_text))
    expected = without + mx.array([5.0, 1.0])[:, None, None, None] * (with_text - without)
    assert float(mx.abs(with_text - without).max()) > 1e-2
    np.testing.assert_allclose(to_numpy(answer), to_numpy(expected), atol=1e-4)


def test_a_student_begins_as_its_teacher_whatever_the_weight(teacher):
    unet = load_folder(teacher, mx.float32).unet
    text, x, t = normal(2, 77, 16), normal(2, 8, 8, 4, seed=2), mx.array([700.0, 30.0])
    student = Guided(student_of(unet))
    answer = student(x, t, mx.array([5.0, 2.0]), student.context(text, text[:1]))
    np.testing.assert_allclose(to_numpy(answer), to_numpy(unet(x, t, unet.project_text(text))), atol=1e-5)
    student.unet.time_embedding.cond_proj.weight = 0.1 * normal(16, distil_run.GUIDANCE_CHANNELS, seed=3)
    other = student(x, t, mx.array([5.0, 2.0]), student.context(text, text[:1]))
    assert float(mx.abs(answer - other).max()) > 1e-3


def test_weights_of_a_batch_are_embedded_as_each_alone(teacher):
    unet = student_of(load_folder(teacher, mx.float32).unet)
    together = to_numpy(unet.guidance_embedding(mx.array([1.0, 5.0, 7.5])))
    alone = np.concatenate([to_numpy(unet.guidance_embedding(w)) for w in (1.0, 5.0, 7.5)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_student_whose_answer_is_the_target_has_no_loss(teacher):
    """A teacher that is asked once, w = 1: its copy is the perfect student of one step in one step."""
    unet = load_folder(teacher, mx.float32).unet
    rows = mx.array(nested_grids(STUDENT, 8, 4).astype(np.float32))
    levels = [levels_of(rows[:, i]) for i in (0, 2)]
    text, x = normal(4, 77, 16), normal(4, 8, 8, 4, seed=1)
    loss, _ = distillation_loss(Guided(student_of(unet)), Guided(unet), x, levels, mx.ones(4), text, text[:1])
    wrong, _ = distillation_loss(Guided(student_of(unet)), Guided(unet), x, levels, 5 * mx.ones(4), text, text[:1])
    assert float(loss) < 1e-8 < 1e-4 < float(wrong)


# --- The run


def test_training_finds_the_teachers_two_guided_steps():
    """A student that is affine in x and quadratic in w can be perfect here, and the loss leads it there."""
    teacher, student = Gaussian(), Affine()
    rows = nested_grids(STUDENT, 8, 4).astype(np.float32)
    rng, places = np.random.default_rng(0), np.arange(64) % 4
    levels = [levels_of(mx.array(rows[places, i])) for i in range(3)]

    def loss(x, w):
        return distillation_loss(student, teacher, x, levels, w, None, None)[0]

    step, adam, losses = nn.value_and_grad(student, loss), optim.Adam(0.05), []
    for _ in range(250):
        x, w = rng.standard_normal((64, 2, 2, 1), np.float32), rng.triangular(1, 5, 8, 64).astype(np.float32)
        value, gradients = step(mx.array(x), mx.array(w))
        adam.update(student, gradients)
        losses.append(value.item())
    assert losses[-1] < 1e-3 * losses[0]
    x, w = normal(64, 2, 2, 1, seed=5), mx.full((64,), 5.0)
    there = reached(teacher, x, levels, w, None)
    assert float(mx.abs(ddim_step(x, student(x, levels[0].t, w, None), levels[0], levels[-1]) - there).max()) < 0.1
    unguided = reached(teacher, x, levels, mx.ones(64), None)
    assert float(mx.abs(there - unguided).mean()) > 0.3


def test_a_student_is_a_checkpoint_that_says_how_it_is_painted_with(student):
    sd, model = StableDiffusion(str(student)), catalogue.from_folder(student)
    assert (model.defaults.steps, model.defaults.cfg, model.defaults.sampler) == (16, 5.0, "ddim")
    assert "16 steps" in model.recipe.in_words and "model_index.json" in model.recipe.in_words
    *_, last = sd.generate_latents("all red", num_steps=4, cfg_weight=5.0, sampler="ddim", seed=1)
    assert sd._unet.embeds_guidance and np.isfinite(np.array(sd.decode(last.latents))).all()


def test_its_pictures_are_the_pipelines(student, teacher):
    """What a sheet shows is what the pipeline paints with the recipe: the same steps, one row, guidance as an input."""
    task = new_task(Plain(), student, Recipe(batch=2), str(teacher), prompts=["all red"])
    task.model = load_folder(student, mx.float32).unet
    sd = StableDiffusion(str(student), float16=False)
    *_, last = sd.generate_latents("all red", num_steps=16, cfg_weight=5.0, sampler="ddim", seed=0)
    sheet = np.clip(task.generate(["all red"])[0], 0, 1)
    np.testing.assert_allclose(np.array(sd.decode(last.latents))[0], sheet, atol=1e-4)


def test_a_student_teaches_the_next_one(student, tmp_path):
    task = new_task(Plain(), tmp_path, Recipe(batch=2), str(student), teacher_steps=16, student_steps=8)
    task.prepare(0)
    with ops.use("learning"):
        loss, _ = task.loss(*map(mx.array, task.batch([0, 1])))
    assert np.isfinite(float(loss))
    same = dict(tree_flatten(task.teacher.unet.parameters()))
    assert all(mx.array_equal(value, same[name]) for name, value in tree_flatten(task.model.parameters()))


def test_weights_are_spread_with_the_usual_one_in_front(student, tmp_path):
    task = new_task(Plain(), tmp_path, Recipe(batch=4), str(student), 16, 8, 1.0, 5.0, 8.0)
    task.prepare(0)
    batches = [task.batch(range(4 * i, 4 * i + 4)) for i in range(100)]
    levels, w = (np.concatenate([batch[i] for batch in batches]) for i in (2, 3))
    assert w.min() >= 1 and w.max() <= 8
    assert np.histogram(w, 7, (1, 8))[0].argmax() in (3, 4)
    assert len(np.unique(levels[:, 0, 0])) == 8


# --- Teachers that are refused


def test_a_quantised_teacher_is_refused(teacher):
    checkpoint = load_folder(teacher, mx.float32)
    wide = dataclasses.replace(UNET, block_out_channels=(64, 64, 64), cross_attention_dim=64)
    checkpoint = dataclasses.replace(checkpoint, unet=UNet(wide))
    quantise(checkpoint.unet, [], 8)
    with pytest.raises(InputError, match="'small' is quantised to 8 bits: give the model that it was made from"):
        check_teacher("small", teacher, checkpoint, 32)


def test_teachers_distilled_by_others_are_refused(student, teacher, tmp_path):
    foreign = shutil.copytree(student, tmp_path / "mine")
    index = json.loads((foreign / "model_index.json").read_text())
    write_json(foreign / "model_index.json", {k: v for k, v in index.items() if k != "_recipe"})
    with pytest.raises(InputError, match=r"'mine' is already distilled .*LCM"):
        new_task(Plain(), tmp_path / "out", Recipe(batch=2), str(foreign))
    named = shutil.copytree(teacher, tmp_path / "my-lcm")
    with pytest.raises(InputError, match="'my-lcm' is already distilled"):
        new_task(Plain(), tmp_path / "out", Recipe(batch=2), str(named))


def test_a_student_teaches_only_its_own_number_of_steps(student, tmp_path):
    with pytest.raises(InputError, match="was distilled to 16 steps: give --teacher-steps 16"):
        new_task(Plain(), tmp_path, Recipe(batch=2), str(student))


def test_a_teacher_that_predicts_eps_is_refused(teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "eps")
    write_index(folder, dataclasses.replace(SCHEDULER, prediction_type="epsilon"))
    with pytest.raises(UnsupportedCheckpointError, match="'eps' predicts epsilon"):
        new_task(Plain(), tmp_path / "out", Recipe(batch=2), str(folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [(1.0, 9.0, 8.0), (2.0, 1.0, 8.0), (5.0, 5.0, 5.0)])
def test_weights_out_of_order_are_refused(weights, tmp_path):
    with pytest.raises(InputError, match=r"guidance = .* should lie between"):
        new_task(Plain(), tmp_path, Recipe(batch=2), "postcards-tiny", 32, 16, *weights)


# --- Parts that are shared


def test_a_folder_may_take_its_parts_from_a_neighbour(student):
    folder = student.parent / "light"
    for part in ("unet", "scheduler"):
        shutil.copytree(student / part, folder / part)
    index = json.loads((student / "model_index.json").read_text())
    shared = {part: f"../student/{part}" for part in ("text_encoder", "tokenizer", "vae")}
    write_json(folder / "model_index.json", index | {"_parts": shared})
    ours, whole = load_folder(folder, mx.float32), load_folder(student, mx.float32)
    for name, part in whole.parts.items():
        assert all(
            mx.array_equal(a, b)
            for (_, a), (_, b) in zip(
                tree_flatten(part.parameters()), tree_flatten(ours.parts[name].parameters()), strict=True
            )
        )
    assert ours.tokenizers[0].vocab_size == whole.tokenizers[0].vocab_size
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["/etc", "../../elsewhere/vae", "..", 5])
def test_a_place_that_is_no_neighbours_is_refused(place, tmp_path):
    with pytest.raises(ConfigError, match=r"takes its vae from .* should be a folder next to its own"):
        part_folder(tmp_path / "light", {"_parts": {"vae": place}}, "vae")
    assert part_folder(tmp_path / "light", {"_parts": {"vae": "../whole/vae"}}, "unet") == tmp_path / "light" / "unet"

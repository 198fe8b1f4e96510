"""The trainings: gradients, the optimiser, going on exactly, two processes as one, and a checkpoint at the end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion, ops
from stable_diffusion.__main__ import main
from stable_diffusion.backend import mx, nn
from stable_diffusion.checks import Whole
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from stable_diffusion.errors import CheckpointError, CheckpointNotFoundError, InputError
from stable_diffusion.ops import learning, plain
from stable_diffusion.places import packaged
from stable_diffusion.text.tokenizer import Tokenizer
from stable_diffusion.training.diffusion import DiffusionTask, min_snr_weights
from stable_diffusion.training.latents import LatentCache
from stable_diffusion.training.loop import STATE, Intervals, Limit, averaged_gradients, read_log, resumed, train
from stable_diffusion.training.networks import SCHEDULER, TextToLatents, load_autoencoder, new_autoencoder, write_index
from stable_diffusion.training.optimisation import State
from stable_diffusion.training.recipe import Recipe, learning_rate
from stable_diffusion.training.runs import RUNS, Option, Run
from stable_diffusion.training.sheets import psnr
from stable_diffusion.training.vae import AutoencoderTask
from stable_diffusion.training.vocabulary import learn_merges, write_tokenizer

from . import shapes
from .networks import relative_error, to_numpy

VAE = AutoencoderConfig.from_dict({**shapes.VAE, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1})
TEXT = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
UNET = UNetConfig.from_dict(
    {**shapes.UNET, "block_out_channels": (16, 16, 16), "norm_num_groups": 8, "layers_per_block": 1,
     "cross_attention_dim": 16, "attention_head_dim": 2}
)  # fmt: skip
SELDOM = Intervals(report=1, save=1e9, look=1e9)


class Squares:
    """Pictures of two halves in colours that the caption names: data without end, cheaper than postcards."""

    size = 64
    COLOURS: ClassVar = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}

    def example(self, index: int) -> tuple[np.ndarray, str]:
        rng = np.random.default_rng(index)
        upper, lower = rng.choice(list(self.COLOURS), 2)
        picture = np.empty((self.size, self.size, 3), np.uint8)
        picture[:], picture[rng.integers(16, 48) :] = self.COLOURS[upper], self.COLOURS[lower]
        return picture, f"{upper} above {lower}"

    def batch(self, indices):
        pictures, captions = zip(*map(self.example, indices), strict=True)
        return np.stack(pictures), list(captions)


class FewSquares(Squares):
    def __len__(self) -> int:
        return 24


class OneSquare(Squares):
    def example(self, index: int) -> tuple[np.ndarray, str]:
        return super().example(3)


def vae_task(folder: Path, batch: int = 4) -> AutoencoderTask:
    return AutoencoderTask(Squares(), new_autoencoder(VAE, 0), folder, batch)


@pytest.fixture(scope="module")
def with_vae(tmp_path_factory):
    """A folder with an autoencoder of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    RUNS["vae"].train(Squares(), folder, Limit(steps=3), Recipe(batch=4, warm_up=1), config=VAE, intervals=SELDOM)
    return folder


def diffusion_task(folder: Path, out: Path, batch: int = 4) -> DiffusionTask:
    write_tokenizer(out / "tokenizer", [Squares().example(i)[1] for i in range(20)])
    tokenizer = Tokenizer.from_files(out / "tokenizer")
    text = dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    cache = LatentCache(FewSquares(), load_autoencoder(folder / "vae"), tokenizer, out / "latents")
    task = DiffusionTask(cache, TextToLatents(text, UNET, 0), SCHEDULER, out, batch, prompts=["red above blue"])
    task.prepare(0)
    return task


# --- Forms with gradients


def with_gradient(function, *inputs):
    y = function(*inputs)
    cotangent = mx.random.normal(y.shape, key=mx.random.key(7))
    values, gradients = mx.vjp(function, list(inputs), [cotangent])
    return [to_numpy(each) for each in (*values, *gradients)]


def normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def convolution(stride: int, padding: int):
    return lambda forms: lambda x, w, b: forms.conv2d(x, w, b, stride, padding)


X, W, B = normal(0, 2, 16, 12, 16), normal(1, 24, 3, 3, 16), normal(2, 24)
FORMS = {
    "silu": (lambda forms: forms.silu, [5 * normal(0, 70, 4000)]),
    "gelu": (lambda forms: forms.gelu, [3 * normal(0, 70, 4000)]),
    "quick_gelu": (lambda forms: forms.quick_gelu, [5 * normal(0, 300)]),
    "geglu": (lambda forms: forms.geglu, [normal(0, 2, 5, 64)]),
    "norm": (lambda forms: lambda x, w, b: forms.group_norm(x, w, b, 4, 1e-5), [3 + X, normal(3, 16), normal(4, 16)]),
    "norm, many blocks": (
        lambda forms: lambda x, w, b: forms.group_norm(x, w, b, 4, 1e-5, forms.silu),
        [normal(0, 5, 48, 64, 40), normal(3, 40), normal(4, 40)],
    ),
    "attention": (lambda forms: forms.attention, [normal(i, 3, 2, n, 16) for i, n in enumerate((300, 77, 77))]),
    "causal": (
        lambda forms: lambda *qkv: forms.attention(*qkv, mask="causal"), [normal(i, 3, 2, 20, 16) for i in range(3)]
    ),
    "shared text": (
        lambda forms: lambda q, *kv: forms.attention(q, *(mx.repeat(x, 1 if forms is learning else 3, 0) for x in kv)),
        [normal(i, b, 2, 9, 16) for i, b in enumerate((3, 1, 1))],
    ),
    "3x3": (convolution(1, 1), [X, W, B]),
    "3x3 of an odd side": (convolution(1, 1), [X[:, :15], W, B]),
    "3x3 of few pixels": (convolution(1, 1), [X[:, :4, :4], W, B]),
    "3x3 of few pixels and many channels": (
        convolution(1, 1), [normal(0, 2, 5, 7, 512), normal(1, 520, 3, 3, 512), normal(2, 520)]
    ),
    "halving": (convolution(2, 1), [X, W, B]),
    "halving, padded at the end": (convolution(2, 0), [mx.pad(X, [(0, 0), (0, 1), (0, 1), (0, 0)]), W, B]),
    "halving an odd side": (convolution(2, 1), [X[:, :15, :11], W, B]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_values_and_gradients_are_those_of_the_plain_forms(name):
    function, inputs = FORMS[name]
    for ours, theirs in zip(
        with_gradient(function(learning), *inputs), with_gradient(function(plain), *inputs), strict=True
    ):
        assert relative_error(ours, theirs) < 2e-5


def test_large_scores_and_activations_stay_finite():
    x = mx.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    for function in (learning.silu, learning.gelu, learning.quick_gelu):
        y, slope = (np.array(each) for each in with_gradient(lambda x, f=function: f(x), x))
        assert np.isfinite(y).all() and np.isfinite(slope).all()
        assert y[0] == pytest.approx(0, abs=1e-6) and y[-1] == 1e4
    q = 100 * normal(0, 1, 1, 4, 8)
    assert np.isfinite(with_gradient(lambda q: learning.attention(q, q, q), q)[1]).all()


@pytest.mark.parametrize("size, decaying", [(5, 2), (70_001, 40_000), (70_001, 0), (32_768, 32_768)])
def test_the_optimiser_in_place_is_the_plain_one(size, decaying):
    theirs = [normal(i, size) for i in range(2)] + [mx.zeros((size,)), mx.zeros((size,))]
    ours = [each + 0.0 for each in theirs]
    for step in range(1, 4):
        numbers = ops.AdamW(0.9, 0.99, rate=0.01, decay=0.1, decaying=decaying, step=step, keep=0.9)
        g = normal(step, size) * mx.array([0.0, 1e-6, 1.0, 1e4, 1e-3] * (size // 5 + 1))[:size]
        before = mx.array(np.array(ours[0]))
        weights = ours[0]
        ours = list(learning.adamw(*ours, g, mx.array(0.5), numbers))
        theirs = list(plain.adamw(*theirs, g, mx.array(0.5), numbers))
        assert mx.array_equal(weights, before)  # what a model has stays what it was
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(to_numpy(mine), to_numpy(other), rtol=2e-5, atol=1e-7)


def test_the_usual_forms_are_back_after_a_training():
    before = ops.forms()
    with pytest.raises(ZeroDivisionError), ops.use("learning"):
        raise ZeroDivisionError
    assert ops.forms() is before


# --- The optimiser


def test_the_rate_warms_up_and_falls_as_a_cosine():
    recipe = Recipe(learning_rate=1.0, final_rate=0.1, warm_up=10)
    assert learning_rate(recipe, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(recipe, 9, 0.0) == 1.0
    assert learning_rate(recipe, 99, 0.5) == pytest.approx(0.55)
    assert learning_rate(recipe, 99, 1.0) == learning_rate(recipe, 99, 1.5) == pytest.approx(0.1)


def test_one_step_by_hand():
    recipe = Recipe(clip=1e9, weight_decay=0.1, beta_1=0.9, beta_2=0.99)
    state = State.fresh({"matrix": mx.array([[2.0, -1.0]]), "bias": mx.array([3.0])})
    norm = state.update({"matrix": mx.array([[0.3, -0.4]]), "bias": mx.array([0.0])}, recipe, rate=0.01)
    assert norm.item() == pytest.approx(0.5)
    # The first step of Adam goes the rate's length against the gradient's sign.
    after, average = state.layout.named(state.parameters), state.layout.named(state.average)
    np.testing.assert_allclose(to_numpy(after["matrix"])[0], [1.998 - 0.01, -0.999 + 0.01], rtol=1e-6)
    assert after["bias"].item() == 3.0
    kept = 1 / 11  # the average begins quickly
    expected = kept * 2.0 + (1 - kept) * 1.988
    assert average["matrix"][0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_a_large_gradient_is_shortened():
    states = [State.fresh({"w": mx.array([[1.0, 2.0]])}) for _ in range(2)]
    states[0].update({"w": mx.array([[30.0, 40.0]])}, Recipe(clip=1.0), 0.1)
    states[1].update({"w": mx.array([[0.6, 0.8]])}, Recipe(clip=1.0), 0.1)
    np.testing.assert_allclose(to_numpy(states[0].first_moment), to_numpy(states[1].first_moment), rtol=1e-6)


def test_min_snr_weights():
    alpha_bars = np.array([0.999, 0.5, 0.01])
    snr = alpha_bars / (1 - alpha_bars)
    np.testing.assert_allclose(min_snr_weights(alpha_bars, "epsilon", 5.0), [5 / snr[0], 1, 1])
    np.testing.assert_allclose(min_snr_weights(alpha_bars, "v_prediction", 5.0), [5 / (snr[0] + 1), 1, 1])


# --- The loop


def assert_same(a: State, b: State) -> None:
    assert a.step == b.step
    for ours, theirs in zip(a.arrays(), b.arrays(), strict=True):
        assert mx.array_equal(ours, theirs)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    recipe = Recipe(batch=4, warm_up=2)
    with ops.use("learning"):
        once = train(vae_task(tmp_path / "a"), recipe, Limit(steps=5), tmp_path / "a", intervals=SELDOM)

        def interrupt(progress):
            if progress.step == 3:
                raise KeyboardInterrupt

        every = Intervals(report=1, save=0.0, look=1e9)  # the state is saved after each step, and 3 is not
        with pytest.raises(KeyboardInterrupt):
            train(vae_task(tmp_path / "b"), recipe, Limit(steps=5), tmp_path / "b", interrupt, every)
        twice = train(vae_task(tmp_path / "b"), recipe, Limit(steps=5), tmp_path / "b", intervals=SELDOM)
    assert_same(once, twice)
    steps = [line["step"] for line in read_log(tmp_path / "b") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]


def test_a_state_of_another_network_is_refused(tmp_path):
    State.fresh({"other": mx.zeros((1,))}).save(tmp_path / STATE, Recipe())
    with pytest.raises(CheckpointError, match="another network"):
        train(vae_task(tmp_path), Recipe(batch=4), Limit(steps=1), tmp_path)
    (tmp_path / STATE).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not the state"):
        train(vae_task(tmp_path), Recipe(batch=4), Limit(steps=1), tmp_path)


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(kind, with_vae, tmp_path):
    with ops.use("learning"):
        task = vae_task(tmp_path) if kind == "vae" else diffusion_task(with_vae, tmp_path)
        resumed(task.model, tmp_path / STATE)
        group = mx.distributed.init()
        numbers = range(4, 8)  # a step of crops
        _, _, whole = averaged_gradients(task, [task.batch(numbers)], group)
        _, _, parts = averaged_gradients(task, [task.batch(numbers[i::2]) for i in range(2)], group)
    for name in whole:
        np.testing.assert_allclose(to_numpy(parts[name]), to_numpy(whole[name]), rtol=1e-3, atol=2e-6)


TWO = """
import sys
from pathlib import Path
from stable_diffusion import ops
from stable_diffusion.backend import mx
from stable_diffusion.training.loop import Intervals, Limit, train
from stable_diffusion.training.recipe import Recipe
from tests.test_training import vae_task
folder = Path(sys.argv[1])
group = mx.distributed.init()
with ops.use("learning"):
    recipe, seldom = Recipe(batch=8, warm_up=1), Intervals(1, 1e9, 1e9)
    state = train(vae_task(folder, 8), recipe, Limit(steps=2), folder, intervals=seldom)
named = state.layout.named(state.first_moment)
mx.save_safetensors(str(folder / f"{group.rank()}-of-{group.size()}.safetensors"), named)
"""


def test_two_processes_do_what_one_would_do_alone(tmp_path):
    root = Path(__file__).parents[1]
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launch = Path(sys.executable).with_name("mlx.launch")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        command = [sys.executable, str(launch), "-n", str(count), sys.executable, str(script), str(tmp_path)]
        command = command if count > 1 else [sys.executable, str(script), str(tmp_path)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        (tmp_path / STATE).unlink()
    alone = mx.load(str(tmp_path / "0-of-1.safetensors"))
    for rank in range(2):
        together = mx.load(str(tmp_path / f"{rank}-of-2.safetensors"))
        for name, expected in alone.items():
            np.testing.assert_allclose(to_numpy(together[name]), to_numpy(expected), rtol=2e-3, atol=2e-6)


# --- The tasks


def test_examples_are_the_same_in_any_batch(with_vae, tmp_path):
    for task in (vae_task(tmp_path), diffusion_task(with_vae, tmp_path)):
        together, alone = task.batch(range(4, 8)), task.batch([6])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[2], b[0])


def test_times_are_uniform_and_spread_over_a_batch(with_vae, tmp_path):
    task = diffusion_task(with_vae, tmp_path, batch=10)
    times = np.array([task._time(number) for number in range(2000)])
    assert times.min() >= 0 and times.max() <= 999
    assert abs(times.mean() - 499.5) < 15
    first = np.sort(times[:10])
    assert (np.diff(first) >= 99).all()


def test_a_tenth_of_the_captions_is_left_out(with_vae, tmp_path):
    task = diffusion_task(with_vae, tmp_path)
    ids = task.batch(range(600))[3]
    empty = (ids == task.no_text).all(axis=1).mean()
    assert 0.07 < empty < 0.13


def test_the_loss_of_a_perfect_answer_is_zero(with_vae, tmp_path):
    task = diffusion_task(with_vae, tmp_path)
    x_0, eps, t, ids = (mx.array(each) for each in task.batch(range(4)))
    alpha_bar = mx.array(task.alpha_bars)[t][:, None, None, None]
    answer = mx.sqrt(alpha_bar) * eps - mx.sqrt(1 - alpha_bar) * x_0

    class Oracle(nn.Module):
        unet = task.model.unet

        def __call__(self, x, t, ids):
            return answer

    model, task.model = task.model, Oracle()
    assert task.loss(x_0, eps, t, ids)[0].item() == 0
    task.model = model
    _, figures = task.loss(x_0, eps, t, ids)  # whose answer is zero: v has the variance 1
    assert figures["squares"].item() == pytest.approx(mx.square(answer).mean().item(), rel=1e-5)


def test_the_schedulers_file_serves_ddim_and_pndm_too(tmp_path):
    write_index(tmp_path, SCHEDULER)
    values = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert (values["clip_sample"], values["set_alpha_to_one"], values["skip_prk_steps"]) == (False, False, True)
    assert SchedulerConfig.from_dict(values, "") == SCHEDULER


def test_psnr():
    black = np.zeros((2, 8, 8, 3))
    assert psnr(black, black + 0.1) == pytest.approx(20)


def test_merges_are_the_most_common_pairs():
    merges = learn_merges(["low low low low low lower lower newest newest newest"], 4)
    assert merges == [("l", "o"), ("lo", "w</w>"), ("w", "e"), ("e", "we")]


def test_the_vocabulary_is_read_as_clips(tmp_path):
    captions = [Squares().example(i)[1] for i in range(20)]
    write_tokenizer(tmp_path, captions)
    tokenizer = Tokenizer.from_files(tmp_path)
    assert (
        tokenizer.tokens("Red above blue") == ["red</w>", "above</w>", "blue</w>"]
        or len(tokenizer.encode("red above blue")) == 3
    )
    assert tokenizer.decode(tokenizer.encode("naïve 雪 red")) == "naïve 雪 red"
    assert tokenizer.eos_id == tokenizer.vocab_size - 1


def test_a_little_training_learns(tmp_path):
    state = RUNS["vae"].train(
        OneSquare(), tmp_path, Limit(steps=30), Recipe(batch=4, learning_rate=3e-3, warm_up=5), config=VAE,
        intervals=Intervals(1, 1e9, 1e9),
    )  # fmt: skip
    assert state.step == 30
    lines = [line for line in read_log(tmp_path / "training" / "vae") if "loss" in line]
    assert np.mean([line["squares"] for line in lines[-8:]]) < 0.5 * lines[0]["squares"]


def test_from_nothing_to_a_picture(with_vae, tmp_path):
    """A diffusion of two steps: its folder is a checkpoint, its log and its sheet are there."""
    recipe = Recipe(batch=2, warm_up=1)
    RUNS["diffusion"].train(
        FewSquares(), tmp_path, Limit(steps=2), recipe, vae=with_vae / "vae", prompts=["red above blue"] * 2,
        intervals=SELDOM, sizes=(TEXT, UNET),
    )  # fmt: skip
    sd = StableDiffusion(str(tmp_path))
    assert sd.default_size == (64, 64)
    *_, last = sd.generate_latents("red above blue", num_steps=2, seed=1)
    assert np.isfinite(np.array(sd.decode(last.latents))).all()
    folder = tmp_path / "training" / "diffusion"
    assert (folder / "curve.png").is_file() and (folder / "000002.png").is_file() and read_log(folder)[-1]["step"] == 2


def test_a_decoder_goes_on_alone(with_vae, tmp_path):
    shutil.copytree(with_vae / "vae", tmp_path / "vae")
    RUNS["decoder"].train(Squares(), tmp_path, Limit(steps=2), Recipe(batch=4, warm_up=1), intervals=SELDOM)
    before, after = (dict(load_autoencoder(folder / "vae").parameters()) for folder in (with_vae, tmp_path))
    same = {
        part: all(
            mx.array_equal(a, b)
            for (_, a), (_, b) in zip(tree_flatten(before[part]), tree_flatten(after[part]), strict=True)
        )
        for part in before
    }
    assert same == {"encoder": True, "quant_conv": True, "decoder": False, "post_quant_conv": False}
    configs = [load_autoencoder(folder / "vae").config.scaling_factor for folder in (with_vae, tmp_path)]
    assert configs[0] == configs[1]


# --- The table of runs


@pytest.mark.parametrize("run", [run for run in RUNS.values() if run.needs], ids=lambda run: run.name)
def test_a_run_names_the_one_that_it_needs(run, tmp_path):
    (needed,) = run.needs
    with pytest.raises(CheckpointNotFoundError, match=f"train {needed}"):
        run.train(Squares(), tmp_path, Limit(steps=1))


@pytest.mark.parametrize("run", RUNS.values(), ids=lambda run: run.name)
def test_the_help_of_a_run_shows_the_defaults_of_its_row(run, capsys):
    with pytest.raises(SystemExit):
        main(["train", run.name, "--help"])
    _, *parts = re.split(r"^  (--[a-z-]+)", capsys.readouterr().out, flags=re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    texts = {name: re.sub(r"(?<=\w)- ", "-", text) for name, text in texts.items()}  # lines end at hyphens too
    defaults = {name: found[1] for name, text in texts.items() if (found := re.search(r"\(default: (.*?)\)", text))}
    row = {
        "--data": run.data,
        "--size": str(run.size),
        "--batch": str(run.recipe.batch),
        "--accumulate": str(run.recipe.accumulate),
        "--learning-rate": str(run.recipe.learning_rate),
        "--seed": str(run.recipe.seed),
    }
    own = {
        "diffusion": {"--vae": "the one in --output"},
        "distil": {
            "--teacher": "postcards-tiny", "--teacher-steps": "32", "--student-steps": "16",
            "--least-guidance": "1.0", "--guidance": "5.0", "--most-guidance": "8.0",
        },
        "classifier": {"--vae": "the embedded one", "--widths": "40,80,112"},
        "sharp": {
            "--vae": "the one in --output", "--perceptual-weight": "0.5", "--gan-weight": "0.15",
            "--alone": "100", "--decoder-only": "false", "--share": "1.0",
        },
        "ddpm": {
            "--widths": "24,48,48", "--timesteps": "1000", "--beta-start": "0.0001", "--beta-end": "0.02",
            "--labelled": "true",
        },
    }  # fmt: skip
    if run.teaches:
        assert defaults.keys() >= {"--size", "--alpha" if run.name != "inversion" else "--initial", "--sample"}
        row = {name: value for name, value in row.items() if name not in ("--data", "--size")}
        told = {f"--{option.name.replace('_', '-')}": option.default for option in run.own}
        own[run.name] = {name: str(value).lower() for name, value in told.items() if value is not None}
        assert defaults["--size"] == "the model's"
        for name, value in run.narrow.items():
            flag = f"--{name.replace('_', '-')}"
            usual = {**row, **own[run.name]}[flag]
            assert defaults[flag] == f"{usual}; {str(value).lower()} if as small as postcards-tiny"
            defaults[flag] = usual
        defaults = {name: value for name, value in defaults.items() if name in row | own[run.name]}
        assert defaults == row | own[run.name]
        return
    assert defaults == row | own.get(run.name, {})


def test_options_reach_the_recipe_the_data_and_the_builder(monkeypatch, tmp_path):
    given = {}

    def train(self, data, output, limit, recipe, report, **own):
        given.update(run=self.name, data=data, output=output, limit=limit, recipe=recipe, own=own)

    monkeypatch.setattr(Run, "train", train)
    command = ["train", "diffusion", "--output", str(tmp_path), "--steps", "3", "--quiet"]
    assert main(command) == 0
    assert (given["run"], given["output"], given["limit"]) == ("diffusion", tmp_path, Limit(steps=3))
    assert given["recipe"] == RUNS["diffusion"].recipe and given["own"] == {"vae": None}
    assert (given["data"].size, given["data"].seed) == (128, 0)
    changes = [
        "--size",
        "64",
        "--batch",
        "6",
        "--accumulate",
        "3",
        "--learning-rate",
        "0.01",
        "--seed",
        "5",
        "--vae",
        "v",
    ]
    assert main([*command, *changes]) == 0
    expected = dataclasses.replace(RUNS["diffusion"].recipe, batch=6, accumulate=3, learning_rate=0.01, seed=5)
    assert given["recipe"] == expected and given["own"] == {"vae": "v"}
    assert (given["data"].size, given["data"].seed) == (64, 5)


def test_options_come_from_a_yaml_file_and_the_command_line_wins(monkeypatch, tmp_path, capsys):
    given = {}
    monkeypatch.setattr(
        Run, "train", lambda self, data, output, limit, recipe, report, **own: given.update(own, recipe=recipe)
    )
    file = tmp_path / "run.yaml"
    file.write_text("widths: [8, 16]\nbeta_end: 0.03\nbatch: 6\nlabelled: false\n")
    command = ["train", "ddpm", "--output", str(tmp_path), "--steps", "1", "--quiet", "--config", str(file)]
    assert main([*command, "--beta-end", "0.04"]) == 0
    assert given["widths"] == (8, 16) and given["beta_end"] == 0.04 and given["timesteps"] == 1000
    assert given["recipe"].batch == 6 and given["labelled"] is False
    for text, said in (
        ("width: 8\n", "Did you mean widths"),
        ("batch: many\n", "batch = 'many'"),
        ("- 8\n", "options by name"),
        ("a: [", "cannot be read as YAML"),
        ("widths: [12]\n", "multiple of 8"),
    ):
        file.write_text(text)
        assert main(command) == 2
        assert said in capsys.readouterr().err


# --- A diffusion model in pixels


def test_a_first_diffusion_model_is_trained_the_same_twice_and_written(tmp_path):
    from stable_diffusion.training.ddpm_run import load

    options = {"size": 8, "widths": (8, 16), "batch": 8, "timesteps": 5}
    run, parts = RUNS["ddpm"], tmp_path / "parts"
    whole = run.start(tmp_path / "whole", Limit(steps=4), **options)
    run.start(parts, Limit(steps=4), **options)
    again = resumed(load(parts), parts / "training" / "ddpm" / STATE)
    np.testing.assert_array_equal(np.array(whole.parameters), np.array(again.parameters))
    model = load(tmp_path / "whole")
    assert model.config.labels == tuple("0123456789") and model.config.widths == (8, 16)
    log = read_log(tmp_path / "whole/training/ddpm")
    assert log[0]["loss"] == pytest.approx(1, abs=0.2), "the untrained network says zero"
    assert list((tmp_path / "whole/training/ddpm").glob("*.png"))


def test_digits_are_always_the_same_and_all_ten():
    from stable_diffusion.training.digits import Digits

    pictures, labels = Digits(seed=3).batch(range(60))
    again, _ = Digits(seed=3).batch(range(60))
    np.testing.assert_array_equal(pictures, again)
    assert pictures.shape == (60, 28, 28, 1) and set(labels) == set(range(10))
    ink = (pictures > 127).mean((1, 2, 3))
    assert ink.min() > 0.03 and ink.max() < 0.35
    border = np.concatenate([pictures[:, [0, -1]].reshape(-1), pictures[:, :, [0, -1]].reshape(-1)])
    assert border.mean() < 3


def test_a_folder_of_pictures_is_learnt_by_its_subfolders(tmp_path):
    from PIL import Image

    from stable_diffusion.training.labelled import open_labelled

    for kind, colour in (("cats", "red"), ("dogs", "blue")):
        (tmp_path / kind).mkdir()
        for i in range(2):
            Image.new("RGB", (40, 30), colour).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "dogs" / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"dogs.broken\.png"):
        data = open_labelled(tmp_path, 16)
    assert data.labels == ("cats", "dogs") and len(data) == 4
    for i in range(6):
        picture, label = data.example(i)
        assert picture.shape == (16, 16, 3)
        assert picture[0, 0].argmax() == (0 if data.labels[label] == "cats" else 2)
    Image.new("RGB", (40, 30)).save(tmp_path / "loose.png")
    with pytest.raises(InputError, match="both in subfolders"):
        open_labelled(tmp_path, 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        open_labelled(tmp_path / "empty", 16)
    with pytest.raises(InputError, match="nowhere"):
        open_labelled(tmp_path / "nowhere", 16)


def test_a_new_row_is_a_command(monkeypatch, tmp_path, capsys):
    """Its builder is imported when it trains, and given its own options."""
    module = types.ModuleType("stable_diffusion.training.pairs")
    built = []

    def new_task(data, output, recipe, rank):
        built.append((data, output, recipe, rank))
        raise InputError("far enough")

    module.new_task = new_task
    monkeypatch.setitem(sys.modules, module.__name__, module)
    recipe = Recipe(batch=2, learning_rate=3e-4)
    rank = Option("rank", Whole(1, 128), "rank of the pairs", 4)
    run = Run("pairs", "pairs", "pairs of matrices", "pairs:new_task", recipe, size=64, own=(rank,))
    monkeypatch.setitem(RUNS, "pairs", run)
    assert main(["train", "pairs", "--output", str(tmp_path), "--steps", "1", "--rank", "8"]) == 2
    assert "far enough" in capsys.readouterr().err
    ((data, output, found, rank),) = built
    assert (data.size, output, found, rank) == (64, tmp_path, recipe, 8)
    with pytest.raises(SystemExit):
        main(["train", "pairs", "--output", str(tmp_path), "--steps", "1", "--rank", "200"])
    assert "'200' should be a whole number from 1 to 128" in capsys.readouterr().err


def test_the_table_is_listed_without_mlx():
    code = (
        "import sys\n"
        "from stable_diffusion.training.runs import RUNS\n"
        "rows = [(run.title, run.needs, [(o.name, o.default) for o in run.options]) for run in RUNS.values()]\n"
        "assert len(rows) >= 3 and not any(name.startswith('mlx') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["train", "vae", "--output", str(tmp_path)]) == 2
    assert "--minutes N or --steps N" in capsys.readouterr().err
    assert main(["train", "vae", "--output", str(tmp_path), "--steps", "1", "--data", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["train", "diffusion", "--output", str(tmp_path), "--steps", "1"]) == 1
    assert "train vae" in capsys.readouterr().err
    assert main(["train", "vae", "--output", "x", "--steps", "1", "--batch", "5", "--accumulate", "2"]) == 2
    assert "batch (5) should be a multiple of accumulate (2)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train"])
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lora", "dreambooth"])
def test_narrow_models_have_other_defaults_unless_all_of_the_unet_is_taught(name, tmp_path):
    run, wide = RUNS[name], tmp_path / "wide"
    (wide / "unet").mkdir(parents=True)
    (wide / "unet" / "config.json").write_text(json.dumps({"block_out_channels": [320, 640, 1280, 1280]}))
    usual = {option.name: option.default for option in run.options}
    for model in (str(wide), "organisation/name", str(tmp_path / "none.safetensors")):
        assert run.defaults({"model": model}) == usual
    assert usual["learning_rate"] == 1e-4 and not usual["convolutions"]
    for values in ({}, {"model": "postcards-tiny"}, {"model": str(packaged("checkpoints", "postcards-tiny"))}):
        narrow = {"learning_rate": 1e-3, "convolutions": True, "text_encoders": True}
        assert run.defaults(values) == usual | narrow
    assert run.defaults({"full": True}) == usual

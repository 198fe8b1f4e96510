"""Teaching against torch with peft and diffusers: a step's loss and gradients, ten steps of AdamW, and the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from diffusers import DDPMScheduler  # noqa: E402
from diffusers.training_utils import compute_snr  # noqa: E402
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from stable_diffusion import ops  # noqa: E402
from stable_diffusion.backend import mx  # noqa: E402
from stable_diffusion.model_io import names  # noqa: E402
from stable_diffusion.training.loop import averaged_gradients  # noqa: E402
from stable_diffusion.training.optimisation import State  # noqa: E402
from stable_diffusion.training.recipe import Recipe  # noqa: E402
from stable_diffusion.training.teaching import dreambooth, inversion, lora  # noqa: E402
from stable_diffusion.training.teaching.pictures import open_folder  # noqa: E402
from stable_diffusion.training.teaching.task import TeachingTask  # noqa: E402

from .. import drawn  # noqa: E402
from . import pipelines  # noqa: E402
from .test_lora import ours, theirs  # noqa: E402
from .test_pipeline import assert_same_pictures, reference, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

RECIPE = Recipe(batch=2, learning_rate=1e-3, warm_up=2, beta_2=0.999, seed=3)
STEP, WEIGHTS = 1e-4, 1e-3
GAMMA, PRIOR = 5.0, 0.7


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in ("sd1", "sd2", "sdxl")}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Three pictures of noise, of three shapes, with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (width, height) in enumerate(((128, 128), (160, 96), (128, 120))):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a zib number {i}, by the sea at night", encoding="utf-8")
    return folder


Builder = Callable[..., TeachingTask]


def new_task(build: Builder, folder: Path, data: Path, output: Path, **options: Any) -> TeachingTask:
    recipe = options.pop("recipe", RECIPE)
    common = {"min_snr": GAMMA, "drop_captions": 0.3, "offset_noise": 0.1}
    return build(open_folder(data, 128), output, recipe, model=str(folder), **common, **options)


def set_drawn(task: TeachingTask) -> None:
    """Give what is learnt values that are not zero."""
    flat = dict(tree_flatten(task.model.trainable_parameters()))
    values = [(name, mx.array(0.05 * drawn.normal(name, *each.shape))) for name, each in flat.items()]
    task.model.update(tree_unflatten(values))


def to_torch(x: np.ndarray) -> torch.Tensor:
    return pipelines.channels_first(x) if x.ndim == 4 else torch.from_numpy(x)


def their_loss(pipe: Any, task: TeachingTask, inputs: tuple[np.ndarray, ...]) -> torch.Tensor:
    """The loss of diffusers' training scripts (train_dreambooth_lora_sdxl.py and the like) for the same examples."""
    x_0, eps, t, kinds, time_ids, *captions = map(to_torch, inputs)
    xl = hasattr(pipe, "text_encoder_2")
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    extras = {}
    if task.captions.learnt:
        *ids, kept = captions
        encoders = [pipe.text_encoder, pipe.text_encoder_2] if xl else [pipe.text_encoder]
        found = [encoder(each.long(), output_hidden_states=True) for encoder, each in zip(encoders, ids, strict=True)]
        text = torch.cat([each.hidden_states[-2] for each in found], -1) if xl else found[0].last_hidden_state
        text = text * kept[:, None, None]
        pooled = found[-1].text_embeds * kept[:, None] if xl else None
    else:
        text, pooled = captions[0], captions[1] if xl else None
    if xl:
        extras["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
    answer = pipe.unet(scheduler.add_noise(x_0, eps, t), t, text, **extras).sample
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x_0, eps, t) if v else eps
    snr = compute_snr(scheduler, t)
    weights = torch.minimum(snr, torch.full_like(snr, GAMMA)) / (snr + v)
    if v:  # Hang et al. cap SNR + 1, by which v's error is x_0's
        weights = torch.minimum(snr + 1, torch.full_like(snr, GAMMA)) / (snr + 1)
    squares = torch.square(target - answer).mean((1, 2, 3)) * weights
    loss = squares[kinds == 0].mean()
    return loss + PRIOR * squares[kinds == 1].mean() if (kinds == 1).any() else loss


def with_peft(pipe: Any, task: TeachingTask, layers: dict, rank: int, alpha: float) -> dict[str, torch.nn.Parameter]:
    """Adapters of peft's in the same layers, with the values that ours have; their parameters by our names."""
    config = task.base.checkpoint.unet.config
    tables = {"unet": names.unet(config), "text_encoder": names.TEXT_ENCODER, "text_encoder_2": names.TEXT_ENCODER}
    found = {}
    for component in dict.fromkeys(component for component, _ in layers):
        paths = [path for each, path in layers if each == component]
        theirs = [tables[component].write(f"{path}.weight").theirs.removesuffix(".weight") for path in paths]
        network = getattr(pipe, component)
        have = {name for name, _ in network.named_modules()}
        theirs = [each if each in have else each.removeprefix("text_model.") for each in theirs]
        network.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=theirs))
        ours = {"unet": "unet", "text_encoder": "text_encoders.0", "text_encoder_2": "text_encoders.1"}[component]
        for path, name in zip(paths, theirs, strict=True):
            module, layer = network.get_submodule(name), layers[component, path]
            for part, values in (("lora_A", layer.down), ("lora_B", layer.up)):
                parameter = getattr(module, part)["default"].weight
                array = np.array(values)
                array = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(array.reshape(parameter.shape).copy()))
                found[f"{ours}.{path}.{'down' if part == 'lora_A' else 'up'}"] = parameter
    return found


def pairs(ours: dict[str, mx.array], theirs: dict[str, torch.Tensor | None]) -> Iterator[tuple[str, Any, Any]]:
    """Each tensor's name, and it itself in both, in torch's layout; what torch did not reach is zero."""
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name, expected in theirs.items():
        found = np.array(ours[name].astype(mx.float32))
        found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
        wanted = np.zeros_like(found) if expected is None else expected.detach().numpy()
        yield name, found.reshape(wanted.shape), wanted


def assert_same_gradients(ours: dict[str, mx.array], theirs: dict[str, torch.Tensor | None]) -> None:
    """Every element within a part of the tensor's largest one."""
    for name, found, wanted in pairs(ours, theirs):
        # Keys' biases have no gradient, but for rounding.
        tolerance = 1e-6 if name.endswith(("to_k.bias", "k_proj.bias")) else STEP * np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= tolerance, name


def assert_same_weights(ours: dict[str, mx.array], theirs: dict[str, torch.Tensor | None]) -> None:
    """Every tensor by its norm: Adam goes the same length where a gradient is nothing but rounding."""
    for name, found, wanted in pairs(ours, theirs):
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error <= WEIGHTS, (name, error)


def one_step(task: TeachingTask, pipe: Any, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Loss and gradients of one step beside the reference's."""
    task.prepare(0)
    inputs = task.batch(range(RECIPE.batch))
    expected = their_loss(pipe, task, inputs)
    expected.backward()
    with ops.use("learning"):
        loss, _, gradients = averaged_gradients(task, [inputs], mx.distributed.init())
    assert loss.item() == pytest.approx(expected.item(), rel=STEP)
    assert_same_gradients(gradients, {name: each.grad for name, each in parameters.items()})


def ten_steps(task: TeachingTask, pipe: Any, parameters: dict[str, torch.nn.Parameter], decay: float) -> None:
    """The weights after ten steps of AdamW beside those of torch.optim.AdamW."""
    state = State.fresh(dict(tree_flatten(task.model.trainable_parameters())))
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    rate, recipe = 1e-3, task.recipe
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(recipe.beta_1, recipe.beta_2), eps=1e-8)
    for step in range(10):
        task.prepare(step)
        inputs = task.batch(range(step * recipe.batch, (step + 1) * recipe.batch))
        optimiser.zero_grad()
        their_loss(pipe, task, inputs).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
        optimiser.step()
        with ops.use("learning"):
            _, _, gradients = averaged_gradients(task, [inputs], mx.distributed.init())
            state.update(gradients, recipe, rate)
        task.model.update(tree_unflatten(list(state.layout.named(state.parameters).items())))
    assert_same_weights(state.layout.named(state.parameters), parameters)


def lora_task(folder: Path, data: Path, tmp_path: Path, **options: Any) -> tuple[TeachingTask, dict]:
    task = new_task(lora.new_task, folder, data, tmp_path / "zib.safetensors", rank=4, alpha=3.0, **options)
    return task, layers_of(task)


def layers_of(task: TeachingTask) -> dict:
    """The changed layers of a task, by component and path."""
    components = {"unet": task.base.networks.unet}
    for name, encoder in zip(("text_encoder", "text_encoder_2"), task.base.networks.text_encoders, strict=False):
        components[name] = encoder
    return {
        (component, path): module
        for component, network in components.items()
        for path, module in network.named_modules()
        if isinstance(module, lora.low_rank.LowRank)
    }


LORAS = [
    ("sd1", {"layers": "attention"}),
    ("sd1", {"convolutions": True, "text_encoders": True}),
    ("sd2", {}),
    ("sdxl", {"text_encoders": True}),
    ("sdxl", {"layers": "cross-attention", "recompute": True}),
]


@pytest.mark.parametrize("family, options", LORAS)
def test_a_step_of_a_lora(family, options, folders, data, tmp_path):
    task, layers = lora_task(folders[family], data, tmp_path, **options)
    set_drawn(task)
    pipe = reference(folders[family])
    one_step(task, pipe, with_peft(pipe, task, layers, 4, 3.0))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_ten_steps_of_a_lora(family, folders, data, tmp_path):
    task, layers = lora_task(folders[family], data, tmp_path, text_encoders=family == "sd1")
    pipe = reference(folders[family])
    ten_steps(task, pipe, with_peft(pipe, task, layers, 4, 3.0), RECIPE.weight_decay)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_dreambooth_with_a_class(family, folders, data, tmp_path):
    """Half of the batch are pictures that the model painted."""
    build = partial(dreambooth.new_task, class_caption="a number|a letter", class_pictures=2, prior_weight=PRIOR)
    task = new_task(build, folders[family], data, tmp_path / "zib.safetensors", rank=4, alpha=3.0)
    set_drawn(task)
    pipe = reference(folders[family])
    one_step(task, pipe, with_peft(pipe, task, layers_of(task), 4, 3.0))


@pytest.mark.parametrize("ten", [False, True])
def test_dreambooth_of_a_whole_unet(ten, folders, data, tmp_path):
    build = partial(dreambooth.new_task, class_pictures=0, full=True)
    task = new_task(build, folders["sd1"], data, tmp_path / "model")
    pipe = reference(folders["sd1"])
    pipe.unet.train().requires_grad_(True)
    table = names.unet(task.base.checkpoint.unet.config)
    parameters = {f"unet.{table.read(key)[0].ours}": each for key, each in pipe.unet.named_parameters()}
    if ten:
        ten_steps(task, pipe, parameters, RECIPE.weight_decay)
    else:
        one_step(task, pipe, parameters)


class NewRows:
    """Further rows of torch's embedding tables, as parameters of their own."""

    def __init__(self, pipe: Any, tables: list[mx.array], firsts: list[int]):
        self.parameters = {}
        encoders = [pipe.text_encoder, *([pipe.text_encoder_2] if hasattr(pipe, "text_encoder_2") else [])]
        for i, (encoder, extra, first) in enumerate(zip(encoders, tables, firsts, strict=True)):
            known = encoder.get_input_embeddings().weight.detach()
            rows = torch.nn.Parameter(torch.from_numpy(np.array(extra)))
            padding = torch.zeros(first - len(known), known.shape[1])
            self.parameters[f"text_encoders.{i}.token_embedding.extra"] = rows
            table = encoder.get_input_embeddings()
            table.forward = lambda ids, known=known, padding=padding, rows=rows: torch.cat([known, padding, rows])[ids]
            for module in encoder.modules():
                if hasattr(module, "eos_token_id"):
                    module.eos_token_id = pipe.tokenizer.eos_token_id  # for 2 the highest id counts, a new one


@pytest.mark.parametrize("family, ten", [("sd1", False), ("sd1", True), ("sdxl", False), ("sdxl", True)])
def test_textual_inversion(family, ten, folders, data, tmp_path):
    """Only the new rows have gradients."""
    recipe = Recipe(**{**RECIPE.__dict__, "weight_decay": 0.0})
    build = partial(inversion.new_task, vectors=3, initial="house" if family == "sd1" else None)
    task = new_task(build, folders[family], data, tmp_path / "zib.safetensors", recipe=recipe)
    tables = [encoder.token_embedding for encoder in task.base.networks.text_encoders]
    pipe = reference(folders[family])
    rows = NewRows(pipe, [each.extra for each in tables], [each.first for each in tables])
    if ten:
        ten_steps(task, pipe, rows.parameters, 0.0)
    else:
        one_step(task, pipe, rows.parameters)


# --- Files


@pytest.mark.parametrize(
    "family, form",
    [("sd1", "kohya"), ("sd1", "diffusers"), ("sd2", "kohya"), ("sdxl", "kohya"), ("sdxl", "diffusers")],
)
def test_diffusers_loads_the_file(family, form, folders, data, tmp_path, same_noise):  # noqa: F811
    """The training network's picture is that of diffusers with the file, and of this engine with the file."""
    task, _ = lora_task(folders[family], data, tmp_path, text_encoders=True, convolutions=True, format=form)
    set_drawn(task)
    round_to_half(task)
    task.export()
    file = tmp_path / "zib.safetensors"
    learnt = ours(task.painter())
    sd = lora.StableDiffusion(folders[family], float16=False)
    plain = ours(sd)
    sd.set_loras([file])
    assert_same_pictures(ours(sd), learnt)
    pipe = reference(folders[family])
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    same_noise(5, 1, width=64, height=64)
    assert_same_pictures(learnt, theirs(pipe))
    assert np.abs(learnt - plain).mean() > 0.02


def round_to_half(task: TeachingTask) -> None:
    """What is learnt, as a file of float16 holds it."""
    flat = dict(tree_flatten(task.model.trainable_parameters()))
    halves = [(name, each.astype(mx.float16).astype(mx.float32)) for name, each in flat.items()]
    task.model.update(tree_unflatten(halves))


@pytest.mark.parametrize("family, form", [("sd1", "kohya"), ("sd1", "diffusers"), ("sdxl", "kohya")])
def test_diffusers_loads_the_embedding(family, form, folders, data, tmp_path):
    build = partial(inversion.new_task, vectors=2, format=form)
    task = new_task(build, folders[family], data, tmp_path / "zib.safetensors")
    set_drawn(task)
    task.export()
    pipe = reference(folders[family])
    values = load_file(tmp_path / "zib.safetensors")
    if family == "sdxl":
        parts = (("clip_l", pipe.text_encoder, pipe.tokenizer), ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2))
        for key, encoder, tokenizer in parts:
            pipe.load_textual_inversion(values[key], token="zib", text_encoder=encoder, tokenizer=tokenizer)
    else:
        pipe.load_textual_inversion(str(tmp_path / "zib.safetensors"), token="zib")
    sd = lora.StableDiffusion(folders[family], float16=False)
    sd.embedding_folders[:] = [tmp_path]
    prompt = "a zib by the sea"
    found = np.array(sd.encode_text(prompt))
    with torch.no_grad():
        options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        expected = pipe.encode_prompt(prompt, device="cpu", **options)[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    taught = np.array(task.painter().encode_text(prompt))
    assert np.abs(found - taught).max() < 1e-5 * np.abs(expected).max()

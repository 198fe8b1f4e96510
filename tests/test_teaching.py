"""Teaching a model: its pictures and captions, what is learnt, the files, resuming, and what goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from PIL import Image

from stable_diffusion import StableDiffusion, TrainingError, ops
from stable_diffusion.__main__ import main
from stable_diffusion.adapters.lora_family import by_metadata
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError, UnsupportedCheckpointError
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.safetensors_file import write_safetensors
from stable_diffusion.model_io.strict import read_header
from stable_diffusion.text.tokenizer import Tokenizer
from stable_diffusion.training import loop, optimisation
from stable_diffusion.training.loop import STATE, Limit, averaged_gradients
from stable_diffusion.training.networks import SCHEDULER, TextToLatents, new_autoencoder, write_index, write_part
from stable_diffusion.training.optimisation import State
from stable_diffusion.training.recipe import Recipe
from stable_diffusion.training.runs import RUNS
from stable_diffusion.training.teaching import base, dreambooth, inversion, lora, task
from stable_diffusion.training.teaching.latents import PictureLatents
from stable_diffusion.training.teaching.pictures import Order, TaughtPicture, bucket_of, buckets, open_folder
from stable_diffusion.training.teaching.task import Settings, TeachingTask
from stable_diffusion.training.vocabulary import write_tokenizer

from .networks import to_numpy
from .test_training import TEXT, UNET, VAE

RECIPE = Recipe(batch=2, learning_rate=1e-3, warm_up=1)
QUICK = {"samples": 0, "size": 64, "batch": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a small untrained model, none of whose weights are zeros."""
    folder = tmp_path_factory.mktemp("models") / "small"
    write_tokenizer(folder / "tokenizer", ["a zib by the sea", "a house on the hills", "two lanterns at night"] * 3)
    tokenizer = Tokenizer.from_files(folder / "tokenizer")
    text = dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    networks = TextToLatents(text, UNET, 1)
    write_part(folder, "vae", new_autoencoder(VAE, 0), sample_size=64)
    for network in (networks.unet, networks.text_encoder):
        flat = dict(tree_flatten(network.parameters()))
        noise = {name: mx.random.normal(each.shape, key=mx.random.key(len(name))) for name, each in flat.items()}
        network.update(tree_unflatten([(name, each + 0.02 * noise[name]) for name, each in flat.items()]))
    write_part(folder, "unet", networks.unet, sample_size=8)
    write_part(folder, "text_encoder", networks.text_encoder)
    write_index(folder, SCHEDULER)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    """Three pictures of three shapes, with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (width, height) in enumerate(((64, 64), (96, 48), (70, 66))):
        picture(folder / f"{i}.png", width, height, seed=i)
        (folder / f"{i}.txt").write_text(f"a zib, number {i}", encoding="utf-8")
    return folder


def picture(path: Path, width: int = 64, height: int = 64, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def new_task(build, model: Path, data: Path, output: Path, **options) -> TeachingTask:
    options = {"samples": 0, **options}
    return build(open_folder(data, 64), output, options.pop("recipe", RECIPE), model=str(model), **options)


def start(kind: str, model: Path, data: Path, output: Path, steps: int, **options) -> State:
    values = {"data": str(data), "model": str(model), **QUICK, **options}
    return RUNS[kind].start(output, Limit(steps=steps), **values)


def set_random(task: TeachingTask, scale: float = 0.1) -> None:
    """Values for what is learnt that float16 holds."""
    flat = dict(tree_flatten(task.model.trainable_parameters()))
    drawn = [
        (name, (scale * mx.random.normal(each.shape, key=mx.random.key(i))).astype(mx.float16).astype(mx.float32))
        for i, (name, each) in enumerate(flat.items())
    ]
    task.model.update(tree_unflatten(drawn))


def painted(sd: StableDiffusion, prompt: str) -> np.ndarray:
    (made,) = sd.generate(prompt, num_steps=3, seed=4, width=64, height=64)
    return np.asarray(made.image, np.float32)


# --- Pictures and captions


def test_captions_of_every_kind(data):
    (data / "0.txt").write_bytes("ein grüner Zib".encode("utf-16"))
    (data / "1.txt").unlink()
    (data / "1.caption").write_text("\ufeffa zib\n  by the sea", encoding="utf-8")
    (data / "2.txt").unlink()
    (data / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "a third"}\n', encoding="utf-8")
    found = open_folder(data, None)
    assert [each.caption for each in found.pictures] == ["ein grüner Zib", "a zib by the sea", "a third"]
    assert [each.size for each in found.pictures] == [(64, 64), (96, 48), (70, 66)]
    assert found.captioned(None, "zib") == ["ein grüner Zib", "a zib by the sea", "zib, a third"]
    assert found.captioned("a thing", "zib") == ["zib, a thing"] * 3


def test_what_cannot_be_used_is_counted_and_named(data):
    for i in range(10, 14):
        picture(data / f"{i}.png")
    (data / "broken.jpg").write_bytes(b"no picture")
    (data / "12.txt").write_bytes("Müller".encode("latin-1"))
    reason = r"Skipped 2 of 8 pictures .*12\.png \(12\.txt is neither UTF-8 nor UTF-16"
    with pytest.warns(UserWarning, match=reason) as seen:
        found = open_folder(data, None)
    assert "broken.jpg (cannot be opened)" in str(seen[0].message)
    assert len(found) == 6 and len(found.skipped) == 2
    with pytest.raises(InputError, match=r"3 of 6 pictures .* have no caption: 10\.png, 11\.png, 13\.png"):
        found.captioned(None, None)


def test_folders_without_pictures(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder at '.*nowhere'"):
        open_folder(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match=r"No pictures in .*: it has none"):
        open_folder(tmp_path, None)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 1 can be used: a\.png \(cannot be opened\)"):
        open_folder(tmp_path, None)


def test_a_runs_own_pictures_are_none_to_learn_from(data):
    (data / "zib.safetensors.training").mkdir()
    picture(data / "zib.safetensors.training" / "000010.png")
    assert len(open_folder(data, None)) == 3


def test_buckets():
    sizes = buckets(512)
    assert (512, 512) in sizes and (1024, 256) in sizes and (256, 1024) in sizes
    assert all(w * h <= 512 * 512 and w % 64 == 0 == h % 64 for w, h in sizes)
    assert bucket_of((3000, 3000), sizes) == (512, 512)
    assert bucket_of((4000, 3000), sizes) == (576, 448)
    assert bucket_of((100, 900), sizes) == (256, 1024)
    assert bucket_of((128, 128), buckets(128)) == (128, 128)


def test_every_picture_comes_once_an_epoch_and_batches_are_of_one_size():
    sizes = [(64, 64), (128, 32), (64, 64), (64, 64), (128, 32)]
    order = Order.of(sizes, 2, 0)
    assert order.steps_per_epoch == 3
    seen = [order.step(i) for i in range(6)]
    for start in (0, 3):
        found = [i for _, some in seen[start : start + 3] for i in some]
        assert set(found) == set(range(5)) and len(found) == 6
    assert all(sizes[i] == size for size, some in seen for i in some)
    assert [order.step(i) for i in range(6)] == seen


def test_time_ids_are_of_the_file_the_crop_and_the_bucket(tmp_path):
    one = TaughtPicture(tmp_path / "a.png", (400, 200), None)
    assert one.time_ids((64, 64)).tolist() == [200, 400, 0, 32, 64, 64]
    assert one.time_ids((128, 64)).tolist() == [200, 400, 0, 0, 64, 128]


def test_latents_are_the_posteriors_samples_and_kept(model, data, tmp_path):
    checkpoint = base.load_base(str(model), "auto").checkpoint
    found = open_folder(data, 64).pictures[1]
    latents = PictureLatents(checkpoint.vae, "small", tmp_path)
    latents.prepare(found, (64, 64), True)
    noise = np.random.default_rng(0).standard_normal((8, 8, 4), np.float32)
    ours = latents.sample(found, (64, 64), True, noise)
    pixels = mx.array(found.pixels((64, 64), mirrored=True))[None]
    np.testing.assert_allclose(ours, to_numpy(checkpoint.vae.encode(pixels, mx.array(noise)))[0], rtol=1e-4, atol=1e-5)
    again = PictureLatents(None, "small", tmp_path)  # type: ignore[arg-type]
    again.prepare(found, (64, 64), True)
    assert len(list((tmp_path / "latents").iterdir())) == 1


# --- What is learnt


def test_before_the_first_step_nothing_has_changed(model, data, tmp_path):
    plain = painted(StableDiffusion(str(model), float16=False), "a zib")
    for build in (lora.new_task, inversion.new_task):
        task = new_task(build, model, data, tmp_path / "zab.safetensors")
        assert np.array_equal(painted(task.painter(), "a zib"), plain)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_the_file_gives_the_training_networks_pictures(form, model, data, tmp_path):
    output = tmp_path / "zib.safetensors"
    task = new_task(
        lora.new_task, model, data, output, rank=3, alpha=2.0, convolutions=True, text_encoders=True, format=form
    )
    set_random(task)
    task.export()
    taught = painted(task.painter(), "a zib")
    sd = StableDiffusion(str(model), float16=False)
    plain = painted(sd, "a zib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.set_loras([output])
    assert np.abs(painted(sd, "a zib") - taught).max() <= 1
    assert np.abs(plain - taught).mean() > 2


def test_a_words_file_gives_the_training_networks_pictures(model, data, tmp_path):
    output = tmp_path / "words" / "zib.safetensors"
    task = new_task(inversion.new_task, model, data, output, vectors=2)
    set_random(task, 1.0)
    task.export()
    sd = StableDiffusion(str(model), float16=False)
    plain = painted(sd, "a zib")
    sd.embedding_folders[:] = [output.parent]
    taught = painted(task.painter(), "a zib")
    assert np.abs(painted(sd, "a zib") - taught).max() <= 1
    assert not np.array_equal(plain, taught)


def test_a_header_says_what_the_file_is(model, data, tmp_path):
    output = tmp_path / "zib.safetensors"
    new_task(lora.new_task, model, data, output, trigger="zib", rank=2).export()
    content = output.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert header["ss_network_dim"] == "2" and header["ss_network_module"] == "networks.lora"
    assert header["modelspec.trigger_phrase"] == "zib" and header["modelspec.architecture"].endswith("/lora")
    assert by_metadata(header) == "SD 1.x"
    assert json.loads(header["ss_tag_frequency"]) == {"zib": {f"a zib, number {i}": 1 for i in range(3)}}
    assert {dtype for _, dtype in read_header(output).values()} == {"F16"}


def test_only_new_rows_are_learnt_by_inversion(model, data, tmp_path):
    before = base.load_base(str(model), "auto").checkpoint
    task = new_task(inversion.new_task, model, data, tmp_path / "zib.safetensors", vectors=2, initial="house")
    names = dict(tree_flatten(task.model.trainable_parameters()))
    assert list(names) == ["text_encoders.0.token_embedding.extra"]
    ids = before.tokenizers[0].encode("house")
    expected = before.text_encoders[0].token_embedding.weight[mx.array(ids[:1])]
    np.testing.assert_allclose(to_numpy(names.popitem()[1])[:1], to_numpy(expected), atol=0.02)
    assert task.captions.texts[0] == "a zib, number 0"


def test_examples_are_the_same_in_any_batch_and_parts_give_the_whole(model, data, tmp_path):
    task = new_task(lora.new_task, model, data, tmp_path / "a.safetensors", recipe=Recipe(batch=4), buckets=False)
    set_random(task)
    task.prepare(1)
    together, alone = task.batch(range(4, 8)), task.batch([6])
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[2], b[0])
    group = mx.distributed.init()
    with ops.use("learning"):
        _, _, whole = averaged_gradients(task, [together], group)
        _, _, parts = averaged_gradients(task, [task.batch(range(4 + i, 8, 2)) for i in range(2)], group)
    for name in whole:
        np.testing.assert_allclose(to_numpy(parts[name]), to_numpy(whole[name]), rtol=2e-3, atol=2e-6)


def test_recomputing_changes_no_gradient(model, data, tmp_path):
    found = []
    for recompute in (False, True):
        task = new_task(lora.new_task, model, data, tmp_path / "a.safetensors", text_encoders=True, recompute=recompute)
        set_random(task)
        task.prepare(0)
        with ops.use("learning"):
            found.append(averaged_gradients(task, [task.batch(range(2))], mx.distributed.init())[2])
    for name in found[0]:
        np.testing.assert_allclose(to_numpy(found[1][name]), to_numpy(found[0][name]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_halves_compute_and_the_state_keeps_float32(precision, model, data, tmp_path):
    plain = start("lora", model, data, tmp_path / "a.safetensors", 2)
    state = start("lora", model, data, tmp_path / "b.safetensors", 2, precision=precision)
    assert state.parameters.dtype == mx.float32
    a, b = to_numpy(plain.parameters), to_numpy(state.parameters)
    assert 0 < np.abs(a - b).max() < 4e-3  # Adam's first steps go by the gradients' signs


def test_the_classs_pictures_are_painted_once(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(dreambooth, "CLASS_STEPS", 2)
    output = tmp_path / "zib.safetensors"
    said = []
    options = {"class_caption": "a house|a sea", "class_pictures": 3}
    for _ in range(2):
        made = new_task(
            dreambooth.new_task, model, data, output, progress=lambda text, share: said.append(text), **options
        )
    assert len([text for text in said if "of the class" in text]) == 3
    assert [example.caption for example in made.kept] == [3, 4, 3]
    made.prepare(0)
    inputs = made.batch(range(2))
    assert inputs[3].tolist() == [0, 0, 1, 1]
    loss, figures = made.loss(*map(mx.array, inputs))
    assert loss.item() == pytest.approx(figures["subject"].item() + figures["class"].item(), rel=1e-5)
    with pytest.raises(InputError, match="class-caption"):
        new_task(dreambooth.new_task, model, data, tmp_path / "b.safetensors")
    with pytest.raises(KeyboardInterrupt):
        cancelled = {"progress": lambda text, share: (_ for _ in ()).throw(KeyboardInterrupt)}
        new_task(dreambooth.new_task, model, data, tmp_path / "c.safetensors", **options, **cancelled)


def test_a_whole_model_is_written(model, data, tmp_path):
    output = tmp_path / "taught"
    state = start("dreambooth", model, data, output, 1, full=True, class_pictures=0)
    assert state.parameters.size == sum(
        each.size for _, each in tree_flatten(base.load_base(str(model), "auto").checkpoint.unet.parameters())
    )
    assert not np.array_equal(
        painted(StableDiffusion(str(output), float16=False), "a zib"),
        painted(StableDiffusion(str(model), float16=False), "a zib"),
    )
    with pytest.raises(InputError, match="write a folder instead"):
        start("dreambooth", model, data, tmp_path / "taught.safetensors", 1, full=True, class_pictures=0)


# --- Runs


def test_an_interrupted_run_resumes_to_the_bit(model, data, tmp_path):
    once = start("lora", model, data, tmp_path / "a.safetensors", 4, text_encoders=True)
    count = iter(range(100))
    stop = {"between": lambda: next(count) < 2}
    half = start("lora", model, data, tmp_path / "b.safetensors", 4, text_encoders=True, **stop)
    assert half.step == 2 and (tmp_path / "b.safetensors").is_file()
    twice = start("lora", model, data, tmp_path / "b.safetensors", 4, text_encoders=True)
    for a, b in zip(once.arrays(), twice.arrays(), strict=True):
        assert mx.array_equal(a, b)
    assert (tmp_path / "a.safetensors").read_bytes().split(b"}", 1)[1] != b""
    with pytest.raises(InputError, match="rank = 16, not 8"):
        start("lora", model, data, tmp_path / "b.safetensors", 5, text_encoders=True, rank=8)


def test_another_job_may_go_first_with_its_own_operations(model, data, tmp_path):
    usual, seen = ops.forms(), []

    def between() -> bool:
        seen.append(ops.forms() is usual)
        return True

    start("lora", model, data, tmp_path / "a.safetensors", 2, between=between)
    assert seen == [True, True] and ops.forms() is usual


def test_sheets_and_reports(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "SHEET_STEPS", 2)
    reports: list[loop.Progress] = []
    RUNS["lora"].start(
        tmp_path / "a.safetensors", Limit(steps=4), reports.append, data=str(data), model=str(model), size=64, batch=2,
        samples=2, sample="a zib|a house", sample_every=2,
    )  # fmt: skip
    states = RUNS["lora"].states(tmp_path / "a.safetensors")
    assert sorted(path.name for path in states.glob("0*.png")) == ["000002.png", "000004.png"]
    assert Image.open(states / "000004.png").size == (2 * 64, 64)
    assert [each.step for each in reports] == [1] and reports[0].figures["loss"] > 0
    assert (states / "curve.png").is_file()


def test_an_average_of_zero_is_the_weights_themselves(model, data, tmp_path):
    state = start("lora", model, data, tmp_path / "a.safetensors", 2, average_decay=0.0)
    np.testing.assert_allclose(to_numpy(state.average), to_numpy(state.parameters), atol=1e-7)


def test_the_command(model, data, tmp_path, capsys):
    output = tmp_path / "zib.safetensors"
    main([
        "train", "inversion", "--model", str(model), "--data", str(data), "--output", str(output), "--steps", "1",
        "--batch", "2", "--size", "64", "--samples", "0", "--quiet",
    ])  # fmt: skip
    assert capsys.readouterr().out.strip() == str(output)
    assert output.is_file() and RUNS["inversion"].states(output).is_dir()


# --- What goes wrong


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(model, data, tmp_path, monkeypatch):
    output = tmp_path / "a.safetensors"
    real, steps = TeachingTask.loss, []

    def loss(self, *inputs):
        value, figures = real(self, *inputs)
        steps.append(1)
        return (value * (mx.nan if len(steps) > 2 else 1)), figures

    monkeypatch.setattr(TeachingTask, "loss", loss)
    with pytest.raises(TrainingError, match=r"step 3 is not finite\. The state after step 2 is kept: lower the"):
        start("lora", model, data, output, 5)
    monkeypatch.setattr(TeachingTask, "loss", real)
    assert start("lora", model, data, output, 5).step == 5


def test_a_gradient_that_is_not_finite_changes_nothing():
    state = State.fresh({"w": mx.ones((2, 2))})
    with pytest.raises(TrainingError, match="step 1"):
        state.update({"w": mx.array([[1.0, mx.inf], [0.0, 0.0]])}, Recipe(), 0.1)
    assert state.step == 0 and mx.array_equal(state.parameters, mx.ones((4,)))


def test_a_full_disk_stops_in_words_and_the_state_is_whole(model, data, tmp_path, monkeypatch):
    output = tmp_path / "a.safetensors"
    start("lora", model, data, output, 1)
    before = (RUNS["lora"].states(output) / STATE).read_bytes()

    def full(path, *rest):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(optimisation, "write_safetensors", full)
    with pytest.raises(TrainingError, match=r"The disk of .* is full"):
        start("lora", model, data, output, 2)
    monkeypatch.setattr(optimisation, "write_safetensors", write_safetensors)
    assert (RUNS["lora"].states(output) / STATE).read_bytes() == before
    assert start("lora", model, data, output, 2).step == 2


def test_models_that_cannot_be_taught(model, data, tmp_path):
    convert("postcards-tiny", tmp_path / "tiny-8", bits=8)
    with pytest.raises(UnsupportedCheckpointError, match="quantised to 8 bits"):
        start("lora", tmp_path / "tiny-8", data, tmp_path / "a.safetensors", 1)
    shutil.copytree(model, tmp_path / "sdxl-turbo")
    values = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    values["_class_name"] = "LCMScheduler"
    (tmp_path / "sdxl-turbo" / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedCheckpointError, match="made for few steps"):
        start("lora", tmp_path / "sdxl-turbo", data, tmp_path / "a.safetensors", 1)
    shutil.copytree(model, tmp_path / "sample")
    values |= {"_class_name": "EulerDiscreteScheduler", "prediction_type": "sample"}
    (tmp_path / "sample" / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedCheckpointError, match="predicts 'sample'"):
        start("lora", tmp_path / "sample", data, tmp_path / "a.safetensors", 1)


@pytest.mark.parametrize("name", ["a", "a.ckpt"])
def test_outputs_that_are_no_safetensors(name, model, data, tmp_path):
    with pytest.raises(InputError, match=r"should be a file that ends in \.safetensors"):
        start("lora", model, data, tmp_path / name, 1)


def test_no_data_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(InputError, match="--data FOLDER"):
        RUNS["lora"].start(tmp_path / "a.safetensors", Limit(steps=1), model="nowhere")


def test_a_picture_that_vanishes_while_training(model, data, tmp_path):
    task = new_task(lora.new_task, model, data, tmp_path / "a.safetensors")
    for path in data.glob("*.png"):
        path.unlink()
    with pytest.raises((TrainingError, OSError)):
        task.prepare(0)


@pytest.mark.parametrize("name", ["lora", "dreambooth", "inversion"])
def test_every_option_of_a_row_is_an_argument(name):
    build = {"lora": lora.new_task, "dreambooth": dreambooth.new_task, "inversion": inversion.new_task}[name]
    known = {*inspect.signature(build).parameters, *(field.name for field in dataclasses.fields(Settings))}
    own = {option.name for option in RUNS[name].own} - {"precision", "average_decay", "sample_every"}
    assert own <= known

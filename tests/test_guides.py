"""The networks that steer: CLIP and the classifier of noisy latents; their trainings, files and gradients."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import Blend, StableDiffusion, Steering, ops
from stable_diffusion.backend import mx
from stable_diffusion.config import CLIPTextConfig
from stable_diffusion.diffusion.schedule import NoiseLevel
from stable_diffusion.errors import CheckpointError, CheckpointNotFoundError, InputError
from stable_diffusion.guides import classifier, contrastive, steering
from stable_diffusion.guides.classifier import ClassifierConfig, LatentClassifier, named_in
from stable_diffusion.guides.contrastive import CLIPModel, VisionConfig, contrastive_loss, retrieval, shortened
from stable_diffusion.request import Request
from stable_diffusion.training.attributes import POSTCARDS, open_attributed
from stable_diffusion.training.contrastive import disturbed, new_task
from stable_diffusion.training.loop import STATE, Limit, resumed
from stable_diffusion.training.recipe import Recipe
from stable_diffusion.training.runs import RUNS

from .networks import to_numpy

TEXT = CLIPTextConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, projection_dim=8, num_hidden_layers=1, num_attention_heads=2,
    eos_token_id=39, architectures=("CLIPTextModelWithProjection",),
)  # fmt: skip
VISION = VisionConfig(image_size=16, widths=(8, 8))
HEADS = {"colour": {"red": ("red",), "green": ("green",)}, "place": {"green hills": ("green hills", "hills")}}


class Colours:
    """Pictures of one colour, with captions."""

    size = 16
    NAMES = ("red", "green", "blue", "black", "white", "yellow", "cyan", "pink")

    def example(self, index):
        rng = np.random.default_rng(index)
        name = self.NAMES[index % len(self.NAMES)]
        colour = np.array(Image.new("RGB", (1, 1), name))[0, 0] * 0.9 + rng.integers(0, 20, 3)
        return np.broadcast_to(colour.astype(np.uint8), (16, 16, 3)), f"a {name} picture"

    def batch(self, indices):
        pictures, captions = zip(*map(self.example, indices), strict=True)
        return np.stack(pictures), list(captions)


def some(*shape, seed=0):
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# --- CLIP


def test_the_loss_by_hand():
    images = mx.array([[1.0, 0.0], [0.0, 1.0]])
    # Rows: log(e^2 + 1) - 2 twice; columns the same.
    assert contrastive_loss(images, images, mx.array(2.0)).item() == pytest.approx(np.log(np.e**2 + 1) - 2, rel=1e-6)
    assert contrastive_loss(images, images[::-1], mx.array(2.0)).item() == pytest.approx(np.log(np.e**2 + 1), rel=1e-6)


def test_a_little_training_finds_captions(tmp_path):
    recipe = Recipe(batch=8, learning_rate=5e-3, warm_up=5, average_decay=0.9)
    sizes = {"sizes": (TEXT, VISION)}
    RUNS["clip"].train(Colours(), tmp_path, Limit(steps=60), recipe, **sizes)
    clip = contrastive.load(tmp_path)
    pictures, captions = Colours().batch(range(800, 824))
    found = retrieval(to_numpy(clip.pictures(pictures)), to_numpy(clip.texts(captions)), captions)
    assert found.distinct == 8 and min(found.text_to_image, found.image_to_text) > 0.8
    matrices = sorted((tmp_path / "training/clip").glob("matrix-*.npz"))
    first, last = (np.load(path)["cosines"].astype(float) for path in (matrices[0], matrices[-1]))
    assert first.shape == (24, 24)
    same = np.equal.outer(np.arange(24) % 8, np.arange(24) % 8)
    assert np.ptp([first[same].mean(), first[~same].mean()]) < 0.2 < last[same].mean() - last[~same].mean()


def test_an_interrupted_training_of_clip_goes_on_as_if_it_had_not_been(tmp_path):
    recipe, sizes = Recipe(batch=4, warm_up=1), {"sizes": (TEXT, VISION)}
    whole = RUNS["clip"].train(Colours(), tmp_path / "whole", Limit(steps=4), recipe, **sizes)
    parts = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:  # the rate falls with the share that is done
        patch.setattr("stable_diffusion.training.loop.learning_rate", lambda recipe, step, done: 1e-3)
        whole = RUNS["clip"].train(Colours(), tmp_path / "again", Limit(steps=4), recipe, **sizes)
        for steps in (2, 4):
            RUNS["clip"].train(Colours(), parts, Limit(steps=steps), recipe, **sizes)
    model = new_task(Colours(), parts, recipe, **sizes).model
    again = resumed(model, parts / "training" / "clip" / STATE)
    np.testing.assert_array_equal(np.array(whole.parameters), np.array(again.parameters))


def test_a_clip_is_read_as_it_was_written(tmp_path):
    mx.random.seed(1)
    model = CLIPModel(TEXT, VISION)
    (tmp_path / "tokenizer").symlink_to(contrastive.FOLDER.parent / "postcards-tiny" / "tokenizer")
    contrastive.save(model, tmp_path)
    found = contrastive.load(tmp_path).model
    x = some(2, 16, 16, 3)
    np.testing.assert_allclose(to_numpy(found.encode_images(x)), to_numpy(model.encode_images(x)), atol=2e-3)
    ids = mx.array([[38, 3, 4, 39], [38, 5, 39, 39]])
    np.testing.assert_allclose(to_numpy(found.encode_texts(ids)), to_numpy(model.encode_texts(ids)), atol=2e-3)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
    values = json.loads((tmp_path / "config.json").read_text())
    values["vision_config"]["widths"] = [8, 16]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="does not fit"):
        contrastive.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a model of `train clip`"):
        contrastive.load(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="train clip"):
        contrastive.load(tmp_path / "none")


def test_padding_has_no_effect_on_a_text():
    model = CLIPModel(TEXT, VISION)
    ids = np.full((2, 77), 39)
    ids[0, :12], ids[1, :3] = np.arange(12), [38, 2, 4]
    short = shortened(ids, 39)
    assert short.shape == (2, 16)
    np.testing.assert_allclose(
        to_numpy(model.encode_texts(mx.array(short))), to_numpy(model.encode_texts(mx.array(ids))), atol=1e-5
    )


def test_equal_captions_are_right_answers():
    vectors = np.eye(3, dtype=np.float32)
    found = retrieval(vectors[[1, 0, 2]], vectors, ["a", "a", "b"])
    assert (found.text_to_image, found.image_to_text, found.distinct) == (1.0, 1.0, 2)
    assert (found.strict_text_to_image, found.strict_image_to_text) == (1 / 3, 1 / 3)


def test_feature_maps_of_any_size():
    model = CLIPModel(TEXT, VISION).vision_model
    assert [each.shape for each in model.features(some(1, 32, 48, 3))] == [(1, 16, 24, 8), (1, 8, 12, 8)]


def test_pictures_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="squares of 16, 32"):
        contrastive.as_input(np.zeros((1, 16, 24, 3), np.uint8), 16)
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    pictures[:, ::2] = 255
    np.testing.assert_allclose(contrastive.as_input(pictures, 16), 0, atol=1e-6)  # the mean of black and white


def test_disturbed_pictures_are_nearly_the_same():
    x = np.linspace(-1, 1, 16, dtype=np.float32)[None, :, None, None] * np.ones((8, 1, 16, 3), np.float32)
    found = disturbed(x, np.random.default_rng(0))
    assert found.dtype == np.float32 and 0 < np.abs(found - x).mean() < 0.25


# --- The classifier


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red house on green hills at sunset, with clouds",
         {"thing": "house", "colour": "red", "place": "green hills", "time": "sunset", "sky": "clouds"}),
        ("Balloon over the ocean", {"thing": "hot-air balloon", "place": "sea"}),
        ("a blue tent and a red house", {"thing": "tent", "colour": "blue"}),
        ("by day, with the sun", {"time": "day", "sky": "sun"}),
        ("treehouse, reddish", {}),
    ],
)  # fmt: skip
def test_what_a_text_names(text, found):
    assert named_in(text, POSTCARDS) == found


def test_a_classifier_is_read_as_it_was_written(tmp_path):
    config = ClassifierConfig(HEADS, widths=(8, 16), probe=(0.25,) * 16)
    model = LatentClassifier(config)
    classifier.save(model, tmp_path)
    found = classifier.load(tmp_path)
    assert found.config == config
    x, t = some(2, 8, 8, 4), mx.array([5.0, 900.0])
    for name, logits in model(x, t).items():
        np.testing.assert_allclose(to_numpy(found(x, t)[name]), to_numpy(logits), atol=2e-3)
    classifier.save(LatentClassifier(dataclasses.replace(config, widths=(8, 8))), tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        classifier.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the configuration"):
        classifier.load(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="train classifier"):
        classifier.load(tmp_path / "none")


def test_a_classifier_of_subfolders_is_trained(tmp_path):
    from stable_diffusion.training.vae import new_task as new_vae

    for name in ("red", "blue"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (70, 64), name).rotate(i).save(tmp_path / "pictures" / name / f"{i}.png")
    new_vae(Colours(), tmp_path, Recipe()).export()
    options = {"data": str(tmp_path / "pictures"), "size": 64, "vae": str(tmp_path / "vae"), "widths": (8, 16)}
    state = RUNS["classifier"].start(tmp_path / "out", Limit(steps=30), batch=8, learning_rate=0.01, **options)
    assert state.step == 30
    model = classifier.load(tmp_path / "out")
    assert model.config.heads == {"kind": {"blue": ("blue",), "red": ("red",)}}
    log = [json.loads(line) for line in (tmp_path / "out/training/classifier/log.jsonl").read_text().splitlines()]
    assert log[0]["kind"] == pytest.approx(np.log(2), abs=0.4) and log[-1]["kind_at_0"] == 1
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (70, 64)).save(flat / "a.png")
    with pytest.raises(InputError, match="no subfolders"):
        open_attributed(flat, 64)
    with pytest.raises(InputError, match="There is no data"):
        open_attributed(tmp_path / "none", 64)


def test_labels_are_of_the_picture_that_is_painted():
    data = open_attributed("postcards", 64)
    for i in range(20):
        found = named_in(data.example(i)[1], POSTCARDS)
        labels = {name: list(options)[k] for (name, options), k in zip(POSTCARDS.items(), data.labels(i), strict=True)}
        assert found.items() <= labels.items()


def test_the_guide_is_the_gradient_of_what_is_wanted():
    mx.random.seed(3)
    model = LatentClassifier(ClassifierConfig(POSTCARDS, widths=(8, 16)))
    level = NoiseLevel.from_alpha_bar(100.0, float(model.config.schedule().alpha_bars[100]))
    x = some(2, 8, 8, 4)
    guide = steering.ClassifierGuide(model, [{"thing": "house", "time": "night"}, {"colour": "red"}])
    found = to_numpy(guide(x, level, x))
    step, direction = 2e-3, np.sign(found)
    t = mx.full((2,), 100.0)
    with ops.use("learning"):
        above, below = (to_numpy(guide.log_likelihood(x + s * step * mx.array(direction), t)) for s in (1, -1))
    np.testing.assert_allclose((above - below) / (2 * step), np.abs(found).sum((1, 2, 3)), rtol=2e-2)
    logits = {name: to_numpy(each) for name, each in model(x, t).items()}
    expected = logits["colour"][1, 0] - np.log(np.exp(logits["colour"][1]).sum())
    assert to_numpy(guide.log_likelihood(x, t))[1] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(to_numpy(guide.only([1])(x[1:], level, x)), found[1:], rtol=1e-4, atol=1e-6)


# --- Steering a generation


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion("postcards-tiny")


def last(sd, **settings):
    for step in sd.generate_latents("", num_steps=4, cfg_weight=1.0, seed=3, **settings):
        mx.eval(step.latents)
    return step.latents


@pytest.mark.parametrize("by", ["classifier", "clip"])
def test_what_is_asked_becomes_likelier(sd, by):
    text = "a red house on green hills at night"
    plain, steered = last(sd), last(sd, guidance=Steering(by, 10.0, text))
    clip = contrastive.load()
    pictures = np.round(np.concatenate([to_numpy(sd.decode(each)) for each in (plain, steered)]) * 255).astype(np.uint8)
    cosines = to_numpy(clip.pictures(pictures) @ clip.texts([text]).T)[:, 0]
    network = classifier.load()
    guide = steering.ClassifierGuide(network, [named_in(text, network.config.heads)])
    likelihoods = [to_numpy(guide.log_likelihood(each, mx.array([0.0])))[0] for each in (plain, steered)]
    if by == "clip":
        assert cosines[1] > cosines[0] + 0.1
    else:
        assert likelihoods[1] > likelihoods[0] + 5


def test_each_prompt_steers_its_own_picture_and_the_record_says_by_what(sd):
    steered = Steering("classifier", 8.0)
    both = sd.generate(["a red house", "a tent at night"], num_steps=2, cfg_weight=1.0, seed=1, guidance=steered)
    alone = sd.generate("a tent at night", num_steps=2, cfg_weight=1.0, seed=2, guidance=steered)[0]
    np.testing.assert_allclose(np.asarray(both[1].image, int), np.asarray(alone.image, int), atol=2)
    extra = both[0].parameters.extra
    assert (extra["Steer by"], extra["Steer scale"]) == ("classifier", "8") and "Steer towards" not in extra
    request, notes = Request.from_record(both[0].parameters)
    assert request.steering == steered and not notes
    call = request.to_call((128, 128))
    assert call.arguments["guidance"] == steered


def test_no_guidance_changes_no_bit(sd):
    np.testing.assert_array_equal(to_numpy(last(sd)), to_numpy(last(sd, guidance=lambda x, level, x_0: x * 0)))


class Other:
    """A model whose autoencoder is not the postcards'."""

    name, latent_channels, downscale = "another", 4, 8

    def encode(self, picture, width=None, height=None, seed=0):
        return mx.zeros((1, 16, 16, 4))


def test_what_cannot_be_steered_is_refused(sd):
    with pytest.raises(InputError, match="'another' has other latents than the postcards"):
        steering.guidance_of(Steering("clip"), Other(), ["a house"])
    with pytest.raises(InputError, match=r"knows nothing of what 'a dragon' says\. It knows thing: house"):
        steering.guidance_of(Steering("classifier"), sd, ["a dragon"])
    with pytest.raises(InputError, match="blend of prompts"):
        sd.generate_latents(Blend("a", "b", 0.5), guidance=Steering("clip"))
    for values, words in (
        ({"by": "hand"}, "by = 'hand'"), ({"by": "clip", "scale": -1}, "scale"), ({"by": "clip", "text": 3}, "text"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            Steering(**values)

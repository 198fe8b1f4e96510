"""What the page "How it works" computes, with the embedded model, and what a person may hold against it."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mlx.core")
from stable_diffusion import StableDiffusion
from stable_diffusion.errors import InputError, PictureError
from stable_diffusion.service import lessons

HALVES = (slice(0, 56), slice(72, 128))
SETTINGS = lessons.Settings("a red house on green hills", steps=4, cfg=3.0, seed=5)


@pytest.fixture(scope="module")
def model():
    return StableDiffusion()


@pytest.fixture
def report():
    told = []

    def report(note, fraction=None):
        assert note and (fraction is None or 0 <= fraction <= 1)
        told.append(note)

    report.told = told
    return report


@pytest.fixture
def postcard():
    """Evening sky over a meadow, of the kind that the embedded model knows."""
    picture = Image.new("RGB", (200, 128), (240, 170, 110))
    picture.paste((100, 130, 60), (0, 64, 200, 128))
    return picture


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)), dtype=float)


def test_the_schedule_is_the_one_that_the_model_was_trained_with(model, report):
    found = lessons.schedule(model, report)
    # SD 1.x: scaled linear from 0.00085 to 0.02, and what Ho et al. (2020) make of betas
    betas = np.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2
    np.testing.assert_allclose(found.beta, betas, rtol=2e-4)
    np.testing.assert_allclose(found.alpha_bar, np.cumprod(1 - betas), rtol=1e-4)
    np.testing.assert_allclose(found.sigma, np.sqrt(1 / found.alpha_bar - 1), rtol=1e-5)


def test_tokens_are_those_that_the_model_reads(model, report):
    found = lessons.tokens(model, report, "a red house")
    assert [token.text for token in found] == ["(start)", "a", "red", "house", "(end)"]
    ids, _ = model.tokenizer(["a red house"])
    assert [token.id for token in found] == ids[0, :5].tolist()
    assert [token.position for token in found] == [0, 1, 2, 3, 4]


def test_a_long_prompt_shows_what_fits(model, report):
    assert len(lessons.tokens(model, report, "house " * 200)) == 77


def test_the_forward_process_ends_in_noise(model, report, postcard):
    found = lessons.forward(model, report, postcard, SETTINGS)
    assert [noised.t for noised in found] == list(lessons.TIMES)
    for noised in found:
        assert noised.alpha**2 + noised.sigma**2 == pytest.approx(1)
        assert pixels(noised.picture).shape == (128, 128, 3)
    assert found[0].alpha > 0.99 and found[-1].alpha < 0.1
    skies, meadows = ([pixels(noised.picture)[half].mean(axis=(0, 1)) for noised in found] for half in HALVES)
    assert np.abs(skies[0] - (240, 170, 110)).max() < 40 and np.abs(meadows[0] - (100, 130, 60)).max() < 40
    assert np.abs(skies[-1] - meadows[-1]).max() < 50


def test_the_forward_process_begins_with_a_painted_picture_where_none_is_given(model, report):
    found = lessons.forward(model, report, None, SETTINGS)
    assert "Painting a picture to begin with" in report.told
    assert len(found) == len(lessons.TIMES)


def test_texts_that_mean_alike_lie_together(model, report):
    found = lessons.space(model, report, ["a red house", "a red tent", "a sailboat on the sea"])
    assert found.points.shape == (3, 2) and 0 < found.share <= 1
    np.testing.assert_allclose(np.diag(found.similarity), 1)
    np.testing.assert_allclose(found.similarity, found.similarity.T)
    assert found.similarity[0, 1] > found.similarity[0, 2]


def test_a_projection_keeps_the_distances_of_a_plane():
    rng = np.random.default_rng(0)
    plane, axes = rng.normal(size=(6, 2)), np.linalg.qr(rng.normal(size=(9, 2)))[0]
    found = lessons.projected(tuple("abcdef"), plane @ axes.T + 4)
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (plane, found.points)]
    np.testing.assert_allclose(*distances, atol=1e-12)
    assert found.share == pytest.approx(1)


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((3, 4)), np.zeros((2, 4)), np.ones((2, 1))])
def test_a_projection_of_nearly_nothing_is_no_error(vectors):
    found = lessons.projected(tuple("abc"[: len(vectors)]), vectors)
    assert found.points.shape == (len(vectors), 2)
    assert np.isfinite(found.points).all() and np.isfinite(found.similarity).all()


def test_a_denoising_goes_from_noise_to_the_estimate(model, report):
    found = lessons.denoising(model, report, SETTINGS)
    assert [moment.index for moment in found] == [1, 2, 3, 4]
    assert [moment.sigma for moment in found] == sorted((moment.sigma for moment in found), reverse=True)
    apart = [np.abs(pixels(moment.x_t) - pixels(moment.x_0)).mean() for moment in found]
    assert apart[0] > 20 and apart[-1] < 3


def test_words_act_in_stages_and_levels(model, report):
    found = lessons.acting(model, report, SETTINGS)
    assert [word.text for word in found.maps.words] == SETTINGS.prompt.split() and len(found.maps.stages) == 4
    plain, shown = pixels(found.picture), [pixels(lessons.overlaid(found, 2, **how)) for how in (
        {}, {"stage": 0}, {"level": "up_blocks.1"}
    )]  # fmt: skip
    assert all(each.shape == plain.shape and np.abs(each - plain).mean() > 10 for each in shown)
    assert np.abs(shown[1] - shown[2]).mean() > 3
    assert report.told


def test_guidance_and_strength_change_the_picture_step_by_step(model, report, monkeypatch):
    monkeypatch.setattr(lessons, "GUIDANCES", (1.0, 9.0))
    monkeypatch.setattr(lessons, "STRENGTHS", (0.25, 1.0))
    (low, first), (high, second) = lessons.guidances(model, report, SETTINGS)
    assert (low, high) == (1.0, 9.0)
    assert np.abs(pixels(first) - pixels(second)).mean() > 3
    picture = Image.linear_gradient("L").convert("RGB")
    (_, own), (_, little), (_, much) = lessons.strengths(model, report, picture, SETTINGS, "a tent at night")
    assert 0 < np.abs(pixels(own) - pixels(little)).mean() < np.abs(pixels(own) - pixels(much)).mean()


def test_a_lesson_can_be_cancelled_at_every_step(model):
    class Stopped(Exception):
        pass

    def report(note, fraction=None):
        raise Stopped

    for lesson in (lessons.denoising, lessons.guidances):
        with pytest.raises(Stopped):
            lesson(model, report, SETTINGS)


def test_encode_is_the_way_back_of_decode(model, postcard):
    back = np.asarray(model.decode(model.encode(postcard)))[0]
    assert np.abs(back - np.asarray(postcard)[:, 36:164] / 255).mean() < 0.08  # an unlike picture: 0.3
    assert model.encode(postcard, width=64, height=96).shape == (1, 12, 8, 4)
    np.testing.assert_array_equal(model.encode(postcard, seed=3), model.encode(postcard, seed=3))
    assert not np.array_equal(model.encode(postcard, seed=3), model.encode(postcard, seed=4))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((None,), PictureError), ((np.zeros((8, 8, 3), np.uint8), 60), InputError)],
)
def test_encode_refuses_what_it_cannot_take(model, arguments, error):
    with pytest.raises(error):
        model.encode(*arguments)


def test_a_text_becomes_what_the_unet_attends_to(model):
    assert model.encode_text("a house").shape[:2] == (1, 77)
    with pytest.raises(InputError, match="7"):
        model.encode_text(7)

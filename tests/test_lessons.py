"""What the lessons compute, with the embedded model, and what a person may hold against it."""

from __future__ import annotations

import inspect
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mlx.core")
from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.errors import CheckpointError, CheckpointNotFoundError, ConfigError, InputError, PictureError
from stable_diffusion.guides import contrastive
from stable_diffusion.lessons import (
    algorithm_2,
    attention,
    clip_matrix,
    clusters,
    common,
    convolution,
    denoising,
    digits_model,
    fewer_steps,
    flat,
    flat_climb,
    flat_joint,
    glossary,
    guidance,
    ink,
    markov,
    meaning,
    norms,
    other_words,
    reverse,
    sampler_noise,
    schedule,
    strength,
    system_map,
    text_arithmetic,
    tokens,
    training_record,
    unet_shapes,
)  # fmt: skip
from stable_diffusion.lessons import lesson as blocks
from stable_diffusion.lessons.chapters import CHAPTERS, LESSONS
from stable_diffusion.lessons.common import EXAMPLE, Settings
from stable_diffusion.training import ddpm
from stable_diffusion.training.data import Postcards
from stable_diffusion.training.ddpm_run import load, save
from tests import small_lessons

SETTINGS = Settings(steps=4, cfg=3.0, seed=5)
HALVES = (slice(0, 56), slice(72, 128))


@pytest.fixture(scope="module")
def model():
    return StableDiffusion()


@pytest.fixture(scope="module")
def trained():
    return flat.learn_score(report)


@pytest.fixture(scope="module")
def small(trained):
    """Every lesson's own cost cut down, where it is large."""
    patch = pytest.MonkeyPatch()
    for module, name, value in small_lessons.NUMBERS:
        patch.setattr(module, name, value)
    patch.setattr(flat, "learn_score", lambda report, steps=0: report("Training", 0.5) or trained)
    patch.setattr(sampler_noise, "N", 2)
    yield
    patch.undo()


def report(note, fraction=None):
    assert note and (fraction is None or 0 <= fraction <= 1)


def values_of(lesson, **changes):
    return {"settings": SETTINGS} | {each.key: each.value for each in (*lesson.asks, *lesson.views)} | changes


def computed(lesson, model, **changes):
    return lesson.compute(model if lesson.needs_model else None, report, values_of(lesson, **changes))


@pytest.fixture(scope="module")
def results(model, small):
    """Each lesson's result, computed once."""
    found = {}

    def of(key):
        if key not in found:
            lesson = LESSONS[key]
            found[key] = computed(lesson, model, **({"steps": 50} if key == "algorithm-2" else {}))
        return found[key]

    return of


def flattened(shown):
    for block in shown:
        if isinstance(block, blocks.Side):
            for column in block.columns:
                yield from flattened(column)
        else:
            yield block


def content(block):
    """What a person sees of a block, to be compared."""
    if isinstance(block, blocks.Chart):
        return str(block.chart.to_dict())
    if isinstance(block, blocks.Strip):
        return [(each.image, each.caption) for each in block.pictures]
    return block


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=float)


# --- All of them


def test_the_code_of_a_lesson_is_found_without_parsing(monkeypatch):
    """`ast.parse` in two threads at once may raise SystemError in Python 3.11."""
    expected = {key: [inspect.getsource(each).rstrip() for each in lesson.code] for key, lesson in LESSONS.items()}
    monkeypatch.setattr("ast.parse", lambda *a, **k: pytest.fail("parsed"))
    assert {key: lesson.source() for key, lesson in LESSONS.items()} == {
        key: "\n\n".join(parts) for key, parts in expected.items()
    }


def test_every_lesson_has_a_place_and_a_name_of_its_own():
    every = [lesson for chapter in CHAPTERS for lesson in chapter.lessons]
    assert len(LESSONS) == len(every) == len({lesson.title for lesson in every})
    assert next(iter(LESSONS)) == "map"


@pytest.mark.parametrize("key", [key for key in LESSONS if key != "glossary"])
def test_a_lesson_is_short_and_says_where_it_comes_from(key):
    lesson = LESSONS[key]
    assert 60 <= len(lesson.text.split()) <= 125
    assert lesson.equations or key in ("map", "training", "norms")
    assert lesson.papers or lesson.code
    assert all(paper.link.startswith("https://") for paper in lesson.papers)
    if lesson.code:
        assert "def " in lesson.source() or "class " in lesson.source()
    assert lesson.views, "something to move"


@pytest.mark.parametrize("key", LESSONS)
def test_a_lesson_shows_something_that_its_controls_change(key, results):
    lesson = LESSONS[key]
    usual = list(flattened(lesson.show(results(key), values_of(lesson))))
    assert usual
    for block in usual:
        if isinstance(block, blocks.Strip):
            for each in block.pictures:
                assert each.alt and pixels(each.image).size
        elif isinstance(block, (blocks.Chart, blocks.Drawing)):
            assert block.alt
        elif isinstance(block, blocks.Tour):
            assert block.lessons and set(block.lessons) <= set(LESSONS)
        elif isinstance(block, blocks.Say):
            assert block.text and "nan" not in block.text
    for view in lesson.views:
        if isinstance(view, blocks.Slider):
            others = [view.low, view.high]
        elif isinstance(view, blocks.Options):
            others = [option for option in view.options if option != view.value]
        elif isinstance(view, blocks.Choose):
            others = list(range(len(view.names(results(key)))))
        else:
            others = ["noise"]
        changed = [list(flattened(lesson.show(results(key), values_of(lesson, **{view.key: each})))) for each in others]
        assert any([content(block) for block in each] != [content(block) for block in usual] for each in changed), (
            view.key
        )


def test_a_lesson_can_be_cancelled_at_every_step(model):
    class Stopped(Exception):
        pass

    def stop(note, fraction=None):
        raise Stopped

    for each in (denoising, guidance, strength, flat_climb, algorithm_2, unet_shapes):
        lesson = each.LESSON
        with pytest.raises(Stopped):
            lesson.compute(model if lesson.needs_model else None, stop, values_of(lesson))


def test_the_glossary_has_the_words_of_the_field_each_with_its_lesson():
    terms = glossary.terms()
    names = " ".join(term.name for term in terms).casefold()
    for word in (
        "latent space feature representation variable projection model checkpoint weights autoencoder vae gan prior "
        "posterior elbo cfg scheduler sampler token seed score u-net"
    ).split():
        assert word in names
    assert all(term.lesson in LESSONS for term in terms)
    assert [t.name.casefold() for t in terms] == sorted(t.name.casefold() for t in terms)


def test_every_box_of_the_map_leads_to_a_lesson(model):
    shapes = system_map.compute(model, report, {})
    assert (shapes.states, shapes.latents, shapes.picture) == ("77 × 128", "16 × 16 × 4", "128 × 128 × 3")
    assert all(box.lesson in LESSONS for box in system_map.boxes(shapes))
    text, mask = (system_map.svg(shapes, route) for route in (system_map.TEXT, system_map.MASK))
    assert text.count("faint") > mask.count("faint") == 0


# --- A flat world


def test_independent_numbers_keep_their_margins_and_lose_their_slices():
    people = flat.people(3000)
    shuffled = flat_joint.independent(people)
    np.testing.assert_array_equal(np.sort(people[:, 1]), np.sort(shuffled[:, 1]))
    children = [flat_joint.slice_at(each, 6).mean() for each in (people, shuffled)]
    assert children[0] < 115 and children[1] > 145


def test_gradients_by_hand_are_those_of_differences():
    rng = np.random.default_rng(0)
    network, x = flat.Perceptron(3, 2, rng), rng.standard_normal((5, 3))

    def loss():
        return np.square(network(x)).sum() / 2

    outputs = network.forward(x)
    gradients, _ = network.backward(outputs, outputs[-1])
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        place = tuple(0 for _ in parameter.shape)
        step = 1e-6
        parameter[place] += step
        high = loss()
        parameter[place] -= 2 * step
        low = loss()
        parameter[place] += step
        assert gradient[place] == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-6)


def test_the_walk_back_finds_people_and_climbing_does_not(trained):
    back, climbed = flat.walk_back(trained, 1000)[-1], flat.climb(trained, 1000, "Adam")[-1]
    people = flat.scaled(flat.people(5000, seed=9))
    np.testing.assert_allclose(back.mean(0), people.mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(back.T), np.cov(people.T), atol=0.15)
    assert flat.covered(back) > 0.95 > 0.7 > flat.covered(climbed)


def test_the_score_of_much_noise_is_that_of_a_normal_distribution(trained):
    grid = np.random.default_rng(0).standard_normal((200, 2))
    score = trained.score(grid, flat.T - 1)
    assert np.abs(score + grid).mean() < 0.15


def test_the_bound_weighs_small_times_most(trained):
    simple, terms = flat.bound(trained, n=500)
    weights = terms / simple
    assert weights.argmax() == 0 and simple[0] > simple[-1]
    assert terms[:10].sum() / terms.sum() > 1.5 * simple[:10].sum() / simple.sum()


def test_steps_and_jump_agree():
    found = markov.compute(None, report, {})
    for t in (1, 20, flat.T):
        assert found.stepped[t].mean() == pytest.approx(found.jumped[t].mean(), abs=0.03)
        assert found.stepped[t].std() == pytest.approx(found.jumped[t].std(), abs=0.03)


# --- Noise


def test_the_schedule_is_the_one_that_the_model_was_trained_with(model):
    found = schedule.compute(model, report, {})
    # SD 1.x: scaled linear from 0.00085 to 0.02, and what Ho et al. (2020) make of betas
    betas = np.linspace(0.00085**0.5, 0.02**0.5, 1000) ** 2
    np.testing.assert_allclose(found.beta, betas, rtol=2e-4)
    np.testing.assert_allclose(found.alpha_bar, np.cumprod(1 - betas), rtol=1e-4)
    np.testing.assert_allclose(found.sigma, np.sqrt(1 / found.alpha_bar - 1), rtol=1e-5)


@pytest.fixture
def postcard():
    """Evening sky over a meadow, of the kind that the embedded model knows."""
    picture = Image.new("RGB", (200, 128), (240, 170, 110))
    picture.paste((100, 130, 60), (0, 64, 200, 128))
    return picture


def test_the_forward_process_ends_in_noise(model, postcard):
    found = computed(ink.LESSON, model, picture=postcard)
    assert [noised.t for noised in found] == list(ink.TIMES)
    for noised in found:
        assert noised.alpha**2 + noised.sigma**2 == pytest.approx(1)
        assert pixels(noised.picture).shape == (128, 128, 3)
    assert found[0].alpha > 0.99 and found[-1].alpha < 0.1
    skies, meadows = ([pixels(noised.picture)[half].mean(axis=(0, 1)) for noised in found] for half in HALVES)
    assert np.abs(skies[0] - (240, 170, 110)).max() < 40 and np.abs(meadows[0] - (100, 130, 60)).max() < 40
    assert np.abs(skies[-1] - meadows[-1]).max() < 50


@pytest.mark.parametrize("t", [0, 1, 499, 999])
def test_both_forms_of_the_step_back_are_equal(t):
    rng = np.random.default_rng(t)
    x_0, eps = rng.uniform(-1, 1, (28, 28, 1)), rng.standard_normal((28, 28, 1))
    abar = digits_model.CONFIG.alpha_bars[t]
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * eps
    mean = reverse.by_posterior(x_t, x_0, t)
    np.testing.assert_allclose(mean, reverse.by_noise(x_t, eps, t), atol=1e-9)
    x, noise = (mx.array(each[None].astype(np.float32)) for each in (x_t, eps))
    estimate, other, _ = ddpm.posterior(x, noise, t, t - 1 if t else None, digits_model.CONFIG)
    np.testing.assert_allclose(np.array(estimate)[0], x_0, atol=2e-3 if t > 900 else 1e-4)
    np.testing.assert_allclose(np.array(other)[0], mean, atol=1e-4)


def test_the_model_of_digits_says_the_noise(results):
    found = results("algorithm-1")
    assert found.losses[0] > found.losses[-1] and found.losses[-1] < 0.02
    assert found.losses.max() < 0.5


def test_digits_are_sampled_that_look_like_digits(results):
    found = results("algorithm-2")
    assert found.times[0] > found.times[-1] == 0
    last = found.x_t[-1]
    dark, light = (last < -0.7).mean(), (last > 0.3).mean()
    assert dark > 0.6 and 0.03 < light < 0.3  # white strokes on black
    assert np.abs(found.x_0[-1] - last).max() < 0.2


def test_a_model_of_digits_is_the_same_when_it_is_read_again(tmp_path):
    mx.random.seed(0)
    small = ddpm.PixelUNet(ddpm.DDPMConfig(size=8, widths=(8, 16), labels=("a", "b")))
    save(small, tmp_path)
    again = load(tmp_path)
    assert again.config == small.config
    x, t, labels = mx.random.normal((2, 8, 8, 1)), mx.array([3, 900]), mx.array([0, 2])
    np.testing.assert_allclose(again(x, t, labels), small(x, t, labels), atol=2e-3)
    (tmp_path / "config.yaml").write_text("widths: [8, 24]\n")
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path)
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        load(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="widths"):
        ddpm.DDPMConfig(widths=(12,))
    with pytest.raises(ConfigError, match="beta_start"):
        ddpm.DDPMConfig(beta_start=0.1, beta_end=0.01)


# --- Painting


def test_a_denoising_goes_from_noise_to_the_estimate(results):
    found = results("denoising")
    start, *found = found
    assert start.index == 0 and start.x_0 is None and start.sigma > found[0].sigma
    assert [moment.index for moment in found] == [1, 2, 3, 4]
    assert [moment.sigma for moment in found] == sorted((moment.sigma for moment in found), reverse=True)
    apart = [np.abs(pixels(moment.x_t) - pixels(moment.x_0)).mean() for moment in found]
    assert apart[0] > 20 and apart[-1] < 3


def test_words_act_in_stages_and_levels(results):
    found = results("attention")
    assert [word.text for word in found.maps.words] == common.EXAMPLE.replace(",", "").split()
    assert len(found.maps.stages) == SETTINGS.steps
    plain = pixels(found.picture)
    shown = [pixels(attention.overlaid(found, 2, *how)) for how in ((), ([0],), (None, ["up_blocks.1"]))]
    assert all(each.shape == plain.shape and np.abs(each - plain).mean() > 10 for each in shown)
    assert np.abs(shown[1] - shown[2]).mean() > 3


def test_levels_fall_and_karras_lies_between_even_steps_and_even_factors(results):
    plans = results("levels")["plans"]
    for plan in plans.values():
        assert np.all(np.diff(plan[:, 1]) < 0)
    karras, exponential = (plans[name, 20][:, 1] for name in ("Karras", "exponential"))
    np.testing.assert_allclose(exponential[1:] / exponential[:-1], exponential[1] / exponential[0], rtol=1e-4)
    assert (np.linspace(karras[0], karras[-1], 20) < 1).sum() < (karras < 1).sum() < (exponential < 1).sum()


def test_more_steps_come_nearer_to_the_limit(results):
    far = results("race")["distances"]
    assert all(far[title, 8] < far[title, 4] for title in ("Euler", "DPM++ 2M"))


def test_the_student_is_nearer_to_many_steps_than_its_teacher_at_the_same_cost(results):
    """Four rows: four steps of the student, two guided ones of its teacher."""
    far = results("fewer-steps").distances
    assert far["student", 4] < 0.8 * far["teacher", 2] and far["student", 4] < far["student", 2]
    assert fewer_steps.rows_of("student", 4) == fewer_steps.rows_of("teacher", 2) == 4


def test_only_ancestral_samplers_draw_on_the_way(results):
    found = results("fresh-noise")
    assert len(set(found["Euler"])) == 1 and len(set(found["Euler a"])) == len(found["Euler a"])


def test_strength_changes_the_picture_step_by_step(results):
    (_, _, own), (_, first, little), *_, (_, last, much) = results("strength").pictures
    assert np.abs(pixels(own) - pixels(first)).mean() < np.abs(pixels(own) - pixels(last)).mean(), "noise is added"
    assert 0 < np.abs(pixels(own) - pixels(little)).mean() < np.abs(pixels(own) - pixels(much)).mean()


def test_kept_attention_keeps_the_picture(results, model):
    found = results("other-words")
    (none, alone), (much, kept) = found.after
    half = len(pixels(alone)) // 2  # below the sky, which is asked for
    far = [np.abs(pixels(found.before) - pixels(each))[half:].mean() for each in (alone, kept)]
    assert (none, much) == (0.0, 0.8) and far[0] > far[1] > 0
    same = computed(LESSONS["other-words"], model, after=other_words.BEFORE)
    assert all(np.abs(pixels(same.before) - pixels(each)).max() <= 3 for _, each in same.after)


def test_guidance_raises_the_contrast_and_rescaling_lowers_it(results):
    contrast = results("guidance").contrast
    assert contrast["as it is"][-1] > contrast["as it is"][1]
    assert contrast["rescaled by 0.7"][-1] < contrast["as it is"][-1]


def test_a_weight_of_ones_own_joins_the_others_and_they_are_not_painted_again(results, model, monkeypatch):
    usual, painted = results("guidance"), []
    monkeypatch.setattr(guidance, "painted", lambda *a, **k: painted.append(k["cfg_weight"]) or common.painted(*a, **k))
    found = computed(LESSONS["guidance"], model, own=4.0)
    assert usual.weights == (0.0, 1.0, 7.0, 9.0) and found.weights == (0.0, 1.0, 4.0, 9.0)
    assert painted == [4.0, 4.0]
    assert found.pictures["as it is"][-1] == usual.pictures["as it is"][-1]
    assert found.pictures["as it is"][2] not in usual.pictures["as it is"]


def test_a_picture_in_a_batch_is_the_one_painted_alone(results):
    found = results("seeds")
    assert found.apart < 2
    (_, first), *_, (_, last) = found.pictures["variations"]
    assert np.abs(pixels(first) - pixels(last)).mean() > 3


# --- Inside the networks


def test_the_opened_unet_is_the_unet(model):
    unet = model.network
    x = mx.random.normal((1, 16, 16, 4), key=mx.random.key(0))
    t, context = mx.array([400.0]), unet.project_text(model.encode_text("a red house"))
    opened, shapes = unet_shapes.predict_without(unet, x, t, context, None)
    np.testing.assert_allclose(opened, unet(x, t, context), atol=1e-5)
    assert [name for name, _ in shapes] == ["in", "down 1", "down 2", "down 3", "middle", "up 1", "up 2", "up 3", "out"]
    without, _ = unet_shapes.predict_without(unet, x, t, context, 2)
    assert np.abs(np.array(without - opened)).max() > 0.05


def test_a_convolution_by_hand_is_that_of_the_library():
    x, kernel = np.random.default_rng(0).standard_normal((9, 7)), convolution.kernel_of("edges from left to right")
    theirs = mx.conv2d(
        mx.array(x.astype(np.float32))[None, :, :, None],
        mx.array(kernel.astype(np.float32))[None, :, :, None],
        padding=1,
    )
    np.testing.assert_allclose(convolution.convolved(x, kernel), np.array(theirs)[0, :, :, 0], atol=1e-5)
    assert convolution.convolved(x, kernel, 2).shape == (5, 4)


@pytest.mark.parametrize(("kind", "count"), [("group norm", 8), ("layer norm", 4), ("batch norm", 8)])
def test_each_group_of_a_norm_has_mean_0_and_variance_1(kind, count):
    x = norms.compute(None, report, {})
    groups, y = norms.groups_of(kind), norms.normalised(x, kind)
    assert len(np.unique(groups)) == count
    for each in np.unique(groups):
        assert y[groups == each].mean() == pytest.approx(0, abs=1e-9)
        assert y[groups == each].var() == pytest.approx(1, abs=1e-3)
    if kind == "group norm":
        layer = mx.array(x.transpose(0, 2, 1).astype(np.float32)).reshape(norms.B, 3, 3, norms.C)
        from stable_diffusion import ops

        theirs = ops.group_norm(layer, mx.ones(norms.C), mx.zeros(norms.C), norms.GROUPS, 1e-5)
        np.testing.assert_allclose(np.array(theirs).reshape(norms.B, 9, norms.C).transpose(0, 2, 1), y, atol=1e-4)


# --- Words and latents


def test_tokens_are_those_that_the_model_reads(model):
    found = computed(tokens.LESSON, model, prompt="a red house").tokens
    assert [token.text for token in found] == ["(start)", "a", "red", "house", "(end)"]
    ids, _ = model.tokenizer(["a red house"])
    assert [token.id for token in found] == ids[0, :5].tolist()
    assert [token.position for token in found] == [0, 1, 2, 3, 4]
    assert len(computed(tokens.LESSON, model, prompt="house " * 200).tokens) == 77


@pytest.mark.parametrize("word", ["lighthouse", "supercalifragilistic", "a", "Übermut"])
def test_merges_end_at_the_tokens_of_the_word(word):
    from stable_diffusion.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.clip()
    steps = tokenizer.merge_steps(word)
    assert steps[-1] == tokenizer.tokens(word)
    assert [len(step) for step in steps] == list(range(len(steps[0]), len(steps[0]) - len(steps), -1))


def test_texts_that_mean_alike_lie_together(model):
    found = computed(meaning.LESSON, model, texts="a red house\na red tent\n\na sailboat on the sea")
    assert found.points.shape == (3, 2) and 0 < found.share <= 1
    np.testing.assert_allclose(np.diag(found.similarity), 1)
    np.testing.assert_allclose(found.similarity, found.similarity.T)
    assert found.similarity[0, 1] > found.similarity[0, 2]
    with pytest.raises(InputError, match="no text"):
        computed(meaning.LESSON, model, texts=" \n ")


def test_the_diagonal_of_captions_and_postcards_fills():
    shares = [clip_matrix.on_the_diagonal(each) for each in clip_matrix.training_matrices().values()]
    assert shares[0] < 0.2 and shares[-1] > 0.7 and shares == sorted(shares)


def test_a_typed_caption_finds_postcards(model):
    found = computed(clip_matrix.LESSON, model, caption="a house at night")
    cards = [Postcards(64).card(number) for number in found.numbers]
    assert sum((card.thing, card.time) == ("house", "night") for card in cards) >= 5
    assert list(found.cosines) == sorted(found.cosines, reverse=True) and found.cosines[0] > 0.5


def test_every_way_of_guidance_paints_what_is_asked(results):
    found, clip = results("gradients"), contrastive.load()
    pictures = [found.nothing, *(each[1][0] for each in found.ways.values())]
    wanted = clip.texts([EXAMPLE])
    cosines = np.asarray(clip.pictures(np.stack([pixels(each) for each in pictures]).astype(np.uint8)) @ wanted.T)
    assert (cosines[1:] > cosines[0] + 0.1).all(), cosines


def test_a_projection_keeps_the_distances_of_a_plane():
    rng = np.random.default_rng(0)
    plane, axes = rng.normal(size=(6, 2)), np.linalg.qr(rng.normal(size=(9, 2)))[0]
    found = meaning.projected(tuple("abcdef"), plane @ axes.T + 4)
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (plane, found.points)]
    np.testing.assert_allclose(*distances, atol=1e-12)
    assert found.share == pytest.approx(1)


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((3, 4)), np.zeros((2, 4)), np.ones((2, 1))])
def test_a_projection_of_nearly_nothing_is_no_error(vectors):
    found = meaning.projected(tuple("abc"[: len(vectors)]), vectors)
    assert found.points.shape == (len(vectors), 2)
    assert np.isfinite(found.points).all() and np.isfinite(found.similarity).all()


def test_from_red_to_blue_paints_a_house_bluer(model, monkeypatch):
    monkeypatch.setattr(text_arithmetic, "SHARES", (0.0, 1.0))
    lesson = text_arithmetic.LESSON
    values = values_of(lesson, settings=Settings(steps=10, cfg=5.0, seed=1))
    red, blue = (pixels(each)[70:] for each in lesson.compute(model, report, values).pictures)
    assert (blue[..., 2] - blue[..., 0]).mean() > (red[..., 2] - red[..., 0]).mean() + 10


def test_a_price_on_straying_brings_latents_to_a_normal_distribution(results):
    found = results("vae")
    free, little, much = (found[name] for name in ("0: an autoencoder", "0.02", "3"))
    assert abs(little.latents.std() - 1) < abs(free.latents.std() - 1) or free.latents.std() > 1.5
    assert little.error < 0.15 < much.error
    assert flat.covered(little.drawn) > 0.5


def test_postcards_of_one_time_of_day_lie_together(results):
    found = results("clusters")
    same, chance = clusters.agreement([card.time for card in found.cards], found.nearest["latents"])
    assert same > 0.9 > 0.6 > chance
    thing, by_chance = clusters.agreement([card.thing for card in found.cards], found.nearest["latents"])
    assert by_chance < thing < same
    line = np.arange(12.0)[:, None] ** 2
    assert set(clusters.nearest(line)[0]) == {1, 2, 3, 4, 5}


def test_latents_say_how_many_numbers_there_are(results):
    found = results("latents")
    assert found.latents.shape == (16, 16, 4) and found.pixels == (128, 128, 3) and found.psnr > 20
    assert len(found.without) == 5


def test_the_record_of_the_training_is_read():
    found = training_record.compute(None, report, {})
    for record in found.values():
        assert len(record.sheets) == 3 or len(record.sheets) == 7
        assert record.losses[-20:].mean() < record.losses[:20].mean()
    np.testing.assert_allclose(training_record.smoothed(np.ones(30)), 1)


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

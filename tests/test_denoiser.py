"""Prediction types and guidance, from an x_t whose x_0 and eps are known."""

import math

import mlx.core as mx
import numpy as np
import pytest

from stable_diffusion.diffusion.denoiser import Denoiser, GuidanceInterval, composition, rescaled_guidance
from stable_diffusion.diffusion.schedule import NoiseLevel
from stable_diffusion.errors import InputError

LEVEL = NoiseLevel.from_alpha_bar(300.0, 0.3)


def known(seed=0, shape=(2, 4, 4, 3)):
    generator = np.random.default_rng(seed)
    return [mx.array(generator.standard_normal(shape).astype(np.float32)) for _ in range(2)]


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_finds_x0_and_eps(prediction_type):
    x_0, eps = known()
    answers = {
        "epsilon": eps,
        "v_prediction": LEVEL.alpha * eps - LEVEL.sigma * x_0,
        "sample": x_0,
    }
    answer = answers[prediction_type]
    prediction = Denoiser(lambda x, t, step: answer, prediction_type)(LEVEL.noised(x_0, eps), LEVEL, 1)
    close(prediction.x_0, x_0)
    close(prediction.eps, eps)
    close(prediction.output, answer)


def test_v_prediction_stands_at_pure_noise():
    x_0, eps = known()
    pure = NoiseLevel.from_alpha_bar(999.0, 0.0)
    prediction = Denoiser(lambda x, t, step: -x_0, "v_prediction")(eps, pure, 1)
    close(prediction.x_0, x_0)
    close(prediction.eps, eps)


@pytest.mark.parametrize("cfg_weight", [1.0, 0.0, 0.5])
def test_without_guidance_the_network_runs_once(cfg_weight):
    calls = []

    def unet(x, t, step):
        calls.append((x.shape, t))
        return x

    x = known()[0]
    close(Denoiser(unet, cfg_weight=cfg_weight).output(x, LEVEL, 1), x)
    assert calls == [(x.shape, LEVEL.t)]


def test_guidance_is_one_call_of_negative_and_text():
    negative, text = known()
    calls = []

    def unet(x, t, step):
        calls.append(x.shape)
        return mx.concatenate([negative, text])

    x = known(1)[0]
    output = Denoiser(unet, cfg_weight=7.5).output(x, LEVEL, 1)
    assert calls == [(4, 4, 4, 3)]
    close(output, negative + 7.5 * (text - negative))
    close(composition(negative, [text], [1.0], 1.0), text)


def test_the_doubled_batch_holds_the_latents_twice():
    x = known()[0]
    output = Denoiser(lambda doubled, t, step: doubled, cfg_weight=3.0).output(x, LEVEL, 1)
    close(output, x)


def test_embedded_guidance_is_the_networks_own_affair():
    x = known()[0]
    denoiser = Denoiser(lambda x, t, step: 2 * x, cfg_weight=8.0, embedded_guidance=True)
    assert not denoiser.guided
    close(denoiser.output(x, LEVEL, 1), 2 * x)


def test_guidance_rescale_restores_the_deviation_of_each_image():
    negative, text = known()
    guided = composition(negative, [text], [1.0], 7.5)
    whole = rescaled_guidance(guided, text, 1.0)
    close(mx.std(whole, axis=(1, 2, 3)), mx.std(text, axis=(1, 2, 3)))
    close(rescaled_guidance(guided, text, 0.0), guided)
    close(rescaled_guidance(guided, text, 0.25), 0.25 * whole + 0.75 * guided)
    unet = Denoiser(lambda x, t, step: mx.concatenate([negative, text]), cfg_weight=7.5, guidance_rescale=0.7)
    close(unet.output(negative, LEVEL, 1), rescaled_guidance(guided, text, 0.7))


@pytest.mark.parametrize(
    "options, guided",
    [
        ({}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}),
        (
            {"start": 0.2},
            {4, 5, 6, 7, 8, 9, 10},
        ),  # as A1111's skip_early_cond, which counts from 0
        ({"start": 0.25}, {4, 5, 6, 7, 8, 9, 10}),
        ({"end": 0.6}, {1, 2, 3, 4, 5, 6}),
        ({"start": 0.3, "end": 0.6}, {5, 6}),
        ({"start": 0.5, "end": 0.5}, set()),
        ({"start": 1.0}, set()),
        ({"end": 0.0}, set()),
        ({"min_sigma": 4.0}, {1, 2, 3, 4, 5, 6, 7}),  # at exactly that sigma it acts
        ({"start": 0.2, "min_sigma": 4.0}, {4, 5, 6, 7}),
        ({"min_sigma": 1e9}, set()),
    ],
)
def test_the_steps_in_which_guidance_acts(options, guided):
    interval = GuidanceInterval(steps=10, **options)
    levels = {step: NoiseLevel.from_ve_sigma(0.0, 11.0 - step) for step in range(1, 11)}
    assert {step for step, level in levels.items() if interval.holds(level, step)} == guided


def test_without_an_interval_every_step_of_any_number_is_guided():
    assert all(GuidanceInterval().holds(LEVEL, step) for step in (1, 2, 1000))


def test_at_pure_noise_every_sigma_is_reached():
    assert GuidanceInterval(min_sigma=15.0).holds(NoiseLevel.from_alpha_bar(999.0, 0.0), 1)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.6)])
def test_outside_the_interval_the_text_counts_alone(weights):
    """Of a composition the first text takes the negative's place, as in A1111 without one."""
    x, texts, calls = known(1)[0], known(), []

    def unet(rows, t, step):
        calls.append(len(rows))
        return mx.concatenate([-x, *texts[: len(weights)]][-len(rows) // len(x) :])

    interval = GuidanceInterval(2, 0.0, 0.5)
    denoiser = Denoiser(unet, cfg_weight=7.5, guidance_rescale=0.7, weights=weights, interval=interval)
    texts = texts[: len(weights)]
    alone = texts[0] if len(texts) == 1 else texts[0] + 0.6 * (texts[1] - texts[0])
    close(denoiser.output(x, LEVEL, 2), alone)
    within = rescaled_guidance(composition(-x, texts, weights, 7.5), sum(texts[1:], texts[0]) / len(texts), 0.7)
    close(denoiser.output(x, LEVEL, 1), within)
    assert calls == [len(x) * len(weights), len(x) * (len(weights) + 1)]


def test_float16_answers_are_combined_in_float32():
    x = known()[0]
    answer = mx.full((4, 4, 4, 3), 1000.1).astype(mx.float16)
    output = Denoiser(lambda x, t, step: answer, cfg_weight=7.5).output(x, LEVEL, 1)
    assert output.dtype == mx.float32
    prediction = Denoiser(lambda x, t, step: answer[:2])(x, LEVEL, 1)
    assert {prediction.x_0.dtype, prediction.eps.dtype} == {mx.float32}


@pytest.mark.parametrize("options", [
    {"prediction_type": "noise"}, {"cfg_weight": math.nan}, {"cfg_weight": math.inf}, {"guidance_rescale": 1.5},
    {"guidance_rescale": -0.1},
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Denoiser(lambda x, t, step: x, **options)


@pytest.mark.parametrize("weight", [0.6, 1.0, 7.0])
def test_the_negative_texts_own_answer_is_there_at_every_weight(weight):
    x_0, eps = known()
    text, x = known(1)[0], LEVEL.noised(x_0, eps)

    def unet(both, t, step):
        assert both.shape[0] == 2 * x.shape[0]
        return mx.concatenate([eps, text])

    guided, negative = Denoiser(unet, cfg_weight=weight, needs_negative=True).with_negative(x, LEVEL, 1)
    close(negative.eps, eps)
    close(negative.x_0, x_0)
    close(guided.eps, eps + weight * (text - eps))


def test_where_nothing_is_negative_the_texts_answer_stands_for_it():
    x, eps = known()
    interval = GuidanceInterval(10, 0.0, 0.5)
    denoiser = Denoiser(lambda x, t, step: eps, interval=interval, needs_negative=True)
    for each in denoiser.with_negative(x, LEVEL, 9):
        close(each.eps, eps)


def test_a_denoiser_that_is_told_no_interval_guides_every_step():
    x, text = known()
    both = mx.concatenate([mx.zeros_like(x), text])
    for step in (1, 2, 50):
        close(Denoiser(lambda x, t, step: both, cfg_weight=3.0).output(x, LEVEL, step), 3 * text)

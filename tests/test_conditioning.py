"""What the U-Net is conditioned on, with the embedded model: weights, chunks, clip skip, blends."""

from __future__ import annotations

import numpy as np
import pytest

from stable_diffusion import Blend, StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError
from stable_diffusion.text.conditioning import PromptTruncatedWarning, TextConditioner, weighed
from stable_diffusion.text.prompt import step_text

from . import drawn

PROMPT = "a red house on green hills at sunset"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def encode(sd: StableDiffusion, text: str | Blend, **options) -> np.ndarray:
    return np.array(sd.encode_text(text, **options))


@pytest.mark.parametrize("text", ["", PROMPT, "a red house, " * 18, "16:9, 7 | 8", "house " * 75])
def test_a_text_without_signs_is_the_plain_one_bit_for_bit(sd, text):
    assert np.array_equal(encode(sd, text), encode(sd, text, prompt_language="plain"))


@pytest.mark.parametrize("text", ["(a red house:1.0)", "a (red) house", r"a \[red\] house"])
def test_escaped_and_plain_signs_are_the_same(sd, text):
    escaped = "".join(f"\\{c}" if c in "()[]" else c for c in text.replace("\\", ""))
    assert np.array_equal(encode(sd, escaped), encode(sd, text.replace("\\", ""), prompt_language="plain"))


def test_a_weight_of_one_changes_nothing(sd):
    assert np.array_equal(encode(sd, "a ([red]:1.1) house"), encode(sd, "a red house"))


def test_weights_multiply_their_tokens(sd):
    plain, found = encode(sd, "a red house"), encode(sd, "a (red:1.5) house")
    weights = np.ones((1, 77), np.float32)
    weights[0, 2] = 1.5
    assert np.abs(found - np.array(weighed(mx.array(plain), weights))).max() < 1e-6
    ratio = found[0] / plain[0]
    assert np.median(ratio[2]) == pytest.approx(1.5 * np.median(ratio[3]), rel=1e-4)


def test_the_mean_of_each_chunk_stays():
    """A1111's: each token's states times its weight, then all of a chunk times one number that restores the mean."""
    hidden = drawn.normal("hidden", 2, 77, 64) + np.array([0.3, -0.2], np.float32)[:, None, None]
    weights = np.abs(drawn.normal("weights", 2, 77)) + np.float32(0.1)
    expected = hidden * weights[..., None]
    expected *= hidden.mean(axis=(1, 2), keepdims=True) / expected.mean(axis=(1, 2), keepdims=True)
    found = np.array(weighed(mx.array(hidden), weights))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert found.mean(axis=(1, 2)) == pytest.approx(hidden.mean(axis=(1, 2)), rel=1e-4)


@pytest.mark.parametrize("mean", [0, 1e-7, 0.01])
def test_a_mean_that_is_an_accident_is_left_alone(mean):
    """Its quotient with another accident would scale the text by anything, also by a negative number."""
    hidden = drawn.normal("hidden", 1, 77, 64)
    hidden += mean - hidden.mean()
    weights = np.ones((1, 77), np.float32)
    weights[0, :9] = 1.5
    assert np.allclose(np.array(weighed(mx.array(hidden), weights)), hidden * weights[..., None])


def test_weights_that_cancel():
    """Weights that cancel the mean cannot blow the states up."""
    hidden = np.ones((1, 2, 4), np.float32)
    assert np.array_equal(np.array(weighed(mx.array(hidden), np.array([[1, -1]])))[0, :, 0], [1, -1])


def test_a_long_text_is_read_in_chunks(sd):
    words = [PROMPT, "a blue tent", "a sailboat at night"]
    found = encode(sd, " BREAK ".join(words))
    assert found.shape == (1, 3 * 77, encode(sd, "").shape[-1])
    for i, text in enumerate(words):
        assert np.abs(found[:, 77 * i : 77 * (i + 1)] - encode(sd, text)).max() < 1e-5
    assert encode(sd, "house " * 76).shape[1] == 154


def test_each_chunk_keeps_its_own_mean(sd):
    found = encode(sd, f"(red:1.5) house BREAK {PROMPT}")
    assert np.abs(found[:, :77] - encode(sd, "(red:1.5) house")).max() < 1e-5
    assert np.abs(found[:, 77:] - encode(sd, PROMPT)).max() < 1e-5


def test_plain_language_cuts_and_says_so(sd):
    with pytest.warns(PromptTruncatedWarning, match="'tent'"):
        found = encode(sd, "house " * 75 + "tent", prompt_language="plain")
    assert np.array_equal(found, encode(sd, "house " * 75))


def test_clip_skip_counts_from_the_last_layer(sd):
    encoder = sd._conditioner.encoders[0]
    output = encoder(mx.array(sd.tokenizer([PROMPT])[0]))
    assert np.array_equal(encode(sd, PROMPT, clip_skip=1), encode(sd, PROMPT))
    for skip in range(2, len(encoder.layers) + 1):
        expected = np.array(encoder.final_layer_norm(output.hidden_states[-skip]))
        assert np.array_equal(encode(sd, PROMPT, clip_skip=skip), expected)
        assert np.array_equal(encode(sd, PROMPT, clip_skip=skip, prompt_language="plain"), expected)


@pytest.mark.parametrize("skip", [0, -1, 99, 1.5, True, "2"])
def test_a_clip_skip_that_no_layer_answers_to(sd, skip):
    with pytest.raises(InputError, match="clip_skip"):
        sd.encode_text(PROMPT, clip_skip=skip)
    with pytest.raises(InputError, match="clip_skip"):
        sd.generate_latents(PROMPT, clip_skip=skip)


def test_an_unknown_language(sd):
    with pytest.raises(InputError, match="prompt_language = 'french' should be one of a1111, plain"):
        sd.generate_latents(PROMPT, prompt_language="french")


class TestBlend:
    def test_it_lies_between(self, sd):
        start, end = encode(sd, "a red house"), encode(sd, "a (blue:1.3) tent")
        found = encode(sd, Blend("a red house", "a (blue:1.3) tent", 0.25))
        assert np.abs(found - (0.75 * start + 0.25 * end)).max() < 1e-5

    def test_at_its_ends_it_is_the_text_itself(self, sd):
        long = "house " * 80
        assert np.array_equal(encode(sd, Blend("a red house", long, 0)), encode(sd, "a red house"))
        assert np.array_equal(encode(sd, Blend("a red house", long, 1)), encode(sd, long))

    def test_texts_of_unlike_lengths(self, sd):
        short, long, empty = encode(sd, PROMPT), encode(sd, "house " * 80), encode(sd, "")
        found = encode(sd, Blend(PROMPT, "house " * 80, 0.5))
        assert np.abs(found - (np.concatenate([short, empty], axis=1) + long) / 2).max() < 1e-5

    @pytest.mark.parametrize(
        "blend, match",
        [
            (Blend("a", "b", 1.5), r"text.share = 1\.5"),
            (Blend("a", "b", float("nan")), "share = nan"),
            (Blend("a", "b", "half"), "share = 'half'"),
            (Blend("a", 3, 0.5), "text.end should be a string, not 3"),
            (Blend(None, "b", 0.5), "text.start"),
            (Blend("a AND c", "b", 0.5), "AND cannot be blended"),
        ],
    )
    def test_what_is_refused(self, sd, blend, match):
        with pytest.raises(InputError, match=match):
            sd.generate_latents(blend)


def test_two_encoders_side_by_side(sd):
    """As SDXL has them: penultimate states, each weighed for itself; the first chunk's pooled vector, unweighed."""
    encoder, other = (StableDiffusion(float16=False)._conditioner.encoders[0] for _ in range(2))
    encoder.layers = [*encoder.layers, encoder.layers[0]]  # three, of which two can be passed over
    other.layers = encoder.layers[::-1][:2] + other.layers[:1]  # another network of the same shapes
    conditioner = TextConditioner([sd.tokenizer] * 2, [encoder, other], xl=True, zeros_for_none=True)
    found = conditioner(step_text("a (red:1.5) house BREAK a tent"))
    ids = mx.array(sd.tokenizer(["a red house", "a tent"])[0])
    width = encoder.config.hidden_size
    weights = np.ones((2, 77), np.float32)
    weights[0, 2] = 1.5
    for i, each in enumerate((encoder, other)):
        output = each(ids)
        expected = np.concatenate(np.array(weighed(output.hidden_states[-2], weights)))
        mine = np.array(found.text[0, :, width * i : width * (i + 1)])
        assert np.abs(mine - expected).max() < 2e-5 * np.abs(expected).max()
    assert np.abs(np.array(found.pooled) - np.array(output.pooled[:1])).max() < 1e-5
    assert found.pooled.shape[0] == 1
    again, zeros = conditioner.read([step_text("a (red:1.5) house BREAK a tent"), None])
    assert np.array_equal(np.array(again.text), np.array(found.text))
    assert zeros.text.shape == found.text.shape and not zeros.text.any() and not zeros.pooled.any()
    for skip, layer in ((1, -2), (2, -2), (3, -3)):
        skipped = conditioner.replaced(clip_skip=skip)(step_text("a red house"))
        assert np.array_equal(np.array(skipped.text[..., :width]), np.array(encoder(ids[:1]).hidden_states[layer]))

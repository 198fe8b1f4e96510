"""Textual inversion on the embedded model: what a file's name in a prompt becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion
from stable_diffusion.adapters.embeddings import read_embedding, with_embeddings
from stable_diffusion.backend import mx
from stable_diffusion.errors import UnsupportedCheckpointError, WeightsError
from stable_diffusion.text.conditioning import PromptTruncatedWarning

from . import drawn


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture
def folder(sd, tmp_path, monkeypatch) -> Path:
    """Where the model finds its embeddings."""
    monkeypatch.setattr(sd._embeddings, "folders", [tmp_path])
    return tmp_path


def width(sd: StableDiffusion) -> int:
    return sd._conditioner.encoders[0].config.hidden_size


def put(folder: Path, name: str, sd: StableDiffusion, vectors: int = 2, key: str = "emb_params") -> np.ndarray:
    """An embedding's file; returns its vectors."""
    values = drawn.normal(name, vectors, width(sd)) * np.float32(0.1)
    save_file({key: values}, folder / f"{name}.safetensors")
    return values


def read(sd: StableDiffusion, text: str) -> np.ndarray:
    """A text as the U-Net gets it."""
    return np.array(sd.encode_text(text, prompt_language="plain"))


def embedded(sd: StableDiffusion, *parts: str | np.ndarray) -> np.ndarray:
    """The encoder's output where its table's outcome is put together by hand, of texts and vectors."""
    tokenizer, encoder = sd.tokenizer, sd._conditioner.encoders[0]
    table = np.array(encoder.token_embedding.weight)
    rows = [table[[tokenizer.bos_id]]]
    rows += [part if isinstance(part, np.ndarray) else table[tokenizer.encode(part)] for part in parts]
    rows += [table[[tokenizer.eos_id]]]
    body = np.concatenate(rows)
    body = np.concatenate([body, np.repeat(table[[tokenizer.pad_id]], 77 - len(body), axis=0)])
    x = mx.array(body)[None] + encoder.position_embedding.weight
    for layer in encoder.layers:
        x = layer(x)
    return np.array(encoder.final_layer_norm(x))


def test_a_name_stands_for_its_vectors(sd, folder):
    vectors = put(folder, "Foggy", sd, 3)
    expected = embedded(sd, "a house,", vectors, ", hills")
    for prompt in ("a house, Foggy, hills", "a house, FOGGY, hills", "a house, foggy , hills"):
        assert np.abs(read(sd, prompt) - expected).max() < 1e-5


@pytest.mark.parametrize("prompt", ["a froggy house", "foggyness", "a foggy2 house", "a_foggy"])
def test_inside_of_words_it_is_none(prompt, sd, folder):
    before = read(sd, prompt)
    put(folder, "foggy", sd)
    put(folder, "foggyness or so", sd)
    assert np.array_equal(read(sd, prompt), before)


@pytest.mark.parametrize("name", ["bad-hands-5", "<cat-toy>", "a style v1.2", "ünlü", "hand (new)"])
def test_names_of_signs(name, sd, folder):
    vectors = put(folder, name, sd)
    assert np.abs(read(sd, f"red,{name}, hill") - embedded(sd, "red,", vectors, ", hill")).max() < 1e-5
    assert np.abs(read(sd, f"({name})") - embedded(sd, "(", vectors, ")")).max() < 1e-5


def test_of_names_that_begin_alike_the_longer_one(sd, folder):
    short, long = put(folder, "bad", sd, 1), put(folder, "bad-hands", sd, 2)
    assert np.abs(read(sd, "bad-hands bad") - embedded(sd, long, short)).max() < 1e-5


def test_vectors_count_among_the_75(sd, folder):
    put(folder, "wide", sd, 70)
    with pytest.warns(PromptTruncatedWarning, match="'clouds tent'"):
        read(sd, "wide a red house on hills clouds tent")
    put(folder, "wide", sd, 76)
    with pytest.warns(PromptTruncatedWarning, match="75 tokens"):
        read(sd, "wide")


def test_in_the_negative_text(sd, folder):
    options = {"num_steps": 1, "width": 64, "height": 64, "seed": 1}
    plain = next(sd.generate_latents("a house", "ugly", **options)).latents
    put(folder, "ugly", sd)
    assert not mx.allclose(next(sd.generate_latents("a house", "ugly", **options)).latents, plain, atol=1e-3)


def test_what_no_text_names_is_not_read(sd, folder):
    (folder / "broken.safetensors").write_bytes(b"no file")
    read(sd, "a red house")
    read(sd, "unbroken")
    with pytest.raises(WeightsError, match=r"broken\.safetensors"):
        sd.generate_latents("a broken house")


def test_the_model_stays_as_it_is(sd, folder):
    before = sd.tokenizer.encode("a foggy house"), read(sd, "a foggy house")
    put(folder, "foggy", sd)
    read(sd, "a foggy house")
    (folder / "foggy.safetensors").unlink()
    assert sd.tokenizer.encode("a foggy house") == before[0]
    assert np.array_equal(read(sd, "a foggy house"), before[1])


def test_one_vector_without_a_second_axis(sd, folder):
    vector = drawn.normal("one", width(sd))
    save_file({"<one>": vector}, folder / "one.safetensors")
    assert np.abs(read(sd, "one") - embedded(sd, vector[None])).max() < 1e-5


def test_the_end_of_text_is_found_before_ids_beyond(sd, folder):
    """Old files say that the end is the highest id, which an embedding's ids surpass."""
    import dataclasses

    from stable_diffusion.clip import CLIPTextModel

    config = dataclasses.replace(sd._conditioner.encoders[0].config, eos_token_id=2)
    encoder = CLIPTextModel(config)
    first = sd.tokenizer.vocab_size
    ids = mx.array([[sd.tokenizer.bos_id, 5, first, first + 1, sd.tokenizer.eos_id, sd.tokenizer.eos_id]])
    assert encoder._end_of_text(ids).tolist() == [4]


@pytest.mark.parametrize(
    "widths, family", [((768,), r"SD 1\.x"), ((1024,), r"SD 2\.x"), ((99,), "another model"), ((768, 1280), "SDXL")]
)
def test_another_familys_are_refused(widths, family, sd, folder):
    keys = ["clip_l", "clip_g"] if len(widths) == 2 else ["emb_params"]
    save_file(
        {key: drawn.normal(key, 2, side) for key, side in zip(keys, widths, strict=True)}, folder / "x.safetensors"
    )
    with pytest.raises(UnsupportedCheckpointError, match=f"'x' is for {family}.*this checkpoint is SD 1.x"):
        sd.generate_latents("a house by x")


@pytest.mark.parametrize(
    "tensors, match",
    [
        ({"a": np.zeros((2, 8), np.float32), "b": np.zeros((2, 8), np.float32)}, "holds 2 tensors"),
        ({"a": np.zeros((2, 2, 8), np.float32)}, r"\(2, 2, 8\)"),
        ({"a": np.zeros((0, 8), np.float32)}, r"\(0, 8\)"),
        ({"clip_l": np.zeros((2, 8), np.float32), "clip_g": np.zeros((1, 9), np.float32)}, "shapes"),
        ({}, "holds 0 tensors"),
        ({"a": np.zeros((2, 8), np.int32)}, "of type I32"),
    ],
)
def test_what_is_no_embedding(tensors, match, sd, folder):
    save_file(tensors, folder / "x.safetensors")
    with pytest.raises(WeightsError, match=match):
        sd.generate_latents("x")


def test_two_encoders(sd, tmp_path):
    """As SDXL has them: each gets the vectors of its own width."""
    side = width(sd)
    tensors = {"clip_g": drawn.normal("g", 2, side), "clip_l": drawn.normal("l", 2, side)}
    save_file(tensors, tmp_path / "x.safetensors")
    embedding = read_embedding(tmp_path / "x.safetensors", "x", [side, side], "sdxl")
    encoder = sd._conditioner.encoders[0]
    tokenizers, encoders = with_embeddings([sd.tokenizer] * 2, [encoder] * 2, [embedding])
    for tokenizer, extended, key in zip(tokenizers, encoders, ("clip_l", "clip_g"), strict=True):
        ids = mx.array(tokenizer.encode("a x b"))
        found = np.array(extended.token_embedding(ids))
        assert np.array_equal(found[1:3], tensors[key])
        assert np.array_equal(found[[0, 3]], np.array(encoder.token_embedding(ids[mx.array([0, 3])])))

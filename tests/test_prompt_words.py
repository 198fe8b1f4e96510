"""What the prompt fields offer, and how their texts travel between Python and the browser."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from stable_diffusion.adapters.lora_triggers import triggers_of
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import presets, prompt_words
from stable_diffusion.service.gallery import Gallery


def lora(path, metadata):
    header = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    data = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "ink wash,  paper cut ,"}, ("ink wash", "paper cut")),
        ({"ss_tag_frequency": '{"5_a": {"ohwx": 9, "tree": 2}, "2_b": {"ohwx": 4, "sky": 4}}'}, ("ohwx",)),
        ({"ss_tag_frequency": '{"5_a": {"a": 1, "b": 1}}'}, ()),  # one caption says nothing
        ({"ss_tag_frequency": "{"}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "x"}}'}, ()),
        ({"modelspec.trigger_phrase": "x" * 81}, ()),
        ({}, ()),
    ],
)
def test_trigger_words(metadata, words):
    assert triggers_of(metadata) == words


def test_what_is_here_is_listed(tmp_path, monkeypatch):
    for kind in ("loras", "embeddings", "wildcards"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"STABLE_DIFFUSION_{kind.upper()}", str(tmp_path / kind))
    lora(tmp_path / "loras" / "Ink.safetensors", {"modelspec.trigger_phrase": "ink wash"})
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"{")
    (tmp_path / "embeddings" / "easyneg.pt").write_bytes(b"")
    (tmp_path / "wildcards" / "colour.txt").write_text("red")
    found = prompt_words.listed()
    assert ("Ink", "trigger words: ink wash", ["ink wash"]) in found["loras"]
    assert ("broken", "", []) in found["loras"]
    assert "easyneg" in found["embeddings"] and ("colour", "") in found["wildcards"]
    (tmp_path / "wildcards" / "bad.yaml").write_text("{")
    assert prompt_words.listed()["wildcards"] == []


def test_earlier_prompts_come_from_the_gallery_and_presets(tmp_path):
    for seed, prompt in enumerate(("a tent", "a house", "a tent")):
        picture = np.full((8, 8, 3), 0.5)
        picture_files.save_new_picture(picture, tmp_path / "2026-01-01", Parameters(prompt, "rain", steps=3, seed=seed))
    presets.save(tmp_path / "presets.json", "one", {"prompt": "a boat", "negative": "", "steps": 3})
    gallery = Gallery(tmp_path)
    gallery.scan()
    pairs = prompt_words.past(gallery, tmp_path / "presets.json")
    gallery.close()
    found = prompt_words.earlier([("mine", ""), *pairs, ("x" * 2001, "")])
    assert found["prompt"][0] == "mine" and found["prompt"][-1] == "a boat"
    assert sorted(found["prompt"][1:3]) == ["a house", "a tent"] and len(found["prompt"]) == 4
    assert found["negative"] == ["rain"]


# --- Between Python and the browser


@pytest.fixture
def texts(monkeypatch):
    pytest.importorskip("streamlit")
    from stable_diffusion.webui.components import prompt_texts

    monkeypatch.setattr(prompt_texts, "st", SimpleNamespace(session_state={}))
    return prompt_texts


def send(texts, key, turn, text):
    texts.st.session_state[texts.field(key)] = {"typed": {"turn": turn, "text": text}}


def test_what_is_typed_arrives_with_any_callback(texts):
    state = texts.st.session_state
    turn, text = texts.known("prompt")
    assert text == ""
    send(texts, "prompt", turn, "a house")
    texts.receive()
    assert state["prompt"] == "a house"
    assert texts.known("prompt") == (turn, "a house"), "the browser has it: it is not sent back"


def test_what_was_typed_over_an_older_text_is_left_out(texts):
    state = texts.st.session_state
    turn, _ = texts.known("prompt")
    send(texts, "prompt", turn, "a house")
    texts.receive()
    state["prompt"] = "from a picture"
    texts.receive()  # the browser's state still says "a house"
    assert state["prompt"] == "from a picture"
    new, text = texts.known("prompt")
    assert new != turn and text == "from a picture"
    send(texts, "prompt", turn, "a house, too late")
    texts.receive()
    assert state["prompt"] == "from a picture"


@pytest.mark.parametrize("typed", [None, "x", {"text": "a"}, {"turn": "", "text": "a"}, ["a"]])
def test_what_is_no_text_is_left_out(texts, typed):
    texts.known("prompt")
    texts.st.session_state[texts.field("prompt")] = {"typed": typed}
    texts.receive()
    assert texts.st.session_state["prompt"] == ""


def test_a_text_has_an_end(texts):
    turn, _ = texts.known("prompt")
    send(texts, "prompt", turn, "x" * (texts.MAX_TEXT + 1))
    texts.receive()
    assert len(texts.st.session_state["prompt"]) == texts.MAX_TEXT

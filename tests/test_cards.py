"""Cards of models, LoRAs, embeddings, VAEs and upscalers: what files and the notes beside them say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import catalogue
from stable_diffusion.adapters import lora_notes
from stable_diffusion.model_io import beside, hashes
from stable_diffusion.service import cards
from stable_diffusion.service.worker import Worker
from tests.pretend import over


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Folders for everything, empty but for what a test puts there."""
    for name in ("MODELS", "LORAS", "EMBEDDINGS", "UPSCALERS", "CACHE"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(f"STABLE_DIFFUSION_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def lora(path: Path, rank: int = 4, metadata: dict[str, str] | None = None) -> Path:
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    zeros = {f"{base}.lora_down.weight": (rank, 768), f"{base}.lora_up.weight": (320, rank), f"{base}.alpha": ()}
    save_file({key: np.zeros(shape, np.float32) for key, shape in zeros.items()}, path, metadata)
    return path


INK = {
    "modelspec.trigger_phrase": "inkstyle",
    "modelspec.author": "someone",
    "ss_sd_model_name": "v1-5-pruned.ckpt",
    "ss_tag_frequency": json.dumps({"10_ink": {"inkstyle": 40, "a cat": 9, "1girl": 12}, "5_more": {"a cat": 5}}),
}


def entry_of(kind: str, name: str) -> cards.Entry:
    return next(entry for entry in cards.listed(catalogue.all())[kind] if entry.name == name)


def test_a_lora_says_its_family_rank_and_words(home):
    lora(home / "loras" / "ink.safetensors", metadata=INK)
    entry = entry_of(cards.LORAS, "ink")
    assert entry.about[:2] == ("SD 1.x", "rank 4") and not entry.problem
    card = cards.card(entry)
    assert (card.trigger, card.tags) == (("inkstyle",), ("a cat", "1girl"))
    assert card.facts["Author"] == "someone" and card.facts["Trained from"] == "v1-5-pruned.ckpt"
    assert card.facts["Path"].endswith("ink.safetensors") and card.weight is None
    assert cards.tag(card) == "<lora:ink:1>"


def test_notes_and_previews_beside_a_file_as_a1111_and_civitai_have_them(home):
    path = lora(home / "loras" / "ink.safetensors", metadata=INK)
    Image.new("RGB", (900, 600), "teal").save(home / "loras" / "ink.preview.png")
    own = {"description": "Mine <b>bold</b>", "activation text": "pen", "preferred weight": 0.7, "sd version": "SD1",
           "negative text": "colour"}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(own))
    info = {"trainedWords": ["ink drawing,", 7], "description": "<p>Theirs</p>", "model": {"name": "Ink it"}}
    path.with_suffix(".civitai.info").write_text(json.dumps(info))
    card = cards.card(entry_of(cards.LORAS, "ink"))
    assert card.trigger == ("inkstyle", "pen", "ink drawing")
    assert (card.weight, card.negative, card.description) == (0.7, "colour", "Mine bold")
    assert (card.facts["Made for"], card.facts["Title"]) == ("SD1", "Ink it")
    assert cards.tag(card) == "<lora:ink:0.7>"
    assert card.preview is not None and card.preview.name == "ink.preview.png"
    small = cards.thumbnail(card.preview)
    assert small is not None and small.startswith(b"\xff\xd8") and len(small) < 20_000
    (home / "loras" / "ink.preview.png").write_bytes(b"no picture")
    assert cards.thumbnail(card.preview) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"description": 7, "activation text": ["a"], "preferred weight": "1"}',
     b"[" * 100_000, b'{"preferred weight": 1e400}', b'{"preferred weight": true}'],
)  # fmt: skip
def test_notes_that_make_no_sense_are_left_out(home, content):
    path = lora(home / "loras" / "ink.safetensors")
    for suffix in (".json", ".civitai.info"):
        path.with_suffix(suffix).write_bytes(content)
    assert beside.notes_of(path) == beside.Notes()
    path.with_suffix(".json").write_bytes(b" " * (beside.MAX_BYTES + 1))
    assert beside.notes_of(path) == beside.Notes()


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"a": 7}', '{"a": {"b": "c"}}', "[" * 100_000, '{"a": {"' + "b" * 200 + '": 1}}']
)
def test_tag_frequencies_that_make_no_sense_are_left_out(text):
    assert lora_notes.commonest(text) == ()


def test_descriptions_are_plain_text():
    assert (
        beside.plain("<p>One &amp; two</p><script>x</script><br/>three\n\n<li>four</li>") == "One & two\nx\nthree\nfour"
    )
    assert len(beside.plain("a" * 10_000)) == beside.MAX_TEXT


def test_every_kind_is_listed_with_what_is_known(home):
    (home / "models" / "VAE").mkdir()
    save_file({"decoder.conv_in.weight": np.zeros((4, 4, 3, 3), np.float32)}, home / "models" / "VAE" / "v.safetensors")
    save_file({"emb_params": np.zeros((3, 768), np.float32)}, home / "embeddings" / "bad.safetensors")
    (home / "loras" / "broken.safetensors").write_bytes(b"")
    listed = cards.listed(catalogue.all())
    embedded = cards.card(listed[cards.MODELS][0], catalogue.all())
    assert embedded.facts["Licence"] == "MIT" and "20 steps, CFG 5" in embedded.facts["Paints by default with"]
    assert entry_of(cards.EMBEDDINGS, "bad").about[:2] == ("SD 1.x", "3 vectors")
    assert entry_of(cards.VAES, "v.safetensors").about[0].startswith("a VAE alone")
    assert entry_of(cards.LORAS, "broken").problem
    assert "x4" in entry_of(cards.UPSCALERS, "realesr-animevideov3").about
    assert set(listed) == set(cards.TITLES)


def test_a_search_finds_every_word_in_names_families_and_trigger_words(home):
    lora(home / "loras" / "ink.safetensors", metadata=INK)
    lora(home / "loras" / "wash.safetensors")
    entries = cards.listed(catalogue.all())[cards.LORAS]
    for search, names in (("INK", ["ink"]), ("a cat sd", ["ink"]), ("sd rank", ["ink", "wash"]), ("ink wash", [])):
        assert [entry.name for entry in cards.matching(entries, search)] == names, search


def test_300_files_are_listed_and_searched_quickly(home):
    import time

    for i in range(300):
        lora(home / "loras" / f"style {i:03}.safetensors", metadata=INK if i % 2 else None)
    cards.listed(catalogue.all())
    start = time.perf_counter()
    entries = cards.listed(catalogue.all())[cards.LORAS]
    assert len(cards.matching(entries, "inkstyle")) == 150
    assert time.perf_counter() - start < 2, "the heads of files are read once"


def test_a_hash_is_computed_by_the_worker_with_progress_and_kept(home, tmp_path):
    path = lora(home / "loras" / "ink.safetensors")
    assert cards.card(entry_of(cards.LORAS, "ink")).hash is None
    worker = Worker(tmp_path / "outputs")
    try:
        task = cards.hash_task(worker, path)
        over(task)
        assert task.fraction == 1.0 and task.result == hashes.full_hash(path)
        assert cards.card(entry_of(cards.LORAS, "ink")).hash == hashes.full_hash(path)[:10]
    finally:
        worker.close()


def test_a_hash_can_be_stopped(home):
    path = lora(home / "loras" / "ink.safetensors")

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hashes.compute(path, stop)
    assert hashes.known_hash(path) is None


def test_words_are_added_to_a_prompt_once():
    assert cards.with_words("", ["ink", "<lora:ink:1>"]) == "ink, <lora:ink:1>"
    assert cards.with_words("a cat, ink, ", ["ink", "pen"]) == "a cat, ink, pen"
    assert cards.with_words("a cat", []) == "a cat"

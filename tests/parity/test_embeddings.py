"""Textual inversion against diffusers' load_textual_inversion: the same hidden states, in every form of file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.text.prompt import step_text  # noqa: E402

from .. import drawn  # noqa: E402
from ..networks import relative_error  # noqa: E402
from . import pipelines  # noqa: E402
from .test_pipeline import reference  # noqa: E402

pytestmark = pytest.mark.parity

PROMPTS = [
    "a red <cat-toy> on green hills",
    "<cat-toy>",
    "a house,<cat-toy>, and a <CAT-TOY>",
    "x " * 70 + "<cat-toy> y",
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in ("sd1", "sd2", "sdxl")}


def vectors(name: str, count: int, width: int) -> torch.Tensor:
    return torch.from_numpy(drawn.normal(name, count, width)) * 0.1


def ours(folder: Path, embeddings: Path, prompt: str) -> tuple[np.ndarray, np.ndarray | None]:
    sd = StableDiffusion(folder, float16=False)
    sd.embedding_folders[:] = [embeddings]
    text = step_text(prompt)
    conditioning = sd._with_embeddings([piece.text for piece in text.pieces], sd._conditioner)(text)
    return np.array(conditioning.text), None if conditioning.pooled is None else np.array(conditioning.pooled)


def write(form: str, file: Path, values: torch.Tensor) -> Path:
    if form == "safetensors":
        save_file({"<cat-toy>": values}, file.with_suffix(".safetensors"))
    elif form == "emb_params":  # A1111
        save_file({"emb_params": values}, file.with_suffix(".safetensors"))
    elif form == "bin":
        content = {"<cat-toy>": values[0] if len(values) == 1 else values}
        torch.save(content, file.with_suffix(".bin"), _use_new_zipfile_serialization=False)
    else:  # A1111's own, as it writes them since 2022, and before
        held = torch.nn.ParameterDict({"*": torch.nn.Parameter(values)}) if form == "pt, old" else {"*": values}
        content = {
            "string_to_token": {"*": 265}, "string_to_param": held, "name": "<cat-toy>", "step": 10,
            "sd_checkpoint": None, "sd_checkpoint_name": None,
        }  # fmt: skip
        torch.save(content, file.with_suffix(".pt"))
    return next(file.parent.glob(file.name + ".*"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "family, form",
    [
        ("sd1", "safetensors"),
        ("sd2", "safetensors"),
        ("sd1", "emb_params"),
        ("sd1", "bin"),
        ("sd1", "pt"),
        ("sd1", "pt, old"),
    ],
)
def test_one_encoder(family, form, count, folders, tmp_path):
    values = vectors("cat", count, 64)
    write(form, tmp_path / "<cat-toy>", values)
    pipe = reference(folders[family])
    pipe.load_textual_inversion({"<cat-toy>": values})
    for prompt in PROMPTS:
        with torch.no_grad():
            # The reference knows a name in one case only: that of the file.
            expected, _ = pipe.encode_prompt(prompt.replace("CAT-TOY", "cat-toy"), "cpu", 1, False)
        text, _ = ours(folders[family], tmp_path, prompt)
        assert relative_error(text, expected.numpy()) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [1, 4])
def test_sdxl(count, folders, tmp_path):
    values = {"clip_l": vectors("l", count, 64), "clip_g": vectors("g", count, 48)}
    save_file(values, tmp_path / "<cat-toy>.safetensors")
    pipe = reference(folders["sdxl"])
    for part, tokenizer, encoder in (
        ("clip_l", pipe.tokenizer, pipe.text_encoder),
        ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2),
    ):
        pipe.load_textual_inversion({"<cat-toy>": values[part]}, tokenizer=tokenizer, text_encoder=encoder)
    # With the end of text known by its id: known as the highest one, the reference takes an embedding's for it.
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    for prompt in PROMPTS[:3]:
        with torch.no_grad():
            expected, _, pooled, _ = pipe.encode_prompt(
                prompt.replace("CAT-TOY", "cat-toy"), device="cpu", do_classifier_free_guidance=False
            )
        text, ours_pooled = ours(folders["sdxl"], tmp_path, prompt)
        assert relative_error(text, expected.numpy()) < 1e-5
        assert relative_error(ours_pooled, pooled.numpy()) < 1e-5

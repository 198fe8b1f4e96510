"""Training CLIP: pictures and their captions, by the contrastive loss (Radford et al. 2021, arXiv:2103.00020).

A step takes N pictures with captions; the loss (guides/contrastive.py) asks which belong together. Pictures are
shifted, blurred and made noisy a little, so that the encoder reads soft pictures as well as the painter's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np

from .. import atomic
from ..backend import mx
from ..config import CLIPTextConfig
from ..errors import InputError
from ..guides.contrastive import (
    TOKENIZER,
    CLIPModel,
    VisionConfig,
    as_input,
    contrastive_loss,
    retrieval,
    save,
    shortened,
)
from ..text.tokenizer import Tokenizer
from .data import Data
from .diffusion import CAPTIONS
from .loop import Inputs, Loss
from .networks import initialise_embeddings
from .recipe import Recipe
from .runs import STATES
from .sheets import save_sheet
from .vocabulary import write_tokenizer

TEXT = CLIPTextConfig(
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    projection_dim=96,
    architectures=("CLIPTextModelWithProjection",),
)
LOOKED_AT = 256  # examples that a look retrieves
SHOWN = 24  # of them in a matrix
CELL = 12  # pixels of a matrix's cell in a sheet
FAR = 10**9  # where the examples begin that a training does not get to
# Steps after which a matrix is kept, to see the diagonal fill.
MATRIX_STEPS = (0, 5, 10, 20, 40, 80, 150, 300, 600, 1200, 2400, 4800, 9600)


class ContrastiveTask:
    """The task of the module's docstring. `folder` gets the model."""

    name = "clip"

    def __init__(self, data: Data, model: CLIPModel, tokenizer: Tokenizer, folder: Path, seed: int = 0):
        self.data, self.model, self.tokenizer, self.folder, self.seed = data, model, tokenizer, folder, seed
        self._watched = self._examples(LOOKED_AT)

    def prepare(self, step: int) -> None:
        """Keep the matrix of a few examples at some steps."""
        if step in MATRIX_STEPS:
            folder = self.folder / STATES / self.name
            images, texts = self._vectors(SHOWN)
            with atomic.written(folder / f"matrix-{step:06d}.npz") as temporary:
                np.savez(temporary, cosines=(images @ texts.T).astype(np.float16))

    def batch(self, examples: Sequence[int]) -> Inputs:
        """Pictures (B, S, S, 3) in [-1, 1], and their captions' token ids (B, N)."""
        pictures, captions = self.data.batch(examples)
        rng = np.random.default_rng((self.seed, examples[0], 2))
        ids = shortened(self.tokenizer(captions)[0], self.tokenizer.eos_id)
        return disturbed(as_input(pictures, self.data.size), rng), ids

    def loss(self, pictures: mx.array, ids: mx.array) -> Loss:
        dtype = self.model.vision_model.projection.weight.dtype
        images, texts = self.model.encode_images(pictures.astype(dtype)), self.model.encode_texts(ids)
        scale = self.model.scale
        return contrastive_loss(images, texts, scale), {"scale": scale}

    def look(self, path: Path) -> dict[str, float]:
        """Write the matrix of a few examples, white where a picture and a caption agree, and retrieve among more."""
        images, texts = self._vectors(LOOKED_AT)
        cosines = images[:SHOWN] @ texts[:SHOWN].T
        cells = np.kron(np.clip(cosines, 0, 1), np.ones((CELL, CELL)))
        save_sheet(path, [np.repeat(cells[None, :, :, None], 3, axis=3)])
        found = retrieval(images, texts, self._watched[1])
        return {"text_to_image": found.text_to_image, "image_to_text": found.image_to_text}

    def export(self) -> None:
        save(self.model, self.folder)

    def _examples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """Examples that training does not see, if the data is large enough."""
        first = max(0, len(self.data) - count) if isinstance(self.data, Sized) else FAR
        return self.data.batch(range(first, first + count))

    def _vectors(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (count, P) of the watched pictures, and of their captions."""
        pictures, captions = self._watched[0][:count], self._watched[1][:count]
        dtype = self.model.vision_model.projection.weight.dtype
        images = self.model.encode_images(mx.array(as_input(pictures, self.data.size)).astype(dtype))
        ids = shortened(self.tokenizer(captions)[0], self.tokenizer.eos_id)
        return np.array(images), np.array(self.model.encode_texts(mx.array(ids)))


def disturbed(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, H, W, 3) float32 in [-1, 1], each shifted by up to 2 pixels, half of them blurred, somewhat noisy."""
    batch, height, width = x.shape[:3]
    moved = np.empty_like(x)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for i, (down, right) in enumerate(rng.integers(0, 5, (batch, 2))):
        moved[i] = padded[i, down : down + height, right : right + width]
    padded = np.pad(moved, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    share = np.maximum(rng.uniform(-1.0, 1.0, (batch, 1, 1, 1)), 0).astype(np.float32)
    noise = rng.uniform(0.0, 0.08, (batch, 1, 1, 1)).astype(np.float32)
    gain = rng.uniform(0.94, 1.06, (batch, 1, 1, 1)).astype(np.float32)
    return (moved + share * (blurred - moved)) * gain + noise * rng.standard_normal(x.shape, np.float32)


def new_task(
    data: Data,
    output: Path,
    recipe: Recipe,
    sizes: tuple[CLIPTextConfig, VisionConfig] = (TEXT, VisionConfig()),
) -> ContrastiveTask:
    """Train a new pair of encoders: `output` becomes a CLIP folder.

    The vocabulary is learnt from the data's captions first, unless `output` has one. Raises `InputError` for a side
    that the image encoder cannot halve.
    """
    text, vision = sizes
    if data.size % 2 ** len(vision.widths):
        raise InputError(f"size = {data.size} should be a multiple of {2 ** len(vision.widths)}.")
    if not (output / TOKENIZER / "merges.txt").is_file():
        count = min(CAPTIONS, len(data)) if isinstance(data, Sized) else CAPTIONS
        write_tokenizer(output / TOKENIZER, (data.example(i)[1] for i in range(count)))
    tokenizer = Tokenizer.from_files(output / TOKENIZER)
    text = dataclasses.replace(text, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    mx.random.seed(recipe.seed)
    model = CLIPModel(text, dataclasses.replace(vision, image_size=data.size))
    initialise_embeddings(model)
    return ContrastiveTask(data, model, tokenizer, output, recipe.seed)

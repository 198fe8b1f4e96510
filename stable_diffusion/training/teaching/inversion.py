"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): only new rows of the embedding tables are learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...adapters.embeddings import Embedding, with_embeddings
from ...adapters.lora_file import embedding_tensors, write_tensors
from ...backend import mx, nn
from ...errors import InputError
from ...model_io.hub import Progress
from ...pipeline import StableDiffusion
from ...text.tokenizer import Tokenizer
from ..recipe import Recipe
from ..runs import RUNS
from .base import Base, load_base
from .lora import check_output, conditioner, examples, settings_of, silent
from .made import metadata
from .options import keep
from .pictures import TaughtFolder
from .recompute import recompute as recompute_in
from .task import TeachingTask
from .words import Captions

NEARNESS = 0.1  # of the noise on the first vectors to the spread of the table


def new_task(
    data: TaughtFolder,
    output: Path,
    recipe: Recipe,
    model: str = "postcards-tiny",
    caption: str | None = None,
    vectors: int = 4,
    initial: str | None = None,
    sample: str | None = None,
    format: str = "kohya",
    recompute: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> TeachingTask:
    """Learn the vectors of a word, which is the name of the file `output`, as prompts use it.

    Captions without the word get it in front. Raises `InputError` for options that do not fit, and what `load_base`
    raises.
    """
    check_output(output)
    word = output.stem
    texts = data.captioned(caption, word)
    states = RUNS["inversion"].states(output)
    base = load_base(model, recipe.precision, progress)
    invented = InventedWord(base, word, vectors, initial, recipe.seed)
    if recompute:
        recompute_in(base.networks)
    made = settings_of(base, data, sample, texts, settings)
    kept = {"model": base.name, "word": word, "vectors": vectors, "initial": initial}
    keep(states, {**kept, "side": made.side, "batch": recipe.batch})
    noted = metadata(base, "textual-inversion", word, recipe, made, texts, word)

    def write() -> None:
        tensors = embedding_tensors(invented.vectors, word, base.checkpoint.family, format)
        write_tensors(output, tensors, noted)

    captions = Captions(dataclasses.replace(conditioner(base), tokenizers=invented.tokenizers), texts, learnt=True)
    return TeachingTask(
        "inversion", base, captions, examples(data, texts), (), made, recipe, states,
        painter=lambda: invented.painter, write=write,
    )  # fmt: skip


class InventedWord:
    """A word that the tokenizers of a base know from now on, with vectors of its own in each text encoder."""

    def __init__(self, base: Base, word: str, vectors: int, initial: str | None, seed: int):
        self.base = base
        networks, tokenizers = base.networks, base.checkpoint.tokenizers
        first = [
            first_vectors(tokenizer, encoder.token_embedding.weight, vectors, initial, seed + i)
            for i, (tokenizer, encoder) in enumerate(zip(tokenizers, networks.text_encoders, strict=True))
        ]
        embedding = Embedding(word, tuple(mx.array(each) for each in first))
        self.tokenizers, encoders = with_embeddings(tokenizers, networks.text_encoders, [embedding])
        networks.text_encoders = encoders
        networks.freeze()
        self.tables: list[nn.Module] = [encoder.token_embedding for encoder in encoders]
        for table in self.tables:
            table.unfreeze(keys=["extra"], recurse=False)

    @property
    def vectors(self) -> list[mx.array]:
        """(N, D) float32 for each text encoder, as they are at that moment."""
        return [table.extra.astype(mx.float32) for table in self.tables]

    @cached_property
    def painter(self) -> StableDiffusion:
        """Paints with the word as it is at that moment."""
        checkpoint = dataclasses.replace(self.base.taught(), tokenizers=tuple(self.tokenizers))
        return self.base.painter(checkpoint)


def first_vectors(tokenizer: Tokenizer, table: mx.array, count: int, initial: str | None, seed: int) -> np.ndarray:
    """(count, D) to begin from: the vectors of `initial`'s tokens in turn, or the mean of all, with a little noise.

    Raises `InputError` where `initial` has no tokens.
    """
    known = np.array(table.astype(mx.float32))
    rng = np.random.default_rng((seed, 8))
    noise = NEARNESS * known.std(axis=0) * rng.standard_normal((count, known.shape[1]), np.float32)
    if initial is None:
        return (known.mean(axis=0) + noise).astype(np.float32)
    ids: Sequence[int] = tokenizer.encode(initial)
    if not ids:
        raise InputError(f"initial = {initial!r} should be a word or several.")
    return (known[[ids[i % len(ids)] for i in range(count)]] + noise * (count > len(ids))).astype(np.float32)

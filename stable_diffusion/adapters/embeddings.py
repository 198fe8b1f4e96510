"""Textual inversion (Gal et al. 2022): vectors in place of a word's, used in prompts by their file's name.

The reference is diffusers' loaders/textual_inversion.py; the file formats are A1111's and diffusers'.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import families
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..errors import CheckpointNotFoundError, UnsupportedCheckpointError, WeightsError
from ..families import FAMILIES
from ..listing import ambiguous
from ..text.tokenizer import Tokenizer, normalize
from . import files
from .lora import NUMBERS, read_tensors

Tensors = Mapping[str, mx.array]

# Keys of the vectors in a file for several encoders -> the family.
KEYS = {keys: family.title for family in FAMILIES.values() for keys in family.embedding_keys}
# The family of a single vector, by its width: the first one with such an encoder.
WIDTHS = {encoder.width: family.title for family in reversed(FAMILIES.values()) for encoder in family.text_encoders}


@dataclass(frozen=True)
class Embedding:
    """A file's vectors for each of a checkpoint's text encoders: (N, D) each, with the same N."""

    name: str
    vectors: tuple[mx.array, ...]


class ExtendedEmbedding(nn.Module):
    """An embedding table with additional ids: from `first` on, the rows of `extra` (N, D)."""

    def __init__(self, known: nn.Module, extra: mx.array, first: int):
        super().__init__()
        self.known = known
        self.extra = extra
        self.first = first

    def __call__(self, ids: mx.array) -> mx.array:
        known = self.known(mx.where(ids < self.first, ids, 0))
        extra = self.extra[mx.maximum(ids - self.first, 0)].astype(known.dtype)
        return mx.where((ids < self.first)[..., None], known, extra)


class Embeddings:
    """The embeddings in some folders, for one checkpoint's tokenizers and text encoders."""

    def __init__(self, family: str):
        self.folders = files.folders(files.EMBEDDINGS)
        self._family = family

    def used_in(
        self,
        pieces: Sequence[str],
        tokenizer: Tokenizer,
        encoders: Sequence[CLIPTextModel],
        bundled: Mapping[str, Tensors] | None = None,
    ) -> tuple[Embedding, ...]:
        """Read the embeddings that the text names; `bundled` are those in LoRAs' files, after those in the folders.

        Raises `UnsupportedCheckpointError` for one of another family.
        """
        widths = [encoder.config.hidden_size for encoder in encoders]
        bundled = bundled or {}
        found = []
        for name, path in self.named_in(pieces, tokenizer, bundled).items():
            tensors = bundled[name] if path is None else read_tensors(path)[0]
            found.append(embedding_of(tensors, str(path or f"a LoRA's {name}"), name, widths, self._family))
        return tuple(found)

    def named_in(
        self, pieces: Sequence[str], tokenizer: Tokenizer, bundled: Iterable[str] = ()
    ) -> dict[str, Path | None]:
        """The files of the embeddings that the text names, by name; None for a `bundled` one.

        Raises `CheckpointNotFoundError` for a word that is the name of several files.
        """
        lowered = [normalize(piece) for piece in pieces]
        listed = {**dict.fromkeys(bundled), **files.listed(files.EMBEDDINGS, self.folders)}
        shared = files.shared(files.EMBEDDINGS, self.folders)
        known = dict.fromkeys((*listed, *shared, *bundled))
        words = [word for word in known if any(normalize(word) in piece for piece in lowered)]
        if not words:
            return {}
        first = tokenizer.vocab_size
        knowing = tokenizer.with_words(dict.fromkeys(words, 1), first)
        named = {token for piece in pieces for token in knowing.encode(piece) if token >= first}
        found = [word for token, word in enumerate(words, first) if token in named]
        for word in found:
            if word in shared:
                raise CheckpointNotFoundError(ambiguous("embedding", word, shared[word]))
        return {word: listed.get(word) for word in found}


def read_embedding(path: Path, name: str, widths: Sequence[int], family: str) -> Embedding:
    """Read a file for text encoders of these widths; raises what `embedding_of` raises."""
    return embedding_of(read_tensors(path)[0], os.fspath(path), name, widths, family)


def embedding_of(tensors: Tensors, source: str, name: str, widths: Sequence[int], family: str) -> Embedding:
    """The tensors of one embedding, for text encoders of these widths; `source` names them in errors.

    Raises `UnsupportedCheckpointError` for vectors of another width, and `WeightsError` for a file that is damaged or
    holds something else.
    """
    known = (*families.get(family).embedding_keys, *KEYS)
    keys = next((keys for keys in known if set(keys) <= tensors.keys()), ())
    found = [tensors[key] for key in keys] if keys else [t for key, t in tensors.items() if not key.endswith(NUMBERS)]
    if not keys and len(found) != 1:
        raise WeightsError(
            f"{source!r} is not a textual-inversion embedding: it holds {len(found)} tensors that are not "
            f"{' and '.join(next(iter(KEYS)))}."
        )
    vectors = [tensor.reshape(1, -1) if tensor.ndim == 1 else tensor for tensor in found]
    if any(vector.ndim != 2 or vector.shape[0] != vectors[0].shape[0] or not vector.size for vector in vectors):
        raise WeightsError(f"{source!r} holds tensors of the shapes {[v.shape for v in found]}, not vectors.")
    given = [vector.shape[1] for vector in vectors]
    if given != list(widths):
        own = families.get(family).title
        made_for = KEYS[keys] if keys else WIDTHS.get(given[0], "another model")
        raise UnsupportedCheckpointError(
            f"The embedding {name!r} is for {made_for} (its vectors are {_sides(given)} wide), this checkpoint is "
            f"{own} ({_sides(widths)} wide). Choose one of the same family, or another word than {name!r}."
        )
    return Embedding(name, tuple(vectors))


def with_embeddings(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[CLIPTextModel], embeddings: Sequence[Embedding]
) -> tuple[list[Tokenizer], list[CLIPTextModel]]:
    """Copies of the tokenizers that know the embeddings' names, and of the encoders that know their vectors."""
    words: Mapping[str, int] = {each.name: each.vectors[0].shape[0] for each in embeddings}
    knowing, extended = [], []
    for i, (tokenizer, encoder) in enumerate(zip(tokenizers, encoders, strict=True)):
        first = max(tokenizer.vocab_size, encoder.config.vocab_size)
        knowing.append(tokenizer.with_words(words, first))
        encoder = copy.copy(encoder)  # shares its layers
        extra = mx.concatenate([each.vectors[i].astype(mx.float32) for each in embeddings])
        encoder["token_embedding"] = ExtendedEmbedding(encoder.token_embedding, extra, first)
        extended.append(encoder)
    return knowing, extended


def _sides(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))

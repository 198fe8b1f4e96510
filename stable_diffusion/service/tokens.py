"""How many tokens a prompt takes, before any model is loaded: only the tokenizer's files are read."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .. import catalogue
from ..errors import StableDiffusionError
from ..places import packaged
from ..text.chunks import chunks_of
from ..text.prompt import parse
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Count:
    """The tokens of a text, and the capacity of its chunks."""

    tokens: int
    limit: int

    @property
    def words(self) -> str:
        """The count as the form shows it."""
        return f"{self.tokens} / {self.limit} tokens"


def count(model: catalogue.Model, text: str, steps: int = 20, negative: bool = False) -> Count:
    """Count a text as the model's first text encoder will: in chunks of 75, of which all but the last count in full.

    If a text changes from step to step, or has several parts, the longest version is counted; a negative text has
    no parts. Tags of LoRAs take no tokens.
    """
    tokenizer = tokenizer_of(model)
    room = tokenizer.max_length - 2
    parts = parse(text, negative=negative).parts
    texts = {end for part in parts for now in part.at_steps(steps) for end in now.ends}
    counted = [(len(chunks), len(chunks[-1].ids)) for chunks in (chunks_of(now, tokenizer) for now in texts)]
    n_chunks, last = max(counted)
    return Count((n_chunks - 1) * room + last, n_chunks * room)


def tokenizer_of(model: catalogue.Model) -> Tokenizer:
    """The model's own tokenizer if its files are on this machine, else CLIP's, which nearly all models use."""
    return _tokenizer(_folder(model))


def _folder(model: catalogue.Model) -> Path | None:
    if model.kind == catalogue.EMBEDDED:
        return packaged("checkpoints", model.source) / "tokenizer"
    if model.kind == catalogue.HUB:
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(model.source, "model_index.json")
        return Path(index).parent / "tokenizer" if isinstance(index, str) else None
    return Path(model.source) / "tokenizer"


@lru_cache(maxsize=4)
def _tokenizer(folder: Path | None) -> Tokenizer:
    if folder is not None and folder.is_dir():
        try:
            return Tokenizer.from_files(folder)
        except StableDiffusionError:  # loading the model will report what is wrong
            pass
    return _tokenizer(None) if folder is not None else Tokenizer.clip()

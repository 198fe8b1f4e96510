"""How many tokens a prompt takes, before any model is loaded: the tokenizer's files alone are read."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import models
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.tokenizer import Tokenizer

CHECKPOINTS = Path(models.__file__).parent / "stable_diffusion" / "checkpoints"


@dataclass(frozen=True)
class Count:
    """The tokens of a text, how many are read, and the part of the text that is not."""

    tokens: int
    limit: int
    cut_off: str

    @property
    def words(self) -> str:
        """The count as the form says it."""
        if self.cut_off:
            shown = self.cut_off if len(self.cut_off) <= 80 else self.cut_off[:77] + "..."
            return f"{self.tokens} / {self.limit} tokens. Too long, this part is not read: {shown}"
        return f"{self.tokens} / {self.limit} tokens"


def count(model: models.Model, text: str) -> Count:
    """Count a text as the model's first text encoder will."""
    tokenizer = tokenizer_of(model)
    (cut_off,) = tokenizer([text])[1]
    return Count(tokenizer.count(text), tokenizer.max_length - 2, cut_off)


def tokenizer_of(model: models.Model) -> Tokenizer:
    """The model's own tokenizer where its files are on this machine, else CLIP's, which nearly all have."""
    return _tokenizer(_folder(model))


def _folder(model: models.Model) -> Path | None:
    if model.kind == models.EMBEDDED:
        return CHECKPOINTS / model.source / "tokenizer"
    if model.kind == models.HUB:
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(model.source, "model_index.json")
        return Path(index).parent / "tokenizer" if isinstance(index, str) else None
    return Path(model.source) / "tokenizer"


@lru_cache(maxsize=4)
def _tokenizer(folder: Path | None) -> Tokenizer:
    if folder is not None and folder.is_dir():
        try:
            return Tokenizer.from_files(folder)
        except StableDiffusionError:  # loading the model will say what is wrong with it
            pass
    return _tokenizer(None) if folder is not None else Tokenizer.clip()

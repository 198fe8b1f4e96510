"""Prompts -> what the U-Net is conditioned on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from .backend import mx
from .clip import CLIPTextModel
from .tokenizer import Tokenizer


class PromptTruncatedWarning(UserWarning):
    """A prompt is longer than the 75 tokens that the text encoder reads."""


@dataclass(frozen=True)
class Conditioning:
    """One text as the U-Net sees it."""

    text: mx.array  # (1, 77, D)
    pooled: mx.array | None = None  # (1, P), SDXL only


class TextConditioner:
    """Encodes texts with a checkpoint's one text encoder (SD 1.x, 2.x) or two (SDXL)."""

    def __init__(
        self,
        tokenizers: Sequence[Tokenizer],
        encoders: Sequence[CLIPTextModel],
        xl: bool,
        zeros_for_none: bool,
    ):
        self.tokenizers = tokenizers
        self.encoders = encoders
        self.xl = xl
        self.zeros_for_none = zeros_for_none

    def replaced(
        self, tokenizers: Sequence[Tokenizer] | None = None, encoders: Sequence[CLIPTextModel] | None = None
    ) -> TextConditioner:
        """The same with other tokenizers or encoders."""
        return TextConditioner(
            tokenizers or self.tokenizers, encoders or self.encoders, self.xl, zeros_for_none=self.zeros_for_none
        )

    def __call__(self, text: str) -> Conditioning:
        """Encode a text; warns with `PromptTruncatedWarning` where it is too long to be read whole.

        SD 1.x and 2.x take the last hidden state after the final norm; SDXL the penultimate ones of both encoders,
        side by side, and the second's projected pooled vector (Podell et al. 2023; diffusers' pipelines).
        """
        outputs = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids, cut_off = tokenizer([text])
            if cut_off[0]:
                warnings.warn(
                    f"The prompt is longer than {tokenizer.max_length - 2} tokens; this part of it is not read: "
                    f"{cut_off[0]!r}",
                    PromptTruncatedWarning,
                    stacklevel=2,
                )
            outputs.append(encoder(mx.array(ids)))
        if not self.xl:
            return Conditioning(outputs[0].last_hidden_state)
        hidden = [output.hidden_states[-2] for output in outputs]
        return Conditioning(mx.concatenate(hidden, axis=-1), outputs[-1].pooled)

    def negative(self, text: str | None, positive: Conditioning) -> Conditioning:
        """Encode a negative text; None is the empty one, or zeros where an SDXL checkpoint says so."""
        if text is None and self.xl and self.zeros_for_none:
            assert positive.pooled is not None
            return Conditioning(mx.zeros_like(positive.text), mx.zeros_like(positive.pooled))
        return self(text or "")

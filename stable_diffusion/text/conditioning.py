"""Texts -> a U-Net's conditioning, by CLIP: a `TextReader` of diffusion/network.py."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import checks
from ..backend import mx
from ..clip import CLIPOutput, CLIPTextModel
from ..diffusion.network import Conditioning
from .chunks import Chunk, chunks_of, framed
from .prompt import BlendedText, StepText, Text, step_text
from .tokenizer import Tokenizer


class PromptTruncatedWarning(UserWarning):
    """A plain prompt is longer than the text encoder's 75 tokens; the rest is ignored."""


@dataclass(frozen=True)
class TextConditioner:
    """Encodes texts with a checkpoint's one text encoder (SD 1.x, 2.x) or two (SDXL).

    `clip_skip` is A1111's: n takes the n-th layer from the end, so that 1 is the last; diffusers counts one less for
    SD 1.x and 2.x, two less for SDXL. None is the checkpoint's own: 1, or for SDXL 2, its minimum. Raises `InputError`
    for more layers than there are.
    """

    tokenizers: Sequence[Tokenizer]
    encoders: Sequence[CLIPTextModel]
    xl: bool
    zeros_for_none: bool
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        if self.clip_skip is not None:
            checks.whole("clip_skip", self.clip_skip, 1, min(len(encoder.layers) for encoder in self.encoders))

    def replaced(self, **changes: object) -> TextConditioner:
        """A copy with other tokenizers, encoders, or another `clip_skip`."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def read(self, texts: Sequence[Text | None]) -> list[Conditioning]:
        """Encode the texts of one generation, padded to one length; None is "no negative text".

        None is read as the empty text, or as zeros if an SDXL checkpoint says so. At least one text must not be None.
        """
        found = self._of_one_length([self(text) for text in texts if text is not None])
        if None in texts:
            found.insert(texts.index(None), self._nothing(found[0]))
            found = self._of_one_length(found)  # the empty text is of one chunk
        return found

    def __call__(self, text: Text) -> Conditioning:
        """Encode one text.

        SD 1.x and 2.x take the last hidden state after the final norm; SDXL the penultimate ones of both encoders,
        concatenated, and the second's projected pooled vector (Podell et al. 2023; diffusers' pipelines), of the first
        chunk and without weights, as A1111 does. Warns with `PromptTruncatedWarning` if a literal text is too long.
        """
        if isinstance(text, BlendedText):
            start, end = self._of_one_length([self(text.start), self(text.end)])
            return _between(start, end, text.share)
        ids, weights = zip(*self._ids_and_weights(text), strict=True)
        hidden, pooled = self.states(ids)
        hidden = [weighed(each, some) for each, some in zip(hidden, weights, strict=True)]
        joined = mx.concatenate(hidden, axis=-1) if self.xl else hidden[0]
        return Conditioning(joined.reshape(1, -1, joined.shape[-1]), None if pooled is None else pooled[:1])

    def states(self, ids: Sequence[np.ndarray | mx.array]) -> tuple[list[mx.array], mx.array | None]:
        """Each encoder's hidden states (N, 77, D) for its ids (N, 77); SDXL's pooled vectors (N, P), otherwise None."""
        outputs = [encoder(mx.array(each)) for each, encoder in zip(ids, self.encoders, strict=True)]
        hidden = [self._layer(output, encoder) for output, encoder in zip(outputs, self.encoders, strict=True)]
        return hidden, outputs[-1].pooled if self.xl else None

    def literal_ids(self, text: str) -> list[np.ndarray]:
        """Each encoder's ids (77,) of a text that is taken literally.

        Warns with `PromptTruncatedWarning` if it is too long.
        """
        return [_cut(text, tokenizer)[0] for tokenizer in self.tokenizers]

    def n_chunks(self, texts: Sequence[Text | None]) -> int:
        """Chunks of the longest text, to which `read` pads all of them."""
        ends = [end for text in texts if text is not None for end in text.ends]
        return max((len(chunks[0]) for chunks in map(self._chunks, ends)), default=1)

    def _nothing(self, positive: Conditioning) -> Conditioning:
        if self.xl and self.zeros_for_none:
            assert positive.pooled is not None
            return Conditioning(mx.zeros_like(positive.text), mx.zeros_like(positive.pooled))
        return self(step_text(""))

    def _of_one_length(self, conditionings: Sequence[Conditioning]) -> list[Conditioning]:
        """Pad with chunks of the empty text to the length of the longest."""
        most = max(each.text.shape[1] for each in conditionings)
        if all(each.text.shape[1] == most for each in conditionings):
            return list(conditionings)
        empty = self(step_text("")).text
        lacking = [(most - each.text.shape[1]) // empty.shape[1] for each in conditionings]
        return [
            Conditioning(mx.concatenate([each.text, *[empty] * n], axis=1), each.pooled)
            for each, n in zip(conditionings, lacking, strict=True)
        ]

    def _ids_and_weights(self, text: StepText) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Each encoder's ids and weights, (N, 77); None for weights that are all 1."""
        if text.literal:
            return [(_cut(text.text, tokenizer), None) for tokenizer in self.tokenizers]
        found = [framed(*each) for each in zip(self._chunks(text), self.tokenizers, strict=True)]
        return [(ids, None if (weights == 1).all() else weights) for ids, weights in found]

    def _chunks(self, text: StepText) -> list[list[Chunk]]:
        """Each tokenizer's chunks, padded to the same number."""
        if text.literal:
            return [[Chunk()]] * len(self.tokenizers)
        chunks = [chunks_of(text, tokenizer) for tokenizer in self.tokenizers]
        most = max(map(len, chunks))  # different tokenizers may need different numbers
        return [each + [Chunk()] * (most - len(each)) for each in chunks]

    def _layer(self, output: CLIPOutput, encoder: CLIPTextModel) -> mx.array:
        if self.xl:
            return output.hidden_states[-max(self.clip_skip or 2, 2)]
        if (self.clip_skip or 1) == 1:
            return output.last_hidden_state
        return encoder.final_layer_norm(output.hidden_states[-(self.clip_skip or 1)])


def _cut(text: str, tokenizer: Tokenizer) -> np.ndarray:
    ids, cut_off = tokenizer([text])
    if cut_off[0]:
        warnings.warn(
            f"The prompt is longer than {tokenizer.max_length - 2} tokens; this part of it is ignored: {cut_off[0]!r}",
            PromptTruncatedWarning,
            stacklevel=4,
        )
    return ids


def weighed(hidden: mx.array, weights: np.ndarray | None) -> mx.array:
    """Multiply hidden states (N, 77, D) by weights (N, 77), then restore each chunk's mean.

    A1111's "Original" emphasis (modules/sd_emphasis.py); each encoder's output has its own mean. A mean below its
    standard error, std / sqrt(77 D), is only rounding noise, and so is the ratio of two such means. A1111 scales by
    it anyway (and offers "No norm"); here the states keep their scale. The final norms of Stable Diffusion 1.x and
    2.x leave means far above it, the embedded model's does not.
    """
    if weights is None:
        return hidden
    before = hidden.astype(mx.float32)
    after = before * mx.array(weights)[..., None]
    (was, clear), (is_now, clear_now) = _mean(before), _mean(after)
    return (after * mx.where(clear & clear_now, was / is_now, 1.0)).astype(hidden.dtype)


def _mean(hidden: mx.array) -> tuple[mx.array, mx.array]:
    """Each chunk's mean (N, 1, 1), and whether it exceeds its standard error."""
    mean, variance = (of(hidden, axis=(1, 2), keepdims=True) for of in (mx.mean, mx.var))
    return mean, mean**2 * (hidden.shape[1] * hidden.shape[2]) > variance


def _between(start: Conditioning, end: Conditioning, share: float) -> Conditioning:
    pooled = None
    if start.pooled is not None and end.pooled is not None:
        pooled = (1 - share) * start.pooled + share * end.pooled
    return Conditioning((1 - share) * start.text + share * end.text, pooled)

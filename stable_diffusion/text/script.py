"""The texts of one generation: read for its steps, encoded, and given to the U-Net as each step asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx.utils import tree_map

from .. import checks, ops
from ..backend import mx
from ..errors import InputError
from ..unet import UNet
from . import tags
from .conditioning import A1111, Blend, TextConditioner
from .language import Part, at_steps, split_at_and, weigh
from .tags import Strength

Text = str | Blend
MOST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Guidance:
    """How strongly the text is followed."""

    cfg_weight: float
    rescale: float


@dataclass(frozen=True)
class Script:
    """What a generation is told: its distinct texts, and which of them count at each step.

    `rows[i]` are places in `texts` for step i + 1: the negative's first where the generation is guided, then one for
    each part of a composition, whose weights are `weights`. None among the texts is "no negative text".
    """

    texts: tuple[Text | None, ...]
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    @property
    def guided(self) -> bool:
        """True where the first row is the negative text's."""
        return len(self.rows[0]) > len(self.weights)


def check_text(name: str, text: Any) -> Text:
    """A text, or a blend of two. Raises `InputError`."""
    if not isinstance(text, Blend):
        return checks.text(name, text)
    share = checks.number(f"{name}.share", text.share, 0.0, 1.0)
    start, end = checks.text(f"{name}.start", text.start), checks.text(f"{name}.end", text.end)
    if share in (0, 1):  # the text itself, without chunks for a longer one
        return end if share else start
    return Blend(start, end, share)


def ends_of(text: Text) -> tuple[str, ...]:
    """The strings of a text: one, or both of a blend."""
    return (text.start, text.end) if isinstance(text, Blend) else (text,)


def take_blend_loras(text: Text) -> tuple[Text, list[tuple[str, Strength]]]:
    """A text without its tags, and the LoRAs that they name: those of a blend's both ends."""
    if not isinstance(text, Blend):
        return tags.take_loras(text)
    (start, first), (end, second) = tags.take_loras(text.start), tags.take_loras(text.end)
    return Blend(start, end, text.share), list(dict.fromkeys([*first, *second]))


def write_script(
    text: Text, negative: str | None, steps: int, guidance: Guidance, embedded: bool, language: str
) -> Script:
    """Read the texts for so many steps.

    Without guidance (`cfg_weight` up to 1, or a U-Net that embeds the weight) the negative text is left out, except
    from a composition, which is defined by it. Raises `InputError` for a composition inside of a blend, and for weights
    that no encoder can bear.
    """
    composed = _composed(text) if language == A1111 else [(text, 1.0)]
    guided = not embedded and (guidance.cfg_weight > 1 or len(composed) > 1)
    lines: list[Sequence[Text | None]] = [_at_steps(part, steps, language) for part, _ in composed]
    if guided:
        lines.insert(0, [None] * steps if negative is None else _at_steps(negative, steps, language))
    places: dict[Text | None, int] = {}
    rows = tuple(tuple(places.setdefault(each, len(places)) for each in now) for now in zip(*lines, strict=True))
    for part in _parts(places, language):
        _check_weight(*part)
    return Script(tuple(places), rows, tuple(weight for _, weight in composed))


def _composed(text: Text) -> Sequence[tuple[Text, float]]:
    if not isinstance(text, Blend):
        parts: Sequence[tuple[Text, float]] = split_at_and(text)
    elif all(len(split_at_and(end)) == 1 for end in (text.start, text.end)):
        parts = [(text, 1.0)]
    else:
        raise InputError(f"AND cannot be blended, as in {text!r}: write the texts without it.")
    for part, weight in parts:
        _check_weight(str(part), weight)
    return parts


def _at_steps(text: Text, steps: int, language: str) -> Sequence[Text]:
    if language != A1111:
        return [text] * steps
    if not isinstance(text, Blend):
        return at_steps(text, steps)
    pairs = zip(at_steps(text.start, steps), at_steps(text.end, steps), strict=True)
    return [Blend(start, end, text.share) for start, end in pairs]


def parts_of(texts: Iterable[Text | None], language: str) -> list[str]:
    """The pieces of texts as the tokenizers will be given them."""
    return [part.text for part in _parts(texts, language)]


def _parts(texts: Iterable[Text | None], language: str) -> Iterator[Part]:
    for text in texts:
        for end in ends_of(text) if text is not None else ():
            yield from itertools.chain(*weigh(end)) if language == A1111 else [Part(end, 1.0)]


def _check_weight(part: str, weight: float) -> None:
    if not abs(weight) <= MOST_WEIGHT:
        limit = f"{MOST_WEIGHT:g}"
        raise InputError(f"The weight {weight:g} of {part[:80]!r} should lie between -{limit} and {limit}.")


class ToldUNet:
    """The U-Net as a function of latents and time, which is told at each step what the script says.

    Each distinct text is encoded, and projected to the U-Net's keys and values, once for the whole generation: a
    schedule of k texts costs k times the text encoder's work, and k times a text's keys and values in memory, and no
    more work at a step. A composition of k parts costs k + 1 rows at each step instead of 2. `step` is set by whoever
    runs the steps, from 1; all calls until the next one are that step's. `one_by_one` has the U-Net called for each
    row and picture after the other.
    """

    def __init__(
        self,
        unet: UNet,
        conditioner: TextConditioner,
        script: Script,
        guidance: Guidance,
        size: tuple[int, int],
        n_images: int,
        dtype: mx.Dtype,
        one_by_one: bool = False,
    ):
        self.step = 1
        self._one_by_one = one_by_one
        self._unet, self._script, self._dtype, self._n_images = unet, script, dtype, n_images
        told = [conditioner(text) for text in script.texts if text is not None]
        told = conditioner.of_one_length(told)
        if None in script.texts:
            place = script.texts.index(None)
            told.insert(place, conditioner.negative(None, told[0]))
            told = conditioner.of_one_length(told)  # the empty text is of one chunk
        self._projected = unet.project_text(mx.concatenate([each.text for each in told]).astype(dtype))
        pooled = [each.pooled for each in told if each.pooled is not None]
        self._pooled = mx.concatenate(pooled) if pooled else None
        width, height = size
        self._time_ids = mx.array([[height, width, 0, 0, height, width]], mx.float32)  # original, crop, target size
        embedded = unet.config.time_cond_proj_dim is not None
        self._guidance = unet.guidance_embedding(guidance.cfg_weight) if embedded else None
        self._current: tuple[tuple[int, ...], tuple[Any, dict[str, mx.array]]] | None = None

    def compute_texts(self) -> None:
        """Have what the text encoders say computed, after which their weights may be let go."""
        mx.eval(self._projected, self._pooled)

    def __call__(self, x: mx.array, t: float) -> mx.array:
        """Predict for latents x (rows * B, h, w, C): all B of the first row, then of the next."""
        context, extras = self._conditions(self._script.rows[self.step - 1])
        x, time = x.astype(self._dtype), mx.array([t], mx.float32)
        if not self._one_by_one or len(x) == 1:
            return self._unet(x, time, context, **extras)
        parts = []
        for i in range(len(x)):
            own, own_extras = tree_map(partial(_row, i, len(x)), (context, extras))
            parts.append(ops.by_blocks(partial(self._unet, **own_extras), x[i : i + 1], time, own))
            mx.eval(parts[-1])
        return mx.concatenate(parts)

    def _conditions(self, rows: tuple[int, ...]) -> tuple[Any, dict[str, mx.array]]:
        """Keys and values and whatever else there is, for these texts and all pictures."""
        if self._current is None or self._current[0] != rows:
            extras: dict[str, mx.array] = {}
            if self._pooled is not None:
                extras["pooled"] = self._for_pictures(rows, self._pooled)
                extras["time_ids"] = mx.repeat(self._time_ids, len(rows) * self._n_images, axis=0)
            if self._guidance is not None:
                extras["guidance"] = self._guidance
            context = tree_map(lambda projected: self._for_pictures(rows, projected), self._projected)
            self._current = rows, (context, extras)
        return self._current[1]

    def _for_pictures(self, rows: tuple[int, ...], values: mx.array) -> mx.array:
        chosen = values if rows == tuple(range(len(values))) else values[mx.array(rows)]
        return mx.repeat(chosen, self._n_images, axis=0)


def _row(i: int, rows: int, value: mx.array) -> mx.array:
    return value[i : i + 1] if value.shape[0] == rows else value

"""Prompt-to-prompt: a picture again by another text, its composition kept (Hertz et al. 2022, arXiv:2208.01626).

    for before, after in sd.edit("a red house on green hills", "a blue house on green hills", seed=1):
        ...
    pictures = [sd.decode(step.latents) for step in (before, after)]

Both pictures are painted from one noise, step by step next to each other. What the new text has in common with the old
one gets the attention that the old picture's network gave it, during the share `cross` of the steps; self-attention,
which decides which places belong together, is taken over during the share `layout`. The reference is the authors'
google/prompt-to-prompt (main.py of the Stable Diffusion notebook, seq_aligner.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial

import numpy as np

from . import checks, ops
from .backend import mx
from .diffusion.network import Attend, Extras
from .errors import InputError
from .text.chunks import chunks_of
from .text.prompt import Text
from .text.script import Script
from .text.tokenizer import Tokenizer
from .text.words import words_of

CROSS, LAYOUT = 0.8, 0.4
MAX_PLACES = 32**2  # of a feature map whose self-attention is taken over, as in the reference


@dataclass(frozen=True)
class Alignment:
    """What the tokens of a new text are in the old one, over all `n` places of a context.

    `mapping` (n, n): column j is how the attention of the new place j is made of that of old places; `known` (n,) is 1
    where there is such a place and 0 where the new text has something of its own; `factors` (n,) weigh new places.
    """

    mapping: mx.array
    known: mx.array
    factors: mx.array


def aligned(before: Sequence[int], after: Sequence[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `mapping` and `known` of two texts' token ids, without their starts and ends.

    What is equal is mapped to itself. Words that replace others share their attention, evenly where their numbers
    differ (get_replacement_mapper of the reference); what is inserted is new (get_refinement_mapper). The start stays,
    and so do the end and the padding.
    """
    mapping, known = np.zeros((n, n), np.float32), np.zeros(n, np.float32)
    mapping[0, 0] = known[0] = 1
    for what, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what == "delete":
            continue
        known[1 + c : 1 + d] = what != "insert"
        if b - a == d - c:
            mapping[range(1 + a, 1 + b), range(1 + c, 1 + d)] = 1
        elif what == "replace":
            mapping[1 + a : 1 + b, 1 + c : 1 + d] = 1 / (d - c)
    for j in range(1 + len(after), n):  # the end, and the padding after it
        mapping[min(1 + len(before) + j - (1 + len(after)), n - 1), j] = known[j] = 1
    return mapping, known


@dataclass
class EditSide:
    """One of the two generations of an edit: what `generate_latents` takes as `attention`."""

    edit: PromptEdit
    is_new: bool
    script: Script | None = None
    text: Text | None = None
    ids: list[int] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    step: int = 0
    call: int = 0

    def begin(self, script: Script, n_pictures: int, tokenizer: Tokenizer, size: tuple[int, int]) -> EditSide:
        """Begin one pass. Raises `InputError` for texts that cannot be edited."""
        texts = {row[-1] for row in script.rows}
        text = script.texts[texts.pop()]
        if n_pictures > 1 or len(script.weights) > 1 or texts or text is None or len(text.ends) > 1:
            raise InputError("Only one picture of one text can be edited at a time, without AND, blends and schedules.")
        (piece,) = text.ends
        room = tokenizer.max_length - 2
        if piece.literal:
            self.ids = tokenizer.encode(piece.text)[:room]
        else:
            chunks = chunks_of(piece, tokenizer)
            if len(chunks) > 1:
                raise InputError(f"{piece.words!r} is too long to be edited: {room} tokens at most.")
            self.ids = chunks[0].ids
        self.script, self.text, self.tokenizer, self.step, self.call = script, text, tokenizer, 0, 0
        if self.is_new:
            self.edit.align(self)
        return self

    def extras(self, step: int, n_rows: int, first: int = 0) -> Extras:
        """What a call of the network at a step, from 1, with its rows from `first` on, does for this edit."""
        assert self.script is not None
        if step != self.step:
            self.step, self.call = step, 0
            if not self.is_new:
                self.edit.kept.clear()
        elif first == 0:
            self.call += 1  # some samplers call twice in a step
        done = (step - 1) / len(self.script.rows)
        own = n_rows - 1 - first  # the row of the text: negative ones precede it
        attend: Attend = partial(self.edit.take if self.is_new else self.edit.keep, self.call, done, own)
        return Extras(attend=attend)


class PromptEdit:
    """How much of the old picture's attention the new one takes over, and the attention itself, step by step.

    `cross` and `layout` are shares of the steps, from 0 to 1. `words` weighs words of the new text: "rainbow" by 2
    doubles its attention, 0 takes it away (section 3.2, attention re-weighting). Raises `InputError`.
    """

    def __init__(self, cross: float = CROSS, layout: float = LAYOUT, words: Mapping[str, float] | None = None):
        self.cross, self.layout = checks.number("cross", cross, 0, 1), checks.number("layout", layout, 0, 1)
        self.words = {
            word: checks.number(f"the weight of {word!r}", each, -10, 10) for word, each in (words or {}).items()
        }
        self.before, self.after = EditSide(self, is_new=False), EditSide(self, is_new=True)
        self.kept: dict[tuple[int, str], tuple[mx.array, mx.array]] = {}
        self.alignment: Alignment | None = None

    def align(self, new: EditSide) -> None:
        """Compare the texts; both sides have begun."""
        assert new.tokenizer is not None and new.text is not None
        n = new.tokenizer.max_length
        mapping, known = aligned(self.before.ids, new.ids, n)
        factors = np.ones(n, np.float32)
        here = words_of(new.text, new.tokenizer)
        for asked, factor in self.words.items():
            places = [place for word in here if word.text.casefold() == asked.casefold() for place in word.places]
            if not places:
                words = ", ".join(word.text for word in here)
                raise InputError(f"The new text has no word {asked!r} to weigh; it has {words}.")
            factors[places] = factor
        self.alignment = Alignment(*map(mx.array, (mapping, known, factors)))

    def keep(
        self, call: int, done: float, own: int, name: str, q: mx.array, k: mx.array, v: mx.array, rows: list[int]
    ) -> mx.array:
        """Attend as usual, and keep the text's queries and keys of a layer as long as the new picture takes them."""
        crosses = name.endswith("attn2")
        wanted = done < self.cross if crosses else done < self.layout and q.shape[2] <= MAX_PLACES
        if wanted and own in rows:
            i = rows.index(own)
            kept = q[i : i + 1], k[i : i + 1] if len(k) > 1 else k
            mx.eval(kept)
            self.kept[call, name] = kept
        return ops.attention(q, k, v)

    def take(
        self, call: int, done: float, own: int, name: str, q: mx.array, k: mx.array, v: mx.array, rows: list[int]
    ) -> mx.array:
        """Attend as usual, but for the text's row, which attends as the old picture's did where that was kept."""
        old, weighs = self.kept.get((call, name)), bool(self.words) and name.endswith("attn2")
        if own not in rows or (old is None and not weighs):
            return ops.attention(q, k, v)
        i = rows.index(own)
        assert i == len(rows) - 1, "the text's row is the last one"
        parts = []
        if i:
            parts.append(ops.attention(q[:i], k[:i] if len(k) > 1 else k, v[:i] if len(v) > 1 else v))
        one = q[i:], k[i:] if len(k) > 1 else k, v[i:] if len(v) > 1 else v
        parts.append(self._weighed(old, *one) if name.endswith("attn2") else ops.attention(*(old or one[:2]), one[2]))
        return mx.concatenate(parts)

    def _weighed(self, old: tuple[mx.array, mx.array] | None, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Cross-attention with the old picture's weights for what both texts have, and its words' factors."""
        alignment = self.alignment
        assert alignment is not None
        weights = attention_weights(q, k)
        if old is not None:
            known = alignment.known
            weights = known * (attention_weights(*old) @ alignment.mapping) + (1 - known) * weights
        return ((weights * alignment.factors) @ v.astype(mx.float32)).astype(v.dtype)


def attention_weights(q: mx.array, k: mx.array) -> mx.array:
    """softmax(q k^T / sqrt(d)) of queries (B, heads, N, D) and keys (B, heads, M, D): (B, heads, N, M), float32."""
    scores = (q.astype(mx.float32) * (1 / math.sqrt(q.shape[-1]))) @ k.astype(mx.float32).swapaxes(2, 3)
    return mx.softmax(scores, axis=-1)

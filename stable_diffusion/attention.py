"""Where in a picture each word acts: maps of cross-attention (Tang et al. 2022, What the DAAM, arXiv:2210.04885).

    maps = AttentionMaps()
    for step in sd.generate_latents("a red house on green hills", attention=maps):
        ...
    maps.pictures[0].heat_map("house")  # (h, w)

The reference is the authors' package daam (trace.py, heatmap.py).
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from . import checks
from .atomic import write_whole
from .backend import mx
from .diffusion.network import Extras, Tap
from .errors import InputError
from .pictures import heat
from .text.prompt import Text
from .text.script import Script
from .text.tokenizer import Tokenizer
from .text.words import Word, merged, words_of

SCORES = 1 << 22  # numbers of a block of scores, float32
MAX_WORDS = 100  # of a picture's maps to look at
MIDDLE = "mid_block"


@dataclass(frozen=True)
class TypedWord:
    """A word of a prompt, and the part, counted from 0, of those that AND joins which it is in."""

    text: str
    part: int = 0


@dataclass
class _LevelSums:
    """Attention weights of one level, (stages, words, h, w): summed over heads, layers and calls, so many of them."""

    sums: np.ndarray
    counts: np.ndarray  # (stages, words)


class PictureMaps:
    """The maps of one picture's words.

    Steps are gathered in `stages`, (first step, last step) each; `levels` are those of the network in the order of its
    call, by name, with the (height, width) of its attention: for a U-Net down_blocks.0 and so on. All values are means
    over heads, layers and steps of the share of attention, so that those of all tokens at a place add up to 1; a word's
    is the mean of its tokens'.
    """

    def __init__(self, words: Sequence[TypedWord], stages: Sequence[tuple[int, int]], size: tuple[int, int]):
        self.words = tuple(words)
        self.stages = tuple(stages)
        self.size = size  # (height, width) of the latents
        self._levels: dict[str, _LevelSums] = {}

    @property
    def levels(self) -> dict[str, tuple[int, int]]:
        """Each level that has been recorded, and its (height, width)."""
        return {name: each.sums.shape[2:] for name, each in self._levels.items()}

    @property
    def usual_levels(self) -> list[str]:
        """The levels that `heat_map` takes by default: all but the middle, as in equation 6 of the paper."""
        return [name for name in self._levels if name != MIDDLE] or list(self._levels)

    def find(self, text: str) -> list[int]:
        """The numbers of the words, wherever they stand one after another; case is ignored. Raises `InputError`."""
        wanted = text.casefold().split()
        known = [word.text.casefold() for word in self.words]
        starts = [i for i in range(len(known)) if wanted and known[i : i + len(wanted)] == wanted]
        if not starts:
            raise InputError(f"The prompt has no word {text!r}; it has {', '.join(word.text for word in self.words)}.")
        return [i + j for i in starts for j in range(len(wanted))]

    def heat_map(
        self,
        word: str | int | Sequence[int],
        stages: Sequence[int] | None = None,
        levels: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Where a word acts: (h, w) float32, at the latents' size or at `size` (width, height).

        `word` is a word or several as typed, the number of one, or several numbers, of which the mean is taken. Levels
        are brought to the size by bicubic interpolation, which may overshoot below 0, and averaged. 0 where the word
        was not in the text at these stages. Raises `InputError` for an unknown word, stage or level.
        """
        chosen = self.find(word) if isinstance(word, str) else [word] if isinstance(word, int) else list(word)
        over = list(range(len(self.stages)) if stages is None else stages)
        names = self.usual_levels if levels is None else list(levels)
        for name, values, known in (("word", chosen, self.words), ("stage", over, self.stages)):
            if not values or not all(isinstance(i, int) and 0 <= i < len(known) for i in values):
                raise InputError(f"{name} {values!r} should be numbers from 0 to {len(known) - 1}.")
        if unknown := [name for name in names if name not in self._levels]:
            raise InputError(f"There is no level {unknown[0]!r}; there are {', '.join(self._levels) or 'none yet'}.")
        height, width = self.size if size is None else (size[1], size[0])
        total, count = np.zeros((len(chosen), height, width), np.float32), np.zeros(len(chosen), np.int64)
        for each in (self._levels[name] for name in names):
            total += heat.resized(each.sums[np.ix_(over, chosen)].sum(axis=0, dtype=np.float64), height, width)
            count += each.counts[np.ix_(over, chosen)].sum(axis=0)
        return (total / np.maximum(count, 1).astype(np.float32)[:, None, None]).mean(axis=0)

    def level_maps(self, name: str) -> np.ndarray:
        """A level's own maps, (stages, words, h, w) float32."""
        each = self._levels[name]
        return each.sums / np.maximum(each.counts, 1)[..., None, None].astype(np.float32)

    def sheet(self, picture: Image.Image) -> Image.Image:
        """The picture, and its overlay with each word's map."""
        parts = {word.part for word in self.words}
        names = [f"{word.text} ({word.part + 1})" if len(parts) > 1 else word.text for word in self.words]
        return heat.sheet(picture, [(name, self.heat_map(i)) for i, name in enumerate(names)])

    def save(self, path: str | os.PathLike) -> Path:
        """Write `npz` to a file, whole or not at all; return the path. Raises OSError."""
        write_whole(Path(path), self.npz())
        return Path(path)

    def npz(self) -> bytes:
        """All maps as the contents of an .npz file, without pickles.

        `words` and `parts` (words,), `heat_maps` (words, h, w) over all stages, `stages` (stages, 2), and for each
        level `level/NAME` (stages, words, h, w).
        """
        maps = [self.heat_map(i) for i in range(len(self.words))]
        arrays = {
            "words": np.array([word.text for word in self.words], np.str_),
            "parts": np.array([word.part for word in self.words], np.int64),
            "heat_maps": np.array(maps, np.float32).reshape(-1, *self.size),
            "stages": np.array(self.stages, np.int64),
            **{f"level/{name}": self.level_maps(name) for name in self._levels},
        }
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @property
    def n_bytes(self) -> int:
        """Its size in memory."""
        return sum(each.sums.nbytes + each.counts.nbytes for each in self._levels.values())

    def smaller(self, side: int) -> PictureMaps:
        """A copy to look at: float16, and levels of more than `side` positions along a side averaged to at most that.

        Words beyond the first MAX_WORDS are left out.
        """
        other = PictureMaps(self.words[:MAX_WORDS], self.stages, self.size)
        for name, each in self._levels.items():
            counts = each.counts[:, :MAX_WORDS]
            sums = heat.pooled(each.sums[:, :MAX_WORDS], side).astype(np.float16)
            other._levels[name] = _LevelSums(sums, counts)
        return other

    def add(self, level: str, stage: int, words: Sequence[int], weights: np.ndarray, count: int) -> None:
        """Add weights (h, w, words), summed over `count` heads, of these words."""
        if level not in self._levels:
            sums = np.zeros((len(self.stages), len(self.words), *weights.shape[:2]), np.float32)
            self._levels[level] = _LevelSums(sums, np.zeros(sums.shape[:2], np.int64))
        self._levels[level].sums[stage, words] += weights.transpose(2, 0, 1)
        self._levels[level].counts[stage, words] += count


class AttentionMaps:
    """Records a generation's attention maps: an argument of `generate_latents` and `generate`.

    `pictures` has those of each picture, and grows with every step. The steps are gathered in at most so many `stages`;
    None keeps each step. Memory is 4 bytes per stage, word and position of the network's levels: for 20 words, 20
    stages and Stable Diffusion 1.5 at 512 x 512, 17 MB.

    Shown is the attention of the prompt's own rows, never the negative text's. Each part that AND joins has words of
    its own, as has each end of a `Blend`. With a hires fix the maps are those of the second pass; a refiner's steps are
    left out.
    """

    def __init__(self, stages: int | None = None):
        self.max_stages = None if stages is None else checks.whole("stages", stages, 1, 1000)
        self.pictures: tuple[PictureMaps, ...] = ()

    def begin(self, script: Script, n_pictures: int, tokenizer: Tokenizer, size: tuple[int, int]) -> Recording:
        """Drop what was recorded, and begin with a batch whose latents have this `size` (height, width)."""
        recording = Recording(script, n_pictures, tokenizer, size, self.max_stages)
        self.pictures = recording.pictures
        return recording


@dataclass(frozen=True)
class _Row:
    """A row of the network's batch at one step: the picture, its words' numbers, and the places of their tokens."""

    picture: int
    words: list[int]
    places: list[tuple[int, ...]]


class Recording:
    """One pass of a generation under way. Its taps may be called by several lanes at once."""

    def __init__(
        self, script: Script, n_pictures: int, tokenizer: Tokenizer, size: tuple[int, int], max_stages: int | None
    ):
        n_steps = len(script.rows)
        self._stages = min(max_stages or n_steps, n_steps)
        self._steps = n_steps
        self._lock = threading.Lock()
        stages = [
            (-(-i * n_steps // self._stages) + 1, -(-(i + 1) * n_steps // self._stages)) for i in range(self._stages)
        ]
        n_rows = len(script.weights) * n_pictures  # the last ones: negative texts precede them
        read: dict[Text, list[Word]] = {}
        self._rows: dict[tuple[int, int], _Row] = {}  # by text and place, from the end
        words: list[list[TypedWord]] = [[] for _ in range(n_pictures)]
        for place in range(n_rows):
            part, picture = divmod(place, n_pictures)
            used = list(dict.fromkeys(rows[place - n_rows] for rows in script.rows))
            texts = [script.texts[i] for i in used]
            for text in texts:
                if text is not None and text not in read:
                    read[text] = words_of(text, tokenizer)
            found = [[] if text is None else read[text] for text in texts]
            names, numbers = merged([[word.text for word in each] for each in found])
            first = len(words[picture])
            words[picture] += [TypedWord(name, part) for name in names]
            for i, own, each in zip(used, numbers, found, strict=True):
                row = _Row(picture, [first + number for number in own], [word.places for word in each])
                self._rows[i, place - n_rows] = row
        self._script, self._n_rows = script, n_rows
        self.pictures = tuple(PictureMaps(each, stages, size) for each in words)

    def extras(self, step: int, n_rows: int, first: int = 0) -> Extras:
        """What a call of the network at a step, from 1, is given to be recorded; see `tap`."""
        return Extras(tap=self.tap(step, n_rows, first))

    def tap(self, step: int, n_rows: int, first: int = 0) -> Tap | None:
        """What a call of the network at a step, from 1, tells its queries and keys; None if it need not.

        `n_rows` are the rows of the step, of which the call has those from `first` on.
        """
        texts = self._script.rows[step - 1]
        wanted: dict[int, _Row] = {}
        for place in range(first - n_rows, 0):
            row = self._rows.get((texts[place], place))
            if row is not None and row.words:
                wanted[place + n_rows - first] = row
        return partial(self._record, (step - 1) * self._stages // self._steps, wanted) if wanted else None

    def _record(
        self, stage: int, wanted: dict[int, _Row], name: str, q: mx.array, k: mx.array, rows: list[int]
    ) -> None:
        heads, height, width = q.shape[1:4]
        for i, number in enumerate(rows):
            row = wanted.get(number)
            if row is None:
                continue
            weights = word_weights(q[i].reshape(heads, height * width, -1), k[i if len(k) > 1 else 0], row.places)
            with self._lock:
                maps = weights.reshape(height, width, -1)
                self.pictures[row.picture].add(level_of(name), stage, row.words, maps, heads)


def level_of(layer: str) -> str:
    """The level of a layer: up_blocks.1 of up_blocks.1.attentions.0.transformer_blocks.0.attn2."""
    return layer.partition(".attentions")[0]


def word_weights(q: mx.array, k: mx.array, places: Sequence[Sequence[int]]) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) of queries (heads, N, D) and keys (heads, M, D), summed over the heads: (N, words).

    Of each word the mean over the `places` of its tokens. In float32, evaluated, in blocks of SCORES numbers.
    """
    heads, n, size = q.shape
    columns = mx.array([place for each in places for place in each])
    lengths = np.array([len(each) for each in places])
    keys = k.astype(mx.float32).swapaxes(1, 2)
    rows = max(1, SCORES // (heads * k.shape[1]))
    blocks = []
    for first in range(0, n, rows):
        scores = (q[:, first : first + rows].astype(mx.float32) * (1 / math.sqrt(size))) @ keys
        blocks.append(np.asarray(mx.softmax(scores, axis=-1).sum(axis=0)[:, columns]))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.add.reduceat(np.concatenate(blocks), starts, axis=1) / lengths.astype(np.float32)

"""The captions as the U-Net gets them: their states are computed once unless the text encoders learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...backend import mx
from ...text.conditioning import TextConditioner
from ...text.prompt import PLAIN, step_text


class Captions:
    """Captions by number, the last of them being no text at all. They are taken literally, without weights."""

    def __init__(self, conditioner: TextConditioner, texts: Sequence[str], learnt: bool):
        self.conditioner, self.learnt = conditioner, learnt
        self.texts = list(texts)
        self.nothing = len(self.texts)
        self._rows: list[tuple[np.ndarray, ...]] = []

    def prepare(self) -> None:
        """Compute what `rows` gives out; once."""
        if self._rows:
            return
        for text in (*self.texts, None):
            if self.learnt:
                ids = self.conditioner.literal_ids(text or "")
                zeros = self.conditioner.xl and self.conditioner.zeros_for_none
                self._rows.append((*ids, np.array(text is not None or not zeros, np.float32)))
            else:
                asked = step_text(text or "", PLAIN)
                found = self.conditioner.read([None, asked] if text is None else [asked])[0]
                arrays = [each for each in (found.text, found.pooled) if each is not None]
                self._rows.append(tuple(np.array(each[0].astype(mx.float32)) for each in arrays))

    def rows(self, numbers: Sequence[int]) -> tuple[np.ndarray, ...]:
        """What `states` takes for these captions, each with one row a caption. No MLX."""
        return tuple(np.stack(each) for each in zip(*(self._rows[i] for i in numbers), strict=True))

    def states(self, rows: Sequence[mx.array]) -> tuple[mx.array, mx.array | None]:
        """Hidden states (B, 77, D), and SDXL's pooled vectors (B, P)."""
        if not self.learnt:
            return rows[0], rows[1] if self.conditioner.xl else None
        *ids, kept = rows
        hidden, pooled = self.conditioner.states(ids)
        joined = mx.concatenate(hidden, axis=-1) if self.conditioner.xl else hidden[0]
        joined = joined * kept[:, None, None].astype(joined.dtype)
        return joined, None if pooled is None else pooled * kept[:, None].astype(pooled.dtype)

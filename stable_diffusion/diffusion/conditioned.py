"""A denoising network with the texts of one generation: a function of latents, time and step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from mlx.utils import tree_map

from .. import ops
from ..backend import mx
from ..text.script import Script
from .deep_cache import DeepCache
from .network import Context, DeepFeatures, DenoisingNetwork, Extras, TextReader, Watcher


class ConditionedNetwork:
    """A denoising network together with the texts of each step.

    Each distinct text is encoded and prepared (for a U-Net, projected to keys and values) once for the whole
    generation: a schedule of k texts costs k runs of the text encoder and memory for k texts' keys and values, but no
    more work per step. A composition of k parts costs k + 1 rows per step instead of 2. With `one_by_one` the network
    is called for each row of the batch in turn. A `cache` and a `watcher` are this generation's own.
    `begin` is called once, with evaluated latents, ahead of the first call. Along the axes `around` of (B, h, w, C) the
    network sees the latents' opposite edges as neighbours (ops/edges.py).
    """

    def __init__(
        self,
        network: DenoisingNetwork,
        reader: TextReader,
        script: Script,
        size: tuple[int, int],
        cfg_weight: float,
        dtype: mx.Dtype,
        one_by_one: bool = False,
        cache: DeepCache | None = None,
        begin: Callable[[], None] | None = None,
        watcher: Watcher | None = None,
        around: tuple[int, ...] = (),
    ):
        self._begin = begin
        self._network, self._script, self._dtype, self._one_by_one = network, script, dtype, one_by_one
        self._cache, self._watcher, self._around = cache, watcher, around
        negatives = script.negatives
        texts = [dataclasses.replace(each, negative=i in negatives) for i, each in enumerate(reader.read(script.texts))]
        self._prepared = network.prepare(texts, *size, dtype, cfg_weight)
        self._last: tuple[tuple[int, ...], Context] = ((), None)  # cached: the next step usually has the same

    def compute_texts(self) -> None:
        """Evaluate the text encoders' outputs; after that their weights can be dropped."""
        mx.eval(self._prepared)

    def __call__(self, x: mx.array, t: float, step: int) -> mx.array:
        """Predict for latents x at a step, counted from 1; x has one row for each text of the script's row there.

        x is (n_parts * B, h, w, C): all B pictures of the first part, then of the next. With fewer rows it is for the
        last of them: in a step without guidance the negative texts, which come first, are left out.
        """
        if self._begin is not None:
            mx.eval(x)
            self._begin()
            self._begin = None
        places = self._script.rows[step - 1][-len(x) :]
        context = self._context(places)
        x, time = x.astype(self._dtype), mx.array([t], mx.float32)
        deep = None if self._cache is None else self._cache.features_for(step, places)
        whole = deep is not None and deep.features is None
        with ops.wrapping(self._around):
            answer = self._predict(x, time, context, step, deep)
        if self._cache is not None and deep is not None and whole:
            self._cache.keep(deep, places)
        return answer

    def _predict(self, x: mx.array, time: mx.array, context: Context, step: int, deep: DeepFeatures | None) -> mx.array:
        """One call, or one for each row; deep features that it is not given are put into `deep`."""
        if not self._one_by_one or len(x) == 1:
            return self._network.predict(x, time, context, self._extras(deep, step, len(x)))
        parts, features = [], []
        for i in range(len(x)):
            own = tree_map(partial(_chosen, slice(i, i + 1)), context)
            own_deep = None if deep is None else deep.row(i)
            extras = self._extras(own_deep, step, len(x), i)
            parts.append(ops.by_blocks(self._network.predict, x[i : i + 1], time, own, extras))
            mx.eval(parts[-1])
            if own_deep is not None and own_deep.features is not None:
                features.append(own_deep.features)
        if deep is not None and deep.features is None:
            deep.features = mx.concatenate(features)
        return mx.concatenate(parts)

    def _extras(self, deep: DeepFeatures | None, step: int, n_rows: int, first: int = 0) -> Extras:
        if self._watcher is None:
            return Extras(deep=deep)
        return dataclasses.replace(self._watcher.extras(step, n_rows, first), deep=deep)

    def _context(self, places: tuple[int, ...]) -> Context:
        if self._last[0] != places:
            whole = places == tuple(range(len(self._script.texts)))
            chosen = self._prepared if whole else tree_map(partial(_chosen, mx.array(places)), self._prepared)
            self._last = places, chosen
        return self._last[1]


def _chosen(rows: Any, value: Any) -> Any:
    return value[rows] if isinstance(value, mx.array) else value

"""DeepCache: a U-Net's deep features change little from step to step, so most steps can reuse them.

Ma et al. 2023, arXiv:2312.00858.
"""

from __future__ import annotations

from ..backend import mx
from .network import DeepFeatures


class DeepCache:
    """The deep features of one generation, for all calls of its network.

    Every `interval`-th step computes everything, beginning with the first, and keeps the features at a skip connection,
    the `branch`; the steps in between compute only what lies above it. Where a step has several calls, all do the same.
    Features are reused for the texts that they were computed for: after a change of texts everything is computed.
    """

    def __init__(self, interval: int, branch: int):
        self._interval, self._branch = interval, branch
        self._features: mx.array | None = None
        self._texts: tuple[int, ...] = ()

    def features_for(self, step: int, texts: tuple[int, ...]) -> DeepFeatures:
        """What a call of a step, from 1, is given; it has a row for each of the texts.

        Without guidance a call has the last rows of one with guidance, and can reuse its features.
        """
        rows = len(texts)
        if self._features is None or (step - 1) % self._interval == 0 or self._texts[-rows:] != texts:
            return DeepFeatures(self._branch)
        return DeepFeatures(self._branch, self._features[-rows:])

    def keep(self, computed: DeepFeatures, texts: tuple[int, ...]) -> None:
        """Keep the features of a call that computed everything."""
        self._features, self._texts = computed.features, texts

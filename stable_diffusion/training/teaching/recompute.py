"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): the backward pass computes a block's values again.

Only what goes into each block is kept meanwhile. The blocks themselves are changed, not their parameters or names.
"""

from __future__ import annotations

from typing import Any

from ...backend import mx, nn
from ...clip import CLIPLayer
from ...layers import ResnetBlock
from ...unet import TransformerBlock


class RecomputedResnet(ResnetBlock):
    """A `ResnetBlock` whose values are computed again."""

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        return nn.utils.checkpoint(self, super().__call__)(x, time)


class RecomputedTransformer(TransformerBlock):
    """A `TransformerBlock` whose values are computed again."""

    def __call__(self, x: mx.array, context: dict[str, Any], size: tuple[int, int]) -> mx.array:
        call = super().__call__
        return nn.utils.checkpoint(self, lambda x, context: call(x, context, size))(x, context)


class RecomputedCLIPLayer(CLIPLayer):
    """A `CLIPLayer` whose values are computed again."""

    def __call__(self, x: mx.array) -> mx.array:
        return nn.utils.checkpoint(self, super().__call__)(x)


KINDS: dict[type, type] = {
    ResnetBlock: RecomputedResnet,
    TransformerBlock: RecomputedTransformer,
    CLIPLayer: RecomputedCLIPLayer,
}


def recompute(model: nn.Module) -> None:
    """Make all blocks of a model recompute their values in the backward pass."""
    for module in model.modules():
        if kind := KINDS.get(type(module)):
            module.__class__ = kind

"""Requests for more pictures like one: the same settings, its noise turned a little towards other seeds'."""

from __future__ import annotations

import dataclasses

from ..record.parameters import Parameters
from ..request import Request, read_record

STRENGTHS = (0.05, 1.0)
USUAL_STRENGTH, USUAL_COUNT, MAX_COUNT = 0.2, 4, 8


def variations(request: Request, strength: float, count: int) -> Request:
    """The request for `count` variations of the picture that a request with a seed and drawn prompts paints.

    A picture that is a variation itself is varied from the seed that it has in common with its siblings.
    """
    return dataclasses.replace(
        request,
        variation_strength=strength,
        variation_seed=None,
        n_images=count,
        batch_size=1,
        combinations=False,
        dynamic_prompts=False,
        texts=(),
    )


def begins_from_a_picture(parameters: Parameters) -> bool:
    """Whether a record tells of an input picture, without which nothing like it can be painted."""
    return "strength" in read_record(parameters)[0]

"""The distinct texts of a generation, and which of them apply at each step. Needs no MLX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .language import Weighted
from .prompt import Prompt, PromptPart, Text, check_weights


@dataclass(frozen=True)
class Script:
    """The texts of a batch of pictures, step by step.

    `rows[i]` are indices into `texts` for step i + 1, one per row of the network's batch: if the generation is guided,
    first the negative texts of all pictures; then, for each part of a composition, the texts of all pictures. `weights`
    are those of the parts. None among the texts is "no negative text". The first `n_negative` of each step's rows are
    negative texts'; a text that is also a negative one stands twice.
    """

    texts: tuple[Text | None, ...]
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    n_negative: int = 0

    @property
    def negatives(self) -> set[int]:
        """The indices of the negative texts."""
        return {place for row in self.rows for place in row[: self.n_negative]}

    @property
    def pieces(self) -> list[str]:
        """The tokenizers' inputs, piece by piece."""
        return [piece.text for text in self.texts if text is not None for piece in text.pieces]


def write_script(
    prompts: Sequence[Prompt],
    negatives: Sequence[Prompt | None],
    n_steps: int,
    cfg_weight: float,
    embedded: bool,
    needs_negative: bool = False,
) -> Script:
    """Write the script of pictures whose prompts have parts of the same weights.

    Without guidance (`cfg_weight` up to 1, or a network that embeds the weight) the negative texts are left out, except
    from a composition and with a sampler that `needs_negative`. Raises `InputError` for weights out of range.
    """
    weights = prompts[0].weights
    assert all(prompt.weights == weights for prompt in prompts), "prompts of one batch have parts of the same weights"
    guided = not embedded and (cfg_weight > 1 or len(weights) > 1 or needs_negative)
    n_negative = len(negatives) if guided else 0
    lines = list(_lines(prompts, negatives[:n_negative], n_steps))
    places: dict[tuple[Text | None, bool], int] = {}
    rows = tuple(
        tuple(places.setdefault((text, i < n_negative), len(places)) for i, text in enumerate(now))
        for now in zip(*lines, strict=True)
    )
    if len(weights) > 1:
        check_weights([Weighted(part.text, part.weight) for part in prompts[0].parts if isinstance(part, PromptPart)])
    for text, _ in places:
        check_weights(text.pieces if text is not None else ())
    return Script(tuple(text for text, _ in places), rows, weights, n_negative)


def _lines(
    prompts: Sequence[Prompt], negatives: Sequence[Prompt | None], n_steps: int
) -> Iterator[Sequence[Text | None]]:
    """Each row's text at each step."""
    read = {prompt: [part.at_steps(n_steps) for part in prompt.parts] for prompt in (*prompts, *negatives) if prompt}
    for negative in negatives:
        yield [None] * n_steps if negative is None else read[negative][0]
    for part in range(len(prompts[0].parts)):
        yield from (read[prompt][part] for prompt in prompts)

"""What a generation says to its network: the distinct texts, and which of them count at each step. Needs no MLX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .language import Weighted
from .prompt import Prompt, PromptPart, Text, check_weights


@dataclass(frozen=True)
class Script:
    """The texts of a batch of pictures, step by step.

    `rows[i]` are places in `texts` for step i + 1, one for each row of the network's batch: those of all pictures'
    negative texts first where the generation is guided, then those of all pictures for each part of a composition,
    whose weights are `weights`. None among the texts is "no negative text".
    """

    texts: tuple[Text | None, ...]
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    @property
    def pieces(self) -> list[str]:
        """What tokenizers are given of all texts, piece by piece."""
        return [piece.text for text in self.texts if text is not None for piece in text.pieces]


def write_script(
    prompts: Sequence[Prompt], negatives: Sequence[Prompt | None], n_steps: int, cfg_weight: float, embedded: bool
) -> Script:
    """Write the script of pictures whose prompts have parts of the same weights.

    Without guidance (`cfg_weight` up to 1, or a network that embeds the weight) the negative texts are left out, except
    from a composition, which is defined by them. Raises `InputError` for weights that no text encoder can bear.
    """
    weights = prompts[0].weights
    assert all(prompt.weights == weights for prompt in prompts), "prompts of one batch have parts of the same weights"
    guided = not embedded and (cfg_weight > 1 or len(weights) > 1)
    lines = list(_lines(prompts, negatives if guided else [], n_steps))
    places: dict[Text | None, int] = {}
    rows = tuple(tuple(places.setdefault(text, len(places)) for text in now) for now in zip(*lines, strict=True))
    if len(weights) > 1:
        check_weights([Weighted(part.text, part.weight) for part in prompts[0].parts if isinstance(part, PromptPart)])
    for text in places:
        check_weights(text.pieces if text is not None else ())
    return Script(tuple(places), rows, weights)


def _lines(
    prompts: Sequence[Prompt], negatives: Sequence[Prompt | None], n_steps: int
) -> Iterator[Sequence[Text | None]]:
    """For each row of the batch its text at each step."""
    read = {prompt: [part.at_steps(n_steps) for part in prompt.parts] for prompt in (*prompts, *negatives) if prompt}
    for negative in negatives:
        yield [None] * n_steps if negative is None else read[negative][0]
    for part in range(len(prompts[0].parts)):
        yield from (read[prompt][part] for prompt in prompts)

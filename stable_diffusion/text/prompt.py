"""A prompt, parsed once: its LoRA tags, the parts that AND joins, their schedules, and the text of each step.

`parse` is the one caller of the grammar (language.py); everybody else is handed what it returns. Needs no MLX.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import checks
from ..errors import InputError
from .language import Nodes, TextSchedule, Weighted, parse_schedule, split_at_and, weigh
from .tags import Strength, read_tag, take_tags

# How a text is read: in A1111's language of prompts, at any length; or as it stands, truncated after 75 tokens, as
# diffusers does.
A1111, PLAIN = LANGUAGES = ("a1111", "plain")
MAX_WEIGHT = 1000.0


@dataclass(frozen=True)
class Blend:
    """A text between two: (1 - share) of `start` and share of `end`, as hidden states and as pooled vectors."""

    start: str
    end: str
    share: float


@dataclass(frozen=True)
class StepText:
    """A text as it is at one step, schedules resolved; equal to another where the `text` and its reading are equal.

    `stretches` are its pieces with their weights, a tuple for each stretch between BREAKs. A `literal` text is one
    piece, and is truncated where it is too long.
    """

    text: str
    stretches: tuple[tuple[Weighted, ...], ...] = field(compare=False)
    literal: bool = False

    @property
    def ends(self) -> tuple[StepText, ...]:
        """Itself; both ends of a blend."""
        return (self,)

    @property
    def pieces(self) -> tuple[Weighted, ...]:
        """What tokenizers are given, with the weights."""
        return tuple(itertools.chain(*self.stretches))

    @property
    def words(self) -> str:
        """The text without the signs of the language."""
        return " ".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class BlendedText:
    """A text between two at one step, as `Blend` is between two prompts."""

    start: StepText
    end: StepText
    share: float

    @property
    def ends(self) -> tuple[StepText, ...]:
        """Both."""
        return self.start, self.end

    @property
    def pieces(self) -> tuple[Weighted, ...]:
        """What tokenizers are given, of both."""
        return (*self.start.pieces, *self.end.pieces)


Text = StepText | BlendedText


@dataclass(frozen=True)
class Change:
    """What changes from step to step, in words as they are at the first step, without the language's signs.

    `when` is as it was typed ("0.4" is a share of the steps, "8" a step); None for options that take turns.
    """

    options: tuple[str, ...]
    when: str | None = None


@dataclass(frozen=True)
class PromptPart:
    """One of the texts that AND joins, or the only one."""

    text: str
    weight: float = 1.0
    language: str = A1111
    schedule: TextSchedule = field(default_factory=lambda: TextSchedule((), (), ()), compare=False, repr=False)

    @property
    def ends(self) -> tuple[PromptPart, ...]:
        """Itself; both ends of a blend."""
        return (self,)

    def at_steps(self, n: int) -> list[Text]:
        """The text at each of n steps."""
        if self.language != A1111:
            return [step_text(self.text, self.language)] * n
        texts = self.schedule.at_steps(n)
        read = {text: step_text(text) for text in dict.fromkeys(texts)}
        return [read[text] for text in texts]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Its schedules, however deep, then what takes turns, as they are typed."""
        switches = (Change((_words(each.before), _words(each.after)), each.when) for each in self.schedule.switches)
        turns = (Change(tuple(map(_words, each.options))) for each in self.schedule.turns)
        return (*switches, *turns)

    @property
    def words(self) -> str:
        """The text without emphasis; schedules are as they are typed."""
        return step_text(self.text, self.language).words


@dataclass(frozen=True)
class BlendedPart:
    """A prompt between two; both have schedules of their own."""

    start: PromptPart
    end: PromptPart
    share: float
    weight: float = 1.0

    @property
    def ends(self) -> tuple[PromptPart, ...]:
        """Both."""
        return self.start, self.end

    def at_steps(self, n: int) -> list[Text]:
        """The text at each of n steps."""
        pairs = zip(self.start.at_steps(n), self.end.at_steps(n), strict=True)
        return [BlendedText(start, end, self.share) for start, end in pairs]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: the parts that AND joins, with their weights, and the LoRA tags as they are typed."""

    typed: str | Blend = field(compare=False)  # all of it
    parts: tuple[PromptPart | BlendedPart, ...]
    tags: tuple[str, ...] = ()

    @property
    def loras(self) -> tuple[tuple[str, Strength], ...]:
        """The LoRAs that the tags name, those of both ends of a blend once. Raises `InputError` for a broken tag."""
        found = map(read_tag, self.tags)
        return tuple(dict.fromkeys(found) if isinstance(self.parts[0], BlendedPart) else found)

    @property
    def weights(self) -> tuple[float, ...]:
        """The parts' weights."""
        return tuple(part.weight for part in self.parts)


def parse(text: str | Blend, language: str = A1111, negative: bool = False) -> Prompt:
    """Parse a prompt, or two that are blended; tags are taken out whatever the language.

    AND is a word like any other in a `negative` text. Raises `InputError` for an unknown language, and for AND inside
    of a blend. Weights and tags that make no sense are refused by whoever uses them, so that a prompt that is still
    being typed can be shown.
    """
    check_language(language)
    if isinstance(text, Blend):
        start, end = parse(text.start, language), parse(text.end, language)
        if len(start.parts) > 1 or len(end.parts) > 1:
            raise InputError(f"AND cannot be blended, as in {text!r}: write the texts without it.")
        blended = BlendedPart(start.parts[0], end.parts[0], text.share)  # type: ignore[arg-type]
        return Prompt(text, (blended,), (*start.tags, *end.tags))
    rest, tags = take_tags(text)
    if language != A1111:
        return Prompt(text, (PromptPart(rest, language=language),), tags)
    joined = [Weighted(rest, 1.0)] if negative else split_at_and(rest)
    parts = (PromptPart(part, weight, language, parse_schedule(part)) for part, weight in joined)
    return Prompt(text, tuple(parts), tags)


def step_text(text: str, language: str = A1111) -> StepText:
    """Read a text's weights and BREAK; what could be a schedule, AND or a tag is text. Raises `InputError`."""
    check_language(language)
    if language != A1111:
        return StepText(text, ((Weighted(text, 1.0),),), literal=True)
    return StepText(text, tuple(map(tuple, weigh(text))))


def as_text(text: str | Blend, language: str = A1111) -> Text:
    """`step_text` of a text or of both ends of a blend."""
    if not isinstance(text, Blend):
        return step_text(text, language)
    return BlendedText(step_text(text.start, language), step_text(text.end, language), text.share)


def check_text(name: str, text: Any) -> str | Blend:
    """A text, or a blend of two; at a share of 0 or 1 the text itself, unpadded. Raises `InputError`."""
    if not isinstance(text, Blend):
        return checks.text(name, text)
    share = checks.number(f"{name}.share", text.share, 0.0, 1.0)
    start, end = checks.text(f"{name}.start", text.start), checks.text(f"{name}.end", text.end)
    if share in (0, 1):
        return end if share else start
    return Blend(start, end, share)


def check_language(language: str) -> None:
    """Raise `InputError` for a language that is not one of LANGUAGES."""
    if language not in LANGUAGES:
        raise InputError(f"prompt_language = {language!r} should be one of {', '.join(LANGUAGES)}.")


def check_weights(pieces: Sequence[Weighted]) -> None:
    """Raise `InputError` for a weight that no text encoder can bear."""
    for text, weight in pieces:
        if not abs(weight) <= MAX_WEIGHT:
            limit = f"{MAX_WEIGHT:g}"
            raise InputError(f"The weight {weight:g} of {text[:80]!r} should lie between -{limit} and {limit}.")


def _words(nodes: Nodes) -> str:
    return step_text(TextSchedule(nodes, (), ()).at(1, 1)).words

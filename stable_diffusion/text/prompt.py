"""A prompt, parsed once: its LoRA tags, the parts that AND joins, their schedules, and the text of each step.

`parse` is the only caller of the grammar (language.py); everything else uses its result. Needs no MLX.
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

# How a text is read: in A1111's prompt language, at any length; or literally, truncated after 75 tokens like diffusers.
A1111, PLAIN = LANGUAGES = ("a1111", "plain")
MAX_WEIGHT = 1000.0


@dataclass(frozen=True)
class Blend:
    """A mixture of two texts: (1 - share) of `start` and share of `end`, in hidden states and pooled vectors."""

    start: str
    end: str
    share: float


@dataclass(frozen=True)
class StepText:
    """A text at one step, schedules resolved; equal to another with the same `text` and language.

    `stretches` are its pieces with their weights, one tuple per stretch between BREAKs. A `literal` text is one piece,
    and is truncated if too long.
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
        """The tokenizers' inputs, with weights."""
        return tuple(itertools.chain(*self.stretches))

    @property
    def words(self) -> str:
        """The text without the language's markup."""
        return " ".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class BlendedText:
    """A `Blend` at one step."""

    start: StepText
    end: StepText
    share: float

    @property
    def ends(self) -> tuple[StepText, ...]:
        """Both."""
        return self.start, self.end

    @property
    def pieces(self) -> tuple[Weighted, ...]:
        """The tokenizers' inputs, of both."""
        return (*self.start.pieces, *self.end.pieces)


Text = StepText | BlendedText


@dataclass(frozen=True)
class Change:
    """Something that changes from step to step: its options, without markup, as at the first step.

    `when` is as typed ("0.4" is a share of the steps, "8" a step); None for options that alternate.
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
        """Its schedules, nested ones included, then its alternations."""
        switches = (Change((_words(each.before), _words(each.after)), each.when) for each in self.schedule.switches)
        turns = (Change(tuple(map(_words, each.options))) for each in self.schedule.turns)
        return (*switches, *turns)

    @property
    def words(self) -> str:
        """The text without emphasis; schedules are as typed."""
        return step_text(self.text, self.language).words


@dataclass(frozen=True)
class BlendedPart:
    """A blend of two prompts, each with its own schedules."""

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
    """A parsed prompt: the parts that AND joins, with their weights, and the LoRA tags as typed."""

    typed: str | Blend = field(compare=False)  # all of it
    parts: tuple[PromptPart | BlendedPart, ...]
    tags: tuple[str, ...] = ()

    @property
    def loras(self) -> tuple[tuple[str, Strength], ...]:
        """The LoRAs that the tags name, without duplicates in a blend. Raises `InputError` for a malformed tag."""
        found = map(read_tag, self.tags)
        return tuple(dict.fromkeys(found) if isinstance(self.parts[0], BlendedPart) else found)

    @property
    def weights(self) -> tuple[float, ...]:
        """The parts' weights."""
        return tuple(part.weight for part in self.parts)


def parse(text: str | Blend, language: str = A1111, negative: bool = False) -> Prompt:
    """Parse a prompt, or two that are blended; tags are removed in any language.

    In a `negative` text AND is an ordinary word. Raises `InputError` for an unknown language, and for AND in a blend.
    Invalid weights and tags are refused later, when they are used, so that a prompt can be shown while it is typed.
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
    """Read a text's weights and BREAK; schedules, AND and tags are taken as text. Raises `InputError`."""
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
    """Check a text or a blend; a blend with share 0 or 1 becomes a text. Raises `InputError`, also for long ones."""
    if not isinstance(text, Blend):
        return checks.text(name, text, checks.MAX_TEXT)
    share = checks.number(f"{name}.share", text.share, 0.0, 1.0)
    start = checks.text(f"{name}.start", text.start, checks.MAX_TEXT)
    end = checks.text(f"{name}.end", text.end, checks.MAX_TEXT)
    if share in (0, 1):
        return end if share else start
    return Blend(start, end, share)


def check_language(language: str) -> None:
    """Raise `InputError` unless the language is one of LANGUAGES."""
    if language not in LANGUAGES:
        raise InputError(f"prompt_language = {language!r} should be one of {', '.join(LANGUAGES)}.")


def check_weights(pieces: Sequence[Weighted]) -> None:
    """Raise `InputError` for a weight beyond MAX_WEIGHT."""
    for text, weight in pieces:
        if not abs(weight) <= MAX_WEIGHT:
            limit = f"{MAX_WEIGHT:g}"
            raise InputError(f"The weight {weight:g} of {text[:80]!r} should lie between -{limit} and {limit}.")


def _words(nodes: Nodes) -> str:
    return step_text(TextSchedule(nodes, (), ()).at(1, 1)).words

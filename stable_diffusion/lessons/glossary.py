"""The words of the field, in a sentence or two each, with the lesson that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ..places import packaged
from .lesson import Block, Lesson, Report, Say, Values, Words


@dataclass(frozen=True)
class Term:
    """A word, what it means, and the key of the lesson that shows it."""

    name: str
    meaning: str
    lesson: str


def terms() -> tuple[Term, ...]:
    """All terms, in alphabetical order."""
    text = packaged("lessons", "glossary.yaml").read_text(encoding="utf-8")
    return tuple(sorted((Term(**each) for each in yaml.safe_load(text)), key=lambda term: term.name.casefold()))


def compute(model: object, report: Report, values: Values) -> tuple[Term, ...]:
    """All terms."""
    return terms()


def show(found: tuple[Term, ...], values: Values) -> Sequence[Block]:
    asked = values["word"].strip().casefold()
    matching = [term for term in found if asked in f"{term.name} {term.meaning}".casefold()]
    if not matching:
        return [Say("No such word is here. Try a shorter one.")]
    return [Say("\n".join(f"- **{t.name}**: {t.meaning} [Lesson](?lesson={t.lesson})" for t in matching))]


LESSON = Lesson(
    key="glossary",
    title="Glossary",
    text="The words of the field, each with the lesson that shows it. Type a few letters to find one.",
    compute=compute,
    show=show,
    views=(Words("word", "Word", ""),),
    needs_model=False,
)

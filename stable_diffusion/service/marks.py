"""What a prompt's syntax means, in a few words, for the row under its field."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..text.prompt import Change, parse

MAX_LENGTH = 32  # characters of a piece of text
MOST = 50  # changes by schedule, and as many by turns


@dataclass(frozen=True)
class Mark:
    """A piece of a prompt, and its effect."""

    text: str
    meaning: str

    @property
    def words(self) -> str:
        """Both, as the row shows them."""
        return f"{self.text} {self.meaning}".strip()


def marks(text: str, steps: int, negative: bool = False) -> list[Mark]:
    """Weights other than 1, parts that change from step to step, and parts joined by AND; each once, in order.

    A negative prompt has no AND.
    """
    parts = parse(text, negative=negative).parts
    found: list[Mark] = []
    if len(parts) > 1:
        found += [Mark(_short(end.words), f"AND ×{part.weight:g}") for part in parts for end in part.ends]
    for part in parts:
        for end in part.ends:
            found += _changes(end.changes)
        weighed = (piece for now in dict.fromkeys(part.at_steps(steps)) for piece in now.pieces)
        found += [Mark(_short(piece.text), f"×{piece.weight:.3g}") for piece in weighed if piece.weight != 1]
    return [mark for mark in dict.fromkeys(found) if mark.text]


def _changes(changes: tuple[Change, ...]) -> Iterator[Mark]:
    for change in [each for each in changes if each.when is not None][:MOST]:
        (before, after), when = map(_short, change.options), _when(change.when or "")
        if before and after:
            yield Mark(f"{before} → {after}", f"after {when}")
        elif before or after:
            yield Mark(before or after, f"until {when}" if before else f"after {when}")
    for change in [each for each in changes if each.when is None][:MOST]:
        yield Mark(", ".join(_short(option) or "nothing" for option in change.options), "in turn")


def _when(when: str) -> str:
    return f"{100 * float(when):.4g} %" if "." in when else f"step {float(when):g}"


def _short(text: str) -> str:
    words = " ".join(text.split()).strip(" ,.;:")
    return words if len(words) <= MAX_LENGTH else words[: MAX_LENGTH - 1].rstrip() + "…"

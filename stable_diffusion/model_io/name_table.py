"""Tables that translate weight names between a file format and the modules here, in either direction.

A row holds a piece of the file's name, our piece for it, and how the tensor differs, if it does. Pieces are whole
segments between dots; `{n}` matches any number. Reading applies the rows from top to bottom, writing from bottom to
top; names that no row matches are the same on both sides. Needs no MLX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

# How a file's tensor differs from the parameter.
TRANSPOSED = "transposed"
KERNEL = "kernel"  # a 1x1 convolution (O, I, 1, 1) where the parameter is a matrix (O, I)
FUSED = "fused"  # several parameters, `{q,k,v}`, of equal size, concatenated along the first axis
ALIAS = "alias"  # an alternative spelling: read, never written
FORMS = ("", TRANSPOSED, KERNEL, FUSED, ALIAS)


@dataclass(frozen=True)
class Place:
    """Where a parameter is found in a file: both names, and its part of the tensor."""

    theirs: str
    ours: str
    part: tuple[int, int] | None = None  # index and number of the equal parts of a fused tensor
    form: str = ""  # TRANSPOSED, KERNEL or ""


@dataclass(frozen=True)
class Piece:
    """Part of a name: whole segments, with `{n}` for numbers."""

    text: str

    @cached_property
    def probe(self) -> str:
        """A substring of every name that contains this piece; testing for it first is much faster."""
        return max(self.text.split("{n}"), key=len)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        literals = map(re.escape, self.text.split("{n}"))
        return re.compile(rf"(?<![^.]){r'([0-9]+)'.join(literals)}(?![^.])")

    @cached_property
    def template(self) -> str:
        first, *others = self.text.split("{n}")
        return first + "".join(rf"\g<{i}>{other}" for i, other in enumerate(others, 1))

    def replaced(self, name: str, other: Piece) -> str | None:
        """`name` with this piece replaced by `other`; None if it does not contain this piece."""
        if self.probe not in name:
            return None
        new, count = self.pattern.subn(other.template, name)
        return new if count else None


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    theirs: Piece
    ours: tuple[Piece, ...]  # one, or several for a fused tensor
    form: str = ""

    @classmethod
    def parse(cls, line: str) -> Row:
        theirs, ours, form = (*line.split(), "")[:3]
        start, brace, rest = ours.partition("{") if form == FUSED else (ours, "", "")
        inner, _, end = rest.partition("}")
        pieces = [start + each + end for each in inner.split(",")] if brace else [ours]
        if form not in FORMS or any(theirs.count("{n}") != piece.count("{n}") for piece in pieces):
            raise ValueError(f"{line!r} is not a row of a table of names.")
        return cls(Piece(theirs), tuple(map(Piece, pieces)), form)

    def read(self, place: Place) -> list[Place]:
        if self.theirs.probe not in place.ours:
            return [place]
        found = [self.theirs.replaced(place.ours, piece) for piece in self.ours]
        return [self._changed(place, i, ours=name) for i, name in enumerate(found) if name is not None] or [place]

    def write(self, place: Place) -> Place:
        for i, piece in enumerate(self.ours):
            if (name := piece.replaced(place.theirs, self.theirs)) is not None:
                return self._changed(place, i, theirs=name)
        return place

    def _changed(self, place: Place, i: int, **name: str) -> Place:
        part = (i, len(self.ours)) if self.form == FUSED else place.part
        form = self.form if self.form in (TRANSPOSED, KERNEL) else place.form
        return replace(place, part=part, form=form, **name)


@dataclass(frozen=True)
class Names:
    """The names of one network in one file format. `ignored` matches keys that hold no weights."""

    rows: tuple[Row, ...] = ()
    ignored: str = ""

    def read(self, key: str) -> list[Place]:
        """The parameters stored under a file's key: none for an ignored key, several for a fused tensor."""
        if self.ignored and re.search(self.ignored, key):
            return []
        places = [Place(key, key)]
        for row in self.rows:
            places = [found for place in places for found in row.read(place)]
        return places

    def write(self, name: str) -> Place:
        """Where a file stores the parameter of this name. Module names, without ".weight", work too."""
        place = Place(name, name)
        for row in reversed(self.rows):
            if row.form != ALIAS:
                place = row.write(place)
        return place


def table(*texts: str, ignored: str = "") -> Names:
    """Parse a table; each line holds their piece, our piece and, optionally, the form."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return Names(tuple(map(Row.parse, lines)), ignored)

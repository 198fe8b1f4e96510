"""A table of names: what the modules here and a kind of file call the same weights, applied in either direction.

A row has a piece of the file's name, the piece that stands for it here, and how the tensor differs where it does.
Pieces are whole segments between dots; `{n}` is any number. Rows are applied from the top to read a file's name and
from the bottom to write one; a name that no row fits is the same on both sides. Needs no MLX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

# How a tensor of a file differs from the parameter.
TRANSPOSED = "transposed"
KERNEL = "kernel"  # of one pixel, (O, I, 1, 1), where the parameter is a matrix (O, I)
FUSED = "fused"  # several parameters, `{q,k,v}`, of equal size one after another along the first axis
ALIAS = "alias"  # another spelling, which is read and never written
FORMS = ("", TRANSPOSED, KERNEL, FUSED, ALIAS)


@dataclass(frozen=True)
class Place:
    """Where one parameter lies in a file: the two names, and what of the tensor it is."""

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
        """Text that every name with this piece contains, which is much faster to look for."""
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
        """`name` with `other` in the place of this piece; None where it does not contain it."""
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
            raise ValueError(f"{line!r} is no row of a table of names.")
        return cls(Piece(theirs), tuple(map(Piece, pieces)), form)

    def read(self, place: Place) -> list[Place]:
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
    """The names of one network in one kind of file. `ignored` finds keys that hold no weights."""

    rows: tuple[Row, ...] = ()
    ignored: str = ""

    def read(self, key: str) -> list[Place]:
        """The parameters that a file's key holds: none for one to be passed over, several for a fused one."""
        if self.ignored and re.search(self.ignored, key):
            return []
        places = [Place(key, key)]
        for row in self.rows:
            places = [found for place in places for found in row.read(place)]
        return places

    def write(self, name: str) -> Place:
        """Where a file holds the parameter of this name. Names of modules, without ".weight", do as well."""
        place = Place(name, name)
        for row in reversed(self.rows):
            if row.form != ALIAS:
                place = row.write(place)
        return place


def table(*texts: str, ignored: str = "") -> Names:
    """A table from the lines of some texts: their piece, our piece, and the form where there is one."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return Names(tuple(map(Row.parse, lines)), ignored)

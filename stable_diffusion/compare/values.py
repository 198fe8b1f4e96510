"""The values of an axis as they are typed: lists, quotes and ranges, in A1111's grammar (scripts/xyz_grid.py).

5, 10, 20          a list
"a, b", c          commas within quotes
1-5                1, 2, 3, 4, 5
1-10 (+3)          1, 4, 7, 10
10-5 (-3)          10, 7
0-1 [5]            5 values from 0 to 1
"""

from __future__ import annotations

import csv
import re
from decimal import Decimal

from ..errors import InputError
from ..record.keys import plain

MAX_VALUES = 1000  # of one axis
_NUMBER = r"[+-]?\s*(?:\d+(?:\.\d*)?|\.\d+)"
_RANGE = re.compile(
    rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d{{1,9}})\s*\])?\s*", re.ASCII
)


def entries(text: str, keep_empty: bool = False) -> list[str]:
    """The entries of a list; blanks around them do not count. Raises `InputError` for quotes that are not closed."""
    try:
        line = re.sub(r'"\s+(,|$)', r'"\1', text.replace("\n", " "))
        rows = list(csv.reader([line], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise InputError(f"{text[:80]!r} is not a list ({error}): a text with commas in it stands in quotes.") from None
    found = [entry.strip() for row in rows for entry in row]
    return [entry for entry in found if entry or keep_empty]


def numbers(text: str, whole: bool) -> list[str]:
    """The numbers of a list with ranges, each as text; entries that are no ranges stay as they are.

    Raises `InputError` for a range that has no step, or too many values.
    """
    found: list[str] = []
    for entry in entries(text):
        match = _RANGE.fullmatch(entry)
        found += [entry] if match is None else _range(match, whole)
        if len(found) > MAX_VALUES:
            raise InputError(f"{entry!r} has more than {MAX_VALUES} values.")
    return found


def _range(match: re.Match[str], whole: bool) -> list[str]:
    start, end, step = (None if group is None else Decimal(group.replace(" ", "")) for group in match.group(1, 2, 3))
    assert start is not None and end is not None
    if match[4] is not None:
        n = int(match[4])
        if not 1 <= n <= MAX_VALUES:
            raise InputError(f"{match[0].strip()!r} asks for {n} values: from 1 to {MAX_VALUES} are possible.")
        each = [start + (end - start) * i / max(n - 1, 1) for i in range(n)]
        return list(dict.fromkeys(_text(value, whole) for value in each))
    if step is None:
        step = Decimal(1 if end >= start else -1)
    if not step or ((step > 0) != (end >= start) and end != start):
        raise InputError(f"{match[0].strip()!r} never reaches its end: the step {plain(float(step))} leads elsewhere.")
    n = int((end - start) / step) + 1
    if n > MAX_VALUES:
        raise InputError(f"{match[0].strip()!r} has {n} values, more than {MAX_VALUES}.")
    return [_text(start + step * i, whole) for i in range(n)]


def _text(value: Decimal, whole: bool) -> str:
    return str(int(value)) if whole else plain(float(value))

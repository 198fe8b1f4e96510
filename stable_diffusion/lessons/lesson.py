"""What a lesson is: a text, equations, controls, a computation and the blocks that it shows. No Streamlit.

A lesson is one file of this folder and one row of `chapters.py`. Its computation runs in the worker's thread, because
it may use the loaded model; `show` turns the result into blocks at once, so that a view's control need not wait.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]  # of the controls, by key
Report = Callable[[str, float | None], None]  # called with what is being done, and the fraction done if known


@dataclass(frozen=True)
class Slider:
    """A number from `low` to `high`."""

    key: str
    label: str
    low: float
    high: float
    value: float
    step: float = 1


@dataclass(frozen=True)
class Options:
    """One of several names; the first is chosen unless `value` says otherwise."""

    key: str
    label: str
    options: tuple[Any, ...]
    default: Any = None

    @property
    def value(self) -> Any:
        """The option that is chosen at first."""
        return self.options[0] if self.default is None else self.default


@dataclass(frozen=True)
class Words:
    """A line of text, or several lines."""

    key: str
    label: str
    value: str
    lines: bool = False


@dataclass(frozen=True)
class Upload:
    """A picture of the reader's own, None if there is none."""

    key: str
    label: str = "Your own picture, instead of a painted one"
    value: None = None


@dataclass(frozen=True)
class Choose:
    """One of names that depend on what was computed; its value is a number from 0, or None for `usual`."""

    key: str
    label: str
    names: Callable[[Any], Sequence[str]]
    usual: Callable[[Any], int]
    value: None = None


Control = Slider | Options | Words | Upload | Choose


@dataclass(frozen=True)
class Say:
    """A sentence or two, in Markdown."""

    text: str


@dataclass(frozen=True)
class Formula:
    """LaTeX."""

    latex: str


@dataclass(frozen=True)
class Chart:
    """An Altair chart, and its description for those who do not see it."""

    chart: Any
    alt: str


@dataclass(frozen=True)
class Shown:
    """A picture as PNG or JPEG."""

    image: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Small pictures in a row, `width` pixels wide each, which goes on in the next line on a narrow screen."""

    pictures: Sequence[Shown]
    width: int = 120


@dataclass(frozen=True)
class Table:
    """Rows with the same columns."""

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """An SVG, whose elements with a `data-lesson` attribute lead to that lesson."""

    svg: str
    alt: str


@dataclass(frozen=True)
class Tour:
    """A way through some of the lessons, by their keys, which the reader may take."""

    name: str
    lessons: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """Blocks next to each other."""

    columns: Sequence[Sequence[Block]]


Block = Say | Formula | Chart | Strip | Table | Drawing | Tour | Side


@dataclass(frozen=True)
class Paper:
    """Where an idea comes from."""

    title: str
    link: str


@dataclass(frozen=True)
class Lesson:
    """One idea.

    `compute(model, report, values)` may take long, and gets None for a model unless `needs_model`; `values` are those
    of `asks`. `show(found, values)` is quick, and gets the values of `views` too. `code` is what the lesson shows
    of the running program: functions and classes. `cost` says what it takes, where that is much for a large model.
    """

    key: str
    title: str
    text: str
    compute: Callable[[Any, Report, Values], Any]
    show: Callable[[Any, Values], Sequence[Block]]
    equations: tuple[str, ...] = ()
    asks: tuple[Control, ...] = ()
    views: tuple[Control, ...] = ()
    papers: tuple[Paper, ...] = ()
    code: tuple[Any, ...] = ()
    needs_model: bool = True
    cost: str = ""

    def source(self) -> str:
        """The code of the running program that the lesson is about."""
        return "\n\n".join(_source(each).rstrip() for each in self.code)


def _source(thing: Any) -> str:
    """The text of a function or of a class at a module's first level, with its decorators.

    For a class `inspect.getsource` parses the module, which may raise SystemError while another thread compiles one.
    """
    if not inspect.isclass(thing):
        return inspect.getsource(thing)
    lines, _ = inspect.getsourcelines(sys.modules[thing.__module__])
    start = next(i for i, line in enumerate(lines) if re.match(rf"class {thing.__name__}\b", line))
    while lines[start - 1].startswith("@"):
        start -= 1
    return "".join(inspect.getblock(lines[start:]))


@dataclass(frozen=True)
class Chapter:
    """Lessons that belong together."""

    title: str
    lessons: tuple[Lesson, ...] = field(default=())

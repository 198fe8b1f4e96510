"""The description of one setting, shared by the command line, the page, JSON, the engine and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import Check, Choice
from .record import keys

# Groups of options in the command line's help; "" means no option of its own.
WHAT, HOW, MACHINE, SEVERAL, HIRES, TILES, LARGER, PICTURE, MASK, WHITE, SIDES, PRIVACY, BLEND = (
    "what to paint", "how to paint it", "how to use the machine", "several pictures",
    "hires fix: enlarge, and paint over it in a second pass", "tiles for what is too large to paint at once",
    "making the input picture larger", "the input picture", "the mask", "the white in the mask", "where to extend",
    "privacy", "a mixture of two prompts",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One setting of a generation."""

    check: Check
    help: str = ""  # for the command line and the page
    title: str = ""  # the label on the page
    group: str = ""
    metavar: str | None = None
    usual: str = ""  # the default in words, if it is not the field's own
    call: str = ""  # the argument of `StableDiffusion.generate_latents`
    load: str = ""  # the argument of `StableDiffusion`
    key: str = ""  # in a picture's record, for settings that are not fields of `Parameters`
    words: tuple[tuple[Any, str], ...] = ()  # values, and their names in a picture's record
    page: bool = True  # whether the page offers it
    shown: tuple[float, float] | None = None  # narrower bounds for the page
    unset: Any = None  # stands for None on a command line and in a form
    counts: Callable[[Any], bool] = lambda request: (
        True
    )  # given a Request: whether it has any effect; recorded only then
    always: bool = False  # recorded even at its default

    def read(self, text: str) -> Any:
        """Parse a value from a picture's record. Raises `InputError`."""
        if not self.words:
            return self.from_form(self.check.read(text))
        named = {words: value for value, words in self.words}
        return named[Choice(tuple(named)).read(text)]

    def write(self, value: Any) -> str:
        """Format a value for a picture's record."""
        if self.words:
            return dict(self.words)[value]
        return str(value) if isinstance(value, (str, bool)) else keys.plain(value)

    def from_form(self, value: Any) -> Any:
        """Convert a value from the page or a command line, which have no None."""
        return None if self.unset is not None and value == self.unset else value

    def to_form(self, value: Any) -> Any:
        """The inverse of `from_form`."""
        return self.unset if value is None else value


def setting(default: Any, check: Check, help: str = "", **more: Any) -> Any:
    """A field of `Request` with its `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(check, help, **more)})

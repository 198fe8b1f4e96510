"""What is said of one setting of a generation, once for the command line, the page, JSON, the engine and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import Check, Choice
from .record import keys

# Where an option stands in the help of the command line; "" is no option of its own.
WHAT, HOW, MACHINE, SEVERAL, PICTURE, MASK, WHITE, SIDES = (
    "what to paint", "how to paint it", "how to use the machine", "several pictures", "the input picture", "the mask",
    "the white in the mask", "where to go on",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One thing that may be asked for."""

    check: Check
    help: str = ""  # for the command line and the page
    title: str = ""  # the label on the page
    group: str = ""
    metavar: str | None = None
    usual: str = ""  # the default in words, where it is not the field's
    call: str = ""  # the argument of `StableDiffusion.generate_latents`
    load: str = ""  # the argument of `StableDiffusion`
    key: str = ""  # in a picture's parameters, beside A1111's own fields
    words: tuple[tuple[Any, str], ...] = ()  # values, and what they are called in a picture's parameters
    page: bool = True  # whether the page has it
    shown: tuple[float, float] | None = None  # the bounds on the page, where they are narrower than the check's
    unset: Any = None  # what stands for None on a command line and in a form
    counts: Callable[[Any], bool] = lambda request: True  # of a Request; where it changes nothing it is not recorded
    always: bool = False  # recorded with its default value, too

    def read(self, text: str) -> Any:
        """A value from its form in a picture's parameters. Raises `InputError`."""
        if not self.words:
            return self.from_form(self.check.read(text))
        named = {words: value for value, words in self.words}
        return named[Choice(tuple(named)).read(text)]

    def write(self, value: Any) -> str:
        """The form of a value in a picture's parameters."""
        if self.words:
            return dict(self.words)[value]
        return str(value) if isinstance(value, (str, bool)) else keys.plain(value)

    def from_form(self, value: Any) -> Any:
        """A value from its form on the page or a command line, where None cannot be had."""
        return None if self.unset is not None and value == self.unset else value

    def to_form(self, value: Any) -> Any:
        """The way back of `from_form`."""
        return self.unset if value is None else value


def setting(default: Any, check: Check, help: str = "", **more: Any) -> Any:
    """A field of `Request` with its `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(check, help, **more)})

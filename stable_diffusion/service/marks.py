"""What a prompt's signs mean, in few words, for the row under its field."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from ..text.language import Nodes, Script, Switch, at_steps, parse_script, split_at_and, weigh
from ..text.tags import TAG

MAX_LENGTH = 32  # characters of a piece of text
MOST = 50  # schedules


@dataclass(frozen=True)
class Mark:
    """A piece of a prompt, and what is done with it."""

    text: str
    meaning: str

    @property
    def words(self) -> str:
        """Both, as the row says them."""
        return f"{self.text} {self.meaning}".strip()


def marks(text: str, steps: int, negative: bool = False) -> list[Mark]:
    """What weighs more or less than 1, what changes from step to step, what guides for itself; each once, in order.

    A negative prompt has no AND.
    """
    text = TAG.sub("", text)
    parts = [] if negative else split_at_and(text)
    found: list[Mark] = []
    if len(parts) > 1:
        found += [Mark(_short(_bare(part.text)), f"AND ×{part.weight:g}") for part in parts]
    for each in [part.text for part in parts] or [text]:
        found += _schedules(parse_script(each))
        weighed = chain(*(chain(*weigh(now)) for now in dict.fromkeys(at_steps(each, steps))))
        found += [Mark(_short(part.text), f"×{part.weight:.3g}") for part in weighed if part.weight != 1]
    return [mark for mark in dict.fromkeys(found) if mark.text]


def _schedules(script: Script) -> Iterator[Mark]:
    for switch in script.switches[:MOST]:
        before, after, when = _said(switch.before), _said(switch.after), _when(switch)
        if before and after:
            yield Mark(f"{before} → {after}", f"after {when}")
        elif before or after:
            yield Mark(before or after, f"until {when}" if before else f"after {when}")
    for turns in script.turns[:MOST]:
        yield Mark(", ".join(_said(option) or "nothing" for option in turns.options), "in turn")


def _when(switch: Switch) -> str:
    value = float(switch.when)
    return f"{100 * value:.4g} %" if "." in switch.when else f"step {value:g}"


def _said(nodes: Nodes) -> str:
    """The words of a part of a prompt at its first step."""
    return _short(_bare(Script(nodes, [], []).at(1, 1)))


def _bare(text: str) -> str:
    return " ".join(part.text for part in chain(*weigh(text)))


def _short(text: str) -> str:
    words = " ".join(text.split()).strip(" ,.;:")
    return words if len(words) <= MAX_LENGTH else words[: MAX_LENGTH - 1].rstrip() + "…"

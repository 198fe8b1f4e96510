r"""AUTOMATIC1111's prompt language: text in, plain data out. Needs no MLX.

    (red) ((red)) (red:1.3) [red]     weights: 1.1, 1.21, 1.3, 1 / 1.1; brackets nest and multiply
    \( \) \[ \] \\                    the characters themselves
    a house BREAK a boat              the boat begins a new chunk of 75 tokens
    [red:blue:0.4] [red:blue:8]       red up to 40 % of the steps, or up to step 8, then blue
    [red:0.4] [red::0.4]              red from then on, red until then
    [red|blue|green]                  alternating, step by step
    a house AND a boat:0.7            guided by both, each with its weight (`split_at_and`)

They are read in this order: `split_at_and`, then `parse_schedule` and its text at a step, then `weigh`. Unmatched
brackets are text to the first two; in `weigh` they extend to the end. Every string is valid, and is parsed in time
proportional to its length.

The reference is modules/prompt_parser.py of that program, except where it contradicts its own documentation: a number
after a colon at the very end of a prompt without AND is text ("16:9" does not multiply the guidance by 9), a lone "|"
is text and does not affect neighbouring schedules, BREAK also works inside brackets, and a malformed number, such as
1.2.3, is text. Steps are the sampler's steps that are run, from 1, as in that documentation; its code counts calls of
the network from 0, so that the first text lasts one call longer there, and counts two calls per step for Heun and
similar samplers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

EMPHASIS = 1.1

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_AND = re.compile(r"\bAND\b")
_SCHEDULE_SIGNS = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WHEN = re.compile(rf"{_NUMBER}(?:[eE][-+]?\d+)?", re.ASCII)
_WEIGHT_SIGNS = re.compile(rf"\\[()\[\]\\]|\\|[(\[\])]|:\s*(?P<weight>{_NUMBER})\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


class Weighted(NamedTuple):
    """A piece of text with its weight."""

    text: str
    weight: float


def split_at_and(text: str) -> list[Weighted]:
    """The prompts that AND joins, each with the weight after its last colon; a prompt without AND weighs 1."""
    pieces = _AND.split(text)
    return [_and_part(piece) for piece in pieces] if len(pieces) > 1 else [Weighted(text, 1.0)]


def _and_part(piece: str) -> Weighted:
    before, colon, after = piece.rpartition(":")
    if colon and re.fullmatch(_NUMBER, after.strip()):
        return Weighted(before.rstrip(), float(after))
    return Weighted(piece.rstrip(), 1.0)


@dataclass(frozen=True)
class Switch:
    """`[before:after:when]`."""

    before: Nodes
    after: Nodes
    when: str

    def last_step(self, steps: int) -> int:
        """The last of `steps` steps, counted from 1, that has `before`; 0 if none has.

        A number with a point is a share of the steps, one without is a step.
        """
        value = float(self.when) * steps if "." in self.when else float(self.when)
        return int(min(max(value, 0), steps))

    def at(self, step: int, steps: int) -> Nodes:
        """The nodes at a step."""
        return self.before if step <= self.last_step(steps) else self.after


@dataclass(frozen=True)
class Turns:
    """`[a|b|c]`."""

    options: tuple[Nodes, ...]

    def at(self, step: int, steps: int) -> Nodes:
        """The nodes at a step: the first option at step 1."""
        return self.options[(step - 1) % len(self.options)]


Node = str | Switch | Turns
Nodes = Sequence[Node]


@dataclass(frozen=True)
class TextSchedule:
    """A prompt, parts of which may change from step to step."""

    nodes: Nodes
    switches: Sequence[Switch]  # all of them, however deep
    turns: Sequence[Turns]

    def at(self, step: int, steps: int) -> str:
        """The text at a step, from 1 to `steps`."""
        pieces: list[str] = []
        open_nodes: list[Iterator[Node]] = [iter(self.nodes)]
        while open_nodes:
            node = next(open_nodes[-1], None)
            if node is None:
                open_nodes.pop()
            elif isinstance(node, str):
                pieces.append(node)
            else:
                open_nodes.append(iter(node.at(step, steps)))
        return "".join(pieces)

    def at_steps(self, steps: int) -> list[str]:
        """The text at each of `steps` steps, with schedules and turns resolved; weights and escapes remain."""
        if self.turns:
            return [self.at(step, steps) for step in range(1, steps + 1)]
        ends = sorted({switch.last_step(steps) for switch in self.switches} - {0} | {steps})
        texts: list[str] = []
        for end in ends:
            texts += [self.at(end, steps)] * (end - len(texts))
        return texts


@dataclass
class _Bracket:
    """An open bracket: its sign, its index among the nodes, and the signs : and | directly inside, with indices."""

    sign: str
    place: int
    marks: list[tuple[str, int]] = field(default_factory=list)

    @property
    def signs(self) -> str:
        return "".join(sign for sign, _ in self.marks)


def parse_schedule(text: str) -> TextSchedule:
    """Find the schedules and turns of a prompt; everything else stays text.

    A bracket that is neither of these nor emphasis is text, and so are the brackets around it.
    """
    nodes: list[Node] = []
    switches: list[Switch] = []
    turns: list[Turns] = []
    brackets: list[_Bracket] = []  # no recursion, so any depth works
    for match in _SCHEDULE_SIGNS.finditer(text):
        sign = match[0]
        if sign in "[(":
            brackets.append(_Bracket(sign, len(nodes)))
        elif sign in ":|" and brackets:
            if sign + brackets[-1].sign == "|(":
                brackets.clear()
            else:
                brackets[-1].marks.append((sign, len(nodes)))
        elif sign in "])":
            bracket = brackets.pop() if brackets else _Bracket("", 0)
            made = _closed(bracket, nodes) if sign == "]" else None
            if made is not None:
                (switches if isinstance(made, Switch) else turns).append(made)  # type: ignore[arg-type]
                nodes[bracket.place :] = [made]
                continue
            if bracket.sign + bracket.signs + sign not in ("[]", "()", "(:)"):
                brackets.clear()
        nodes.append(sign)
    return TextSchedule(nodes, switches, turns)


def _closed(bracket: _Bracket, nodes: list[Node]) -> Switch | Turns | None:
    """The schedule or turns that a closing square bracket completes, or None."""
    signs = bracket.signs
    if bracket.sign != "[" or not signs:
        return None
    places = [bracket.place, *(place for _, place in bracket.marks), len(nodes)]
    if signs.strip("|") == "":
        return Turns(tuple(nodes[a + 1 : b] for a, b in pairwise(places)))
    if signs not in (":", "::"):
        return None
    last = nodes[places[-2] + 1 :]
    when = "".join(node for node in last if isinstance(node, str)).strip()
    if not all(isinstance(node, str) for node in last) or not _WHEN.fullmatch(when):
        return None
    before = nodes[places[0] + 1 : places[1]] if len(signs) == 2 else []
    return Switch(before, nodes[places[-3] + 1 : places[-2]], when)


def weigh(text: str) -> list[list[Weighted]]:
    """The parts of a text with their weights, one list per stretch between BREAKs; neighbours differ in weight.

    A bracket's weight multiplies those inside it; round brackets may cross square ones. Weights are rounded to twelve
    digits, so that they do not depend on the order of the brackets.
    """
    signs = [(match[0], match["weight"]) for match in _WEIGHT_SIGNS.finditer(text)]
    weights, closing = _pair(signs)
    active = {"(": [1.0], "[": [1.0]}
    stretches: list[list[Weighted]] = [[]]
    for i, (sign, _) in enumerate(signs):
        if i in weights:
            active[sign].append(active[sign][-1] * weights[i])
        elif i in closing:
            active[closing[i]].pop()
        else:
            weight = float(f"{active['('][-1] * active['['][-1]:.12g}")
            pieces = [sign[1:]] if sign[0] == "\\" else _BREAK.split(sign)
            for number, piece in enumerate(pieces):
                if number:
                    stretches.append([])
                    piece = piece.lstrip()
                stretches[-1].append(Weighted(piece.rstrip() if number < len(pieces) - 1 else piece, weight))
    return [_joined(parts) for parts in stretches]


def _joined(parts: Sequence[Weighted]) -> list[Weighted]:
    groups = groupby((part for part in parts if part.text), key=lambda part: part.weight)
    return [Weighted("".join(part.text for part in group), weight) for weight, group in groups]


def _pair(signs: Sequence[tuple[str, str | None]]) -> tuple[dict[int, float], dict[int, str]]:
    """The weight of each opening sign, and the kind of bracket that each closing sign closes."""
    weights: dict[int, float] = {}
    closing: dict[int, str] = {}
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    for i, (sign, weight) in enumerate(signs):
        if sign in open_at:
            weights[i] = EMPHASIS if sign == "(" else 1 / EMPHASIS  # also if nothing closes it
            open_at[sign].append(i)
        kind = "[" if sign == "]" else "("
        if (sign in ("]", ")") or weight is not None) and open_at[kind]:
            closing[i] = kind
            opened = open_at[kind].pop()
            if weight is not None:
                weights[opened] = float(weight)
    return weights, closing

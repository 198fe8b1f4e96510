r"""Dynamic prompts: a template, a seed and a picture's index become a prompt, before anything else reads it.

    {red|blue}  {0.5::red|2::blue}      one of these, as likely as its weight
    {2$$a|b|c}  {1-2$$ and $$a|b|c}     two of them, or one or two, in any order, joined by "," or by what is given
    {~a|b}  {@a|b}                      drawn, whatever the mode; in turn, picture by picture
    __colour__  __animals/*__           a line of wildcards/colour.txt, or of any file below wildcards/animals
    {2$$__colour__}                     two different lines of it
    ${x={a|b}}  ${x=!{a|b}}  ${x}  ${x:c}   a variable, drawn at each use or once; used; used with a default
    __colour(x=red)__                   a wildcard's lines with a variable in them
    %{(...:1.2)$$a cat}                 the second text in the place of the dots
    \{ \} \|  and lines that begin with #   the characters themselves, and comments

The grammar is that of the extension sd-dynamic-prompts (the package dynamicprompts, parser/parse.py), in which A1111's
own language (language.py) is text: [a|b], (a:1.2), AND. Differences: a "|" in square brackets does not divide options,
so that {[a|b]|c} has two; blanks around options do not count; "$", "%" and "#" are text where they begin nothing; and a
wildcard that is not there is an error. Needs no MLX.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from ..errors import InputError

MAX_TEMPLATE = 20_000  # characters, and of a prompt that is drawn; far more than any encoder reads
MAX_DEPTH = 50
MAX_COMBINATIONS = 10_000
MAX_WORK = 20_000_000  # characters that the listing of all combinations may write
MAX_EXPANSIONS = 100_000  # variables, choices and wildcards that one prompt may draw
SEPARATOR = ","

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_WEIGHT = re.compile(rf"\s*({_NUMBER})::")
_METHOD = re.compile(r"\s*([~!@])")
_BOUNDS = re.compile(r"\s*(?:(\d{1,9})?(-)(\d{1,9})?|(\d{1,9}))\$\$(?:([^${}]+)\$\$)?")
_NAME = r"[A-Za-z_-][A-Za-z0-9_-]*"
_ASSIGN = re.compile(rf"\$\{{\s*({_NAME})\s*(\??)=(!?)")
_USE = re.compile(rf"\$\{{\s*({_NAME})\s*([:}}])")
_WILDCARD = re.compile(r"__([~!@]?)(?=[^\s_])((?:(?!__)[^\n])+)(?<=\S)__")
_COMMENT = re.compile(r"^[ \t]*#[^\n]*(?:\n|\Z)", re.MULTILINE)
_DOTS = re.compile("\\.{3,}|[\u2026\u22ee\u22ef]")
_SIGNS = re.compile(r"\\[{}|]|[\[\]{}]", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """Some of its options, `low` to `high` of them."""

    options: tuple[tuple[float, Nodes], ...]  # with their weights
    low: int = 1
    high: int = 1
    separator: str = SEPARATOR
    method: str = ""


@dataclass(frozen=True)
class Wildcard:
    """One of the lines of the files that its name stands for."""

    name: Nodes
    method: str = ""
    variables: tuple[tuple[str, Nodes], ...] = ()


@dataclass(frozen=True)
class Assign:
    """A variable is given a value; `once` draws it at once, `keep` leaves an earlier value."""

    name: str
    value: Nodes
    once: bool
    keep: bool


@dataclass(frozen=True)
class Use:
    """A variable's value."""

    name: str
    default: Nodes | None


@dataclass(frozen=True)
class Wrap:
    """A text in the place of the dots in another."""

    around: Nodes
    inner: Nodes


Node = str | Choice | Wildcard | Assign | Use | Wrap
Nodes = tuple[Node, ...]
Weighted = tuple[float, str]  # a line of a wildcard
Lines = Callable[[str], Sequence[Weighted]]  # a wildcard's, by its name; raises InputError


# --- Reading


def has_syntax(text: str) -> bool:
    """Whether a text has a choice, a wildcard or a variable in it: braces around one thing, {{masterpiece}}, are not.

    Nor is anything that is not closed.
    """
    if "{" not in text and "__" not in text:
        return False
    try:
        nodes = parse(text[:MAX_TEMPLATE])
    except InputError:
        return bool(re.search(r"\{[^{}\[\]]*\|[^{}]*\}|\$\$", text))
    return any(map(_is_dynamic, nodes))


def _is_dynamic(node: Node) -> bool:
    if isinstance(node, Choice):
        counted = (node.low, node.high, node.separator) != (1, 1, SEPARATOR)
        inner = itertools.chain(*(nodes for _, nodes in node.options))
        return len(node.options) > 1 or counted or any(map(_is_dynamic, inner))
    return not isinstance(node, str)


@lru_cache(maxsize=20_000)
def parse(text: str) -> Nodes:
    """Read a template. Raises `InputError` for a brace that is not closed, and for what is too long or too deep."""
    if len(text) > MAX_TEMPLATE:
        raise InputError(f"The template {text[:40]!r}... has {len(text)} characters, more than {MAX_TEMPLATE}.")
    return _Reader(_COMMENT.sub("", text) if "#" in text else text).read()


class _Reader:
    """One pass over a text; square brackets are matched before, so that a "|" inside one is text."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.brackets = _matching_brackets(text)

    def read(self) -> Nodes:
        return self._nodes("", 0)

    def _nodes(self, ends: str, depth: int) -> Nodes:
        """The nodes up to one of the `ends`, which is not consumed; without ends, up to the text's end."""
        if depth > MAX_DEPTH:
            raise InputError(f"Braces in {self.text[:80]!r} are nested more than {MAX_DEPTH} deep.")
        nodes: list[Node] = []
        literal: list[str] = []
        protected = self.at  # up to here, "|" is text
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\\" and self.text[self.at + 1 : self.at + 2] in ("{", "}", "|"):
                literal.append(self.text[self.at + 1])
                self.at += 2
                continue
            if char in ends and not (char == "|" and self.at < protected):
                break
            if ends and "$" in ends and self.text.startswith("$$", self.at):
                break
            if char == "[":
                protected = max(protected, self.brackets.get(self.at, 0))
            node = self._node(char, depth)
            if node is None:
                literal.append(char)
                self.at += 1
                continue
            if literal:
                nodes.append("".join(literal))
                literal = []
            nodes.append(node)
        if literal:
            nodes.append("".join(literal))
        return tuple(nodes)

    def _node(self, char: str, depth: int) -> Node | None:
        """What begins here, consumed; None for an ordinary character."""
        if char == "{":
            return self._choice(depth)
        if char == "_" and (match := _WILDCARD.match(self.text, self.at)):
            self.at = match.end()
            return _wildcard(match[1], match[2])
        if char == "$" and (match := _ASSIGN.match(self.text, self.at)):
            self.at = match.end()
            value = _stripped(self._inside("}", depth))
            self.at += 1
            return Assign(match[1], value, bool(match[3]), bool(match[2]))
        if char == "$" and (match := _USE.match(self.text, self.at)):
            self.at = match.end()
            if match[2] == "}":
                return Use(match[1], None)
            default = _stripped(self._inside("}", depth))
            self.at += 1
            return Use(match[1], default)
        if self.text.startswith("%{", self.at):
            self.at += 2
            around = _stripped(self._inside("}$", depth))
            if not self.text.startswith("$$", self.at):
                raise InputError(f"%{{ in {self.text[:80]!r} should be like %{{(...:1.2)$$a cat}}.")
            self.at += 2
            inner = _stripped(self._inside("}", depth))
            self.at += 1
            return Wrap(around, inner)
        return None

    def _inside(self, ends: str, depth: int) -> Nodes:
        start = self.at
        nodes = self._nodes(ends, depth + 1)
        if self.at >= len(self.text):
            raise InputError(
                f"The brace before {self.text[start : start + 40]!r} is never closed; "
                f"a brace that is meant as such is written \\{{."
            )
        return nodes

    def _choice(self, depth: int) -> Choice:
        self.at += 1
        method = _METHOD.match(self.text, self.at)
        if method:
            self.at = method.end()
        bounds = _BOUNDS.match(self.text, self.at)
        if bounds:
            self.at = bounds.end()
        options: list[tuple[float, Nodes]] = []
        while True:
            weight = _WEIGHT.match(self.text, self.at)
            if weight:
                self.at = weight.end()
            options.append((float(weight[1]) if weight else 1.0, _stripped(self._inside("|}", depth))))
            self.at += 1
            if self.text[self.at - 1] == "}":
                break
        if not any(weight for weight, _ in options):
            raise InputError(f"In {self.text[:80]!r} all weights of a choice are 0, so that nothing can be drawn.")
        low, high = _range(bounds, len(options)) if bounds else (1, 1)
        separator = bounds[5] if bounds and bounds[5] is not None else SEPARATOR
        return Choice(tuple(options), low, high, separator, method[1] if method else "")


def _range(bounds: re.Match[str], n: int) -> tuple[int, int]:
    if bounds[4] is not None:
        return int(bounds[4]), int(bounds[4])
    low, high = int(bounds[1] or 1), int(bounds[3]) if bounds[3] else max(n, int(bounds[1] or 1))
    return min(low, high), max(low, high)


def _wildcard(method: str, inside: str) -> Wildcard:
    variables: list[tuple[str, Nodes]] = []
    name, bracket, spec = inside.partition("(")
    if bracket and spec.endswith(")"):
        for pair in spec[:-1].split(","):
            key, _, value = pair.partition("=")
            variables.append((key.strip(), parse(value.strip())))
    else:
        name = inside
    return Wildcard(parse(name), method, tuple(variables))


def _stripped(nodes: Nodes) -> Nodes:
    """Without blanks at both ends."""
    found = list(nodes)
    if found and isinstance(found[0], str):
        found[0] = found[0].lstrip()
    if found and isinstance(found[-1], str):
        found[-1] = found[-1].rstrip()
    return tuple(node for node in found if node != "")


def _matching_brackets(text: str) -> dict[int, int]:
    """Where each square bracket is closed by one of its own level of braces."""
    found: dict[int, int] = {}
    opened: list[tuple[str, int]] = []
    for match in _SIGNS.finditer(text):
        sign = match[0]
        if sign in "[{":
            opened.append((sign, match.start()))
        elif sign == "]":
            if opened and opened[-1][0] == "[":
                found[opened.pop()[1]] = match.start()
        elif sign == "}":
            while opened and opened.pop()[0] != "{":
                pass
    return found


# --- Writing


@dataclass
class _Scene:
    """What nodes are written with: the wildcards' lines, a picture's index and its random numbers, and variables."""

    lines: Lines
    index: int
    random: Random
    variables: Mapping[str, Nodes] = field(default_factory=dict)
    opened: tuple[str, ...] = ()  # wildcards and variables around, to see when one includes itself
    count: list[int] = field(default_factory=lambda: [0])  # of what was expanded, shared by all scenes of a prompt

    def with_variables(self, more: Mapping[str, Nodes]) -> _Scene:
        return self._replaced(variables={**self.variables, **more}) if more else self

    def within(self, name: str) -> _Scene:
        """Inside a wildcard or a variable. Raises `InputError` where it includes itself, or where it is too much."""
        if name in self.opened:
            chain = " -> ".join((*self.opened[self.opened.index(name) :], name))
            raise InputError(f"{name} includes itself ({chain}): take it out of its own lines.")
        if len(self.opened) >= MAX_DEPTH:
            raise InputError(f"Wildcards include one another more than {MAX_DEPTH} deep: {' -> '.join(self.opened)}.")
        self.step()
        return self._replaced(opened=(*self.opened, name))

    def step(self) -> None:
        self.count[0] += 1
        if self.count[0] > MAX_EXPANSIONS:
            raise InputError(f"A prompt draws more than {MAX_EXPANSIONS} times: make its wildcards shorter.")

    def _replaced(self, **changes: object) -> _Scene:
        return _Scene(**{**self.__dict__, **changes})  # type: ignore[arg-type]


def check(template: str, lines: Lines) -> None:
    """Raise `InputError` for what cannot be read, and for wildcards that are not there or include themselves.

    All branches are looked at. Names of wildcards that are drawn themselves are only checked when they are.
    """
    done: set[str] = set()

    def visit(nodes: Nodes, opened: tuple[str, ...]) -> None:
        for node in nodes:
            for inner in _inner(node):
                visit(inner, opened)
            if isinstance(node, Wildcard) and len(node.name) == 1 and isinstance(node.name[0], str):
                name = f"__{node.name[0]}__"
                if name in opened:
                    chain = " -> ".join((*opened[opened.index(name) :], name))
                    raise InputError(f"{name} includes itself ({chain}): take it out of its own lines.")
                if name not in done:
                    for _, line in lines(node.name[0]):
                        if "{" in line or "__" in line:
                            visit(parse(line), (*opened, name))
                    done.add(name)

    visit(parse(template), ())


def _inner(node: Node) -> Iterator[Nodes]:
    if isinstance(node, Choice):
        yield from (nodes for _, nodes in node.options)
    elif isinstance(node, Wildcard):
        yield node.name
    elif isinstance(node, Assign):
        yield node.value
    elif isinstance(node, Use):
        yield node.default or ()
    elif isinstance(node, Wrap):
        yield from (node.around, node.inner)


def draw(template: str, seed: int | str, index: int, lines: Lines) -> str:
    """The prompt of the picture `index` with this seed: always the same for the same template, seed and wildcards.

    Raises `InputError` for a template that cannot be read, a wildcard that is not there or includes itself, a variable
    without a value, and for a prompt that becomes too long.
    """
    return _short(_draw(parse(template), _Scene(lines, index, Random(f"{seed}"))))


def combinations(template: str, seed: int | str, lines: Lines) -> list[str]:
    """All prompts that a template can become, each once. Parts with "~" or "@" are drawn, or taken in turn.

    Raises as `draw`, and for more than `MAX_COMBINATIONS`.
    """
    listing = _Listing(lines)
    texts = listing.texts(parse(template), _Scene(lines, 0, Random(f"{seed}")))
    if not texts:
        raise InputError(f"{template[:80]!r} has no combination: it takes more of a choice than there are other ones.")
    drawn = (
        listing.filled(text, _Scene(lines, i, Random(f"{seed} {i}"))) if listing.left else text
        for i, text in enumerate(texts)
    )
    return list(map(_short, drawn))


def _short(text: str) -> str:
    if len(text) > MAX_TEMPLATE:
        raise InputError(f"A prompt that was drawn, {text[:40]!r}..., has more than {MAX_TEMPLATE} characters.")
    return text


def _draw(nodes: Nodes, scene: _Scene) -> str:
    nodes, scene = _assigned(nodes, scene)
    length, pieces = 0, []
    for node in nodes:
        pieces.append(_drawn(node, scene))
        length += len(pieces[-1])
        if length > MAX_TEMPLATE:
            _short("".join(pieces))
    return "".join(pieces)


def _assigned(nodes: Nodes, scene: _Scene) -> tuple[Nodes, _Scene]:
    """The nodes without assignments, and the scene with their variables."""
    if not any(isinstance(node, Assign) for node in nodes):
        return nodes, scene
    for node in nodes:
        if isinstance(node, Assign) and not (node.keep and node.name in scene.variables):
            value: Nodes = (_draw(node.value, scene),) if node.once else node.value
            scene = scene.with_variables({node.name: value})
    return tuple(node for node in nodes if not isinstance(node, Assign)), scene


def _drawn(node: Node, scene: _Scene) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, Use):
        return _draw(*_value(node, scene))
    if isinstance(node, Wrap):
        return _wrapped(_draw(node.around, scene), _draw(node.inner, scene))
    assert isinstance(node, (Choice, Wildcard)), "assignments are taken out before"
    if node.method == "@":
        texts = _Listing(scene.lines).texts((_without_method(node),), scene)
        return texts[scene.index % len(texts)]
    options, scene, choice = _options(node, scene)
    low, high = min(choice.low, len(options)), min(choice.high, len(options))
    n = low + int(scene.random.random() * (high - low + 1))
    chosen = []
    left = list(options)
    for _ in range(n):
        chosen.append(left.pop(_pick([weight for weight, _, _ in left], scene.random)))
    return _joined([_draw(nodes, inner) for _, nodes, inner in chosen], choice.separator)


def _pick(weights: Sequence[float], random: Random) -> int:
    """An index, as likely as its weight."""
    at = random.random() * sum(weights)
    for i, weight in enumerate(weights):
        at -= weight
        if at < 0:
            return i
    return max(i for i, weight in enumerate(weights) if weight or i == 0)


def _options(node: Choice | Wildcard, scene: _Scene) -> tuple[list[tuple[float, Nodes, _Scene]], _Scene, Choice]:
    """The options of a choice or a wildcard, each with its weight and scene; and how many are taken."""
    scene.step()
    choice = node if isinstance(node, Choice) else Choice(())
    only = node.options[0][1] if isinstance(node, Choice) and len(node.options) == 1 else ()
    if isinstance(node, Choice) and not (len(only) == 1 and isinstance(only[0], Wildcard)):
        return [(weight, nodes, scene) for weight, nodes in node.options], scene, choice
    wildcard = node if isinstance(node, Wildcard) else only[0]
    assert isinstance(wildcard, Wildcard)
    name = _draw(wildcard.name, scene)
    inner = scene.with_variables(dict(wildcard.variables)).within(f"__{name}__")
    return [(weight, parse(line), inner) for weight, line in scene.lines(name)], scene, choice


def _value(node: Use, scene: _Scene) -> tuple[Nodes, _Scene]:
    found = scene.variables.get(node.name, node.default)
    if found is None:
        raise InputError(f"The variable ${{{node.name}}} has no value: give it one, as in ${{{node.name}={{a|b}}}}.")
    return found, scene.within(f"${{{node.name}}}")


def _without_method(node: Choice | Wildcard) -> Node:
    if isinstance(node, Choice):
        return Choice(node.options, node.low, node.high, node.separator)
    return Wildcard(node.name, "", node.variables)


def _wrapped(around: str, inner: str) -> str:
    dots = _DOTS.search(around)
    return around[: dots.start()] + inner + around[dots.end() :] if dots else around + inner


def _joined(texts: Sequence[str], separator: str) -> str:
    """Several texts joined; an empty one at an end takes its separator along."""
    if len(texts) == 1:
        return texts[0]
    return separator.join(texts).removeprefix(separator).removesuffix(separator)


class _Listing:
    """All texts of nodes. Parts that are drawn or taken in turn stand as a mark until the end."""

    def __init__(self, lines: Lines):
        self.lines = lines
        self.left: list[tuple[Node, _Scene]] = []
        self.work = 0

    def texts(self, nodes: Nodes, scene: _Scene) -> list[str]:
        """Each once, in the order of the options, the last part changing first."""
        found: list[str] = []
        for scene_ in self._scenes(nodes, scene):
            parts = [self._node(node, scene_) for node in nodes if not isinstance(node, Assign)]
            found += self._products(parts)
        return self._unique(found)

    def filled(self, text: str, scene: _Scene) -> str:
        """A text with its marks written."""
        for i, (node, before) in enumerate(self.left):
            while (mark := _mark(i)) in text:
                later = before._replaced(index=scene.index, random=scene.random, count=scene.count)
                text = text.replace(mark, _drawn(node, later), 1)
        return text

    def _scenes(self, nodes: Nodes, scene: _Scene) -> Iterator[_Scene]:
        """The scene with the variables that the nodes assign: one for each value of those drawn once."""
        assignments = [node for node in nodes if isinstance(node, Assign)]
        if not assignments:
            yield scene
            return
        scenes = [scene]
        for node in assignments:
            following = []
            for each in scenes:
                if node.keep and node.name in each.variables:
                    following.append(each)
                    continue
                values = [(text,) for text in self.texts(node.value, each)] if node.once else [node.value]
                following += [each.with_variables({node.name: value}) for value in values]
            self._check(len(following), 0)
            scenes = following
        yield from scenes

    def _node(self, node: Node, scene: _Scene) -> list[str]:
        if isinstance(node, str):
            return [node]
        if isinstance(node, Use):
            return self.texts(*_value(node, scene))
        if isinstance(node, Wrap):
            inner = self.texts(node.inner, scene)
            return [_wrapped(around, each) for around in self.texts(node.around, scene) for each in inner]
        assert isinstance(node, (Choice, Wildcard)), "assignments are taken out before"
        if node.method in ("~", "@"):
            self.left.append((node, scene))
            return [_mark(len(self.left) - 1)]
        options, _, choice = _options(node, scene)
        texts = [self.texts(nodes, inner) for _, nodes, inner in options]
        if (choice.low, choice.high) == (1, 1):
            return self._unique(list(itertools.chain(*texts)))
        found: list[str] = []
        for n in range(min(choice.low, len(texts)), min(choice.high, len(texts)) + 1):
            for chosen in itertools.permutations(texts, n):
                found += [_joined(each, choice.separator) for each in self._tuples(chosen) if len(set(each)) == n]
                self._check(len(found), 0)
        return self._unique(found)

    def _products(self, parts: Sequence[list[str]]) -> list[str]:
        return ["".join(each) for each in self._tuples(parts)]

    def _tuples(self, parts: Sequence[list[str]]) -> Iterator[tuple[str, ...]]:
        count = 1
        for part in parts:
            count *= len(part)
            self._check(count, 0)
        for each in itertools.product(*parts):
            self._check(count, sum(map(len, each)) + 1)
            yield each

    def _unique(self, texts: list[str]) -> list[str]:
        self._check(len(texts), 0)
        return list(dict.fromkeys(texts))

    def _check(self, count: int, written: int) -> None:
        self.work += written
        if count > MAX_COMBINATIONS or self.work > MAX_WORK:
            raise InputError(
                f"The template has more than {MAX_COMBINATIONS} combinations, or they are too long to list: "
                "make it smaller, or let the seed draw some."
            )


def _mark(i: int) -> str:
    return f"\ue000{i}\ue001"

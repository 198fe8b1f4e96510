"""How a picture was made, in the text form of AUTOMATIC1111's web UI, which other programs read too."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text):
        raise ValueError(text)
    return int(text)


def _real(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


_KEYS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Steps", "steps", _whole),
    ("Sampler", "sampler", str),
    ("Schedule type", "schedule", str),
    ("CFG scale", "cfg", _real),
    ("Seed", "seed", _whole),
    ("Size", "size", str),
    ("Model hash", "model_hash", str),
    ("Model", "model", str),
    ("Denoising strength", "strength", _real),
)
_NEGATIVE = "Negative prompt:"
_PROMPT_LENGTH = "Prompt length"  # ours; other programs ignore it
_TELLING_KEYS = {
    "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash",
    "Postprocess upscaler", "Postprocess upscale by", "Postprocess upscale to",
}  # fmt: skip
_SETTINGS_LINE = re.compile(r"\s*Steps: *(\d+ *([,|]|$)|\"\d)")  # in quotes where it was no number: "0,0"
_PIPES = re.compile(r"\s*Steps: *\d+ *\|")  # SD.Next's
_WITHIN_A_LINE = re.compile(r"[\s,.]Steps: *\d+ *,")
MAX_TRIES = 8  # places in a line that look like the beginning of settings
_KEY = re.compile(r"""\s*([^\s:,"\[\]{}][^:,"\n\[\]{}]*):[ \t]*""")


@dataclass
class Parameters:
    """How a picture was made. None (or "") means unknown, and omits the key.

    `sampler` and `schedule` are the names that users know ("DPM++ 2M", "Karras"), `width` and `height` pixels,
    `strength` the denoising strength of image to image, `model_hash` the first ten hex digits of the file's sha256;
    `extra` holds all other keys, in order.
    """

    prompt: str = ""
    negative: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    cfg: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    model_hash: str | None = None
    model: str | None = None
    strength: float | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> str | None:
        """ "512x768", width first, or None."""
        return f"{self.width}x{self.height}" if self.width and self.height else None

    def to_text(self) -> str:
        """The prompt, a line `Negative prompt: ...` when there is one, and a line `Steps: 20, Sampler: Euler, ...`."""
        pairs = {key: _plain(getattr(self, name)) for key, name, _ in _KEYS if getattr(self, name) not in (None, "")}
        pairs.update(self.extra)
        prompt, negative = (re.sub(r"\r\n?", "\n", text) for text in (self.prompt, self.negative))
        if f"\n{_NEGATIVE}" in f"\n{prompt}":
            # A prompt that contains such a line would be ambiguous without this.
            pairs[_PROMPT_LENGTH] = str(len(prompt))
        lines = [prompt]
        if negative:
            lines.append(f"{_NEGATIVE} {negative}")
        if pairs:
            lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs.items()))
        return "\n".join(lines)

    @classmethod
    def from_text(cls, text: str) -> Parameters:
        """Parse such a text, ours or another program's. Never fails: unknown keys go to `extra`."""
        head, settings = _split_settings(text.replace("\r\n", "\n").strip("\0"))
        pairs = dict(settings)
        prompt, negative = _split_negative(head, pairs)
        found = cls(prompt=prompt, negative=negative)
        size = re.fullmatch(r"(\d{1,6}) *x *(\d{1,6})", pairs.get("Size", ""))
        if size:
            found.width, found.height = int(size[1]), int(size[2])
            del pairs["Size"]
        for key, name, read in _KEYS:
            if key in pairs and key != "Size":
                with contextlib.suppress(ValueError):
                    setattr(found, name, read(pairs[key]))
                    del pairs[key]
        found.extra = pairs
        return found


def _plain(value: Any) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _quote(value: str) -> str:
    """Quote a value as JSON if a reader would otherwise cut or strip it."""
    bare = value and value == value.strip() and not re.search(r'[,:\n\r]|^["\[{]', value)
    return value if bare else json.dumps(value, ensure_ascii=False)


def _split_settings(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text before the line of settings, and the settings; the last line that looks like settings counts."""
    lines = text.split("\n")
    at = next((i for i in reversed(range(len(lines))) if _SETTINGS_LINE.match(lines[i])), None)
    if at is None:
        at = len(text.rstrip().split("\n")) - 1
        pairs = _pairs(lines[at])
        within = any(key.endswith(" Steps") or _NEGATIVE[:-1] in key for key, _ in pairs)
        if within or not _are_settings(pairs):
            return _split_line(text)
    pairs = _pairs(lines[at])
    for line in lines[at + 1 :]:  # added by other programs, or a value with a newline in it
        if _KEY.match(line):
            pairs += _pairs(line)
        elif line.strip():
            end = next((comma.start() for comma in re.finditer(",", line) if _KEY.match(line, comma.end())), len(line))
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]}\n{line[:end]}")
            pairs += _pairs(line[end + 1 :])
    return "\n".join(lines[:at]), pairs


def _split_line(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The same where newlines have become blanks: prompt, negative prompt and settings follow each other in a line."""
    for start in reversed([match.start() for match in _WITHIN_A_LINE.finditer(text)][-MAX_TRIES:]):
        if _are_settings(pairs := _pairs(text[start + 1 :])):
            head, negative, rest = text[:start].partition(_NEGATIVE)
            parts = [head.rstrip(" ,.\n"), f"{_NEGATIVE} {rest.strip().rstrip(' ,.')}"]
            return "\n".join(parts if negative else parts[:1]), pairs
    return text, []


def _are_settings(pairs: list[tuple[str, str]]) -> bool:
    return len(_TELLING_KEYS & {key for key, _ in pairs}) >= 2


def _split_negative(head: str, pairs: dict[str, str]) -> tuple[str, str]:
    length = pairs.pop(_PROMPT_LENGTH, "")
    start = int(length) if re.fullmatch(r"[0-9]{1,9}", length) and int(length) <= len(head) else 0
    at = f"\n{head}".find(f"\n{_NEGATIVE}", start)
    if at < 0:
        return head, ""
    return head[: max(at - 1, 0)], head[at + len(_NEGATIVE) :].removeprefix(" ")


def _pairs(line: str) -> list[tuple[str, str]]:
    """`Key: value, Key: "quoted, value", Key: [...]`; a piece without a key belongs to the value before it.

    A line that does not begin with a key has no settings.
    """
    if _PIPES.match(line):
        parts = [part.partition(":") for part in line.split("|")]
        return [(key.strip(), value.strip()) for key, colon, value in parts if colon and key.strip()]
    pairs: list[tuple[str, list[str]]] = []
    at = 0
    while at < len(line):
        if key := _KEY.match(line, at):
            value, at = _value(line, key.end())
            pairs.append((key[1].strip(), [value]))
        elif pairs:
            pairs[-1][1].append(line[at : _comma(line, at)].rstrip())
            at = _comma(line, at)
        else:
            return []
        at += 1
    return [(key, ",".join(pieces)) for key, pieces in pairs]


def _value(line: str, at: int) -> tuple[str, int]:
    if line[at : at + 1] in ('"', "[", "{") and len(line) < 100_000:  # json's errors take time in the line's length
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(line, at)
        except (ValueError, RecursionError):
            pass
        else:
            if not line[end : _comma(line, end)].strip():
                return (value if isinstance(value, str) else line[at:end]), _comma(line, end)
    return line[at : _comma(line, at)].strip(), _comma(line, at)


def _comma(line: str, at: int) -> int:
    end = line.find(",", at)
    return len(line) if end < 0 else end

"""A LoRA's trigger words, from its trainer's metadata. Needs no MLX."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

PHRASES = ("modelspec.trigger_phrase", "trigger_words", "trigger_word", "activation text")
CAPTIONS = "ss_tag_frequency"  # kohya-ss: {folder: {tag: how many captions have it}}
MAX_WORDS, MAX_LENGTH = 8, 80  # characters
IN_ALL = 0.95  # of the captions that the commonest tag is in


def triggers_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that a trainer names, or else the tags that all its captions had."""
    named = (metadata[key] for key in PHRASES if isinstance(metadata.get(key), str))
    words = [word for text in named for word in text.split(",")] or _in_all_captions(metadata.get(CAPTIONS, ""))
    cleaned = dict.fromkeys(" ".join(word.split()) for word in words)
    return tuple(word for word in cleaned if 0 < len(word) <= MAX_LENGTH)[:MAX_WORDS]


def _in_all_captions(text: str) -> list[str]:
    try:
        folders = json.loads(text)
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
    most = max(counts.values(), default=0)
    return [tag for tag, count in counts.most_common(MAX_WORDS) if count >= IN_ALL * most > 1]

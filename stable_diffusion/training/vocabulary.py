"""A vocabulary learnt from captions: byte pair encoding (Sennrich et al. 2016, algorithm 1), in CLIP's file format.

It starts with every byte, alone and at the end of a word; then the most common pair of neighbours is merged, over and
over.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .. import atomic
from ..text.tokenizer import _BYTE_LETTERS, _word_letters, _words, normalize
from ..text.tokenizer_files import BOS, EOS, MAX_LENGTH, WORD_END

Pair = tuple[str, str]


def learn_merges(captions: Iterable[str], count: int) -> list[Pair]:
    """The `count` most common merges in the captions; fewer if every word becomes a single token first."""
    words = Counter(word for caption in captions for word in _words(normalize(caption)))
    spelt = {word: [*(letters := _word_letters(word))[:-1], letters[-1] + WORD_END] for word in words}
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for word, symbols in spelt.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = {word: _merged(symbols, best) for word, symbols in spelt.items()}
    return merges


def write_tokenizer(folder: Path, captions: Iterable[str], merges: int = 230) -> None:
    """Learn from captions; write vocab.json, merges.txt and the two files of special tokens."""
    learnt = learn_merges(captions, merges)
    tokens = [*_BYTE_LETTERS, *(letter + WORD_END for letter in _BYTE_LETTERS)]
    tokens += dict.fromkeys(left + right for left, right in learnt)  # two merges may yield the same token
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, **special}
    for name, values in (
        ("vocab.json", vocab), ("special_tokens_map.json", special), ("tokenizer_config.json", settings)
    ):  # fmt: skip
        atomic.write_whole(folder / name, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in learnt)]
    atomic.write_whole(folder / "merges.txt", "\n".join(lines) + "\n")


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    """The symbols with each occurrence of the pair joined, from the left."""
    result: list[str] = []
    i = 0
    while i < len(symbols):
        together = tuple(symbols[i : i + 2]) == pair
        result.append(symbols[i] + symbols[i + 1] if together else symbols[i])
        i += 2 if together else 1
    return result

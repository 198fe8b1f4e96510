"""CLIP's byte-level byte-pair encoding: text -> ids (B, 77), the same ids as transformers' CLIPTokenizer.

Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, and Sennrich et al.
2016. Reference: transformers/models/clip/tokenization_clip.py, which runs on the tokenizers library.
"""

import copy
import functools
import heapq
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import regex

from ..errors import InputError
from .tokenizer_files import (
    BOS,
    CLIP_FOLDER,
    EOS,
    WORD_END,
    AddedToken,
    SpecialTokens,
    TokenizerFiles,
    read_tokenizer_files,
    special_token,
)

_LONGEST_CACHED_WORD = 256

# The reference uses Unicode 16 for letters and numbers, 17 for lower case and 9 for NFC; Python and `regex` have other
# versions, depending on the release. These tables hold the difference, as ranges of hexadecimal code points.
# Letters and numbers newer than Unicode 16 (up to 18), which the reference treats as punctuation:
_NEWER_LETTERS = """558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D 107BB-107BF
    10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DE0-11DE9 11DF1 1246F 12475-1247F 12550-12686 16EA0-16EB8
    16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168
    1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4
    1E6FE-1E6FF 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"""
# Marks newer than Unicode 16, which end a word there:
_NEWER_MARKS = """5C8-5C9 B53-B54 1ACF-1AF0 10ECB-10ECF 10EF0-10EFB 11B60-11B67 11DF0 1D127-1D128 1D250-1D252
    1D25B-1D25C 1D25F 1D280-1D281 1E6E3 1E6E6 1E6EE-1E6EF 1E6F5"""
# Marks newer than Unicode 9, and scripts composed since then: the reference neither reorders nor composes them.
_INERT = """5C8-5C9 7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1AF0 1DF6-1DFA A82C 105C0-105FF 10D24-10D27
    10D69-10D6D 10EAB-10EAC 10ECB-10ECF 10EF0-10EFB 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 11380-113FF 1145E
    11839-1183A 11930-11938 1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 16100-1613F
    16D40-16D7F 16FF0-16FF1 1D127-1D128 1D250-1D252 1D25B-1D25C 1D25F 1D280-1D281 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF
    1E4EC-1E4EF 1E5EE-1E5EF 1E6E3 1E6E6 1E6EE-1E6EF 1E6F5"""
# Capitals newer than Unicode 13, Python 3.10's, as "range+offset to the small letter":
_NEWER_CAPITALS = """1C89+1 2C2F+30 A7C0+1 A7CB-A567 A7CC+1 A7CE+1 A7D0+1 A7D2+1 A7D4+1 A7D6+1 A7D8+1 A7DA+1 A7DC-A641
    10570:1057A+27 1057C:1058A+27 1058C:10592+27 10594:10595+27 10D50:10D65+20 16EA0:16EB8+1B"""


def _class(ranges: str) -> str:
    """The ranges of a table as the inside of a character class."""
    ends = [[f"\\U{int(end, 16):08x}" for end in item.split("-")] for item in ranges.split()]
    return "".join("-".join(pair) for pair in ends)


def _small_letters(table: str) -> dict[int, int]:
    small = {}
    for capitals, sign, offset in (regex.fullmatch(r"([\dA-F:]+)([+-])(.+)", item).groups() for item in table.split()):
        first, _, last = capitals.partition(":")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            small[code] = code + int(sign + offset, 16)
    return small


_SMALL = _small_letters(_NEWER_CAPITALS) | {ord("Σ"): ord("σ")}  # str.lower() would write a final ς
_INERT_CHARACTER = regex.compile(f"([{_class(_INERT)}])")
_MANY_MARKS = regex.compile(r"\P{ccc=0}{32,}")
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_SPACE = regex.compile(r"\s")
_SPACES = regex.compile(r"\s+")
_WORD_CHARACTER = regex.compile(
    rf"(?V1)[[\p{{Alphabetic}}\p{{M}}\p{{Nd}}\p{{Pc}}\p{{Join_Control}}]--[{_class(_NEWER_LETTERS)}{_class(_NEWER_MARKS)}]]"
)
_WORDS = regex.compile(
    r"(?V1)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    rf"|[\p{{L}}--[{_class(_NEWER_LETTERS)}]]+|[\p{{N}}--[{_class(_NEWER_LETTERS)}]]"
    rf"|[[^\s\p{{L}}\p{{N}}]||[{_class(_NEWER_LETTERS)}]]+"
)


def normalize(text: str) -> str:
    """NFC, white space as single spaces, and lower case character by character, in the reference's Unicodes."""
    if not text.isascii():
        text = "".join(_nfc(part) for part in _INERT_CHARACTER.split(text)).translate(_SMALL)
    return _SPACES.sub(" ", text).lower()


def _nfc(text: str) -> str:
    # unicodedata sorts marks by insertion; presorting keeps a run of a hundred thousand from taking minutes.
    text = _MANY_MARKS.sub(lambda run: "".join(sorted(run[0], key=unicodedata.combining)), text)
    return unicodedata.normalize("NFC", text)


def _words(text: str) -> Iterator[str]:
    """The words of normalised text, split by CLIP's pattern and then GPT-2's."""
    for word in _WORDS.findall(text):
        if word in (BOS, EOS):  # not matched as an added token; GPT-2's pattern splits nothing else
            yield from ("<|", word[2:-2], "|>")
        else:
            yield word


def _byte_letters() -> list[str]:
    """GPT-2's printable character for each byte: itself if printable, else the next one from U+0100."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in prints else next(spare)) for byte in range(256)]


_BYTE_LETTERS = _byte_letters()
_LETTER_BYTES = {letter: byte for byte, letter in enumerate(_BYTE_LETTERS)}


def _word_letters(word: str) -> list[str]:
    return [_BYTE_LETTERS[byte] for byte in word.encode()]


def _token_bytes(token: str) -> bytes:
    """The bytes of a token; a token with other characters stands for itself, in UTF-8."""
    try:
        return bytes([_LETTER_BYTES[letter] for letter in token])
    except KeyError:
        return token.encode("utf-8", "replace")


class _AddedTokenFinder:
    """Splits text at added tokens: leftmost first, then longest."""

    def __init__(self, tokens: dict[str, tuple[AddedToken, int]]):
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = regex.compile("|".join(map(regex.escape, longest_first))) if tokens else None

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts in order; an added token with its id."""
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, token_id = self._tokens[match[0]]
            left, right = match.span()
            if token.single_word and (_ends_in_word(text, left) or _WORD_CHARACTER.match(text, right)):
                continue
            while token.lstrip and left > start and _SPACE.match(text[left - 1]):
                left -= 1
            while token.rstrip and _SPACE.match(text, right):
                right += 1
            if start < left:
                yield text[start:left], None
            yield match[0], token_id
            start = right
        if start < len(text):
            yield text[start:], None


def _ends_in_word(text: str, end: int) -> bool:
    return end > 0 and _WORD_CHARACTER.match(text[end - 1]) is not None


class Tokenizer:
    """Text -> ids, padded with the files' pad token and truncated to `max_length`, start and end included."""

    def __init__(self, files: TokenizerFiles):
        self._vocab, self._ranks, special = files.vocab, files.ranks, files.special
        self._unk = special.unk
        self.max_length = special.max_length
        added = _numbered(special.added, files.vocab)
        known = files.vocab | {content: token_id for content, (_, token_id) in added.items()}
        self.bos_id, self.eos_id, self.pad_id = known[special.bos], known[special.eos], known[special.pad]
        self._unk_id = known[special.unk]
        self.vocab_size = max(known.values()) + 1
        self._contents = {token_id: content for content, token_id in known.items()}
        self._contents |= {token_id: normalize(t.content) for t, token_id in added.values() if t.normalized}
        self._added_ids = {token_id for _, token_id in added.values()}
        self._in_raw = _AddedTokenFinder({c: pair for c, pair in added.items() if not pair[0].normalized})
        self._normal_tokens = {normalize(c): pair for c, pair in added.items() if pair[0].normalized}
        self._in_normal = _AddedTokenFinder(self._normal_tokens)
        self._word_lengths: dict[int, int] = {}
        self._cached_word_ids = functools.lru_cache(maxsize=2**14)(self._word_ids)

    @classmethod
    def from_files(cls, folder: str | Path) -> "Tokenizer":
        """Read a checkpoint's tokenizer/ folder: tokenizer.json, or vocab.json and merges.txt; the rest is optional.

        Raises `TokenizerError` if a file is missing or broken, is not CLIP's, or contradicts the others.
        """
        return cls(read_tokenizer_files(Path(folder)))

    @classmethod
    def clip(cls, pad_token: str = EOS) -> "Tokenizer":
        """CLIP's own, for checkpoints without one; SD 2.x and SDXL's second tokenizer have `pad_token` "!"."""
        files = read_tokenizer_files(CLIP_FOLDER)
        if pad_token not in files.vocab:
            raise InputError(f"CLIP's vocabulary has no pad_token {pad_token!r}: give {EOS!r} or '!'")
        named = (BOS, EOS) if pad_token == EOS else (BOS, EOS, pad_token)
        return cls(replace(files, special=SpecialTokens(pad=pad_token, added=tuple(map(special_token, named)))))

    def with_words(self, words: Mapping[str, int], first_id: int) -> "Tokenizer":
        """A copy with further words, matched in any case, each for a number of ids, starting at `first_id`.

        The longest match counts. A word of letters is not matched inside longer words.
        """
        other = copy.copy(self)
        other._normal_tokens, other._contents = dict(self._normal_tokens), dict(self._contents)
        other._word_lengths = dict(self._word_lengths)
        for word, length in words.items():
            name = normalize(word)
            whole = all(_WORD_CHARACTER.match(name[end]) for end in (0, -1))
            other._normal_tokens[name] = (AddedToken(name, single_word=whole), first_id)
            other._word_lengths[first_id] = length
            other._contents |= dict.fromkeys(range(first_id, first_id + length), word + WORD_END)
            first_id += length
        other.vocab_size = max(self.vocab_size, first_id)
        other._in_normal = _AddedTokenFinder(other._normal_tokens)
        return other

    def __call__(self, texts: str | Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Ids (B, max_length) int32, and the truncated part of each text, "" if none."""
        if not isinstance(texts, str | Sequence):
            raise InputError(f"the tokenizer takes a text or a list of texts, not {texts!r}: give a str")
        texts = [texts] if isinstance(texts, str) else texts
        room = self.max_length - 2
        ids = np.full((len(texts), self.max_length), self.pad_id, np.int32)
        cut = []
        for row, text in zip(ids, texts, strict=True):
            body = self.encode(text)
            kept = [self.bos_id, *body[:room], self.eos_id]
            row[: len(kept)] = kept
            cut.append(self.decode(body[room:]))
        return ids, cut

    def encode(self, text: str) -> list[int]:
        """All ids of a text, without start, end and padding.

        A surrogate pair is read as its character, a lone surrogate as U+FFFD. Raises `InputError` unless it is a str.
        """
        if not isinstance(text, str):
            raise InputError(f"the tokenizer takes text, not {text!r}: give a str")
        if _SURROGATE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = []
        for part, token_id in self._split_at_added_tokens(text):
            if token_id is not None:
                ids += range(token_id, token_id + self.word_length(token_id))
                continue
            for word in _words(part):
                ids += (self._cached_word_ids if len(word) <= _LONGEST_CACHED_WORD else self._word_ids)(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as transformers decodes it: lower case, a space after each word and each sign."""
        text = b"".join(_token_bytes(self._content(token_id)) for token_id in ids).decode("utf-8", "replace")
        return text.replace(WORD_END, " ").strip()

    def tokens(self, text: str) -> list[str]:
        """Each id of `encode` as text to show; partial characters appear as \\xf0."""
        return [self._shown(token_id) for token_id in self.encode(text)]

    def merge_steps(self, word: str) -> list[list[str]]:
        """How one word is put together: its letters, then what they are after each merge, as text to show."""
        symbols = _word_letters(normalize(word))
        symbols[-1] += WORD_END
        steps = [symbols]
        while True:
            ranked = [(self._ranks.get(f"{a} {b}"), i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
            known = [(rank, i) for rank, i in ranked if rank is not None]
            if not known:
                break
            i = min(known)[1]
            symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]
            steps.append(symbols)
        return [
            [_token_bytes(symbol.removesuffix(WORD_END)).decode("utf-8", "backslashreplace") for symbol in each]
            for each in steps
        ]

    def count(self, text: str) -> int:
        """The number of ids of a text, without start and end; `max_length` - 2 fit."""
        return len(self.encode(text))

    def word_length(self, token_id: int) -> int:
        """The number of ids of the word that begins with this one; above 1 only for words of `with_words`."""
        return self._word_lengths.get(token_id, 1)

    def _split_at_added_tokens(self, text: str) -> Iterator[tuple[str, int | None]]:
        for part, token_id in self._in_raw.split(text):
            if token_id is not None:
                yield part, token_id
            else:
                yield from self._in_normal.split(normalize(part))

    def _word_ids(self, word: str) -> list[int]:
        letters = _word_letters(word)
        letters[-1] += WORD_END
        symbols = [letter if letter in self._vocab else self._unk for letter in letters]
        return [self._vocab.get(symbol, self._unk_id) for symbol in _merge(symbols, self._ranks)]

    def _content(self, token_id: int) -> str:
        try:
            return self._contents[token_id]
        except (KeyError, TypeError):
            raise InputError(
                f"{token_id!r} is not a token id: ids are integers from 0 to {self.vocab_size - 1}"
            ) from None

    def _shown(self, token_id: int) -> str:
        content = self._content(token_id)
        if token_id in self._added_ids:
            return content
        return _token_bytes(content.removesuffix(WORD_END)).decode("utf-8", "backslashreplace")


def _merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Byte-pair merging: the best-ranked pair first, the leftmost of equals. O(n log n) with a heap of pairs."""
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[int, int, str]] = []

    def offer(left: int) -> None:
        if left >= 0 and (right := after[left]) >= 0:
            rank = ranks.get(f"{symbols[left]} {symbols[right]}")
            if rank is not None:
                heapq.heappush(heap, (rank, left, symbols[left] + symbols[right]))

    for left in range(len(symbols)):
        offer(left)
    while heap:
        _, left, merged = heapq.heappop(heap)
        right = after[left]
        # An entry is stale if its left symbol was merged away or either of the two has grown since.
        if not symbols[left] or right < 0 or symbols[left] + symbols[right] != merged:
            continue
        symbols[left], symbols[right] = merged, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left])
        offer(left)
    return [symbol for symbol in symbols if symbol]


def _numbered(added: Iterable[AddedToken], vocab: dict[str, int]) -> dict[str, tuple[AddedToken, int]]:
    """Each added token with its id: the vocabulary's, else the next free one. Of duplicates the last counts."""
    numbered: dict[str, tuple[AddedToken, int]] = {}
    next_id = len(vocab)
    for token in added:
        if token.content in numbered:
            token_id = numbered[token.content][1]
        elif token.content in vocab:
            token_id = vocab[token.content]
        else:
            token_id, next_id = next_id, next_id + 1
        if token.content:
            numbered[token.content] = (token, token_id)
    return numbered

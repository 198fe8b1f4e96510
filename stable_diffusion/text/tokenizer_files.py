"""A tokenizer/ folder as data: vocabulary, merges and special tokens, read as CLIPTokenizer.from_pretrained reads them.

Reference: transformers/tokenization_utils_base.py `_from_pretrained`, transformers/tokenization_utils_tokenizers.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from ..places import packaged

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
WORD_END = "</w>"
CLIP_FOLDER = packaged("text", "clip_tokenizer")  # for checkpoints that carry no tokenizer

MAX_LENGTH = 77
_NO_MAX_LENGTH = 10**9  # at or above this, model_max_length is a sentinel for "none was set"
_DEFAULTS = {
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": EOS,
    "sep_token": None,
    "pad_token": EOS,
    "cls_token": None,
    "mask_token": None,
}
_ONLY = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
_FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched before words: in the raw text, or (`normalized`) in the normalised text."""

    content: str
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


def special_token(content: str) -> AddedToken:
    """The added token for a bare name: special, and matched in the raw text."""
    return AddedToken(content, special=True, normalized=False)


@dataclass(frozen=True)
class SpecialTokens:
    """The contents of tokenizer_config.json and special_tokens_map.json; the defaults are CLIP's."""

    bos: str = BOS
    eos: str = EOS
    unk: str = EOS
    pad: str = EOS
    added: tuple[AddedToken, ...] = (special_token(BOS), special_token(EOS))
    max_length: int = MAX_LENGTH


@dataclass(frozen=True)
class TokenizerFiles:
    """Token -> id; merge, written "left right", -> rank, 0 the best; and the special tokens."""

    vocab: dict[str, int]
    ranks: dict[str, int]
    special: SpecialTokens


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json if there is one, else vocab.json and merges.txt; the other files are optional.

    Raises `TokenizerError` if a file is missing or broken, is not CLIP's, or contradicts the others.
    """
    listed: list[Any] = []
    if (folder / "tokenizer.json").is_file():
        vocab, merges, listed = _read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = _checked_vocab(_read_json(folder / "vocab.json"), folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt")
    else:
        raise TokenizerError(
            f"{str(folder)!r} holds neither tokenizer.json nor both of vocab.json and merges.txt: "
            "give the tokenizer folder of a complete checkpoint"
        )
    return TokenizerFiles(vocab, _checked_ranks(vocab, merges, folder), _read_special_tokens(folder, vocab, listed))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{str(path)!r} cannot be read as UTF-8 text ({error}): fetch it anew") from None


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{str(path)!r} is not JSON ({error}), it begins with {text[:40]!r}: fetch it anew"
        ) from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{str(path)!r} holds {text[:40]!r}, not a JSON object: fetch it anew")
    return value


def _read_json_if_there(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[str], list[Any]]:
    """Vocabulary, merges and the list of added tokens."""
    content = _read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(
            f"{str(path)!r} has the model {str(model)[:40]!r}, which holds no vocabulary: fetch it anew"
        )
    kind = model.get("type", "BPE")  # absent from old files
    if kind != "BPE" or "merges" not in model:
        raise TokenizerError(
            f"{str(path)!r} holds a {kind!r} model, not CLIP's BPE with merges: it is for another text encoder"
        )
    suffix = model.get("end_of_word_suffix", WORD_END)
    if suffix != WORD_END:
        raise TokenizerError(
            f"{str(path)!r} ends words with {suffix!r}, not CLIP's {WORD_END!r}: it is for another text encoder"
        )
    merges = model["merges"]
    if not isinstance(merges, list):
        raise TokenizerError(f"the merges of {str(path)!r} are {str(merges)[:40]!r}, not a list: fetch it anew")
    listed = content.get("added_tokens") or []
    if not isinstance(listed, list):
        raise TokenizerError(f"the added_tokens of {str(path)!r} are {str(listed)[:40]!r}, not a list: fetch it anew")
    return _checked_vocab(model["vocab"], path), [_merge_line(merge, path) for merge in merges], listed


def _checked_vocab(vocab: Any, path: Path) -> dict[str, int]:
    if isinstance(vocab, list):  # tokens, or [token, score], in the order of their ids
        vocab = {str(entry[0] if isinstance(entry, list) and entry else entry): i for i, entry in enumerate(vocab)}
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"the vocabulary of {str(path)!r} is {str(vocab)[:40]!r}: it should give each token an id")
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise TokenizerError(
                f"{str(path)!r} gives the token {token!r} the id {token_id!r}: ids are integers from 0 on"
            )
    return vocab


def _merge_line(merge: Any, path: Path) -> str:
    """A merge as "left right"; files of 2024 and later write ["left", "right"]."""
    if isinstance(merge, str):
        return merge
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
        return " ".join(merge)
    raise TokenizerError(f"{str(path)!r} has the merge {merge!r}, which is not two tokens: fetch it anew")


def _read_merges(path: Path) -> list[str]:
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    if not lines[-1]:
        lines.pop()
    return [line for line in lines if not line.startswith("#version")]


def _checked_ranks(vocab: dict[str, int], merges: list[str], folder: Path) -> dict[str, int]:
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"merge {rank + 1} of {str(folder)!r} is {merge!r}, not two tokens with a space between"
            )
        if left not in vocab or right not in vocab or left + right not in vocab:
            absent = next(token for token in (left, right, left + right) if token not in vocab)
            raise TokenizerError(
                f"merge {rank + 1} of {str(folder)!r}, {merge!r}, names the token {absent!r}, which the "
                "vocabulary lacks: the two are of different tokenizers, or one is cut short; fetch them anew"
            )
    return {merge: rank for rank, merge in enumerate(merges)}


def _read_special_tokens(folder: Path, vocab: dict[str, int], listed: list[Any]) -> SpecialTokens:
    path = folder / "tokenizer_config.json"
    config = _read_json_if_there(path)
    for key, only in _ONLY.items():
        if config.get(key, only) != only:
            raise TokenizerError(f"{str(path)!r} has {key} {config[key]!r}: only {only!r} is built here")
    declared = _declared_tokens(folder, config, listed)
    named: dict[str, str] = {}
    added: list[str | AddedToken] = list(declared.values())
    for key, default in _DEFAULTS.items():
        token = _token(config.get(key) or default, key, path)
        if token is None:
            continue
        named[key] = _content(token)
        if default is not None and named[key] not in vocab and named[key] not in declared:
            raise TokenizerError(
                f"{str(folder)!r} has the {key} {named[key]!r}, which is neither in its vocabulary of {len(vocab)} "
                "tokens nor among its added tokens: fetch all its files anew, from one place"
            )
        _append(added, token, declared)
    for value in _extra_tokens(config, path):
        _append(added, _token(value, "additional_special_tokens", path), declared)
    return SpecialTokens(
        bos=named["bos_token"],
        eos=named["eos_token"],
        unk=named["unk_token"],
        pad=named["pad_token"],
        added=tuple(special_token(token) if isinstance(token, str) else token for token in added),
        max_length=_max_length(config.get("model_max_length"), path),
    )


def _declared_tokens(folder: Path, config: dict[str, Any], listed: list[Any]) -> dict[str, AddedToken]:
    """The tokens with explicit ids, by content, ordered by id. Merges special_tokens_map into `config`.

    As in the reference, an added_tokens_decoder in `config` overrides older files and `listed`, tokenizer.json's own.
    """
    if "added_tokens_decoder" in config:
        path = folder / "tokenizer_config.json"
        declared = _declared(_items(config["added_tokens_decoder"], path), path)
    else:
        path = folder / "special_tokens_map.json"
        for key, value in _read_json_if_there(path).items():
            config[key] = _added_token(value | {"special": True}, path) if isinstance(value, dict) else value
        declared = _legacy_added_tokens(folder / "added_tokens.json", config)
        declared |= _declared([(_added_id(entry, folder), entry) for entry in listed], folder)
    return {declared[token_id].content: declared[token_id] for token_id in sorted(declared)}


def _append(added: list[str | AddedToken], token: str | AddedToken | None, declared: dict[str, AddedToken]) -> None:
    # As in the reference, a bare name and a described token with one content are two entries; the later one counts.
    if token is not None and _content(token) not in declared and token not in added:
        added.append(token)


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _token(value: Any, key: str, path: Path) -> str | AddedToken | None:
    if value is None or isinstance(value, str | AddedToken):
        return value
    if isinstance(value, dict):
        return _added_token(value, path)
    raise TokenizerError(f"{str(path)!r} has {key} {value!r}: give a string")


def _added_token(value: Any, path: Path) -> AddedToken:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"{str(path)!r} has the token {value!r}, without a content: give it one")
    special = bool(value.get("special", False))
    flags = {flag: bool(value[flag]) for flag in _FLAGS if flag in value}
    return AddedToken(value["content"], **({"special": special, "normalized": not special} | flags))


def _extra_tokens(config: dict[str, Any], path: Path) -> list[Any]:
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        return list(extra.values())
    if not isinstance(extra, list):
        raise TokenizerError(f"{str(path)!r} has additional_special_tokens {extra!r}: give a list of strings")
    return extra


def _items(value: Any, path: Path) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{str(path)!r} has added_tokens_decoder {value!r}: give an object from ids to tokens")
    return list(value.items())


def _added_id(entry: Any, folder: Path) -> Any:
    if not isinstance(entry, dict) or "id" not in entry:
        raise TokenizerError(
            f"{str(folder)!r} lists the added token {entry!r} without an id: fetch tokenizer.json anew"
        )
    return entry["id"]


def _declared(tokens: list[tuple[Any, Any]], path: Path) -> dict[int, AddedToken]:
    declared = {}
    for token_id, value in tokens:
        try:
            declared[int(token_id)] = _added_token(value, path)
        except (TypeError, ValueError):
            raise TokenizerError(f"{str(path)!r} gives {value!r} the id {token_id!r}: ids are integers") from None
    return declared


def _legacy_added_tokens(path: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    special = {_content(config[key]) for key in _DEFAULTS if isinstance(config.get(key), str | AddedToken)}
    entries = _read_json_if_there(path)
    tokens = [(entries[content], {"content": content, "special": content in special}) for content in entries]
    return _declared(tokens, path)


def _max_length(value: Any, path: Path) -> int:
    if value is None:
        return MAX_LENGTH
    if isinstance(value, int | float) and value >= _NO_MAX_LENGTH:
        return MAX_LENGTH
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 3 or value != int(value):
        raise TokenizerError(f"{str(path)!r} has model_max_length {value!r}: give an integer, CLIP's is {MAX_LENGTH}")
    return int(value)

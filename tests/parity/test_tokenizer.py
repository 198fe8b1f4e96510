"""The same ids as transformers' CLIPTokenizer, for any Unicode text and for the tokenizer files of checkpoints."""

import json
import random
import shutil
import string
import unicodedata

import pytest

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import regex  # noqa: E402
import transformers  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stable_diffusion.text.tokenizer import Tokenizer, _merge, _word_letters, _words, normalize  # noqa: E402
from stable_diffusion.text.tokenizer_files import CLIP_FOLDER  # noqa: E402

pytestmark = pytest.mark.parity
transformers.logging.set_verbosity_error()

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
POSTCARDS = CLIP_FOLDER.parent.parent / "checkpoints" / "postcards-tiny" / "tokenizer"
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def described(content, normalized=True, **flags):
    token = {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    return token | flags


NAMED = {"bos_token": described(BOS), "eos_token": described(EOS), "unk_token": described(EOS), "pad_token": EOS}
TYPED = {key: {"__type": "AddedToken"} | value for key, value in NAMED.items() if key != "pad_token"}
XL_DECODER = {
    "0": described("!", False, special=True),
    "49406": described(BOS, special=True),
    "49407": described(EOS, special=True),
}
ODD_TOKENS = [
    described("<lake>", False, id=49408, special=False),
    described("Ünder the", True, id=49409, special=False),
    described("oak", False, id=49410, special=False, single_word=True),
    described("<l>", False, id=49411, special=True, lstrip=True),
    described("<r>", True, id=49412, special=False, rstrip=True),
    described("<lake>s", False, id=49413, special=False),
    described("ſ", True, id=49414, special=False, single_word=True, lstrip=True, rstrip=True),
]


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def small_vocabulary(folder):
    """Few bytes, so that many are unknown, and merges over them."""
    letters = [*"abcdehlnorst!',Ãı½", *(f"{letter}</w>" for letter in "adehlnorst!',©")]
    merges = [
        "t h",
        "th e</w>",
        "h e",
        "he l",
        "hel l",
        "l o</w>",
        "hell o</w>",
        "' s</w>",
        "a n",
        "an d</w>",
        "! !</w>",
    ]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), BOS, EOS]
    write(folder, vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def make(kind, folder):
    if kind == "postcards":
        return shutil.copytree(POSTCARDS, folder, dirs_exist_ok=True)
    if kind == "small":
        small_vocabulary(folder)
        return folder
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(CLIP_FOLDER / name, folder)
    if kind == "sd1":
        write(folder, tokenizer_config=TYPED | {"pad_token": EOS, "model_max_length": 77}, special_tokens_map=NAMED)
    elif kind == "sd2":
        write(folder, tokenizer_config=TYPED | {"pad_token": EOS}, special_tokens_map=NAMED | {"pad_token": "!"})
    elif kind == "xl second":
        config = {"bos_token": BOS, "eos_token": EOS, "pad_token": "!", "unk_token": EOS, "model_max_length": 77}
        write(folder, tokenizer_config=config | {"added_tokens_decoder": XL_DECODER}, special_tokens_map=NAMED)
    elif kind == "added":
        write(
            folder,
            tokenizer_config=TYPED | {"additional_special_tokens": ["<foo>", "🏡"]},
            added_tokens={"<bar>": 49500, "BaZ": 49408, EOS: 49407},
        )
    elif kind.startswith("tokenizer.json"):
        transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in ("tokenizer.json", *(["tokenizer_config.json"] if "config" in kind else [])):
                path.unlink()
        saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if "old" in kind:
            saved["model"]["merges"] = [" ".join(merge) for merge in saved["model"]["merges"]]
            del saved["model"]["type"]
        if "odd" in kind:
            saved["added_tokens"] += ODD_TOKENS
        write(folder, tokenizer=saved)
    return folder


CLIP_KINDS = [
    "clip",
    "sd1",
    "sd2",
    "xl second",
    "added",
    "tokenizer.json",
    "tokenizer.json, config",
    "tokenizer.json, old",
    "tokenizer.json, odd tokens",
]
KINDS = [*CLIP_KINDS, "postcards", "small"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Kind -> (ours, the reference's), made when first asked for."""
    made = {}

    def pair(kind):
        if kind not in made:
            folder = make(kind, tmp_path_factory.mktemp("tokenizer"))
            made[kind] = Tokenizer.from_files(folder), transformers.CLIPTokenizer.from_pretrained(folder)
        return made[kind]

    return pair


def reference_ids(reference, text):
    return reference.backend_tokenizer.encode(text, add_special_tokens=False).ids


ODD_PIECES = [
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "’s", "''s", "!'s", "'", "don't", "IT'S", "'ſ", "'K"),
    *(
        BOS,
        EOS,
        BOS.upper(),
        EOS.title(),
        "<|startoftext|",
        "<|startoftext |>",
        "|>",
        "<|",
        "</w>",
        "!",
        "!!",
        "<lake>s",
    ),
    *(
        "<lake>",
        "Ünder the",
        "ünder  the",
        "oak",
        "oaks",
        " <l> ",
        " <r>  ",
        " ſ ",
        "<foo>",
        "🏡",
        "<bar>",
        "baz",
        "BAZ",
    ),
    *("İstanbul", "ıI", "ΣΑΣ", "ὈΔΥΣΣΕΎΣ", "ς", "ß", "ẞ", "ﬁ", "ﬃ", "Ǆ", "ǅ", "ŉ", "ΐ", "K", "Å", "Ω", "ſt", "ﷺ", "㎏"),
    *(
        "e\u0301",
        "E\u0301\u0323",
        "a\u0323\u0301",
        "\u0301a",
        "각",
        "\u1100\u1161\u11a8",
        "각\u11a8",
        "\u0344",
        "\u0f73",
    ),
    *(
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "👍🏽",
        "🇩🇪",
        "1️⃣",
        "☃︎",
        "日本語",
        "你好，世界",
        "漢字かな交じり",
        "ไทย",
        "हिन्दी",
        "العربية",
        "עברית",
    ),
    *("٣٤", "४२", "Ⅷ", "½", "²", "①", "𝟘𝟙", "〇", "𒐀", "12345", "3.14", "1e-5", "x264", "\u0ce6\u0b67"),
    *(
        "\u0085",
        "\u00a0",
        "\u1680",
        "\u2028",
        "\u2029",
        "\u202f",
        "\u205f",
        "\u3000",
        "\u180e",
        "\u200b",
        "\u200d",
        "\ufeff",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\v",
        "\f",
        "\0",
        "\x1c",
        "\x1f",
        "\x7f",
        "\u00ad",
        "\u2060",
        "\ufffd",
        "\uffff",
        "\ue000",
    ),
    *(
        "\u0378",
        "\U000e0001",
        "\U0010ffff",
        "\U0001fbf0",
        "\ua7cb",
        "\u1c89",
        "\ua7dc",
        "\U00010d50",
        "\U00016ea0",
        "\u088f",
    ),
    *("\U00011935\U00011930", "\U000105d2\u0307", "\u0323\u1acf\u0334", "\U00016d67\U00016d67", "x\u0898\u0334"),
]
WORDS = "a photo of the Red House on GREEN hills at sunset, 4k; artstation! (masterpiece:1.2) hello and the oak".split(
    " "
)
MARKS = [c for c in CHARACTERS if unicodedata.combining(c) or not regex.match(r"\p{ccc=0}", c)]
ASSIGNED = [c for c in CHARACTERS if unicodedata.category(c) not in ("Cn", "Co")]
SMALL_SETS = [string.printable, "".join(map(chr, range(0x250))), "'\u2019sStTrRvVeEmMlLdD ", "the hello!'s"]


def random_text(rng):
    """A few pieces: of words, of what is known to be awkward, of all planes of Unicode."""
    pieces = []
    for _ in range(rng.randint(0, 12)):
        source = rng.random()
        if source < 0.25:
            pieces.append(rng.choice(WORDS) + " " * rng.randint(0, 1))
        elif source < 0.5:
            pieces.append(rng.choice(ODD_PIECES))
        elif source < 0.65:
            pieces.append("".join(rng.choices(ASSIGNED, k=rng.randint(1, 5))))
        elif source < 0.75:
            pieces.append("".join(rng.choices(CHARACTERS, k=rng.randint(1, 4))))
        elif source < 0.85:
            pieces.append(rng.choice(ASSIGNED) + "".join(rng.choices(MARKS, k=rng.randint(1, 6))))
        else:
            pieces.append("".join(rng.choices(rng.choice(SMALL_SETS), k=rng.randint(1, 10))))
    return "".join(pieces)


def assert_same_ids(ours, reference, texts):
    wrong = [text for text in texts if ours.encode(text) != reference_ids(reference, text)]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, the shortest: {min(wrong, key=len)!a}"


def test_ten_thousand_texts_with_clips_own_vocabulary(pairs):
    rng = random.Random(77)
    assert_same_ids(*pairs("clip"), [random_text(rng) for _ in range(10_000)])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_texts_with_the_files_of(pairs, kind):
    rng = random.Random(kind)
    assert_same_ids(*pairs(kind), [random_text(rng) for _ in range(2000)])


any_text = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(ODD_PIECES)), max_size=8).map("".join)


@pytest.mark.parametrize("kind", ["clip", "xl second", "tokenizer.json, odd tokens", "postcards", "small"])
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(text=any_text)
def test_whatever_hypothesis_finds(pairs, kind, text):
    ours, reference = pairs(kind)
    assert ours.encode(text) == reference_ids(reference, text)


def test_every_code_point_is_normalised_alike(pairs):
    reference = pairs("clip")[1].backend_tokenizer.normalizer
    texts = [f"A{character}\u0334b{character}" for character in CHARACTERS]
    wrong = [hex(ord(text[1])) for text in texts if normalize(text) != reference.normalize_str(text)]
    assert not wrong, wrong[:20]


def test_every_code_point_is_split_alike(pairs):
    reference = pairs("clip")[1].backend_tokenizer.pre_tokenizer
    for start in range(0, len(CHARACTERS), 16):
        text = "".join(f"a{c}1{c}{c}'s!" for c in CHARACTERS[start : start + 16])
        theirs = [word for word, _ in reference.pre_tokenize_str(text)]
        assert ["".join(_word_letters(word)) for word in _words(text)] == theirs, hex(ord(CHARACTERS[start]))


def test_every_code_point_ends_a_word_alike(pairs):
    """Behind an added token that is taken as a whole word only."""
    ours, reference = pairs("tokenizer.json, odd tokens")
    texts = [f"oak{character}" for character in CHARACTERS]
    theirs = reference.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    wrong = [ascii(text[3:]) for text, their in zip(texts, theirs, strict=True) if ours.encode(text) != their.ids]
    assert not wrong, wrong[:20]


def test_marks_are_composed_and_ordered_alike(pairs):
    reference = pairs("clip")[1].backend_tokenizer.normalizer
    rng = random.Random(0)
    composing = [c for c in ASSIGNED if unicodedata.decomposition(c)] + list("aeiouAEIOU각ㄱ가")
    for _ in range(50_000):
        text = "".join(rng.choice(MARKS if rng.random() < 0.7 else composing) for _ in range(rng.randint(2, 7)))
        assert normalize(text) == reference.normalize_str(text), ascii(text)
    for length in (31, 32, 33, 500):
        text = "a" + "".join(rng.choices(MARKS, k=length))
        assert normalize(text) == reference.normalize_str(text), ascii(text)


def test_merges_in_any_order_are_applied_alike():
    """Merges that no training would give: a late one that makes what an early one needs, one token made in two ways."""
    rng = random.Random(5)
    for _ in range(300):
        tokens, merges = list("abc"), []
        for _ in range(rng.randint(2, 25)):
            left, right = rng.choices(tokens, k=2)
            merges.append((left, right))
            tokens = list(dict.fromkeys([*tokens, left + right]))
        rng.shuffle(merges)
        merges = list(dict.fromkeys(merges))
        model = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
        ranks = {f"{left} {right}": rank for rank, (left, right) in enumerate(merges)}
        for _ in range(30):
            word = "".join(rng.choices("abc", k=rng.randint(1, 40)))
            assert _merge(list(word), ranks) == [token.value for token in model.tokenize(word)], (merges, word)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_truncation_and_what_was_cut_off(pairs, kind):
    ours, reference = pairs(kind)
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.pad_id == reference.pad_token_id
    rng = random.Random(9)
    texts = [
        *("word " * count for count in (0, 1, 74, 75, 76, 150)),
        *("".join(random_text(rng) for _ in range(6)) for _ in range(60)),
    ]
    ids, cut = ours(texts)
    expected = reference(texts, padding="max_length", max_length=77, truncation=True).input_ids
    assert ids.shape == (len(texts), 77)
    assert ids.tolist() == expected
    whole = [reference(text).input_ids for text in texts]
    assert cut == reference.batch_decode([untruncated[76:-1] for untruncated in whole])
    assert sum(map(bool, cut)) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_any_ids(pairs, kind):
    ours, reference = pairs(kind)
    rng = random.Random(3)
    for _ in range(500):
        ids = rng.choices(range(len(reference)), k=rng.randint(0, 12))
        assert ours.decode(ids) == reference.decode(ids), ids


def test_a_lone_surrogate_which_the_reference_refuses_is_read_as_the_replacement_character(pairs):
    ours, reference = pairs("clip")
    text = "a \ud83d house \udc00"
    with pytest.raises(TypeError):
        reference(text)
    assert ours.encode(text) == reference_ids(reference, text.replace("\ud83d", "\ufffd").replace("\udc00", "\ufffd"))

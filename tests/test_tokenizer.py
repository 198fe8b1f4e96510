"""CLIP's tokenizer: golden ids, padding and cutting, the forms that tokenizer files come in, and broken files."""

import json

import numpy as np
import pytest

from stable_diffusion.errors import InputError, TokenizerError
from stable_diffusion.text.tokenizer import Tokenizer, _merge, normalize
from stable_diffusion.text.tokenizer_files import CLIP_FOLDER

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
POSTCARDS = CLIP_FOLDER.parent.parent / "checkpoints" / "postcards-tiny" / "tokenizer"

# Made with transformers 5.23.0 and tokenizers 0.23.3: CLIPTokenizer.from_pretrained(folder)(text).input_ids[1:-1].
CLIP_IDS = [
    ("", []),
    ("a red house on green hills at sunset", [320, 736, 1212, 525, 1901, 5289, 536, 3424]),
    ("It's the dog's, they'll SAY", [585, 568, 518, 1929, 568, 267, 889, 1342, 1451]),
    ("don\u2019t ''s !'s", [847, 728, 503, 339, 8445, 338, 13222, 338]),
    ("caf\xe9 cafe\u0301 \xc5NGSTR\xd6M", [15304, 15304, 23176, 10352, 807, 7255, 332]),
    ("ΣΑΣ ς", [139, 225, 138, 109, 139, 481, 139, 480]),
    ("\u0130stanbul \u0131I \u1e9e \ufb01", [328, 16384, 11231, 18562, 328, 127, 509, 171, 105, 479]),
    ("日本語の猫", [39121, 44353, 34002, 252, 21575, 163, 234, 360]),
    ("\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd", [26304, 26304, 964, 356, 43722]),
    ("x264 \u0663\xbd\u2167", [343, 273, 277, 275, 149, 352, 33613, 158, 227, 371]),
    ("  tabs\tand\n\x85\u2028lines\u3000 ", [29163, 537, 3418]),
    ("a<|startoftext|>b<|ENDOFTEXT|>c", [320, 49406, 321, 27, 347, 40786, 4160, 91, 285, 322]),
    ("<|startoftexT|>!! \u200b\ufeff\u0378", [27, 347, 993, 6659, 4160, 91, 285, 748, 17086, 171, 119, 123, 137, 372]),
    (
        "\U00011935\U00011930 \ua7cb\U00010d50\u088f\u0301\u0898\u0334",  # each newer than some table of the reference
        [
            172,
            239,
            97,
            113,
            172,
            239,
            97,
            364,
            133,
            97,
            172,
            238,
            113,
            364,
            156,
            95,
            237,
            136,
            223,
            156,
            95,
            246,
            136,
            368,
        ],
    ),
]
POSTCARDS_IDS = [
    ("a red house on green hills at sunset", [353, 617, 613, 515, 607, 563, 524, 583]),
    ("Zebra \U0001f388 \xe9", [122, 101, 660, 353, 240, 159, 142, 392, 195, 425]),
    ("a<|endoftext|>b", [353, 689, 354]),
]


@pytest.fixture(scope="module")
def clip():
    return Tokenizer.clip()


@pytest.mark.parametrize(("text", "ids"), CLIP_IDS)
def test_clips_ids(clip, text, ids):
    assert clip.encode(text) == ids
    assert clip.count(text) == len(ids)


@pytest.mark.parametrize(("text", "ids"), POSTCARDS_IDS)
def test_ids_of_a_small_vocabulary(text, ids):
    assert Tokenizer.from_files(POSTCARDS).encode(text) == ids


def test_normalising_keeps_sigma_and_cleans_white_space():
    assert normalize("ΣΑΣ\x85\xa0\u2028 É\u0301 K") == "σασ é\u0301 k"
    assert normalize("\x1c\u200b\ufeff") == "\x1c\u200b\ufeff"  # none of these is white space to the reference
    assert normalize("a" + "\u0301\u0323" * 20) == normalize("a" + "\u0323" * 20 + "\u0301" * 20)


def test_ids_are_padded_to_77_with_end_of_text(clip):
    ids, cut = clip(["a red house", ""])
    assert ids.dtype == np.int32
    assert ids.shape == (2, 77)
    assert ids[0].tolist() == [49406, 320, 736, 1212, 49407, *[49407] * 72]
    assert ids[1].tolist() == [49406, *[49407] * 76]
    assert cut == ["", ""]
    assert clip("a red house")[0].tolist() == ids[:1].tolist()
    assert clip([])[0].shape == (0, 77)


def test_another_pad_token_is_also_found_in_the_text():
    tokenizer = Tokenizer.clip(pad_token="!")
    assert tokenizer.pad_id == 0
    assert tokenizer("a house!")[0][0].tolist() == [49406, 320, 1212, 0, 49407, *[0] * 72]
    with pytest.raises(InputError, match="'<pad>'"):
        Tokenizer.clip(pad_token="<pad>")


def test_a_long_text_is_cut_to_75_and_the_rest_is_told(clip):
    ids, (cut,) = clip("word " * 75 + "the Rest, of it!")
    assert ids[0].tolist() == [49406, *[2653] * 75, 49407]
    assert cut == "the rest , of it !"
    assert clip("word " * 75)[1] == [""]


def test_decoding_and_display(clip):
    assert (clip.vocab_size, clip.max_length, clip.bos_id, clip.eos_id, clip.pad_id) == (49408, 77, 49406, 49407, 49407)
    assert clip.decode(clip.encode("A café, by night")) == "a café , by night"
    assert clip.tokens("a photo, \u732b <|endoftext|>") == ["a", "photo", ",", "\\xe7", "\\x8c", "\\xab", EOS]
    with pytest.raises(InputError, match=r"49408 .* 0 to 49407"):
        clip.decode([49408])


def test_surrogates_are_read_as_utf_16_would_be(clip):
    assert clip.encode("a \ud83d b\udc00") == clip.encode("a \ufffd b\ufffd")
    assert clip.encode("\ud83d\ude00") == clip.encode("\U0001f600")


@pytest.mark.parametrize("text", [None, 7, b"a house", ["a", None]])
def test_what_is_no_text_is_refused(clip, text):
    with pytest.raises(InputError, match="give a str"):
        clip(text)


def test_a_word_of_a_hundred_thousand_letters_takes_a_bounded_number_of_look_ups(clip):
    class Counting(dict):
        looked_up = 0

        def get(self, key, default=None):
            self.looked_up += 1
            return super().get(key, default)

    ranks = Counting({"a a": 0, "aa aa": 1, "aaaa aaaa": 2})
    assert _merge(["a"] * 100_000, ranks) == ["a" * 8] * 12_500
    assert ranks.looked_up < 300_000  # one for each pair, and two for each merge
    assert len(clip.encode("a" * 100_000)) == 12_501
    assert len(clip.encode("a" + "\u0301\u0323" * 50_000)) > 0


# A vocabulary that can be read at a glance, and a function that spoils it.
MERGES = ["t h", "th e</w>", "h i</w>"]
TOKENS = [*"thei", *(f"{letter}</w>" for letter in "thei"), "th", "the</w>", "hi</w>", BOS, EOS, "!"]
VOCAB = {token: token_id for token_id, token in enumerate(TOKENS)}
THE_HI = [VOCAB["the</w>"], VOCAB["hi</w>"]]


def write(folder, **contents):
    """Files by their names with _json or _txt at the end; None leaves one out."""
    files = {"vocab_json": VOCAB, "merges_txt": "#version: 0.2\n" + "\n".join(MERGES) + "\n"} | contents
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def tokenizer_json(model=None, **rest):
    """Files that are a tokenizer.json alone."""
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": VOCAB, "merges": MERGES} | (model or {})
    return {"vocab_json": None, "merges_txt": None, "tokenizer_json": {"added_tokens": [], "model": model} | rest}


def test_unknown_bytes_are_the_unknown_token_one_by_one(tmp_path):
    tokenizer = Tokenizer.from_files(str(write(tmp_path)))
    assert tokenizer.encode("The hi xé") == [*THE_HI, *[tokenizer.eos_id] * 3]


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"merges": [merge.split(" ") for merge in MERGES]},
        {"vocab": TOKENS},
        {"vocab": [[token, 0.0] for token in TOKENS]},
    ],
)
def test_a_tokenizer_json_alone(tmp_path, model):
    assert Tokenizer.from_files(write(tmp_path, **tokenizer_json(model))).encode("the hi") == THE_HI


def test_added_tokens_of_a_tokenizer_json(tmp_path):
    plain = {"special": False, "single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": 14, "content": "<Lake>", "normalized": True} | plain,
        {"id": 15, "content": "<Tree>", "normalized": False} | plain,
        {"id": 16, "content": "hi", "normalized": False} | plain | {"single_word": True},
        {"id": 17, "content": "<lake>s", "normalized": True} | plain,
    ]
    tokenizer = Tokenizer.from_files(write(tmp_path, **tokenizer_json(added_tokens=added)))
    assert tokenizer.encode("<LAKE><Tree>the hi") == [14, 15, VOCAB["the</w>"], 16]
    assert tokenizer.encode("<lake>s<lake>") == [17, 14]  # of two that begin alike, the longer
    assert tokenizer.encode("hithe") == [VOCAB["h"], VOCAB["i"], VOCAB["the</w>"]]
    assert tokenizer.vocab_size == 18


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": {"pad_token": "!"}},
        {"tokenizer_config_json": {"pad_token": {"__type": "AddedToken", "content": "!", "normalized": True}}},
        {"tokenizer_config_json": {"pad_token": EOS}, "special_tokens_map_json": {"pad_token": "!"}},
        {"special_tokens_map_json": {"pad_token": {"content": "!", "lstrip": False}}},
    ],
)
def test_the_files_own_pad_token(tmp_path, files):
    tokenizer = Tokenizer.from_files(write(tmp_path, **files))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (VOCAB["!"], VOCAB[BOS], VOCAB[EOS])


@pytest.mark.parametrize(("given", "max_length"), [(77, 77), (16, 16), (10**30, 77), (1e30, 77), (None, 77)])
def test_the_files_own_length_unless_it_means_none(tmp_path, given, max_length):
    tokenizer = Tokenizer.from_files(write(tmp_path, tokenizer_config_json={"model_max_length": given}))
    assert tokenizer.max_length == max_length
    assert tokenizer("the")[0].shape == (1, max_length)


BROKEN = {
    "nothing there": (
        {"vocab_json": None, "merges_txt": None},
        "neither tokenizer.json nor both of vocab.json and merges",
    ),
    "no merges": ({"merges_txt": None}, "neither tokenizer.json nor both"),
    "vocab not JSON": ({"vocab_json": '{"t": 0, '}, r"vocab.json' is not JSON \(.*begins with .*\"t\": 0"),
    "vocab empty": ({"vocab_json": ""}, "is not JSON"),
    "vocab not an object": ({"vocab_json": [1]}, "not a JSON object"),
    "vocab not UTF-8": ({"vocab_json": b"\xff\xfe{}"}, "cannot be read as UTF-8"),
    "vocab of nothing": ({"vocab_json": {}}, "should give each token an id"),
    "id not a number": ({"vocab_json": VOCAB | {"t": "0"}}, "the token 't' the id '0'"),
    "id negative": ({"vocab_json": VOCAB | {"t": -1}}, "the token 't' the id -1"),
    "nested too deep": ({"tokenizer_config_json": "[" * 100_000}, "is not JSON"),
    "merge of one": ({"merges_txt": "t h\nthe\n"}, "merge 2 .*'the', not two tokens"),
    "merge of three": ({"merges_txt": "t h e\n"}, "merge 1 .*'t h e', not two tokens"),
    "merge with unknown part": ({"merges_txt": "t h\nth q\n"}, "merge 2 .*'th q', names the token 'q'"),
    "merge with unknown result": ({"merges_txt": "i e\n"}, "merge 1 .*'i e', names the token 'ie'"),
    "no end token": ({"vocab_json": {k: v for k, v in VOCAB.items() if k != EOS}}, r"eos_token '<\|endoftext\|>'"),
    "no start token": ({"vocab_json": {k: v for k, v in VOCAB.items() if k != BOS}}, r"bos_token '<\|startoftext\|>'"),
    "pad token unknown": ({"special_tokens_map_json": {"pad_token": "<pad>"}}, "pad_token '<pad>'"),
    "unk token unknown": ({"tokenizer_config_json": {"unk_token": "<unk>"}}, "unk_token '<unk>'"),
    "pad token no string": ({"tokenizer_config_json": {"pad_token": 3}}, "pad_token 3: give a string"),
    "token without content": ({"special_tokens_map_json": {"pad_token": {}}}, "without a content"),
    "length no number": ({"tokenizer_config_json": {"model_max_length": "77"}}, "model_max_length '77'"),
    "length too small": ({"tokenizer_config_json": {"model_max_length": 2}}, "model_max_length 2"),
    "left padding": ({"tokenizer_config_json": {"padding_side": "left"}}, "padding_side 'left'"),
    "decoder no object": ({"tokenizer_config_json": {"added_tokens_decoder": [1]}}, r"added_tokens_decoder \[1\]"),
    "decoder id": ({"tokenizer_config_json": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "the id 'x'"),
    "extra tokens": ({"tokenizer_config_json": {"additional_special_tokens": "ab"}}, "additional_special_tokens 'ab'"),
    "model of another kind": (tokenizer_json({"type": "Unigram"}), "'Unigram' model, not CLIP's BPE"),
    "other word end": (tokenizer_json({"end_of_word_suffix": ""}), "ends words with ''"),
    "no model": ({"tokenizer_json": {"version": "1.0"}}, "the model 'None'"),
    "merges no list": (tokenizer_json({"merges": {}}), "not a list"),
    "merge no pair": (tokenizer_json({"merges": [["t", "h", "e"]]}), r"the merge \['t', 'h', 'e'\]"),
    "added tokens no list": (tokenizer_json(added_tokens={"a": 1}), "not a list"),
    "added token without id": (tokenizer_json(added_tokens=[{"content": "<a>"}]), "without an id"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path, case):
    files, message = BROKEN[case]
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_files(write(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere"):
        Tokenizer.from_files(tmp_path / "nowhere")

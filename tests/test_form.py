"""What stands behind the form, without a browser: its values, token counts, presets, downloads."""

import os
import threading

import pytest

from stable_diffusion import catalogue, prompts
from stable_diffusion.errors import CheckpointNotFoundError, DownloadError, InputError
from stable_diffusion.service import presets, tokens, values
from stable_diffusion.service.downloads import Downloads, DownloadState, hub_page
from tests.pretend import wait

POSTCARDS, BIG = catalogue.find(catalogue.DEFAULT), catalogue.find("sdxl-turbo")


def test_values_that_the_form_can_show_are_kept():
    given = {
        "prompt": "a", "negative": "", "model": "one", "sampler": "dpmpp_2m", "schedule": "karras", "steps": 20,
        "width": 512, "height": 768, "n_images": 2, "seed": "-1", "cfg": 7.5, "strength": 0.5, "fit": "pad",
        "file_format": "webp", "previews": ["latents"], "invert": True, "masked_content": "noise", "mask_blur": 0,
        "only_masked": True, "padding": 8, "guidance_rescale": 0.7, "prompt_language": "plain", "vae": "",
        "prediction_type": "v_prediction", "bits": 4, "low_memory": True, "attention": True, "loras": [("ink", 0.5)],
        "clip_skip": 2, "zero_terminal_snr": False, "variation_seed": "7", "variation_strength": 0.25,
        "guidance_start": 0.25, "guidance_end": 0.75, "guidance_min_sigma": 1.5, "deepcache_interval": 3,
        "deepcache_branch": 2, "tiling": "both",
        "dynamic_prompts": True, "combinations": True, "default_negative": False, "styles": ["ink", "a night"],
        "hires_scale": 0.0,
        "hires_width": 0, "hires_height": 1024, "hires_upscaler": "one that has gone", "hires_steps": 0,
        "hires_strength": 0.5, "hires_sampler": "dpmpp_2m_karras", "hires_cfg": 0.0, "hires_prompt": "b",
        "hires_negative": "", "refiner": "", "refiner_switch": 0.5, "by": 0.0, "upscaler": "Lanczos", "tile": 0,
        "tile_overlap": 64, "no_record": True, "eta": 0.35,
        "vary_all_draws": True, "blend_prompt": "c", "blend_share": 0.25,
    }  # fmt: skip
    assert values.clean(given, ["one"]) == given
    assert set(given) == set(values.KEYS)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "../../etc"},
        {"prompt": 7, "negative": None},
        {"steps": "20", "seed": True, "width": None},
        {"cfg": float("nan"), "strength": float("inf")},
        {"sampler": "none such", "schedule": "karras"},
        {"fit": "explode", "file_format": "exe", "previews": "fast"},
        {
            "invert": "both",
            "masked_content": ["noise"],
            "only_masked": None,
            "mask_blur": "4",
            "bits": 8.0,
            "vae": "x.pt",
        },
        {"os": "command"},
        {"hires_sampler": "none such", "hires_scale": "2", "hires_upscaler": None},
    ],
)
def test_values_that_make_no_sense_are_left_out(given):
    assert values.clean(given, ["one"]) == {}


def test_numbers_are_brought_within_their_bounds():
    given = {"steps": 10**6, "width": -4, "cfg": 99, "seed": -7, "strength": 2, "n_images": 0}
    assert values.clean(given, []) == {
        "steps": 150, "width": 64, "cfg": 20.0, "seed": "-1", "strength": 1.0, "n_images": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "sampler", "schedule"),
    [
        ("euler", "euler", "automatic"),
        ("dpmpp_2m_kl_optimal", "dpmpp_2m", "kl_optimal"),
        ("dpmpp_2m_karras", "dpmpp_2m", "karras"),
        ("euler_a", "euler_a", "automatic"),
    ],
)
def test_a_sampler_and_its_schedule(key, sampler, schedule):
    assert values.split_sampler(key) == (sampler, schedule)
    assert values.join_sampler(sampler, schedule) == key
    assert values.clean({"sampler": key}, []) == {"sampler": sampler, "schedule": schedule}


def test_a_schedule_that_a_sampler_does_not_have_becomes_automatic():
    assert values.clean({"sampler": "ddim", "schedule": "karras"}, [])["schedule"] == "automatic"


@pytest.mark.parametrize(
    ("text", "seed"),
    [("7", 7), (" -1 ", -1), ("", -1), (str(2**64 - 1), 2**64 - 1), ("+3", 3), (str(2**53 + 1), 2**53 + 1)],
)
def test_a_seed_is_read_to_its_last_digit(text, seed):
    assert values.typed("seed", text) == seed
    assert values.clean({"seed": seed}, [])["seed"] == str(seed)
    assert values.shows("seed", seed)


@pytest.mark.parametrize("text", ["-2", str(2**64), "1.5", "1e3", "abc", "٣", "1 2", "9" * 5000])
def test_what_is_no_seed_is_refused_by_its_name(text):
    with pytest.raises(InputError, match=r"^Seed: .{1,40} should be a whole number from -1 to 18446744073709551615\.$"):
        values.typed("seed", text)
    assert not values.shows("seed", 2**64)


@pytest.mark.parametrize(
    ("ratio", "usual", "size"),
    [
        ((1, 1), (128, 128), (128, 128)),
        ((3, 2), (128, 128), (160, 104)),
        ((1, 1), (512, 512), (512, 512)),
        ((16, 9), (1024, 1024), (1344, 768)),
        ((3, 2), (512, 512), (640, 448)),
    ],
)
def test_sizes_of_the_usual_ratios(ratio, usual, size):
    assert values.size_of_ratio(ratio, usual) == size


@pytest.mark.parametrize(
    ("typed", "default", "read"),
    [
        ("rain", "", "rain"),
        ("", "lowres", "lowres"),
        ("rain", "lowres, bad", "rain, lowres, bad"),
        ("rain, lowres, bad", "lowres, bad", "rain, lowres, bad"),
        ("lowres", "lowres", "lowres"),
    ],
)
def test_the_default_negative_prompt_is_added_once(typed, default, read):
    assert prompts.with_default(typed, default) == read
    assert prompts.with_default(prompts.without_default(read, default), default) == read


# --- Token counts


def test_a_count_is_the_models_own():
    assert tokens.count(POSTCARDS, "a red house") == tokens.Count(3, 75)
    assert tokens.count(POSTCARDS, "a red house").words == "3 / 75 tokens"
    assert tokens.count(POSTCARDS, "").tokens == 0


def test_a_model_that_is_not_here_is_counted_with_clips_tokenizer(monkeypatch, tmp_path):
    missing = catalogue.Model("x/y", catalogue.HUB, "x/y-that-is-not-there", "Y")
    assert tokens.count(missing, "a photograph of an astronaut").tokens == 5
    broken = tmp_path / "tokenizer"
    broken.mkdir()
    (broken / "vocab.json").write_text("{")
    assert tokens.count(catalogue.Model("z", catalogue.LOCAL, str(tmp_path), "Z"), "a cat").tokens == 2


@pytest.mark.parametrize("text", ["house " * 200, "🏠" * 333, "بيت أحمر " * 111, "x" * 1000])
def test_what_is_too_long_is_said(text):
    counted = tokens.count(BIG, text)
    assert 75 < counted.limit - 75 < counted.tokens <= counted.limit


@pytest.mark.parametrize(
    "text, said",
    [
        ("house " * 75, "75 / 75"),
        ("house " * 80, "80 / 150"),
        ("house, " * 38 + "house", "77 / 150"),
        ("a BREAK b", "76 / 150"),
        ("((red house:1.3))", "2 / 75"),
        (r"\(red\)", "3 / 75"),
        ("<lora:a_very_long_name_of_a_file:0.8> house", "1 / 75"),
        ("[house:a red house:0.5]", "3 / 75"),
        ("house AND a blue house", "3 / 75"),
    ],
)
def test_tokens_are_counted_as_they_are_read(text, said):
    assert tokens.count(BIG, text).words == f"{said} tokens"


def test_a_negative_prompt_has_no_parts():
    assert tokens.count(BIG, "house AND a blue house", negative=True).tokens == 5


# --- Presets


def test_presets_are_saved_loaded_and_deleted(tmp_path):
    path = tmp_path / "outputs" / "presets.json"
    assert presets.load(path) == {}
    presets.save(path, " sunset ", {"prompt": "a", "steps": 3})
    presets.save(path, "night 🌙", {"prompt": "b"})
    assert presets.load(path) == {"sunset": {"prompt": "a", "steps": 3}, "night 🌙": {"prompt": "b"}}
    presets.delete(path, "sunset")
    presets.delete(path, "sunset")
    assert list(presets.load(path)) == ["night 🌙"]
    assert [file.name for file in path.parent.iterdir()] == ["presets.json"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="name for a preset"):
        presets.save(tmp_path / "presets.json", name, {})


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1}', "\0", "[" * 100_000])
def test_a_broken_file_of_presets_is_none(tmp_path, text):
    path = tmp_path / "presets.json"
    path.write_text(text)
    assert presets.load(path) == {}
    presets.save(path, "new", {"steps": 1})
    assert presets.load(path) == {"new": {"steps": 1}}


def test_a_full_disk_leaves_the_presets_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "presets.json"
    presets.save(path, "one", {"steps": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        presets.save(path, "two", {"steps": 2})
    assert presets.load(path) == {"one": {"steps": 1}}
    assert [file.name for file in tmp_path.iterdir()] == ["presets.json"]


def test_presets_are_not_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "MAX_PRESETS", 2)
    path = tmp_path / "presets.json"
    for name in ("a", "b", "a"):
        presets.save(path, name, {})
    with pytest.raises(InputError, match="delete one"):
        presets.save(path, "c", {})


# --- Downloads


@pytest.fixture
def hub():
    """Downloads whose pieces come when `go` is set, and that end with `error` where one is given."""

    class Hub:
        def __init__(self):
            self.go, self.error, self.asked = threading.Event(), None, []
            self.downloads = Downloads(self.fetch)

        def fetch(self, source, report):
            self.asked.append(source)
            report("Downloading", 0.25)
            assert self.go.wait(10)
            report("Downloading", 0.5)
            if self.error:
                raise self.error

    hub = Hub()
    yield hub
    hub.go.set()


def test_a_download_tells_how_far_it_is_and_ends(hub):
    assert hub.downloads.get(BIG.name) is None
    download = hub.downloads.start(BIG)
    wait(lambda: download.fraction == 0.25)
    assert hub.downloads.start(BIG) is download is hub.downloads.get(BIG.name)
    assert download.active and download.note == "Downloading"
    hub.go.set()
    wait(lambda: not download.active)
    assert (download.state, download.error, hub.asked) == (DownloadState.DONE, "", [BIG.source])


def test_a_download_can_be_cancelled_and_begun_again(hub):
    download = hub.downloads.start(BIG)
    wait(lambda: download.fraction == 0.25)
    download.cancel()
    hub.go.set()
    wait(lambda: not download.active)
    assert (download.state, download.error) == (DownloadState.CANCELLED, "")
    again = hub.downloads.start(BIG)
    assert again is not download
    wait(lambda: not again.active)
    assert again.state is DownloadState.DONE


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DownloadError("'x' asks for its licence to be accepted: do so on its page"), hub_page(BIG)),
        (DownloadError("The hub cannot be reached."), "The hub cannot be reached."),
        (CheckpointNotFoundError("No repository 'x'."), "No repository 'x'."),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_why_a_download_failed(hub, error, words):
    hub.error = error
    hub.go.set()
    download = hub.downloads.start(BIG)
    wait(lambda: not download.active)
    assert download.state is DownloadState.FAILED and words in download.error


def test_closing_cancels_the_downloads(hub):
    download = hub.downloads.start(BIG)
    wait(lambda: download.fraction == 0.25)
    hub.downloads.close()
    hub.go.set()
    wait(lambda: not download.active)
    assert download.state is DownloadState.CANCELLED

"""What becomes of prompts before anything is painted, on the command line, in the queue, over HTTP and on the page."""

from __future__ import annotations

import json

import pytest

import stable_diffusion
from stable_diffusion import __main__ as program
from stable_diffusion import catalogue, prompts
from stable_diffusion.catalogue import Defaults, Model
from stable_diffusion.errors import InputError
from stable_diffusion.prompts import prepared
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service import shared
from stable_diffusion.service.worker import Worker
from tests.pretend import over
from tests.test_again import SAME, loaded
from tests.test_http_api import client, engine  # noqa: F401

TEMPLATE = "a {red|blue|green} house, __sky__"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home with a wildcard and two styles."""
    for name in ("NEGATIVE", "STYLES", "WILDCARDS", "MODELS"):
        monkeypatch.delenv(f"STABLE_DIFFUSION_{name}", raising=False)
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "sky.txt").write_text("sun\nrain\n")
    (tmp_path / "styles.csv").write_text(
        'name,prompt,negative_prompt\nInk,"{prompt}, {ink|chalk}",photo\nNight,at night,\n'
    )
    return tmp_path


def texts(request):
    return [request.of_picture(i).prompt for i in range(request.n_images)]


def test_every_picture_gets_the_prompt_of_its_seed():
    four = prepared(Request(TEMPLATE, n_images=4, seed=7))
    assert texts(four)[2:] == texts(prepared(Request(TEMPLATE, n_images=2, seed=9)))
    assert len(set(texts(prepared(Request(TEMPLATE, n_images=30, seed=1))))) == 6
    own = four.of_picture(1)
    assert own.template == TEMPLATE and own.seed == 8 and own.n_images == 1 and own.prompt in texts(four)
    assert prepared(four) == four, "what is prepared stays so"
    varied = prepared(Request(TEMPLATE, n_images=3, seed=7, variation_strength=0.1, variation_seed=1))
    assert len(set(texts(varied))) == 1, "variations are of one prompt"


def test_a_second_pass_has_its_prompts_drawn_and_styled_as_the_first(monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "blur")
    asked = Request("a {red|blue} house", hires_prompt="a {red|blue} house, sharp", hires_scale=2.0, seed=1, n_images=9)
    nine = prepared(asked)
    pairs = {(own.prompt, own.hires_prompt) for own in map(nine.of_picture, range(9))}
    assert pairs == {(f"a {colour} house", f"a {colour} house, sharp") for colour in ("red", "blue")}
    styled = prepared(
        Request("a", hires_prompt="b", hires_negative="c", hires_scale=2.0, styles=("Night",))
    ).of_picture(0)
    assert (styled.hires_prompt, styled.hires_negative) == ("b, at night", "c, blur")
    plain = prepared(Request("a", hires_scale=2.0, styles=("Night",))).of_picture(0)
    assert (plain.hires_prompt, plain.hires_negative) == ("", ""), "what is empty stays the first's"
    every = prepared(Request("{a|b}", hires_prompt="{c|d}", hires_scale=2.0, combinations=True, seed=1))
    assert [own.prompt for own in map(every.of_picture, range(2))] == ["a", "b"]
    assert {own.hires_prompt for own in map(every.of_picture, range(2))} <= {"c", "d"}


def test_styles_come_first_and_may_be_dynamic():
    request = prepared(Request("a house", "x", styles=("Ink", "Night"), seed=1, n_images=20))
    assert set(texts(request)) == {"a house, ink, at night", "a house, chalk, at night"}
    assert request.of_picture(0).negative == "x, photo"
    assert prepared(Request("a house", styles=("Night",))).of_picture(0).template == ""
    with pytest.raises(InputError, match=r"no style 'Inkk'\. Near it: Ink"):
        prepared(Request("a", styles=("Inkk",)))


def test_all_combinations():
    request = prepared(Request(TEMPLATE, "{a|b}", combinations=True, seed=3))
    assert request.n_images == 12 and len(set(request.texts)) == 12
    assert [request.of_picture(i).seed for i in (0, 11)] == [3, 14]
    assert prepared(Request("{a|b}", combinations=True, n_images=3)).n_images == 6
    assert prepared(Request("a", combinations=True, n_images=3)).n_images == 3
    with pytest.raises(InputError, match="more than 10000 pictures"):
        prepared(Request(TEMPLATE, combinations=True, n_images=5000))


def test_when_braces_are_literal():
    for request in (
        Request("{{masterpiece}}, {a}"), Request(TEMPLATE, dynamic_prompts=False),
        Request(TEMPLATE, prompt_language="plain"),
    ):  # fmt: skip
        assert texts(prepared(request)) == [request.prompt]
    assert texts(prepared(Request("{{masterpiece}}", dynamic_prompts=True))) == ["masterpiece"]
    assert texts(prepared(Request("{a|a}", prompt_language="plain", dynamic_prompts=True))) == ["a"]


def test_a_missing_wildcard_is_said_before_anything_is_queued(tmp_path):
    worker = Worker(tmp_path)
    with pytest.raises(InputError, match=r"no wildcard __skye__\. Near it: sky.*--no-dynamic-prompts"):
        worker.submit(Request("__skye__"))
    worker.close()


# --- Default negative prompts


def model(name, **more):
    return Model(name, catalogue.LOCAL, name, **more)


def test_whose_default_negative_prompt_is_which(monkeypatch):
    assert prompts.default_negative(model("people/realisticVisionV60B1.safetensors")) == catalogue.AGAINST_DRAWINGS
    assert prompts.default_negative(model("dreamshaper_8.safetensors")) == ""
    assert catalogue.find("Lykon/absolute-reality-1.81").negative and not catalogue.find("Lykon/dreamshaper-8").negative
    assert prompts.default_negative(model("photon", defaults=Defaults(negative="own"))) == "own"
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "Public")
    assert prompts.default_negative(model("x")) == "nudity, racism, oppression, exploitation"
    assert prompts.default_negative(model("x", defaults=Defaults(negative="own"))).startswith("own, nudity")


def test_it_is_added_once_and_can_be_left_out(monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "rain")
    for typed, whole in (("", "rain"), ("fog", "fog, rain"), ("fog, rain", "fog, rain")):
        request = prepared(Request("a", typed))
        assert request.negative == whole and prepared(request).negative == whole
    assert prepared(Request("a", "fog", default_negative=False)).negative == "fog"


# --- The command line


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", loaded, raising=False)
    monkeypatch.chdir(tmp_path)
    return ("--steps", "1", "--width", "32", "--height", "32", "--seed", "7", "--output", "a.png")


def run(*argv):
    return program.main([str(each) for each in argv])


def test_the_record_says_what_was_drawn_and_from_what(small, capsys):
    assert run("txt2img", TEMPLATE, *small, "--n-images", 3, "--batch-size", 3, "--negative", "{x|y}") == 0
    expected = prepared(Request(TEMPLATE, "{x|y}", n_images=3, seed=7))
    for i in range(3):
        said = picture_files.read_parameters(f"a-{i + 1}.png")
        own = expected.of_picture(i)
        assert (said.prompt, said.negative, said.seed) == (own.prompt, own.negative, 7 + i)
        assert said.extra["Template"] == TEMPLATE and said.extra["Negative Template"] == "{x|y}"
        capsys.readouterr()
        assert run("again", f"a-{i + 1}.png", "--output", "b.png") == 0
        assert capsys.readouterr().err.splitlines()[-1] == SAME


def test_a_picture_of_literal_braces_is_made_again(small, capsys):
    assert run("txt2img", TEMPLATE, *small, "--no-dynamic-prompts") == 0
    said = picture_files.read_parameters("a.png")
    assert said.prompt == TEMPLATE and "Template" not in said.extra
    assert run("again", "a.png", "--output", "b.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    assert picture_files.read_parameters("b.png").prompt == TEMPLATE


def test_styles_and_default_negatives_are_recorded_in_full(small, capsys, monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "public")
    assert run("txt2img", "a house", *small, "--style", "Night", "--style", "ink", "--cfg", 1) == 0
    assert "negative prompt has no effect at CFG 1" in capsys.readouterr().err
    said = picture_files.read_parameters("a.png")
    assert said.prompt in ("a house, at night, ink", "a house, at night, chalk")
    assert said.negative == "photo, nudity, racism, oppression, exploitation"
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "something else")
    assert run("again", "a.png", "--output", "b.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    assert picture_files.read_parameters("b.png").negative == said.negative
    assert run("txt2img", "a house", *small, "--no-default-negative") == 0
    assert picture_files.read_parameters("a.png").negative == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["__nothing__"], "There is no wildcard __nothing__"),
        (["a", "--style", "Nihgt"], "There is no style 'Nihgt'. Near it: Night."),
        (["{a|b}" + "x" * 100_000], "more than 20000"),
        (["__loop__"], "__loop__ includes itself"),
        (["a", "--style", "Night", "broken"], "line 2"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_before_loading(small, capsys, monkeypatch, home, argv, message):
    (home / "wildcards" / "loop.txt").write_text("a __loop__\n")
    if argv[-1] == "broken":
        argv.pop()
        (home / "styles.csv").write_text("name,prompt\na,b,c,d\n")
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", None, raising=False)
    assert run("txt2img", *argv, *small) == 2
    assert message in capsys.readouterr().err


def test_lists(capsys):
    assert run("styles") == 0 and run("wildcards") == 0
    said = capsys.readouterr().out
    assert "Ink    {prompt}, {ink|chalk}  not: photo" in said and "__sky__  2" in said


def test_both_ends_of_a_blend(small, capsys):
    assert run("blend", "a {red|red} house", "__sky__", *small[:-1], "c.png", "--frames", 2, "--keep-frames") == 0
    said = [picture_files.read_parameters(f"c-{i}.png").prompt for i in (1, 2)]
    assert said[0] == "a red house" and said[1] in ("sun", "rain")


# --- The queue and HTTP


def test_the_queue_paints_what_was_drawn(engine):  # noqa: F811
    job = shared.the_worker().submit(Request(TEMPLATE, combinations=True, seed=3, steps=1))
    over(job)
    assert job.n_images == len(job.pictures) == 6 and not job.error and job.fraction == 1
    found = [picture_files.read_parameters(picture.path) for picture in job.pictures]
    assert [each.prompt for each in found] == [text for text, *_ in job.drawn.texts]
    assert {each.extra["Template"] for each in found} == {TEMPLATE}
    assert [each.seed for each in found] == list(range(3, 9))


def test_http(client, engine, monkeypatch):  # noqa: F811
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "rain")
    names = client.get("/sdapi/v1/prompt-styles").json()
    assert names[0] == {
        "name": "Ink",
        "prompt": "{prompt}, {ink|chalk}",
        "negative_prompt": "photo",
        "path": "styles.csv",
    }
    fields = {"prompt": TEMPLATE, "steps": 1, "seed": 5, "n_iter": 2, "styles": ["Night"], "width": 64, "height": 64}
    info = json.loads(client.post("/sdapi/v1/txt2img", json=fields).json()["info"])
    own = prepared(Request(f"{TEMPLATE}, at night", n_images=2, seed=5))
    assert info["all_prompts"] == texts(own) and info["prompt"] == texts(own)[0] and info["styles"] == ["Night"]
    assert info["negative_prompt"] == "rain" and "Template:" in info["infotexts"][0]
    assert client.post("/sdapi/v1/txt2img", json=fields | {"styles": ["none"]}).status_code == 422
    script = {"Dynamic Prompts v2.17.1": {"args": [True, True, 1, False, False]}}
    answer = client.post("/sdapi/v1/txt2img", json=fields | {"alwayson_scripts": script})
    assert len(answer.json()["images"]) == 6
    script = {"dynamic prompts": {"args": [False]}}
    answer = client.post("/sdapi/v1/txt2img", json=fields | {"alwayson_scripts": script, "styles": []})
    assert json.loads(answer.json()["info"])["all_prompts"] == [TEMPLATE] * 2
    many = fields | {"alwayson_scripts": {"Dynamic Prompts": {"args": [True, True, 50]}}}
    assert client.post("/sdapi/v1/txt2img", json=many).status_code == 422
    magic = fields | {"alwayson_scripts": {"Dynamic Prompts": {"args": [True, False, 1, True]}}}
    assert client.post("/sdapi/v1/txt2img", json=magic).status_code == 422

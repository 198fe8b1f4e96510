"""Grids: axes, their values, plans, sheets, and the command."""

from __future__ import annotations

import csv
import itertools
import json

import pytest
from PIL import Image

import stable_diffusion
from stable_diffusion import catalogue
from stable_diffusion.commands import grid as command
from stable_diffusion.compare import axes, plan, sheet, values
from stable_diffusion.errors import InputError, NotFiniteError
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import SETTINGS, Request
from stable_diffusion.setting import HOW
from tests.test_again import loaded
from tests.test_prompts import home, run  # noqa: F401


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        ("5, 10,20", True, "5 10 20"),
        ("1-5", True, "1 2 3 4 5"),
        ("5-3", True, "5 4 3"),
        ("1-10 (+3)", True, "1 4 7 10"),
        ("1 - 10(3), 12", True, "1 4 7 10 12"),
        ("10-5 (-3)", True, "10 7"),
        ("-2--1", True, "-2 -1"),
        ("1-10 [4]", True, "1 4 7 10"),
        ("1-2 [5]", True, "1 2"),
        ("0-1 [5]", False, "0 0.25 0.5 0.75 1"),
        ("0-1 (+0.1)", False, "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1"),
        (".5-1 (+.25)", False, "0.5 0.75 1"),
        ("7", False, "7"),
    ],
)
def test_numbers(text, whole, expected):
    assert values.numbers(text, whole) == expected.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5-1 (+1)", "never reaches its end"), ("1-5 (0)", "never reaches its end"), ("1-5 [0]", "asks for 0 values"),
        ("1-1000000", "has 1000000 values"), ("0-1 (+0.00001)", "100001 values"), ('"a', "stands in quotes"),
    ],
)  # fmt: skip
def test_ranges_without_values(text, message):
    with pytest.raises(InputError, match=message):
        values.numbers(text, True)


def test_entries_keep_commas_in_quotes():
    assert values.entries('a, "b, c" ,d,,"e ""f"""') == ["a", "b, c", "d", 'e "f"']
    assert values.entries("a,,b", keep_empty=True) == ["a", "", "b"]


def test_every_setting_that_changes_pictures_is_an_axis():
    """Also those that are added later, by being there."""
    for name, each in SETTINGS.items():
        if each.group == HOW:
            assert name in axes.kinds(), name
    assert not {"n_images", "batch_size", "combinations", "prompt", "template", "mask_blur", "left"} & set(axes.kinds())


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("steps=1-3", "steps", [1, 2, 3]), ("CFG Scale = 1-2 [3]", "cfg", [1, 1.5, 2]),
        ("Var. strength=0.5", "variation_strength", [0.5]), ("Prompt S/R=a,b", "prompt_sr", [("a", "a"), ("a", "b")]),
        ("sampler=Euler, DPM++ 2M Karras", "sampler", ["euler", "dpmpp_2m_karras"]),
        ("model=postcards-tiny", "model", ["postcards-tiny"]), ("clip skip=0,2", "clip_skip", [None, 2]),
        ("size=64x32, 32 \u00d7 64", "size", [(64, 32), (32, 64)]), ("low_memory=*", "low_memory", [True, False]),
        ("prompt language=*", "prompt_language", ["a1111", "plain"]), ("style=None, Ink", "style", [(), ("Ink",)]),
        ("schedule=SGM Uniform,default", "schedule", ["sgm_uniform", "default"]), ("vae=None", "vae", [None]),
        ("Checkpoint name=*", "model", ["postcards-tiny", "postcards-4-step"]),
        ('negative="a, b", c', "negative", ["a, b", "c"]),
        ("bits=*", "bits", [None, 8, 4]), ("zero_terminal_snr=true,default", "zero_terminal_snr", [True, None]),
    ],
)  # fmt: skip
def test_axes_by_any_name(text, name, found, home, monkeypatch):  # noqa: F811
    monkeypatch.setattr(catalogue, "model_folders", lambda: [home / "models"])
    axis = axes.read(text)
    assert axis.kind.name == name and list(axis.values) == found and len(axis.labels) == len(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", r'steps lacks its values, such as "steps=5-30 \(\+5\)"'),
        ("stepz=1", r"'stepz' is nothing that can be varied\. Did you mean steps"),
        ("steps=a-b", r"Steps: 'a-b' should be a whole number from 1 to 1000\. An example is '5-30 \(\+5\)'"),
        ("steps=0-3", "'0' should be a whole number"),
        ("sampler=none such", "Sampler: sampler = 'none such' is not known"),
        ("model=none such", "There is no model 'none such'"),
        ("lora=none such", "There is no LoRA 'none such'"),
        ("style=Inkk", "no style 'Inkk'"),
        ("vae=none.such", "no VAE 'none.such'"),
        ("size=64", "'64' should be a size"),
        ("steps=,", "Steps has no values"),
        ("steps=*", "there is no list of all values"),
        ("prompt_order=a", "2 to 6 different pieces"),
        ("prompt_sr=,a", "may not be empty"),
        ("schedule=nothing like it", "nothing like it"),
    ],
)
def test_axes_that_cannot_be(text, message, home):  # noqa: F811
    with pytest.raises(InputError, match=message):
        axes.read(text)


def planned(request, *texts):
    return plan.plan(request, [None if text is None else axes.read(text) for text in texts])


def test_a_plan_has_every_cell_once_in_reading_order():
    found = planned(Request("a red house", seed=3), "steps=1,2,3", "prompt_sr=red,blue", "cfg=1,5")
    assert found.shape == (3, 2, 2) and len({cell.digest for cell in found.cells}) == 12
    assert [cell.place for cell in found.cells[:4]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]
    last = found.cells[-1].request
    assert (last.steps, last.prompt, last.cfg, last.seed, last.n_images) == (3, "a blue house", 5, 3, 1)
    assert found.label(1, 1) == "Prompt search and replace: blue" and found.record()["Y Type"] == "Prompt S/R"


def test_what_is_varied_together():
    base = Request("a house at sunset, clouds, birds", seed=1, loras=(("x", 1.0),), sampler="dpmpp_2m_karras")
    cells = planned(base, "lora_weight=0-1 [3]", "schedule=default,Exponential").cells
    assert [cell.request.loras[0][1] for cell in cells[:3]] == [0, 0.5, 1]
    assert [cell.request.sampler for cell in cells[::3]] == ["dpmpp_2m", "dpmpp_2m_exponential"]
    cells = planned(base, "schedule=Karras", "sampler=Euler,Heun").cells
    assert [cell.request.sampler for cell in cells] == ["euler_karras", "heun_karras"], "whatever the order of the axes"
    orders = [cell.request.prompt for cell in planned(base, "prompt_order=sunset, clouds, birds").cells]
    assert len(set(orders)) == 6 and "a house at birds, sunset, clouds" in orders
    drawn = planned(Request("{a|b} {c|d}"), "seed=1-8", "variation_strength=0,0.5").cells
    assert len({cell.request.prompt for cell in drawn}) > 1 and drawn[0].request.template == "{a|b} {c|d}"
    assert len({cell.request.variation_seed for cell in drawn}) == 2, "none, or the same for all"
    assert len({cell.request.seed for cell in planned(Request("a"), "steps=1-9").cells}) == 1


def test_a_model_is_loaded_as_rarely_as_can_be():
    found = planned(Request("a", seed=1), "steps=1,2", "bits=0,8", "zero_terminal_snr=true,false")
    loads = [cell.load for cell in found.order]
    assert len(loads) == 8 and found.n_loads == 4
    assert sum(one != other for one, other in itertools.pairwise(loads)) == 3
    assert sorted(cell.place for cell in found.order) == sorted(cell.place for cell in found.cells)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((None,), "A grid needs an axis"),
        (("steps=1,2", "steps=3"), "Steps stands on two axes"),
        (("steps=1-100", "cfg=1-101"), "A grid of 100 x 101 x 1 has 10100 cells"),
        (("strength=0.5,1",), "Denoising strength has no effect on any cell"),
        (("variation_seed=1,2",), "it needs a variation strength"),
        (("prompt_sr=blue,red",), "The cell with Prompt search and replace blue: 'blue' is neither"),
        (("lora_weight=1",), "a LoRA weight needs a LoRA"),
        (("sampler=DDIM", "schedule=Karras"), "DDIM has no karras sigmas"),
        (("prompt_sr=a,__nothing__",), "There is no wildcard __nothing__"),
        (("hires_steps=1,2",), "has no effect on any cell"),
    ],
)
def test_grids_that_cannot_be(texts, message, home):  # noqa: F811
    with pytest.raises(InputError, match=message):
        planned(Request("a"), *texts)


def test_a_prompt_matrix():
    found = plan.matrix(Request("a house, [x|y]|snow|{a|a} night|{birds}", seed=1))
    assert found.shape == (4, 2, 1) and found.record() == {"Script": "Prompt matrix"}
    assert [cell.request.prompt for cell in found.cells][:4] == [
        "a house, [x|y]", "a house, [x|y], snow", "a house, [x|y], a night", "a house, [x|y], snow, a night",
    ]  # fmt: skip
    assert found.cells[-1].request.prompt == "a house, [x|y], snow, a night, birds"
    for prompt, message in (("a house", "needs parts"), ("|".join("abcdefghij"), "512 cells: 8 parts")):
        with pytest.raises(InputError, match=message):
            plan.matrix(Request(prompt))


def test_a_sheet_has_every_picture_in_its_place():
    found = planned(Request("a red b", seed=1), "steps=1,2,3", "prompt_sr=red," + "very " * 50, "cfg=1,2")
    colours = {cell.digest: (i * 20, 0, 255 - i * 20) for i, cell in enumerate(found.cells)}
    missing = found.cells[5]

    def look(cell):
        return (
            None if cell is missing else Image.new("RGB", (60, 40) if cell.place[0] else (40, 60), colours[cell.digest])
        )

    whole = sheet.draw(found, look)
    counts = {colour: count for count, colour in whole.getcolors(1 << 20)}
    for cell in found.cells:
        assert counts.get(colours[cell.digest]) == (None if cell is missing else 2400)
    huge = planned(Request("a", seed=1), "seed=1-100", "steps=1-100")
    assert max(sheet.draw(huge, lambda cell: Image.new("RGB", (512, 512))).size) <= sheet.MAX_SIDE + 4 * 101


# --- The command


@pytest.fixture
def small(home, monkeypatch):  # noqa: F811
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", loaded, raising=False)
    monkeypatch.chdir(home)
    return ("--steps", "1", "--width", "32", "--height", "32", "--output", "g")


def test_the_command_paints_resumes_and_extends(small, home, capsys, monkeypatch):  # noqa: F811
    painted = []
    one = command.Painter.one

    def counting(painter, *more):
        painted.append(painter.request)
        if len(painted) == 3:
            raise KeyboardInterrupt
        return one(painter, *more)

    monkeypatch.setattr(command.Painter, "one", counting)
    argv = ("grid", "a {red|blue} house", "--x", "cfg=1,5", "--y", "steps=1-2", *small)
    assert run(*argv) == 130
    assert "grid.png" in capsys.readouterr().out and len(list((home / "g").glob("0*.png"))) == 2
    first = json.loads((home / "g" / "grid.json").read_text())
    assert run(*argv) == 0
    assert len(painted) == 5 and len({request.seed for request in painted}) == 1, (
        "each cell once, with the seed drawn first"
    )
    assert json.loads((home / "g" / "grid.json").read_text())["seed"] == first["seed"]
    rows = list(csv.DictReader((home / "g" / "grid.csv").open()))
    assert [(row["x: CFG"], row["y: Steps"], row["CFG scale"]) for row in rows] == [
        ("1", "1", "1.0"), ("5", "1", "5.0"), ("1", "2", "1.0"), ("5", "2", "5.0"),
    ]  # fmt: skip
    said = picture_files.read_parameters("g/grid.png")
    assert said.extra["Script"] == "X/Y/Z plot" and said.extra["X Values"] == "1,5" and said.prompt == painted[0].prompt
    cell = picture_files.read_parameters(f"g/{rows[3]['file']}")
    assert (cell.cfg, cell.steps, cell.extra["Template"]) == (5, 2, "a {red|blue} house")
    assert run(*argv) == 0 and len(painted) == 5, "nothing is left to do"
    assert run("grid", "a {red|blue} house", "--x", "cfg=1,5,9", "--y", "steps=1-2", *small) == 0 and len(painted) == 7
    assert run("again", f"g/{rows[3]['file']}", "--output", "b.png") == 0
    assert run("again", "g/grid.png") == 2 and "is a grid" in capsys.readouterr().err
    assert run("grid", "another", "--x", "cfg=1,5", *small) == 2 and "holds another grid" in capsys.readouterr().err
    (home / "g" / "grid.json").write_text("[]")
    assert run(*argv) == 2 and "cannot be read" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_stop_the_others(small, home, capsys, monkeypatch):  # noqa: F811
    one = command.Painter.one

    def failing(painter, *more):
        if painter.request.cfg == 2:
            raise NotFiniteError("The U-Net overflowed.", "unet")
        return one(painter, *more)

    monkeypatch.setattr(command.Painter, "one", failing)
    assert run("grid", "a", "--x", "cfg=1,2,3", *small) == 1
    said = capsys.readouterr().err
    assert "CFG: 2: The U-Net overflowed" in said and "1 of 3 cells could not be painted" in said
    assert len(list(csv.DictReader((home / "g" / "grid.csv").open()))) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "--x", "steps=a-b"], "Steps: 'a-b' should be a whole number"),
        (["a", "--x", "steps=1-101"], "101 of 101 pictures to paint: give --yes"),
        (["a|b", "--matrix", "--x", "steps=1"], "makes the axes itself"),
        (["a", "--x", "steps=1", "--n-images", "2"], "A cell has one picture"),
        (["a", "--x", "steps=1", "--output", "g.png"], "should be a folder"),
        (["a"], "A grid needs an axis"),
    ],
)
def test_what_the_command_refuses_before_loading(small, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", None, raising=False)
    output = [] if "--output" in argv else small[-2:]
    assert run("grid", *argv, *small[:-2], *output) == 2
    assert message in capsys.readouterr().err


def test_the_matrix_and_the_list(small, home, capsys):  # noqa: F811
    assert run("grid", "a house|snow|night", "--matrix", *small, "--quiet") == 0
    assert picture_files.read_parameters("g/grid.png").extra["Script"] == "Prompt matrix"
    assert len(list((home / "g").glob("0*.png"))) == 4
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("grid", "--list")
    assert "prompt_sr" in capsys.readouterr().out


def test_a_grid_from_a_picture(small, home):  # noqa: F811
    Image.new("RGB", (40, 40), "red").save(home / "p.png")
    assert run("grid", "a", "--x", "strength=1,1.0", *small, "--picture", "p.png") == 0
    rows = list(csv.DictReader((home / "g" / "grid.csv").open()))
    assert rows[0]["Input picture"] == "p.png" and rows[0]["Denoising strength"] == "1.0"


def test_a_record_of_nothing_is_none():
    assert sheet.record(planned(Request("a"), "steps=1"), None) is None
    assert sheet.record(planned(Request("a"), "steps=1"), Parameters("a")).extra["X Values"] == "1"

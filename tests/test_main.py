"""The command line, with a stand-in for the engine; one test paints with the embedded model."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stable_diffusion
from stable_diffusion import __main__ as program
from stable_diffusion import backend, catalogue
from stable_diffusion.errors import CheckpointError, DownloadError, InputError, WeightsError
from stable_diffusion.pipeline import Generation
from stable_diffusion.record import inputs, picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.record.used import Used

ROOT = Path(catalogue.__file__).parents[1]
OF_ENGINE = {"Precision": "float32", "Version": backend.version()}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


class Step:
    def __init__(self, index, total, seed, n_images, size):
        self.index, self.total, self.seed = index, total, seed
        height, width = size[1] // 8, size[0] // 8
        self.latents = np.stack([np.full((height, width, 4), (seed + i) % 200 / 255) for i in range(n_images)])
        self.denoised = self.latents
        self.pass_number, self.n_passes, self.ends_pass = 1, 1, index == total


class Engine:
    """Paints each picture in the grey of its seed."""

    name, family, default_size, float16, loras = "stand-in", "sd1", (32, 24), False, ()
    calls: list
    at_step = staticmethod(lambda step: None)

    def __init__(self, model, float16=None, progress=None, low_memory=False):
        type(self).calls = [{"model": model, "float16": float16}]
        progress("Loading unet", 0.5)
        progress("Loading unet", 1.0)

    def generate_latents(self, text, n_images=1, num_steps=20, width=None, height=None, seed=None, **options):
        self.calls.append({"text": text, "n_images": n_images, "num_steps": num_steps, "seed": seed, **options})
        if text == "refuse":
            raise InputError("text = 'refuse' is refused.")
        used = Used(self.name, "float32", backend.version(), model_hash=catalogue.short_hash(self.calls[0]["model"]))
        return Generation(used, self._steps(num_steps, seed, n_images, (width or 32, height or 24)))

    def _steps(self, total, seed, n_images, size):
        for index in range(1, total + 1):
            step = Step(index, total, seed, n_images, size)
            self.at_step(step)
            yield step

    def decode(self, latents):
        return latents[..., :3].repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    class Own(Engine):
        pass

    monkeypatch.setattr(stable_diffusion, "StableDiffusion", Own, raising=False)
    monkeypatch.setattr(catalogue, "model_folders", list)
    monkeypatch.chdir(tmp_path)
    return Own


def run(*argv):
    return program.main([str(each) for each in argv])


def files(folder="."):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# --- Painting


def test_a_text_becomes_a_file_with_its_parameters(engine, capsys):
    assert (
        run("txt2img", "a cat", "--seed", 7, "--output", "cat.png", "--negative", "dog", "--sampler", "DPM++ 2M Karras")
        == 0
    )
    assert capsys.readouterr().out == "cat.png  (seed 7)\n"
    assert picture_files.read_parameters("cat.png") == Parameters(
        "a cat", "dog", 20, "DPM++ 2M", "Karras", 5.0, 7, 32, 24, model="stand-in", extra=OF_ENGINE
    )
    assert Image.open("cat.png").getpixel((0, 0)) == (7, 7, 7)
    assert files() == ["cat.png"]


def test_the_models_own_values_are_taken_unless_others_are_given(engine):
    run("txt2img", "x", "--model", "sdxl-turbo", "--output", "a.png")
    loaded, call = engine.calls
    assert loaded == {"model": "stabilityai/sdxl-turbo", "float16": None}
    assert (call["num_steps"], call["cfg_weight"], call["negative_text"]) == (4, 0.0, None)
    assert call["sampler"] == "euler_a"
    run(
        "txt2img",
        "x",
        "--model",
        "sdxl-turbo",
        "--output",
        "a.png",
        "--steps",
        2,
        "--cfg",
        1.5,
        "--sampler",
        "lcm",
        "--float16",
    )
    loaded, call = engine.calls
    assert (loaded["float16"], call["num_steps"], call["cfg_weight"], call["sampler"]) == (True, 2, 1.5, "lcm")


def test_a_picture_is_repainted(engine):
    Image.new("RGBA", (50, 40), (9, 9, 9, 255)).save("in.png")
    assert run("img2img", "in.png", "x", "--strength", 0.5, "--output", "a.png", "--no-float16") == 0
    loaded, call = engine.calls
    assert loaded["float16"] is False
    assert (call["denoising_strength"], call["input_image"].mode, call["input_image"].size) == (0.5, "RGB", (32, 24))
    assert picture_files.read_parameters("a.png").strength == 0.5
    run("img2img", "in.png", "x", "--output", "a.png")
    assert engine.calls[1]["denoising_strength"] == 0.7


def test_the_language_of_the_prompts(engine):
    run("txt2img", "a (cat)", "--output", "a.png")
    assert engine.calls[1]["prompt_language"] == "a1111"
    assert "Prompt language" not in picture_files.read_parameters("a.png").extra
    run("txt2img", "a (cat)", "--output", "a.png", "--prompt-language", "plain")
    assert engine.calls[1]["prompt_language"] == "plain"
    assert picture_files.read_parameters("a.png").extra["Prompt language"] == "plain"


def test_a_text_alone_has_no_strength(engine):
    run("txt2img", "x", "--output", "a.png")
    assert "denoising_strength" not in engine.calls[1]
    assert picture_files.read_parameters("a.png").strength is None


def test_a_folder_gets_new_names_and_a_file_is_replaced(engine, capsys):
    for _ in range(2):
        run("txt2img", "x", "--seed", 5, "--output", "new/folder/")
    assert files("new/folder") == ["00001-5.png", "00002-5.png"]
    run("txt2img", "x", "--seed", 6, "--output", "new/folder")
    for seed in (1, 2):
        run("txt2img", "x", "--seed", seed, "--output", "out.webp")
    assert picture_files.read_parameters("out.webp").seed == 2
    assert files() == ["new/folder/00001-5.png", "new/folder/00002-5.png", "new/folder/00003-6.png", "out.webp"]


def test_without_output_pictures_go_into_todays_folder(engine, capsys):
    run("txt2img", "x", "--seed", 5)
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/00001-5\.png", files()[0])
    assert files()[0] in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_several_pictures_are_numbered_each_with_its_own_seed(engine, capsys, batch):
    assert run("txt2img", "x", "--n-images", 3, "--seed", 7, "--output", "out.png", "--batch-size", batch) == 0
    assert files() == ["out-1.png", "out-2.png", "out-3.png"]
    for i, name in enumerate(files()):
        assert picture_files.read_parameters(name).seed == 7 + i
        assert Image.open(name).getpixel((0, 0)) == (7 + i,) * 3
    assert capsys.readouterr().out.splitlines()[2] == "out-3.png  (seed 9)"
    assert len(engine.calls) - 1 == {1: 3, 2: 2, 5: 1}[batch]


def test_variations_have_one_seed_and_count_the_other(engine, capsys):
    options = ("--seed", 7, "--variation-seed", 30, "--variation-strength", 0.125)
    assert run("txt2img", "x", "--n-images", 3, "--batch-size", 2, *options, "--output", "a.png") == 0
    calls = [(c["seed"], c["n_images"], c["variation_seed"], c["variation_strength"]) for c in engine.calls[1:]]
    assert calls == [(7, 2, 30, 0.125), (7, 1, 32, 0.125)]
    told = [picture_files.read_parameters(f"a-{i}.png") for i in (1, 2, 3)]
    assert [each.seed for each in told] == [7, 7, 7]
    assert [each.extra["Variation seed"] for each in told] == ["30", "31", "32"]
    assert told[0].extra["Variation seed strength"] == "0.125"
    assert [(each.extra.get("Batch size"), each.extra.get("Batch pos")) for each in told] == [
        ("2", "0"), ("2", "1"), (None, None)
    ]  # fmt: skip


def test_a_variation_seed_is_drawn_and_without_a_strength_there_is_none(engine, capsys):
    run("txt2img", "x", "--seed", 7, "--variation-strength", 0.5, "--output", "a.png")
    assert picture_files.read_parameters("a.png").extra["Variation seed"] == str(engine.calls[1]["variation_seed"])
    run("txt2img", "x", "--seed", 7, "--output", "a.png")
    assert (
        "variation_seed" not in engine.calls[1] and "Variation seed" not in picture_files.read_parameters("a.png").extra
    )
    assert run("txt2img", "x", "--variation-seed", 5, "--output", "a.png") == 2
    assert "--variation-strength" in capsys.readouterr().err


def test_the_input_picture_is_recorded_and_carried_on_demand(engine, capsys):
    Image.new("RGB", (50, 40)).save("in.png")
    for options, carried in (((), []), (("--embed-inputs",), [Path("in.png").read_bytes()])):
        assert run("img2img", "in.png", "x", "--output", "a.png", *options) == 0
        extra = picture_files.read_parameters("a.png").extra
        assert extra["Input picture"] == "in.png"
        assert extra["Input sha256"] == hashlib.sha256(Path("in.png").read_bytes()).hexdigest()
        assert list(inputs.carried("a.png")) == carried
    assert run("img2img", "in.png", "x", "--output", "b.jpg", "--embed-inputs") == 2
    assert ".png" in capsys.readouterr().err and not Path("b.jpg").exists()


def test_a_new_seed_is_drawn_and_told(engine, capsys):
    seeds = set()
    for _ in range(3):
        run("txt2img", "x", "--output", "a.png")
        seeds.add(picture_files.read_parameters("a.png").seed)
        assert f"(seed {engine.calls[1]['seed']})" in capsys.readouterr().out
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_messages_and_the_bar_go_to_stderr_and_quiet_stops_them(engine, capsys):
    engine.at_step = staticmethod(lambda step: warnings.warn("the prompt\nis long", stacklevel=1))
    run("txt2img", "x", "--output", "a.png")
    told = capsys.readouterr().err
    assert told.count("Loading unet") == 1 and "step 20/20" in told and "left" in told
    assert "note: the prompt is long\n" in told
    run("txt2img", "x", "--output", "a.png", "--quiet")
    assert capsys.readouterr() == ("a.png\n", "")


def test_a_preview_comes_refreshes_and_goes(engine):
    seen = {}

    def look(step):
        seen[step.index] = {name: os.stat(name).st_mtime_ns for name in files()}

    engine.at_step = staticmethod(look)
    assert (
        run("txt2img", "x", "--steps", 9, "--preview", 3, "--n-images", 2, "--batch-size", 2, "--output", "out.png")
        == 0
    )
    assert [list(seen[i]) for i in (3, 4, 9)] == [[], ["out-1.preview.png"], ["out-1.preview.png"]]
    assert seen[4] == seen[6] != seen[7]
    assert files() == ["out-1.png", "out-2.png"]
    assert run("txt2img", "x", "--preview", 1, "--seed", 5, "--output", "folder/") == 0
    assert list(seen[9]) == ["folder/00001-5.preview.png", "out-1.png", "out-2.png"]
    assert files("folder") == ["00001-5.png"]


def test_a_hash_of_a_single_file_is_written(engine):
    Path("m.safetensors").write_bytes(b"one")
    run("txt2img", "x", "--model", "m.safetensors", "--output", "a.png")
    assert picture_files.read_parameters("a.png").model_hash == catalogue.short_hash("m.safetensors")


# --- What goes wrong


@pytest.mark.parametrize(
    "argv",
    [
        ["txt2img"],
        ["txt2img", "x", "--steps", "0"],
        ["txt2img", "x", "--steps", "2.5"],
        ["txt2img", "x", "--cfg", "nan"],
        ["txt2img", "x", "--cfg", "-1"],
        ["txt2img", "x", "--width", "100"],
        ["txt2img", "x", "--seed", "-2"],
        ["txt2img", "x", "--seed", str(2**64)],
        ["txt2img", "x", "--n-images", "0"],
        ["txt2img", "x", "--strength", "0.5"],
        ["img2img", "a.png", "x", "--strength", "1.1"],
        ["paint", "x"],
    ],
)
def test_bad_arguments_exit_with_2_and_quote_the_value(engine, capsys, argv):
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m stable_diffusion") and (len(argv) < 4 or argv[-1] in error)
    assert files() == [] and not hasattr(engine, "calls")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["txt2img", "x", "--sampler", "eulr"], "euler"),
        (["txt2img", "x", "--output", "a.gif"], ".webp"),
        (["txt2img", "x", "--seed", 2**64 - 1, "--n-images", 2], str(2**64 - 1)),
        (["txt2img", "refuse"], "refuse"),
        (["txt2img", "x" * 100_000], "prompt has 100000 characters, more than 20000"),
        (["txt2img", "x", "--negative", "x" * 100_000], "negative has 100000 characters"),
        (["grid", "x" * 100_000, "--x", "steps=1,2", "--output", "grid"], "prompt has 100000 characters"),
        (["grid", "x", "--x", f"prompt_sr=x,{'x' * 100_000}", "--output", "grid"], "characters"),
        (["blend", "x" * 100_000, "y"], "has 100000 characters"),
        (["blend", "x", "y" * 100_000], "has 100000 characters"),
        (["img2img", "missing.png", "x"], "missing.png"),
        (["img2img", "text.png", "x"], "text.png"),
        (["info", "missing.png"], "missing.png"),
        (["info", "text.png"], "text.png"),
        (["info", "bare.png"], "no parameters"),
    ],
)
def test_bad_values_exit_with_2_in_one_line(engine, capsys, argv, said):
    Path("text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save("bare.png")
    assert run(*argv) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("error: ") and said in error and "Traceback" not in captured.err
    assert captured.out == "" and files() == ["bare.png", "text.png"]


@pytest.mark.parametrize(
    "failure",
    [
        CheckpointError("no such thing"),
        DownloadError("two\nlines"),
        WeightsError("cut short"),
        OSError(28, "No space left on device", "a.png"),
        RuntimeError("[malloc] Unable to allocate 99 bytes."),
        ZeroDivisionError("unforeseen"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_cannot_be_done_exits_with_1_and_leaves_nothing(engine, capsys, failure, debug):
    def fail(step):
        if step.index == 5:
            raise failure

    engine.at_step = staticmethod(fail)
    assert run("txt2img", "x", "--preview", 1, "--output", "a.png", *(["--debug"] if debug else [])) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and ("Traceback" in error) == debug
    assert files() == []


def test_a_model_that_is_not_there_exits_with_1(engine, capsys):
    assert run("txt2img", "x", "--model", "postcard-tiny") == 1
    assert "postcards-tiny" in capsys.readouterr().err
    assert files() == []


def test_a_full_disk_is_said_and_the_old_file_stays(engine, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    Path("a.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    assert run("txt2img", "x", "--output", "a.png") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files() == ["a.png"] and Path("a.png").read_bytes() == b"old"


def test_an_output_that_cannot_be_is_said_before_anything_is_loaded(engine, capsys):
    Path("file").touch()
    assert run("txt2img", "x", "--output", "file/below/a.png") == 2
    told = capsys.readouterr().err
    assert "'file/below' cannot be written to (Not a directory): choose another place with --output" in told
    assert not hasattr(engine, "calls")


@pytest.mark.parametrize("where", [(), ("--output", "locked/a.png"), ("--output", "locked/")])
def test_a_read_only_folder_is_said_before_anything_is_loaded(where, engine, capsys, monkeypatch):
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run("txt2img", "x", *where) == 2
    assert "cannot be written to (Permission denied): choose another place with" in capsys.readouterr().err
    assert not hasattr(engine, "calls")


def test_ctrl_c_keeps_what_is_finished_and_nothing_half(engine, capsys):
    def interrupt(step):
        if step.seed == 8 and step.index == 5:
            raise KeyboardInterrupt

    engine.at_step = staticmethod(interrupt)
    assert run("txt2img", "x", "--seed", 7, "--n-images", 3, "--preview", 1, "--output", "a.png") == 130
    assert files() == ["a-1.png"]
    captured = capsys.readouterr()
    assert captured.out == "a-1.png  (seed 7)\n" and captured.err.endswith("interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_real_process_cleanly(tmp_path, number, code):
    program = (
        "import sys, time; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "import stable_diffusion, test_main\n"
        "class Slow(test_main.Engine): at_step = staticmethod(lambda step: time.sleep(0.05))\n"
        "stable_diffusion.StableDiffusion = Slow\n"
        "from stable_diffusion.__main__ import main\n"
        "sys.exit(main(['txt2img', 'x', '--steps', '900', '--preview', '1', '--output', 'a.png']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "a.preview.png").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        error = process.communicate(timeout=30)[1]
    assert process.returncode == code and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


# --- The other commands


def test_models_lists_name_family_size_licence_and_presence(engine, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run("models") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["NAME"].split() == ["NAME", "FAMILY", "PRECISION", "PREDICTS", "SIZE", "HASH", "LICENCE", "STATUS"]
    assert re.search(r"SD 1\.x +24 MB .*embedded$", rows["postcards-tiny"])
    assert re.search(
        r"SDXL +13\.9 GB +CreativeML OpenRAIL\+\+-M +not downloaded$", rows["stabilityai/stable-diffusion-xl-base-1.0"]
    )


def test_info_prints_what_a_picture_carries(engine, capsys):
    parameters = Parameters(
        "two\nlines \x1b[31m", "no", 4, "Euler", seed=5, width=8, height=8, extra={"Clip skip": "2"}
    )
    picture_files.save_picture(np.zeros((8, 8, 3)), "a.jpg", parameters)
    assert run("info", "a.jpg") == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["prompt:", "two"], ["lines", "\ufffd[31m"], ["negative:", "no"]]
    assert ["size:", "8x8"] in lines and ["Clip", "skip:       2"] in lines
    assert run("info", "--json", "a.jpg") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] == parameters.prompt and told["seed"] == 5 and told["extra"] == {"Clip skip": "2"}
    assert "model" not in told


def test_no_command_shows_the_help(capsys):
    assert run() == 2
    assert "examples:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--help"], ["txt2img", "--help"], ["img2img", "--help"], ["upscale", "--help"], ["--version"]]
)
def test_help_is_quick_because_it_loads_no_engine(argv):
    program = (
        f"import sys; from stable_diffusion.__main__ import main\n"
        f"try: main({argv})\n"
        f"finally: assert not {{'mlx.core', 'numpy', 'PIL', 'tqdm', 'huggingface_hub'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stable_diffusion" in done.stdout


def test_every_sampler_and_schedule_is_listed(capsys):
    from stable_diffusion.sampler import SAMPLERS
    from stable_diffusion.schedules import TITLES

    assert run("samplers") == 0
    lines = [re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if len(line) == 3] == [[each.key, each.title] for each in SAMPLERS]
    assert {line[0]: line[1] for line in lines if len(line) == 2} == TITLES
    assert ["dpmpp_2m", "DPM++ 2M", "Karras"] in lines and ["euler", "Euler", "what the model says"] in lines


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m stable_diffusion models | true",
        shell=True, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_it_paints_with_the_embedded_model(tmp_path):
    argv = ["txt2img", "a red house on green hills", "--seed", "3", "--steps", "2", "--quiet", "--output", "a.png"]
    done = subprocess.run(
        [sys.executable, "-m", "stable_diffusion", *argv], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "a.png\n"), done.stderr
    found = picture_files.read_parameters(tmp_path / "a.png")
    assert (found.model, found.seed, found.cfg, found.size) == ("postcards-tiny", 3, 5.0, "128x128")
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 10

"""Every way to make a picture, made again from the picture alone: the same to the last bit, or said why not."""

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import stable_diffusion
from stable_diffusion import __main__ as program
from stable_diffusion import backend, catalogue, pipeline
from stable_diffusion.adapters import files as adapter_files
from stable_diffusion.commands import needs
from stable_diffusion.model_io.convert import convert
from stable_diffusion.record import picture_files
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
from stable_diffusion.service.worker import Worker

from .pretend import wait

PROMPT = "a red house on green hills by day"
FEW = ("--steps", 2, "--width", 32, "--height", 32, "--seed", 7)
SAME = "The same picture, pixel for pixel."


@functools.cache
def engine(model, **options):
    return pipeline.StableDiffusion(model, **options)


def loaded(model="postcards-tiny", progress=None, **options):
    """A model, loaded once for all tests."""
    sd = engine(model, **options)
    sd.set_loras({})
    sd._overlay.folders = adapter_files.folders(adapter_files.LORAS)
    sd._embeddings.folders = adapter_files.folders(adapter_files.EMBEDDINGS)
    return sd


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test stands in a folder of its own, and knows no models but the embedded one."""
    for kind in adapter_files.VARIABLES.values():
        monkeypatch.delenv(kind, raising=False)
    monkeypatch.setattr(catalogue, "model_folders", lambda: [tmp_path / "models"])
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", loaded, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    return program.main([str(each) for each in argv])


def photo(path="photo.png", seed=0, size=(64, 64)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)


def again(capsys, source, *options, output="again.png"):
    """Make it again; return what was said and the pixels, and hold that the two files say the same of themselves."""
    capsys.readouterr()
    assert run("again", source, "--output", output, *options) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert picture_files.read_parameters(output) == picture_files.read_parameters(source)
    return said


def differs(one, other):
    return not np.array_equal(*(np.asarray(Image.open(each).convert("RGB")) for each in (one, other)))


# --- Text to image


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--sampler", "euler_a", "--cfg", 3.3333333333333335),
        ("--sampler", "dpmpp_2m_sde_karras", "--negative", "clouds, -rain\nNegative prompt: x"),
        ("--sampler", "lcm", "--cfg", 1),
        ("--sampler", "pndm", "--prediction-type", "epsilon"),
        ("--float16",),
        ("--bits", 8),
        ("--clip-skip", 2),
        ("--guidance-rescale", 0.7),
        ("--guidance-start", 0.25, "--steps", 3),
        ("--guidance-end", 0.5),
        ("--deepcache-interval", 2),
        ("--deepcache-interval", 2, "--deepcache-branch", 3),
        ("--guidance-min-sigma", 1.25, "--steps", 3),
        ("--variation-seed", 3, "--variation-strength", 0.3),
        ("--variation-strength", 0.1, "--sampler", "euler_a"),
    ],
    ids=lambda options: " ".join(map(str, options))[:30] or "plain",
)
def test_text_to_image(capsys, options):
    assert run("txt2img", PROMPT, *FEW, "--output", "a.png", *options) == 0
    assert again(capsys, "a.png") == SAME
    assert not differs("a.png", "again.png")
    if options:
        steps = options[-2:] if "--steps" in options else ()
        run("txt2img", PROMPT, *FEW, "--output", "plain.png", *steps)
        plainly = options == ("--sampler", "pndm", "--prediction-type", "epsilon")
        assert plainly or differs("a.png", "plain.png")  # what the options say was needed


def test_prompts_in_plain_language(capsys):
    told = ("txt2img", "a (blue:1.5) house", *FEW, "--output")
    run(*told, "a.png", "--prompt-language", "plain")
    assert again(capsys, "a.png") == SAME and not differs("a.png", "again.png")
    run(*told, "plain.png")
    assert differs("a.png", "plain.png")


@pytest.mark.parametrize(
    "prompt", ["-x", "--steps", "", "a, b: c\nSteps: 3, Sampler: x", "größer 猫", "(a:1.3) [b] AND c"]
)
def test_any_prompt(capsys, prompt):
    assert run("txt2img", *FEW, "--output", "a.png", "--", prompt) == 0
    assert again(capsys, "a.png") == SAME


@pytest.mark.parametrize("options", [(), ("--variation-seed", 20, "--variation-strength", 0.2)])
def test_one_of_a_batch(capsys, options):
    """The batch is made again whole: a picture's last bit may depend on it."""
    run("txt2img", PROMPT, *FEW, "--n-images", 3, "--batch-size", 2, "--output", "a.png", *options)
    for i in (1, 2, 3):
        assert again(capsys, f"a-{i}.png") == SAME
        assert not differs(f"a-{i}.png", "again.png")
    assert differs("a-1.png", "a-2.png")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_picture_that_lost_something_by_its_format(capsys, suffix):
    run("txt2img", PROMPT, *FEW, "--output", f"a{suffix}")
    assert again(capsys, f"a{suffix}") == SAME
    assert again(capsys, f"a{suffix}", output=f"again{suffix}") == SAME


def test_a_picture_may_take_its_own_place(capsys):
    run("txt2img", PROMPT, *FEW, "--output", "a.png")
    before = Path("a.png").read_bytes()
    assert again(capsys, "a.png", output="a.png") == SAME
    assert Path("a.png").read_bytes() == before


# --- From pictures


def test_an_input_picture_found_by_its_name(capsys):
    photo("in/photo.png")
    run("img2img", "in/photo.png", PROMPT, *FEW, "--strength", 0.7, "--output", "a.png")
    assert again(capsys, "a.png") == SAME
    os.mkdir("elsewhere")
    shutil.move("a.png", "elsewhere/a.png")
    shutil.move("in/photo.png", "elsewhere/photo.png")
    assert again(capsys, "elsewhere/a.png") == SAME


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_input_picture_of_another_shape(capsys, fit):
    photo(size=(90, 40))
    run("img2img", "photo.png", PROMPT, *FEW, "--fit", fit, "--strength", 0.5, "--output", "a.png")
    assert again(capsys, "a.png") == SAME
    run("img2img", "photo.png", PROMPT, *FEW, "--strength", 0.5, "--output", "cropped.png")
    assert differs("a.png", "cropped.png") == (fit != "crop")


def test_an_input_picture_given_again(capsys):
    photo()
    run("img2img", "photo.png", PROMPT, *FEW, "--output", "a.png")
    os.rename("photo.png", "renamed.png")
    assert run("again", "a.png", "--output", "again.png") == 2
    error = capsys.readouterr().err
    assert "photo.png" in error and "--picture" in error and not Path("again.png").exists()
    capsys.readouterr()
    assert run("again", "a.png", "--output", "again.png", "--picture", "renamed.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    photo("other.png", seed=1)
    assert run("again", "a.png", "--output", "other-again.png", "--picture", "other.png") == 2
    error = capsys.readouterr().err
    for path in ("renamed.png", "other.png"):
        assert InputFile.read(path).sha256 in error
    assert run("again", "a.png", "--output", "other-again.png", "--picture", "other.png", "--force") == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("Not quite the same")


def test_an_input_picture_inside_the_picture(capsys):
    photo()
    run("img2img", "photo.png", PROMPT, *FEW, "--embed-inputs", "--output", "a.png")
    os.remove("photo.png")
    assert again(capsys, "a.png") == SAME
    os.remove("a.png")
    assert again(capsys, "again.png", output="b.png") == SAME  # it is carried on
    assert run("again", "again.png", "--output", "b.jpg") == 0


# --- A part of a picture


def mask(path="mask.png", size=(64, 64)):
    """White in the middle, with a transparent border, as painting programs have it."""
    image = Image.new("RGBA", size)
    image.paste("black", (4, 4, size[0] - 4, size[1] - 4))
    image.paste("white", (20, 20, 40, 40))
    image.save(path)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--strength", 0.5, "--masked-content", "fill", "--mask-blur", 2.5),
        ("--strength", 0.5, "--masked-content", "noise", "--invert"),
        ("--only-masked", "--padding", 5, "--n-images", 2, "--batch-size", 2),
        ("--variation-strength", 0.2, "--sampler", "euler_a"),
    ],
    ids=lambda options: " ".join(map(str, options))[:30] or "plain",
)
@pytest.mark.parametrize("embedded", [False, True])
def test_inpainting(capsys, options, embedded):
    photo(size=(72, 56))
    mask(size=(72, 56))
    inputs = ("--embed-inputs",) if embedded else ()
    assert run("inpaint", "photo.png", "mask.png", PROMPT, *FEW, "--output", "a.png", *options, *inputs) == 0
    if embedded:
        os.remove("photo.png"), os.remove("mask.png")
    made = "a-2.png" if "--n-images" in options else "a.png"
    assert again(capsys, made) == SAME
    assert Image.open("again.png").size == (72, 56)


def test_a_mask_given_again(capsys):
    photo()
    mask()
    run("inpaint", "photo.png", "mask.png", PROMPT, *FEW, "--output", "a.png")
    os.rename("mask.png", "renamed.png")
    assert run("again", "a.png", "--output", "b.png") == 2
    error = capsys.readouterr().err
    assert "The mask 'mask.png'" in error and "--mask FILE" in error
    assert run("again", "a.png", "--output", "b.png", "--mask", "renamed.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    assert run("again", "a.png", "--output", "c.png", "--mask", "photo.png") == 2
    assert "is not the mask that was used" in capsys.readouterr().err


@pytest.mark.parametrize("embedded", [False, True])
def test_outpainting(capsys, embedded):
    photo()
    inputs = ("--embed-inputs",) if embedded else ()
    sides = ("--left", 16, "--bottom", 24, "--masked-content", "fill", "--strength", 0.9)
    run("outpaint", "photo.png", PROMPT, *FEW, *sides, "--output", "a.png", *inputs)
    if embedded:
        os.remove("photo.png")
    assert again(capsys, "a.png") == SAME
    assert Image.open("again.png").size == (80, 88)


# --- Blends


@pytest.mark.parametrize(
    "options", [(), ("--to-seed", 8, "--prompt-language", "plain"), ("--to-seed", 8, "--sampler", "euler_a")]
)
def test_each_frame_of_a_blend_and_all_of_them(capsys, options):
    run("blend", PROMPT, "a boat at night", "--frames", 3, *FEW, *options, "--keep-frames", "--output", "b.png")
    for name in ("b-1.png", "b-2.png", "b-3.png", "b.png"):
        assert again(capsys, name) == SAME
        assert not differs(name, "again.png")


def test_a_blend_of_seeds_as_a_gif(capsys):
    run("blend", PROMPT, "--to-seed", 8, "--frames", 3, "--fps", 4, *FEW, "--output", "b.gif")
    assert again(capsys, "b.gif", output="again.gif") == SAME
    assert Path("b.gif").read_bytes() == Path("again.gif").read_bytes()
    assert run("again", "b.gif") == 0
    assert Path("outputs/b-again.gif").is_file()


# --- What the page makes


@pytest.mark.parametrize("kind", ["text", "variation", "picture", "mask"])
def test_a_picture_of_the_page(capsys, monkeypatch, kind):
    photo(size=(72, 40))
    file = InputFile.read("photo.png")
    white = Image.new("L", (72, 40))
    white.paste(255, (20, 10, 40, 30))
    asked = {
        "text": {},
        "variation": {"variation_strength": 0.2, "n_images": 2, "clip_skip": 2},
        "picture": {"picture": file.open(), "picture_file": file, "fit": "pad", "strength": 0.5},
        "mask": {"picture": file.open(), "mask": white, "invert": True, "only_masked": True},
    }[kind]
    with monkeypatch.context() as patched:  # what belongs to the worker's thread is loaded there
        patched.setattr(stable_diffusion, "StableDiffusion", pipeline.StableDiffusion)
        worker = Worker(Path("outputs"))
        job = worker.submit(Request(PROMPT, negative="clouds", steps=2, width=32, height=32, seed=7, **asked))
        wait(lambda: not job.active, 60)
        worker.close()
    assert job.error is None or not job.error
    for picture in job.pictures:
        assert again(capsys, picture.path) == SAME


# --- What it needs


def test_the_vae_is_found_and_compared(capsys, folder):
    vae = Path(catalogue.__file__).parent / "checkpoints/postcards-tiny/vae"
    shutil.copytree(vae, "my-vae")
    run("txt2img", PROMPT, *FEW, "--vae", "my-vae", "--output", "a.png")
    assert again(capsys, "a.png") == SAME
    os.makedirs("models/VAE")
    shutil.move("my-vae", "models/VAE/my-vae")
    assert again(capsys, "a.png") == SAME
    assert run("txt2img", PROMPT, *FEW, "--vae", "my-vae", "--output", "named.png") == 0
    assert picture_files.read_parameters("named.png") == picture_files.read_parameters("a.png")
    shutil.move("models/VAE/my-vae", "other")
    assert run("again", "a.png") == 1
    assert "'my-vae'" in capsys.readouterr().err
    assert run("again", "a.png", "--vae", "other", "--output", "again.png") == 0


def test_loras_are_found_and_compared(capsys, folder, monkeypatch):
    from .test_lora import lora

    os.mkdir("mine")
    file = lora(folder / "mine" / "a, deep: one.safetensors", sd=loaded(float16=False))
    run("txt2img", PROMPT, *FEW, "--lora", f"{file}:0.3333333333333333", "--output", "a.png")
    assert picture_files.read_parameters("a.png").extra["LoRA"] == "a, deep: one:0.3333333333333333"
    assert run("again", "a.png") == 1
    assert "a, deep: one" in capsys.readouterr().err
    assert run("again", "a.png", "--lora", file, "--output", "again.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder / "mine"))
    assert again(capsys, "a.png") == SAME
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert run("again", "a.png") == 2
    error = capsys.readouterr().err
    assert "its hash is" in error and "--force" in error
    assert run("again", "a.png", "--force", "--output", "again.png") == 0


def test_loras_of_one_name_are_told_apart(capsys, folder, monkeypatch):
    from .test_lora import CONV, LINEAR, lora

    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder))
    for name, layer in (("people", LINEAR), ("things", CONV)):
        os.mkdir(name)
        lora(folder / name / "face.safetensors", (layer,), sd=loaded(float16=False))
    assert run("txt2img", f"{PROMPT} <lora:face>", *FEW, "--output", "a.png") == 1
    assert "'face' may be any of people/face, things/face" in capsys.readouterr().err
    run("txt2img", f"{PROMPT} <lora:people/face:0.8>", "--lora", "things/face:0.5", *FEW, "--output", "a.png")
    said = picture_files.read_parameters("a.png").extra
    assert said["LoRA"] == "things/face:0.5"
    assert [pair.split(": ")[0] for pair in said["Lora hashes"].split(", ")] == ["things/face", "people/face"]
    assert again(capsys, "a.png") == SAME
    run("txt2img", PROMPT, "--lora", "people/face:0.8", *FEW, "--output", "b.png")
    assert again(capsys, "b.png", output="b-again.png") == SAME
    assert differs("a.png", "b.png")
    shutil.rmtree("things")
    assert run("again", "b.png", "--output", "c.png") == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME
    assert picture_files.read_parameters("c.png").extra["LoRA"] == "face:0.8"  # now alone of its name


def test_what_a_prompt_names_is_compared(capsys, folder, monkeypatch):
    from .test_lora import lora

    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder))
    file = lora(folder / "deep.safetensors", sd=loaded(float16=False))
    run("txt2img", f"{PROMPT} <lora:deep:0.8>", *FEW, "--output", "a.png")
    assert again(capsys, "a.png") == SAME
    file.rename("other.safetensors")
    assert run("again", "a.png") == 1
    assert "no LoRA 'deep'" in capsys.readouterr().err


def test_embeddings_are_recorded_and_compared(capsys, folder, monkeypatch):
    from safetensors.numpy import save_file

    width = loaded(float16=False).encode_text("x").shape[-1]
    monkeypatch.setenv("STABLE_DIFFUSION_EMBEDDINGS", str(folder))
    save_file({"emb_params": np.ones((2, width), np.float32)}, "style.safetensors")
    run("txt2img", f"{PROMPT}, style", *FEW, "--output", "a.png")
    assert picture_files.read_parameters("a.png").extra["TI hashes"].startswith("style: ")
    assert again(capsys, "a.png") == SAME
    save_file({"emb_params": np.zeros((2, width), np.float32)}, "style.safetensors")
    assert run("again", "a.png") == 2
    assert "the embedding 'style'" in capsys.readouterr().err


def test_a_model_by_its_hash_its_name_or_given(capsys, folder, monkeypatch):
    os.mkdir("models")
    for name, content in (("one", b"1"), ("two", b"2")):
        Path("models", f"{name}.safetensors").write_bytes(content)
    one, two = (str(folder / "models" / f"{name}.safetensors") for name in ("one", "two"))
    monkeypatch.setattr(
        catalogue, "from_file", lambda path, name=None: catalogue.Model(name, "local", str(path), Path(path).stem)
    )
    hashes = {path: catalogue.short_hash(path) for path in (one, two)}
    assert needs.model("one", hashes[one]).source == one
    assert needs.model("renamed since", hashes[two]).source == two
    assert needs.model("one", None).source == one
    assert needs.model("one", "1234abcd").source == one  # A1111's old hash, of something else
    assert needs.model("postcards-tiny", None).source == "postcards-tiny"
    with pytest.raises(needs.CheckpointNotFoundError, match=r"'one' \(hash 0123456789\).*--model"):
        needs.model("one", "0123456789")
    with pytest.raises(needs.CheckpointNotFoundError, match=r"'none such'.*--model"):
        needs.model("none such", None)


@pytest.mark.parametrize("name", ["somebody/their-model", "./here", "here/below", str(Path.cwd())])
def test_a_strangers_word_is_not_enough_to_load_from_anywhere(name):
    os.makedirs("here/below")
    with pytest.raises(needs.CheckpointNotFoundError, match="--model"):
        needs.model(name, None)
    with pytest.raises(needs.CheckpointNotFoundError, match="--vae"):
        needs.vae("somebody/their-vae", None, "a.png")
    Path("evil.safetensors").write_bytes(b"x")
    with pytest.raises(needs.CheckpointNotFoundError, match="no LoRA"):
        needs.loras(f"{Path('evil.safetensors').resolve()}:1", {}, [])


def test_another_model_is_said(capsys):
    parameters = Parameters(PROMPT, "", 2, "Euler", None, 5, 7, 64, 64, "aaaaaaaaaa", "a model of mine")
    picture_files.save_picture(np.zeros((64, 64, 3)), "a.png", parameters)
    assert run("again", "a.png") == 1
    error = capsys.readouterr().err
    assert "'a model of mine' (hash aaaaaaaaaa)" in error and "--model" in error
    assert run("again", "a.png", "--model", "postcards-tiny", "--output", "b.png") == 0
    error = capsys.readouterr().err
    assert "made with the model 'a model of mine', now with 'postcards-tiny'" in error
    assert "will only be similar" in error and "Not quite the same" in error
    assert backend.version() in error


# --- Pictures of others, and what goes wrong


def test_a_picture_of_a1111(capsys):
    text = (
        f"{PROMPT}\nNegative prompt: clouds\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, "
        "Seed: 7, Size: 64x64, Model hash: 1234abcd, Model: postcards-tiny, VAE hash: 0123456789, Clip skip: 1, "
        "Face restoration: CodeFormer, Version: v1.10.1"
    )
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save("theirs.png", pnginfo=info)
    assert run("again", "theirs.png", "--output", "ours.png") == 0
    error = capsys.readouterr().err
    assert "made by another program" in error and "ignored: Face restoration" in error
    ours = picture_files.read_parameters("ours.png")
    assert (ours.sampler, ours.schedule, ours.seed, ours.negative) == ("DPM++ 2M", "Karras", 7, "clouds")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": None, "cfg": None}, "does not record its seed, cfg"),
        ({"sampler": "DPM fast"}, "DPM fast"),
        ({"strength": 0.5}, "--picture"),
        ({"width": 100}, "100"),
        ({"steps": 99999}, "99999"),
        ({"extra": {"Bits": "3"}}, "Bits '3' was not understood"),
        ({"extra": {"Blend share": "nan"}}, "nan"),
        ({"extra": {"Variation seed": "-5", "Variation seed strength": "0.5"}}, "'-5'"),
        ({"extra": {"Input sha256": "abc", "Input picture": "../../secret.png"}}, "is not inside the picture"),
    ],
)
def test_what_a_picture_says_wrongly_is_refused_in_a_line(capsys, change, said):
    values = {"prompt": PROMPT, "steps": 2, "sampler": "Euler", "cfg": 5.0, "seed": 7, "width": 64, "height": 64}
    picture_files.save_picture(
        np.zeros((64, 64, 3)), "a.png", Parameters(**{**values, "model": "postcards-tiny", **change})
    )
    assert run("again", "a.png", "--output", "b.png") == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and "unexpected" not in error and not Path("b.png").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("none.png", "none.png"), ("text.png", "text.png"), ("bare.png", "no parameters")]
)
def test_what_is_no_picture_or_says_nothing(capsys, name, said):
    Path("text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save("bare.png")
    assert run("again", name) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_said_can_be_forced(capsys):
    picture_files.save_picture(np.zeros((64, 64, 3)), "a.png", Parameters(PROMPT, steps=2, width=64, height=64))
    assert run("again", "a.png", "--model", "postcards-tiny", "--force", "--output", "b.png") == 0
    assert picture_files.read_parameters("b.png").cfg == 5.0


def test_the_command_is_shown_and_nothing_made(capsys):
    run("txt2img", "it's -- a cat", *FEW, "--cfg", 2.5, "--output", "a.png")
    capsys.readouterr()
    assert run("again", "a.png", "--show") == 0
    assert capsys.readouterr().out == (
        "python -m stable_diffusion txt2img --steps=2 --cfg=2.5 --seed=7 --width=32 --height=32 --sampler=euler "
        "--model=postcards-tiny --no-float16 -- 'it'\"'\"'s -- a cat'\n"
    )
    assert sorted(os.listdir()) == ["a.png"]


# --- A refiner


def test_a_refiner(capsys, folder):
    (folder / "models").mkdir()
    convert("postcards-tiny", folder / "models" / "second")
    few = ("--steps", 4, "--width", 32, "--height", 32, "--seed", 7, "--output", "a.png")
    assert run("txt2img", PROMPT, *few, "--refiner", "second", "--refiner-switch", 0.4) == 0
    extra = picture_files.read_parameters("a.png").extra
    assert (extra["Refiner"], extra["Refiner switch at"]) == ("second", "0.4")
    assert again(capsys, "a.png") == SAME
    (folder / "models" / "second").rename(folder / "models" / "third")
    assert run("again", "a.png") == 1
    said = capsys.readouterr().err
    assert "'second' is not here" in said and "give one with --refiner" in said
    assert run("again", "a.png", "--refiner", "third", "--output", "again.png") == 0


def test_an_absent_refiner_is_named_with_its_hash(capsys, folder):
    made = Parameters(PROMPT, steps=2, sampler="Euler", cfg=5.0, seed=7, width=32, height=32, model="postcards-tiny")
    made.extra["Refiner"] = "gone [0123456789]"
    picture_files.save_picture(Image.new("RGB", (32, 32)), "a.png", made)
    assert run("again", "a.png") == 1
    assert "'gone' (hash 0123456789) is not here" in capsys.readouterr().err


# --- Strength 0


def test_a_picture_that_nothing_may_change(capsys):
    photo(size=(80, 64))
    photo("mask.png", size=(80, 64), seed=1)
    for command in (["img2img", "photo.png"], ["inpaint", "photo.png", "mask.png"]):
        assert run(*command, PROMPT, *FEW, "--strength", 0, "--output", "a.png") == 0
        assert again(capsys, "a.png") == SAME
    assert not differs("a.png", "photo.png"), "under a mask it keeps its size"
    assert run("img2img", "photo.png", PROMPT, *FEW, "--strength", 0.1, "--output", "b.png") == 2
    assert "leaves none of 2 steps" in capsys.readouterr().err


# --- No record


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_without_a_record_a_file_says_nothing_of_itself(capsys, suffix):
    photo()
    photo("mask.png", seed=1)
    commands = (["txt2img"], ["img2img", "photo.png"], ["inpaint", "photo.png", "mask.png"])
    for command in commands:
        assert run(*command, PROMPT, *FEW, "--no-record", "--output", f"a.{suffix}") == 0
        data = Path(f"a.{suffix}").read_bytes()
        assert picture_files.read_text(f"a.{suffix}") is None
        assert not any(
            word.encode(code) in data for word in ("house", "Euler", "photo") for code in ("utf-8", "utf-16-be")
        )
    assert run("again", f"a.{suffix}") == 2
    assert "carries no parameters" in capsys.readouterr().err


def test_without_a_record_strips_and_folders_too(folder, capsys):
    assert (
        run("blend", PROMPT, "a blue tent", *FEW, "--frames", 2, "--no-record", "--keep-frames", "--output", "a.gif")
        == 0
    )
    assert run("txt2img", PROMPT, *FEW, "--n-images", 2, "--no-record", "--output", "many/") == 0
    found = [Path("a.gif"), *folder.glob("a-*.png"), *folder.glob("many/*.png")]
    assert len(found) == 5 and not any(b"house" in path.read_bytes() for path in found)
    photo()
    assert run("img2img", "photo.png", PROMPT, *FEW, "--no-record", "--embed-inputs", "--output", "b.png") == 2
    assert "--embed-inputs" in capsys.readouterr().err

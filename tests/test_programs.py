"""Records of other programs: what they say is read, and what is not understood is never taken for a prompt."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from stable_diffusion.__main__ import main
from stable_diffusion.errors import PictureError
from stable_diffusion.pictures import exif
from stable_diffusion.record import picture_files, reading
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import read_record

PICTURES = Path(__file__).with_name("pictures")
LAKE, MILL = "a red mill by a lake", "a red mill"
FULL = Parameters(LAKE, "fog, rain", 22, "DPM++ 2M", "Karras", 6.5, 4031, 512, 640, "0123456789", "lakeMix_v3")
COMFY = Parameters(LAKE, "fog", 22, "DPM++ 2M", "Karras", 6.5, 4031, 512, 640, None, "lakeMix_v3")
WILDCARD = {"Wildcard prompt": "a __colour__ mill\nby a __water__"}
NEWLINE = Parameters(MILL, "fog", 20, "Euler a", None, 7.0, 11, 512, 512, None, "lakeMix_v3", extra=WILDCARD)
SDNEXT = {"Parser": "Full parser", "Clip skip": "2", "Version": "aa62f6d"}
MADE = {
    "comfy.png": ("ComfyUI", COMFY),
    "comfy.webp": ("ComfyUI", COMFY),
    "invoke.png": ("InvokeAI", Parameters(MILL, "fog", 30, "Euler", None, 7.5, 4031, 512, 512, None, "lakeMix")),
    "invoke_old.png": ("InvokeAI", Parameters(MILL, "fog", 30, "Euler", None, 7.5, 4031, 512, 512)),
    "novelai.png": ("NovelAI", Parameters(MILL, "fog", 28, "Euler", None, 11.0, 4031)),
    "easydiffusion.png": (
        "Easy Diffusion",
        Parameters(MILL, "fog", 25, "Euler", None, 7.5, 4031, 512, 512, None, "lakeMix"),
    ),
    "swarm.jpg": ("SwarmUI", Parameters(LAKE, "fog", 22, "Euler", None, 6.5, 4031, 512, 512, None, "lakeMix")),
    "fooocus.png": (
        "Fooocus",
        Parameters(
            MILL, "fog", 30, "DPM++ 2M SDE", "Karras", 4.0, 4031, 1152, 896, "0123456789", "lakeMixXL",
            extra={"LoRA": "water:0.5"},
        ),
    ),
    "sdnext.png": (
        "",
        Parameters(MILL, "fog", 25, "Euler a", None, 7.0, 4031, 768, 512, "4199bcdd14", "lakeMix", extra=SDNEXT),
    ),
    "single_line_1.png": ("", FULL),
    "single_line_3.png": ("", FULL),
    "comment.png": ("", FULL),
    "description.png": ("", FULL),
    "newline_extra.png": ("", Parameters(**{**vars(NEWLINE), "extra": WILDCARD | {"Version": "v1.6.0"}})),
    "newline_extra_quoted.png": ("", NEWLINE),
}  # fmt: skip


def saved(path, texts):
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text if isinstance(text, str) else json.dumps(text))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("name", MADE)
def test_every_program_is_read(name):
    program, expected = MADE[name]
    record = reading.read(PICTURES / name)
    assert (record.program, record.parameters) == (program, expected)
    assert picture_files.read_parameters(PICTURES / name) == expected
    assert reading.of_text(record.text) == record, "the gallery keeps the text alone"
    found, _ = read_record(expected)
    assert found["sampler"].startswith(("euler", "dpmpp_2m")), "a sampler that is here"


def test_a1111s_second_pass_is_read_whole():
    found = picture_files.read_parameters(PICTURES / "hires.png")
    assert (found.prompt, found.negative) == ("mill, <lora:water_v2:0.6>", "fog")
    assert (found.model, found.strength) == ("lakeMix_v3", 0.45)
    assert found.extra["ADetailer prompt"] == 'face, "smile": happy'
    assert found.extra["Hires upscaler"] == "4x-UltraSharp"


# --- Graphs of ComfyUI that people make


def graph(**nodes):
    return {
        name.lstrip("n"): {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()
    }  # fmt: skip


def read_graph(nodes):
    record = reading.of_texts({"prompt": json.dumps(nodes), "workflow": "{}"})
    assert record.program == "ComfyUI"
    return record.parameters


def test_a_second_pass_is_not_the_first():
    sampler = {"steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "model": ["10", 0]}
    sampler |= {"positive": ["6", 0], "negative": ["7", 0]}
    found = read_graph(graph(
        n1=("SaveImage", {"images": ["2", 0]}),
        n2=("VAEDecode", {"samples": ["3", 0], "vae": ["11", 2]}),
        n3=("KSampler", {**sampler, "seed": 5, "steps": 9, "denoise": 0.5, "latent_image": ["4", 0]}),
        n4=("LatentUpscale", {"width": 1024, "height": 1024, "samples": ["5", 0]}),
        n5=("KSampler", {**sampler, "seed": ["12", 0], "denoise": 1.0, "latent_image": ["9", 0]}),
        n6=("CLIPTextEncode", {"text": ["13", 0], "clip": ["10", 1]}),
        n7=("CLIPTextEncode", {"text": "fog", "clip": ["10", 1]}),
        n9=("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
        n10=("LoraLoader", {"lora_name": "sub/water.safetensors", "strength_model": 0.6, "strength_clip": 1.0,
                            "model": ["11", 0], "clip": ["11", 1]}),
        n11=("CheckpointLoaderSimple", {"ckpt_name": "folder\\lakeMix.safetensors"}),
        n12=("PrimitiveInt", {"value": 77}),
        n13=("StringConcatenate", {"string_a": LAKE, "string_b": "", "delimiter": ","}),
    ))  # fmt: skip
    assert found == Parameters(
        LAKE, "fog", 20, "Euler", "Normal", 7.0, 77, 512, 768, None, "lakeMix", extra={"LoRA": "water:0.6"}
    )


def test_a_sampler_in_parts():
    found = read_graph(graph(
        n1=("SaveImage", {"images": ["2", 0]}),
        n2=("VAEDecode", {"samples": ["3", 0], "vae": ["11", 2]}),
        n3=("SamplerCustomAdvanced", {"noise": ["4", 0], "guider": ["5", 0], "sampler": ["6", 0], "sigmas": ["7", 0],
                                      "latent_image": ["8", 0]}),
        n4=("RandomNoise", {"noise_seed": 99}),
        n5=("CFGGuider", {"cfg": 3.5, "model": ["11", 0], "positive": ["9", 0], "negative": ["9", 1]}),
        n6=("KSamplerSelect", {"sampler_name": "dpmpp_2m_sde_gpu"}),
        n7=("BasicScheduler", {"scheduler": "karras", "steps": 12, "denoise": 0.4, "model": ["11", 0]}),
        n8=("EmptySD3LatentImage", {"width": 832, "height": 1216, "batch_size": 1}),
        n9=("ControlNetApplyAdvanced", {"positive": ["12", 0], "negative": ["13", 0], "image": ["14", 0]}),
        n11=("UNETLoader", {"unet_name": "big.gguf"}),
        n12=("ConditioningCombine", {"conditioning_1": ["15", 0], "conditioning_2": ["16", 0]}),
        n13=("ConditioningZeroOut", {"conditioning": ["15", 0]}),
        n14=("LoadImage", {"image": "photo.png"}),
        n15=("CLIPTextEncodeSDXL", {"text_g": "a mill", "text_l": "a mill", "width": 1024, "height": 1024}),
        n16=("CLIPTextEncode", {"text": "a lake"}),
    ))  # fmt: skip
    assert found == Parameters(
        "a mill\na lake", "", 12, "DPM++ 2M SDE", "Karras", 3.5, 99, 832, 1216, None, "big", strength=0.4
    )


def test_a_graph_in_circles_or_of_nonsense_ends():
    circle = graph(n1=("KSampler", {"positive": ["1", 0], "negative": ["1", 0], "steps": ["1", 0], "seed": ["1", 0],
                                    "latent_image": ["1", 0], "model": ["1", 0]}))  # fmt: skip
    assert read_graph(circle).prompt == ""
    for nodes in (graph(n1=("SaveImage", {"images": ["7", 0]})), {"1": {"class_type": "KSampler"}}, {"1": 5}, {}):
        record = reading.of_texts({"prompt": json.dumps(nodes)})
        assert record.parameters is None and "prompt" in record.text


# --- Programs' other forms


def test_invokeai_before_version_3():
    image = {"prompt": [{"prompt": "a red mill [fog] by a lake [rain]", "weight": 1}], "steps": 30, "cfg_scale": 7.5,
             "seed": 4031, "width": 512, "height": 640, "sampler": "k_dpmpp_2m"}  # fmt: skip
    texts = {"sd-metadata": json.dumps({"model_weights": "lakeMix", "image": image}), "Dream": "nothing"}
    assert reading.of_texts(texts).parameters == Parameters(
        LAKE, "fog, rain", 30, "DPM++ 2M", None, 7.5, 4031, 512, 640, None, "lakeMix"
    )


def test_novelai_4():
    said = {"prompt": "a mill", "steps": 28, "height": 1216, "width": 832, "scale": 5.5, "seed": 1, "uc": "fog",
            "sampler": "k_euler_ancestral", "noise_schedule": "karras", "request_type": "Img2ImgRequest",
            "strength": 0.4, "v4_prompt": {"caption": {"char_captions": [{"char_caption": "a miller"}]}}}  # fmt: skip
    texts = {"Software": "NovelAI", "Source": "NovelAI Diffusion V4 37442FCA", "Comment": json.dumps(said)}
    assert reading.of_texts(texts).parameters == Parameters(
        "a mill\na miller", "fog", 28, "Euler a", "Karras", 5.5, 1, 832, 1216, "37442fca", "NovelAI Diffusion V4", 0.4
    )


def test_easy_diffusion_in_a_jpeg(tmp_path):
    said = {"Prompt": MILL, "Negative Prompt": "fog", "Seed": 4031, "Steps": 25, "Guidance Scale": 7.5, "Width": 512,
            "Height": 512, "Sampler": "dpmpp_2m", "Stable Diffusion model": "a/lakeMix"}  # fmt: skip
    block = exif.with_comment(b"UNICODE\0" + json.dumps(said).encode("utf-16-be"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=block)
    record = reading.read(tmp_path / "a.jpg")
    assert record.program == "Easy Diffusion" and record.parameters.sampler == "DPM++ 2M"
    assert record.parameters.model == "lakeMix" and record.parameters.cfg == 7.5


def test_a_record_in_xmp(tmp_path):
    text = "a mill &amp; a lake\nSteps: 5, Sampler: Euler, Seed: 1"
    xmp = f"<x:xmpmeta><exif:UserComment><rdf:Alt><rdf:li>{text}</rdf:li></rdf:Alt></exif:UserComment></x:xmpmeta>"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", xmp=xmp.encode())
    assert picture_files.read_parameters(tmp_path / "a.webp").prompt == "a mill & a lake"


# --- What is not understood


OTHERS = [
    {"parameters": '{"what": "is this"}'},
    {"parameters": '{"prompt": "a mill", "cut": "off he'},
    {"parameters": '[{"prompt": "a mill"}]'},
    {"workflow": '{"nodes": [1]}'},
    {"prompt": '{"1": {"class_type": "Unknown", "inputs": {}}}', "workflow": "{}"},
    {"invokeai_metadata": '{"app_version": "9"}'},
    {"Dream": "no quotes"},
]


@pytest.mark.parametrize("texts", OTHERS)
def test_what_is_not_understood_is_shown_as_it_is(tmp_path, capsys, texts):
    path = saved(tmp_path / "a.png", texts)
    record = reading.read(path)
    assert record.parameters is None and reading.of_text(record.text) == record
    assert record.text in texts.values() or json.loads(record.text) == texts
    with pytest.raises(PictureError, match="not understood"):
        picture_files.read_parameters(path)
    assert main(["info", str(path)]) in (None, 0)
    assert "not understood" in capsys.readouterr().out
    main(["info", "--json", str(path)])
    assert json.loads(capsys.readouterr().out) == {"not_understood": record.text}


def test_info_names_the_program(capsys):
    main(["info", str(PICTURES / "comfy.png")])
    assert "made with:       ComfyUI" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_a_format_without_records_has_none(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}")
    assert reading.read(tmp_path / f"a{suffix}") is None


@pytest.mark.parametrize("texts", [{"Comment": "Created with GIMP"}, {"Description": "my holiday"}, {"Title": "{}"}])
def test_other_texts_are_no_record(tmp_path, texts):
    assert reading.read(saved(tmp_path / "a.png", texts)) is None


def test_a_prompt_that_looks_like_json_stays_a_prompt():
    for prompt in ('{"a": 1}', "[[red]] house", "{blue|red} mill", '{"red"', '[{"a": 1}]'):
        made = Parameters(prompt, steps=3, seed=1)
        assert reading.of_text(made.to_text()).parameters == made
    assert reading.of_text("{blue|red} mill").parameters == Parameters("{blue|red} mill")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["prompt", "class_type", "inputs", "sui_image_params", "base_model", "loras", "seed", "model",
                         "steps", "Steps", "image", "positive", "negative", "latent_image", "text", "uc"]), inner
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = ("parameters", "UserComment", "Comment", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Software")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON.map(json.dumps) | st.just("NovelAI") | st.text(max_size=20)))
def test_no_text_breaks_a_reader(texts):
    record = reading.of_texts(texts)
    if record is not None and record.parameters is not None:
        assert record.parameters.prompt not in [text for text in texts.values() if text.startswith(("{", "["))]
        record.parameters.to_text()


# --- A1111's form, as people pass it on


@pytest.mark.parametrize("parting", [" ", ", ", ". "])
def test_blanks_in_place_of_newlines(parting):
    settings_line = "Steps: 22, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4031, Size: 512x640"
    one_line = parting.join(["a mill, at night", "Negative prompt: fog, rain", settings_line])
    expected = Parameters("a mill, at night", "fog, rain", 22, "DPM++ 2M", "Karras", 6.5, 4031, 512, 640)
    assert Parameters.from_text(one_line) == expected
    without = Parameters.from_text(f"a mill{parting}{settings_line}")
    assert (without.prompt, without.negative, without.seed) == ("a mill", "", 4031)


def test_a_newline_in_a_value_does_not_swallow_the_keys_that_follow():
    text = "a\nSteps: 5, Sampler: Euler, Note: one\ntwo\nthree, four, Seed: 7, Model: m"
    found = Parameters.from_text(text)
    assert (found.seed, found.model, found.extra) == (7, "m", {"Note": "one\ntwo\nthree, four"})

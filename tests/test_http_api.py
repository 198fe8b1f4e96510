"""The HTTP API over an engine that only pretends: fields, answers, errors, the queue."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
from PIL import Image
from starlette.testclient import TestClient

from stable_diffusion import Hires, catalogue
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import shared
from stable_diffusion.service.api import a1111_request, options
from stable_diffusion.service.api.app import build
from stable_diffusion.service.worker import MAX_WAITING
from tests.pretend import PretendEngine, wait

LISTED = ("upscalers", "samplers", "schedulers", "sd-models")
PAINT = {"prompt": "a red house", "steps": 2, "width": 64, "height": 64, "seed": 7}


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv(shared.OUTPUTS_VARIABLE, str(tmp_path / "outputs"))
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    monkeypatch.setenv(catalogue.FOLDERS_VARIABLE, "")
    shared.close()
    options.replace(options.Options())
    engine = PretendEngine().install(monkeypatch)
    yield engine
    if engine.gate is not None:
        engine.gate.release(100_000)
    shared.close()


@pytest.fixture
def client(engine):
    with TestClient(build(), base_url="http://localhost:7860") as client:
        yield client


def png(color="red", size=(64, 64), mode="RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def painted(client, path="txt2img", status=200, **fields):
    answer = client.post(f"/sdapi/v1/{path}", json=PAINT | fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def calls(engine):
    return [arguments for model in engine.models for _, arguments in model.calls]


def test_a_picture_comes_with_all_that_is_said_of_it(client, engine, tmp_path):
    answer = painted(client, negative_prompt="rain", cfg_scale=4.5, sampler_name="DPM++ 2M", scheduler="Karras")
    (image,) = answer["images"]
    data = base64.b64decode(image)
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    info = json.loads(answer["info"])
    assert (info["prompt"], info["negative_prompt"], info["seed"], info["all_seeds"]) == ("a red house", "rain", 7, [7])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 64, 2, 4.5)
    said = Parameters.from_text(info["infotexts"][0])
    assert (said.prompt, said.sampler, said.schedule, said.seed) == ("a red house", "DPM++ 2M", "Karras", 7)
    (saved,) = (tmp_path / "outputs").rglob("*.png")
    assert saved.read_bytes() == data, "the answer is the gallery's file"
    assert answer["parameters"]["prompt"] == "a red house"


def test_every_honoured_setting_reaches_the_engine(client, engine):
    painted(
        client, sampler_index="Euler a", steps="3", cfg_scale="2.5", subseed=5, subseed_strength=0.25, n_iter=2,
        batch_size=2, override_settings={"CLIP_stop_at_last_layers": 2},
    )  # fmt: skip
    found = calls(engine)
    assert [(each["n_images"], each["seed"], each["variation_seed"]) for each in found] == [(2, 7, 5), (2, 7, 7)]
    first = found[0]
    assert (first["num_steps"], first["cfg_weight"], first["clip_skip"], first["sampler"]) == (3, 2.5, 2, "euler_a")
    assert first["variation_strength"] == 0.25


@pytest.mark.parametrize(
    ("fields", "tiling", "said"),
    [({"tiling": True}, "both", "True"), ({"tiling_axes": "x"}, "x", "x"), ({"tiling": False}, None, None)],
)
def test_seamless_pictures(client, engine, fields, tiling, said):
    answer = painted(client, **fields)
    (found,) = calls(engine)
    assert found.get("tiling") == tiling and set(engine.models[0].tilings) == {tiling or "off"}
    assert json.loads(answer["info"])["extra_generation_params"].get("Tiling") == said


def test_what_is_not_said_is_the_models(client, engine):
    client.post("/sdapi/v1/txt2img", json={"prompt": "a"})
    (found,) = calls(engine)
    defaults = catalogue.find(catalogue.DEFAULT).defaults
    assert (found["num_steps"], found["cfg_weight"]) == (defaults.steps, defaults.cfg)
    assert (found["width"], found["height"]) == (128, 128)


def test_pictures_may_stay_out_of_answer_and_gallery(client, tmp_path):
    assert painted(client, send_images=False)["images"] == []
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1
    (image,) = painted(client, do_not_save_samples=True)["images"]
    assert Parameters.from_text(Image.open(io.BytesIO(base64.b64decode(image))).text["parameters"]).seed == 7
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1
    painted(client, do_not_save_samples=True, save_images=True)
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 2


def test_files_may_be_jpegs(client):
    (image,) = painted(client, override_settings={"samples_format": "jpg"})["images"]
    assert Image.open(io.BytesIO(base64.b64decode(image))).format == "JPEG"


@pytest.mark.parametrize("size", [(64, 64), (100, 50)])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_picture_to_begin_with(client, engine, mode, size):
    painted(client, "img2img", init_images=["data:image/png;base64," + png(size=size)], resize_mode=mode)
    (found,) = calls(engine)
    assert found["denoising_strength"] == 0.75 and found["input_image"].size == (64, 64)
    assert found["input_image"].getpixel((1, 1)) == (255, 0, 0)


def test_sides_are_filled_with_the_edges_colours():
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (0, 16, 64, 32))
    done = a1111_request.filled(picture, 64, 64)
    assert done.getpixel((5, 0)) == (255, 0, 0) and done.getpixel((5, 63)) == (0, 0, 255)


def test_inpainting_with_all_its_options(client, engine):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    common = {"init_images": [png(size=(128, 64))], "mask": encoded, "denoising_strength": 0.5}
    answer = painted(client, "img2img", **common)
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (128, 64), "only masked is its default"
    said = Parameters.from_text(json.loads(answer["info"])["infotexts"][0]).extra
    assert (said["Masked content"], said["Inpaint area"], said["Masked area padding"]) == ("fill", "Only masked", "0")
    answer = painted(
        client, "img2img", **common, inpaint_full_res=False, inpainting_fill=2, mask_blur=0, inpainting_mask_invert=1
    )
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (64, 64)
    said = Parameters.from_text(json.loads(answer["info"])["infotexts"][0]).extra
    assert (said["Masked content"], said["Mask blur"], said["Mask mode"]) == ("latent noise", "0", "Inpaint not masked")
    found = calls(engine)[-1]
    assert found["mask_image"].convert("L").getpixel((2, 2)) == 0, "the white is kept"


def test_a_mask_with_alpha_is_its_alpha():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    mask = a1111_request.read_mask(buffer.getvalue())
    assert (mask.getpixel((1, 1)), mask.getpixel((6, 1))) == (255, 0)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"restore_faces": True}, 422, "restore_faces"),
        ({"tiling_axes": "z"}, 422, "tiling"),
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, 422, "hr_checkpoint_name"),
        ({"enable_hr": True, "hr_upscaler": "Latnet"}, 422, "Near it: Latent"),
        ({"enable_hr": True, "hr_scale": 0}, 422, "hires_scale"),
        ({"enable_hr": True, "hr_scale": 100}, 422, "hires_scale"),
        ({"enable_hr": True, "hr_resize_x": 20_000, "hr_resize_y": 20_000}, 422, "hires_width"),
        ({"enable_hr": True, "hr_resize_x": 32}, 422, "smaller than the first picture"),
        ({"enable_hr": True, "width": 1024, "height": 1024, "hr_scale": 4}, 422, "4096 x 4096 pixels"),
        ({"enable_hr": True, "denoising_strength": 0}, 422, "repaints nothing"),
        ({"enable_hr": True, "hr_sampler_name": "Nonesuch"}, 404, "Sampler not found"),
        ({"enable_hr": True, "hr_prompt": "a <lora:nonesuch:1>"}, 422, "nonesuch"),
        ({"enable_hr": True, "firstphase_width": 32}, 422, "firstphase_height"),
        ({"styles": ["pretty"]}, 422, "styles"),
        ({"script_name": "Loopback"}, 422, "script_name"),
        ({"script_name": "X/Y/Z plot"}, 422, "script_args of X/Y/Z plot has 0 entries"),
        ({"script_name": "Prompt matrix"}, 422, "needs parts"),
        ({"script_name": "Prompt matrix", "script_args": [0, 0, "both"]}, 422, "'positive' or 'negative'"),
        ({"refiner_checkpoint": "other"}, 404, "Model not found"),
        ({"refiner_checkpoint": "postcards-tiny", "refiner_switch_at": 2}, 422, "refiner_switch"),
        ({"s_churn": 1}, 422, "s_churn"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422, "ADetailer"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "x"}]}}}, 422, "controlnet"),
        ({"sampler_name": "Nonesuch"}, 404, "Sampler not found"),
        ({"scheduler": "Nonesuch"}, 404, "Sampler not found"),
        ({"override_settings": {"sd_model_checkpoint": "nonesuch"}}, 404, "Model not found"),
        ({"override_settings": {"sd_vae": "nonesuch"}}, 404, "VAE not found"),
        ({"steps": "many"}, 422, "steps"),
        ({"steps": 0}, 422, "steps"),
        ({"width": 60}, 422, "width"),
        ({"cfg_scale": True}, 422, "cfg_scale"),
        ({"n_iter": 20, "batch_size": 20}, 422, "400 pictures"),
        ({"n_iter": 0}, 422, "n_iter"),
        ({"width": 8192, "height": 8192}, 422, "pixels"),
        ({"seed": 2**64}, 422, "seed"),
        ({"prompt": "a <lora:nonesuch:1>"}, 422, "nonesuch"),
        ({"prompt": ""}, 422, "empty"),
    ],
)
def test_what_would_change_the_picture_and_is_not_here_is_refused_by_name(client, fields, status, word):
    assert word in painted(client, status=status, **fields)["detail"]


def test_pictures_without_a_record(client):
    assert client.get("/sdapi/v1/options").json()["enable_pnginfo"] is True
    answer = painted(client, override_settings={"enable_pnginfo": False})
    data = base64.b64decode(answer["images"][0])
    assert picture_files.read_text(io.BytesIO(data)) is None
    assert json.loads(answer["info"])["prompt"] == PAINT["prompt"], "the client knows what it asked for"
    assert picture_files.read_text(io.BytesIO(base64.b64decode(painted(client)["images"][0])))


def test_a_refiner_is_a_model_of_the_list(client, engine):
    painted(client, refiner_checkpoint="postcards-tiny", refiner_switch_at=0.5)
    assert len(engine.loads) == 1 and "refiner" not in engine.models[0].calls[-1][1], "it is the model itself"


def test_what_changes_nothing_is_let_pass(client):
    painted(
        client, restore_faces=False, styles=[], script_name="", script_args=[], eta=1.0, s_churn=0, s_noise=1,
        alwayson_scripts={"ControlNet": {"args": []}, "controlnet": {"args": [{"enabled": False}]}}, nonesuch=1,
        refiner_checkpoint="None", seed_resize_from_w=-1, hr_scale=2, tiling=None,
    )  # fmt: skip


def test_a_hires_fix(client, engine):
    modes = [each["name"] for each in client.get("/sdapi/v1/latent-upscale-modes").json()]
    assert modes[0] == "Latent" and len(modes) == 6
    painted(client, enable_hr=False, hr_scale=3, hr_upscaler="nonesuch", denoising_strength=0.3)
    assert "hires" not in calls(engine)[-1]
    answer = painted(
        client, enable_hr=True, hr_scale=1.5, hr_upscaler=modes[1], hr_second_pass_steps=7, hr_prompt="a blue house",
        hr_negative_prompt="", hr_sampler_name="Euler a", hr_scheduler="Use same scheduler", scheduler="Karras",
        denoising_strength=0.4, hr_checkpoint_name="Use same checkpoint", hr_cfg=3, sampler_name="DPM++ 2M",
    )  # fmt: skip
    assert calls(engine)[-1]["hires"] == Hires(
        1.5, upscaler="Latent (antialiased)", steps=7, strength=0.4, sampler="euler_a_karras", cfg=3.0,
        prompt="a blue house",
    )  # fmt: skip
    info = json.loads(answer["info"])
    assert (info["denoising_strength"], info["extra_generation_params"]["Hires upscale"]) == (0.4, "1.5")
    painted(client, enable_hr=True, hr_resize_x=128, hr_resize_y=96, hr_upscaler="lanczos")
    assert calls(engine)[-1]["hires"] == Hires(width=128, height=96, upscaler="Lanczos", strength=0.75)
    painted(client, enable_hr=True, width=128, height=128, firstphase_width=64, firstphase_height=72)
    given = calls(engine)[-1]
    assert (given["width"], given["height"]) == (64, 72)
    assert (given["hires"].width, given["hires"].height, given["hires"].upscaler) == (128, 128, "Latent")


def test_sd_upscale(client, engine):
    fields = {"init_images": [png(size=(90, 60))], "denoising_strength": 0.25, "script_name": "SD upscale"}
    painted(client, "img2img", **fields, script_args=[None, 16, "lanczos", 2])
    given = calls(engine)[-1]
    assert (given["width"], given["height"], given["tile"], given["tile_overlap"]) == (176, 120, 64, 16)
    assert given["input_image"].size == (176, 120) and given["denoising_strength"] == 0.25
    painted(client, "img2img", **fields, script_args=["", 16, 1, 2.0])
    for wrong, word in (([], "script_args"), ([None, 16, "lanzcos", 2], "Lanczos"), ([None, 16, 0, 99], "factor"),
                        ([None, 48, 0, 2], "overlap")):  # fmt: skip
        assert word in painted(client, "img2img", 422, **fields, script_args=wrong)["detail"]
    assert "script_name" in painted(client, "img2img", 422, **fields | {"script_name": "Loopback"})["detail"]


PLOT_ARGS = ["Steps", "1-3 (+2)", [], "Sampler", "", ["Euler", "Heun"], 0, "", [], True, True, False, False, 0]


def plot(client, status=200, path="txt2img", args=(), **fields):
    """An X/Y/Z plot with some of its arguments by their places."""
    given = list(PLOT_ARGS)
    for place, value in dict(args).items():
        given[place] = value
    return painted(client, path, status, script_name="x/y/z plot", script_args=given, **fields)


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


def test_an_xyz_plot_is_its_sheet_and_then_its_cells(client, engine, tmp_path):
    answer = plot(client)
    sheet, *cells = map(opened, answer["images"])
    assert [cell.size for cell in cells] == [(64, 64)] * 4 and sheet.width > 128 and sheet.height > 128
    info = json.loads(answer["info"])
    said = [Parameters.from_text(text) for text in info["infotexts"]]
    assert [(each.steps, each.sampler) for each in said[1:]] == [(1, "Euler"), (3, "Euler"), (1, "Heun"), (3, "Heun")]
    assert said[0].extra["Script"] == "X/Y/Z plot" and said[0].extra["X Values"] == "1-3 (+2)"
    assert (said[0].extra["X Type"], said[0].extra["Y Type"], said[0].extra["Y Values"]) == (
        "Steps", "Sampler", "Euler,Heun"
    )  # fmt: skip
    assert Parameters.from_text(sheet.text["parameters"]) == said[0]
    assert info["index_of_first_image"] == 1 and info["all_seeds"] == [7] * 4
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 4, "the cells are in the gallery"
    plain = plot(client, args={9: "False", 10: "False"}, do_not_save_samples=True)
    (alone,) = map(opened, plain["images"])
    assert alone.size[0] < sheet.size[0] and len(list((tmp_path / "outputs").rglob("*.png"))) == 4


def test_axes_are_numbers_of_a_list_that_can_be_asked_for(client, engine):
    scripts = {(each["name"], each["is_img2img"]): each["args"] for each in client.get("/sdapi/v1/script-info").json()}
    assert client.get("/sdapi/v1/scripts").json() == {
        "txt2img": ["prompt matrix", "x/y/z plot"], "img2img": ["prompt matrix", "sd upscale", "x/y/z plot"]
    }  # fmt: skip
    choices = scripts["x/y/z plot", False][0]["choices"]
    assert choices[:7] == ["Nothing", "Seed", "Var. seed", "Var. strength", "Steps", "Hires steps", "CFG Scale"]
    assert len(scripts["x/y/z plot", True]) == 18 and len(scripts["prompt matrix", False]) == 5
    answer = plot(
        client, args={0: choices.index("CFG Scale"), 1: "3, 5", 3: choices.index("Size"), 4: "64x72", 5: None}
    )
    assert [call["cfg_weight"] for call in calls(engine)] == [3.0, 5.0] and len(answer["images"]) == 3
    picture = {"init_images": [png()], "path": "img2img"}
    there = scripts["x/y/z plot", True][0]["choices"]
    plot(client, args={0: str(there.index("Denoising")), 1: "0.2", 3: 0}, **picture)
    assert calls(engine)[-1]["denoising_strength"] == 0.2
    plot(client, args={0: choices.index("Denoising"), 1: "0.3", 3: 0}, enable_hr=True)
    assert calls(engine)[-1]["hires"].strength == 0.3
    plot(client, args={0: "Checkpoint name", 1: "postcards-tiny", 3: 0})


def test_a_sheet_for_each_z(client):
    answer = plot(client, args={6: "Seed", 7: "1,2", 11: True})
    sizes = [opened(image).size for image in answer["images"]]
    assert len(sizes) == 1 + 2 + 8 and sizes[1] == sizes[2] and sizes[0][1] > 2 * 64 + sizes[1][1]
    assert json.loads(answer["info"])["index_of_first_image"] == 3


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({0: "Sigma Churn"}, "X type 'Sigma Churn'"),
        ({3: 99}, "Y type 99"),
        ({6: True}, "Z type True"),
        ({1: "1-0 (+1)"}, "Steps"),
        ({1: "0"}, "Steps"),
        ({5: ["Nonesuch"]}, "Nonesuch"),
        ({0: "Checkpoint name", 1: "nonesuch"}, "nonesuch"),
        ({3: "Steps", 4: "2", 5: []}, "two axes"),
        ({1: "1-101"}, "202 cells"),
        ({12: True}, "Keep -1 for seeds"),
        ({9: "perhaps"}, "Draw legend"),
        ({13: True, 12: "nan"}, "Keep -1"),
    ],
)
def test_plots_that_are_refused(client, engine, args, word):
    status = 404 if word == "nonesuch" else 422
    assert word in plot(client, status, args=args)["detail"] and not engine.models


def test_seeds_may_not_vary_and_there_is_one_picture_a_cell(client):
    args = [*PLOT_ARGS[:13], False, True, False, 0, False]
    fields = {"script_name": "X/Y/Z plot", "script_args": args}
    assert "Vary seeds for Y" in painted(client, status=422, **fields)["detail"]
    assert "one picture a cell" in plot(client, 422, n_iter=2)["detail"]


@pytest.mark.parametrize(
    ("args", "fields", "prompts", "seeds"),
    [
        ([], {}, ["a", "a, b", "a, c", "a, b, c"], [7, 7, 7, 7]),
        ([True, True, "positive", "space", 0], {}, ["a", "b a", "c a", "b c a"], [7, 8, 9, 10]),
        ([False, False, "negative"], {"negative_prompt": "x|y", "prompt": "a"}, ["x", "x, y"], [7, 7]),
    ],
)
def test_a_prompt_matrix(client, args, fields, prompts, seeds):
    fields = {"prompt": "a|b|c", "script_name": "Prompt matrix", "script_args": args} | fields
    answer = painted(client, **fields)
    info = json.loads(answer["info"])
    assert info["all_negative_prompts" if "negative_prompt" in fields else "all_prompts"] == prompts
    assert info["all_seeds"] == seeds and len(answer["images"]) == 1 + len(prompts)
    assert Parameters.from_text(info["infotexts"][0]).extra["Script"] == "Prompt matrix"


def test_an_interrupted_grid_is_what_there_is(client, engine):
    engine.gate = threading.Semaphore(0)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(plot(client, args={1: "1,2,3", 3: 0})))
    waiting.start()
    engine.gate.release(1)
    wait(lambda: [job for job in shared.the_worker().queue() if len(job.pictures) == 2])
    client.post("/sdapi/v1/interrupt")
    engine.gate.release(100)
    waiting.join(10)
    assert len(answers[0]["images"]) == 2


def test_options_come_back_whole_and_change_what_is_painted(client, engine):
    found = client.get("/sdapi/v1/options").json()
    assert client.post("/sdapi/v1/options", json=found | {"unknown": 1}).status_code == 200
    assert client.get("/sdapi/v1/options").json() == found
    assert not engine.models, "nothing was loaded for options that change nothing"
    client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})
    painted(client)
    assert calls(engine)[-1]["clip_skip"] == 2
    painted(client, override_settings={"CLIP_stop_at_last_layers": 1}, override_settings_restore_afterwards=False)
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1


def test_guidance_in_a_part_of_the_steps(client, engine):
    painted(client, s_min_uncond=1.5, guidance_end=0.8, override_settings={"skip_early_cond": "0.2"})
    names = ("guidance_start", "guidance_end", "guidance_min_sigma")
    assert [calls(engine)[-1][name] for name in names] == [0.2, 0.8, 1.5]
    client.post("/sdapi/v1/options", json={"skip_early_cond": 0.1, "s_min_uncond": 2, "s_min_uncond_all": False})
    painted(client)
    assert [calls(engine)[-1][name] for name in names] == [0.1, 1.0, 2]
    painted(client, s_min_uncond=0)
    assert calls(engine)[-1]["guidance_min_sigma"] == 0
    for wrong in ({"guidance_end": 0.05}, {"s_min_uncond": -1}, {"override_settings": {"skip_early_cond": 1.5}}):
        answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a"} | wrong)
        assert answer.status_code == 422, answer.text
    assert client.post("/sdapi/v1/options", json={"skip_early_cond": 2}).status_code == 422


def test_deep_features_are_reused_if_asked_for(client, engine):
    painted(client, deepcache_interval=3, deepcache_branch=2)
    assert [calls(engine)[-1][name] for name in ("deepcache_interval", "deepcache_branch")] == [3, 2]
    painted(client)
    assert calls(engine)[-1]["deepcache_interval"] == 1
    assert client.post("/sdapi/v1/txt2img", json={"prompt": "a", "deepcache_interval": 0}).status_code == 422


def test_a_model_that_does_not_load_changes_no_option(client, engine, monkeypatch):
    known = catalogue.KNOWN[0]
    absent = catalogue.Model("absent", catalogue.LOCAL, "/nowhere/absent.safetensors", "absent", "sd1")
    monkeypatch.setattr(catalogue, "all", lambda folders=None: [known, absent])
    answer = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "absent"})
    assert answer.status_code == 500 and "absent" in answer.json()["detail"]
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == known.name


def test_progress_skip_and_interrupt(client, engine):
    idle = client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    engine.gate = threading.Semaphore(0)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(painted(client, n_iter=3, steps=4)))
    thread.start()
    engine.gate.release(2)
    wait(lambda: client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] == 2)
    now = client.get("/sdapi/v1/progress").json()
    assert now["progress"] == pytest.approx(2 / 12) and now["state"]["job_count"] == 1
    assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).format == "JPEG"
    assert client.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    assert client.post("/sdapi/v1/skip").json() == {}
    engine.gate.release(1 + 4 + 1)
    wait(lambda: client.get("/sdapi/v1/progress").json()["state"]["job_no"] == 2)
    client.post("/sdapi/v1/interrupt")
    engine.gate.release(1)
    thread.join(10)
    (answer,) = answers
    info = json.loads(answer["info"])
    assert len(answer["images"]) == 2 and info["all_seeds"] == [8, 9], "the one that was skipped is left out"
    assert "Stopped" in info["infotexts"][1] and "Stopped" not in info["infotexts"][0]


def test_lists(client):
    got = {
        name: client.get(f"/sdapi/v1/{name}").json() for name in ("upscalers", "samplers", "schedulers", "sd-models")
    }
    names = [each["name"] for each in got["upscalers"]]
    assert names == ["None", "Lanczos", "Bicubic", "Nearest", "realesr-animevideov3"]
    assert {"Euler", "Euler a", "DPM++ 2M", "DDIM", "PLMS"} <= {each["name"] for each in got["samplers"]}
    assert [each["label"] for each in got["schedulers"]] == [
        "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal",
        "Align Your Steps", "Simple", "Normal", "DDIM", "Beta",
    ]  # fmt: skip
    assert next(each for each in got["schedulers"] if each["name"] == "karras") == {
        "name": "karras", "label": "Karras", "aliases": None, "default_rho": 7.0, "need_inner_model": False,
    }  # fmt: skip
    assert {"DPM2 a", "DPM++ 3M SDE", "Restart", "TCD"} <= {each["name"] for each in got["samplers"]}
    assert "k_dpm_2_a" in next(each for each in got["samplers"] if each["name"] == "DPM2 a")["aliases"]
    assert [each["title"] for each in got["sd-models"]] == [catalogue.DEFAULT, catalogue.STUDENT]
    assert client.get("/sdapi/v1/prompt-styles").json() == []
    assert client.get("/controlnet/model_list").json() == {"model_list": []}
    for name in ("interrogate", "no-such-route"):
        assert client.post(f"/sdapi/v1/{name}", json={}).status_code == 404


def test_every_sampler_that_is_listed_is_taken(client):
    for sampler in client.get("/sdapi/v1/samplers").json():
        for name in (sampler["name"], *sampler["aliases"]):
            painted(client, sampler_name=name)


def test_every_scheduler_that_is_listed_is_taken_by_name_and_label(client, engine):
    found = client.get("/sdapi/v1/schedulers").json()
    for scheduler in found:
        keys = set()
        for name in (scheduler["name"], scheduler["label"], scheduler["name"].upper()):
            painted(client, sampler_name="Euler", scheduler=name, steps=1)
            keys.add(calls(engine)[-1]["sampler"])
        assert len(keys) == 1


def test_parameters_are_read_from_a_picture(client):
    (image,) = painted(client)["images"]
    found = client.post("/sdapi/v1/png-info", json={"image": "data:image/png;base64," + image}).json()
    assert found["info"].startswith("a red house\nSteps: 2")
    assert found["items"] == {"parameters": found["info"]}
    assert (found["parameters"]["Prompt"], found["parameters"]["Seed"]) == ("a red house", "7")
    bare = client.post("/sdapi/v1/png-info", json={"image": png()}).json()
    assert bare == {"info": "", "items": {}, "parameters": {}}


def test_pictures_are_enlarged_without_a_model(client):
    def size(image):
        return Image.open(io.BytesIO(base64.b64decode(image))).size

    ask = {"image": png(size=(20, 10)), "upscaler_1": "Lanczos"}
    post = lambda **more: client.post("/sdapi/v1/extra-single-image", json=ask | more)  # noqa: E731
    assert size(post(upscaling_resize=3).json()["image"]) == (60, 30)
    by_size = {"resize_mode": 1, "upscaling_resize_w": 30, "upscaling_resize_h": 30}
    assert size(post(**by_size).json()["image"]) == (30, 30)
    assert size(post(**by_size, upscaling_crop=False).json()["image"]) == (60, 30)
    assert size(post(upscaler_1="None").json()["image"]) == (20, 10)
    assert size(post(upscaler_2="Nearest", extras_upscaler_2_visibility=0.5).json()["image"]) == (40, 20)
    assert post(upscaler_1="R-ESRGAN 4x+").status_code == 404
    assert post(gfpgan_visibility=1).status_code == 422
    assert post(upscaling_resize=1e9).status_code == 422
    many = {"imageList": [{"data": png(), "name": "../a"}] * 2, "upscaler_1": "Nearest"}
    found = client.post("/sdapi/v1/extra-batch-images", json=many).json()
    assert [size(image) for image in found["images"]] == [(128, 128)] * 2
    assert found["html_info"] == "<p>Postprocess upscale by: 2, Postprocess upscaler: Nearest</p>"


def test_what_is_enlarged_keeps_its_record_and_is_in_the_gallery(client, engine):
    (image,) = painted(client)["images"]
    ask = {"image": image, "upscaler_1": "R-ESRGAN AnimeVideo", "upscaling_resize": 1.5}
    found = client.post("/sdapi/v1/extra-single-image", json=ask).json()
    said = client.post("/sdapi/v1/png-info", json={"image": found["image"]}).json()["parameters"]
    assert (said["Prompt"], said["Seed"]) == ("a red house", "7")
    assert (said["Postprocess upscaler"], said["Postprocess upscale by"]) == ("realesr-animevideov3", "1.5")
    saved = sorted(shared.outputs().rglob("*.png"))
    assert len(saved) == 2 and saved[-1].read_bytes() == base64.b64decode(found["image"])
    assert len(engine.models) == 1, "the model stays in memory"


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"upscaler_1": "/etc/passwd"}, 404, "There is no upscaler 'passwd'"),
        ({"upscaler_1": "Lancos"}, 404, "Near it: Lanczos"),
        ({"upscaling_resize": 0}, 422, "by = 0"),
        ({"upscaling_resize": 100}, 422, "by = 100"),
        ({"resize_mode": 2}, 422, "resize_mode = 2"),
        ({"resize_mode": 1, "upscaling_resize_w": 0}, 422, "a side = 0"),
        ({"resize_mode": 1, "upscaling_resize_w": 9000, "upscaling_resize_h": 9000}, 422, "more than 64 million"),
        ({"upscaler_2": "Nearest", "extras_upscaler_2_visibility": 2}, 422, "visibility = 2"),
        ({"codeformer_visibility": 0.5}, 422, "codeformer_visibility"),
        ({"image": base64.b64encode(b"no picture").decode()}, 422, "not a picture"),
        ({"image": ""}, 422, "base64"),
    ],
)
def test_what_cannot_be_enlarged(client, fields, status, said):
    answer = client.post("/sdapi/v1/extra-single-image", json={"image": png(), "upscaler_1": "Lanczos"} | fields)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert str(shared.outputs().parent) not in answer.text


def test_the_model_is_dropped_and_loaded_on_request(client, engine):
    painted(client)
    assert client.post("/sdapi/v1/unload-checkpoint").status_code == 200 and engine.released == 1
    assert client.post("/sdapi/v1/reload-checkpoint").status_code == 200 and len(engine.models) == 2


def test_an_error_of_the_machine_is_500_and_names_no_folder(client, engine):
    engine.fail_at = 1
    assert "wheels" in painted(client, status=500)["detail"]


def test_a_full_queue_is_503_with_a_time_to_come_back(client, engine):
    engine.gate = threading.Semaphore(0)
    from stable_diffusion.request import Request

    first = shared.the_worker().submit(Request("a", steps=1))
    wait(lambda: first.started)
    jobs = [shared.the_worker().submit(Request("a", steps=1)) for _ in range(MAX_WAITING)]
    answer = client.post("/sdapi/v1/txt2img", json=PAINT)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert len(jobs) == MAX_WAITING
    engine.gate.release(1000)

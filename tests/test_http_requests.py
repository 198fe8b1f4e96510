"""Requests of programs that cannot be installed here, written from the fields that they send, in their order."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
from PIL import Image

from stable_diffusion import catalogue
from stable_diffusion.service import shared
from tests.pretend import wait
from tests.test_http_api import calls, client, engine, png  # noqa: F401


def paint(client, path, fields):  # noqa: F811
    answer = client.post(f"/sdapi/v1/{path}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_sillytavern(client, engine):  # noqa: F811
    """It logs in whatever is asked for, wants "None" first, sets the model, waits until it is ready, and paints."""
    login = {"Authorization": "Basic Og=="}
    assert client.get("/sdapi/v1/options", headers=login).status_code == 200
    upscalers = [each["name"] for each in client.get("/sdapi/v1/upscalers", headers=login).json()]
    modes = [each["name"] for each in client.get("/sdapi/v1/latent-upscale-modes", headers=login).json()]
    upscalers[1:1] = modes
    assert upscalers[0] == "None"
    vaes = [each["model_name"] for each in client.get("/sdapi/v1/sd-vae").json()]
    samplers = [each["name"] for each in client.get("/sdapi/v1/samplers").json()]
    schedulers = [each["name"] for each in client.get("/sdapi/v1/schedulers").json()]
    model = client.get("/sdapi/v1/sd-models").json()[0]["title"]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": model}).status_code == 200
    progress = client.get("/sdapi/v1/progress").json()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    fields = {
        "prompt": "a red house", "negative_prompt": "rain", "sampler_name": samplers[0], "scheduler": schedulers[0],
        "steps": 2, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False, "enable_hr": False,
        "hr_upscaler": upscalers[0], "hr_scale": 2, "hr_additional_steps": 0, "denoising_strength": 0.7,
        "hr_second_pass_steps": 0, "seed": -1, "clip_skip": 2, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": ([*vaes, "Automatic"])[0]},
        "override_settings_restore_afterwards": True,
    }  # fmt: skip
    (image,) = paint(client, "txt2img", fields)["images"]
    assert base64.b64decode(image).startswith(b"\x89PNG") and calls(engine)[-1]["clip_skip"] == 2


def test_open_webui(client):  # noqa: F811
    """It sends all options back with a model among them, then paints in batches."""
    login = {"authorization": ""}
    found = client.get("/sdapi/v1/options", headers=login).json()
    found["sd_model_checkpoint"] = client.get("/sdapi/v1/sd-models", headers=login).json()[0]["title"]
    assert client.post("/sdapi/v1/options", json=found, headers=login).status_code == 200
    fields = {
        "prompt": "a red house", "batch_size": 2, "width": 64, "height": 64, "steps": 2, "negative_prompt": "rain",
        "cfg_scale": 7.0, "sampler_name": "Euler a", "scheduler": "Automatic",
    }  # fmt: skip
    answer = paint(client, "txt2img", fields)
    assert len(answer["images"]) == 2 and json.loads(answer["info"])["batch_size"] == 2


def test_librechat(client):  # noqa: F811
    """It reads the parameters out of the answer's info, which is JSON in a string."""
    fields = {
        "prompt": "a red house", "negative_prompt": "rain", "cfg_scale": 4.5, "steps": 22, "width": 1024,
        "height": 1024,
    }  # fmt: skip
    info = json.loads(paint(client, "txt2img", fields)["info"])
    assert info["infotexts"][0].startswith("a red house") and isinstance(info["seed"], int)
    assert info["width"] > 0 and info["height"] > 0


def test_librechat_through_openais_api(client):  # noqa: F811
    fields = {
        "model": "gpt-image-1", "prompt": "a red house", "n": 1, "background": "auto", "output_format": "png",
        "output_compression": 100, "quality": "auto", "size": "auto", "user": "0123",
    }  # fmt: skip
    assert client.post("/v1/images/generations", json=fields).json()["data"][0]["b64_json"]
    files = [("image[]", ("a.png", base64.b64decode(png()), "image/png"))]
    data = {"model": "gpt-image-1", "prompt": "a", "quality": "auto", "size": "auto", "n": "1"}
    assert client.post("/v1/images/edits", data=data, files=files).json()["data"][0]["b64_json"]


def test_swarmui(client, engine):  # noqa: F811
    """It names the model by its title without the hash, and LoRAs in the prompt."""
    assert client.get("/sdapi/v1/options").json() and client.get("/sdapi/v1/samplers").json()
    title = client.get("/sdapi/v1/sd-models").json()[0]["title"].partition(" [")[0]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": title}).status_code == 200
    fields = {
        "prompt": "a red house", "negative_prompt": "", "seed": 5, "steps": 2, "width": 64, "height": 64,
        "batch_size": 1, "save_images": False, "cfg_scale": 7, "subseed": 3, "subseed_strength": 0.5,
        "sampler_name": "Euler",
    }  # fmt: skip
    paint(client, "txt2img", fields)
    paint(client, "img2img", fields | {"init_images": [png()], "denoising_strength": 0.6})
    assert calls(engine)[-1]["variation_strength"] == 0.5


def test_photoshops_plugin(client):  # noqa: F811
    """It watches progress with pictures, and sends scripts that it wants nothing of."""
    for name in ("options", "sd-models", "samplers", "loras", "embeddings", "upscalers", "scripts"):
        assert client.get(f"/sdapi/v1/{name}").status_code == 200
    for name in ("version", "module_list", "model_list"):
        assert client.get(f"/controlnet/{name}").status_code == 200
    unit = {"enabled": False, "input_image": "", "mask": "", "module": "none", "model": "none", "weight": 1.0}
    fields = {
        "prompt": "a red house", "negative_prompt": "rain", "steps": 2, "n_iter": 1, "sampler_index": "Euler a",
        "width": 64, "height": 64, "denoising_strength": 0.7, "batch_size": 1, "cfg_scale": 7, "seed": "-1",
        "mask_blur": 4, "use_sharp_mask": False, "use_prompt_shortcut": True, "prompt_shortcut_ui_dict": {},
        "uniqueDocumentId": "x", "mode": "inpaint", "inpaint_full_res": False, "inpaint_full_res_padding": 0,
        "inpainting_fill": 1, "inpainting_mask_invert": False, "restore_faces": False, "enable_hr": False,
        "init_images": [png()], "mask": png("white"), "script_args": [], "script_name": None,
        "alwayson_scripts": {"controlnet": {"args": [unit] * 3}},
    }  # fmt: skip
    answer = paint(client, "img2img", fields)
    assert client.get("/sdapi/v1/progress?skip_current_image=false").json()["current_image"] is None
    found = client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
    assert "Denoising strength: 0.7" in found["info"]


def test_kritas_plugin(client, engine):  # noqa: F811
    """It asks for every list there is, then inpaints."""
    for name in (
        "options", "upscalers", "system-info", "sd-vae", "sd-models", "scripts", "samplers", "prompt-styles",
        "progress", "loras", "lycos", "hypernetworks", "face-restorers", "embeddings",
    ):  # fmt: skip
        assert client.get(f"/sdapi/v1/{name}").status_code == 200, name
    fields = {
        "prompt": "a red house", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1,
        "subseed_strength": 0.0, "sampler_name": "DPM++ 2M", "batch_size": 1, "n_iter": 1, "steps": 2,
        "cfg_scale": 7.0, "width": 64, "height": 64, "init_images": [png()], "mask": png("white"), "mask_blur": 0,
        "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0,
        "resize_mode": 0, "denoising_strength": 0.5, "enable_hr": False, "hr_steps": 0, "hr_upscaler": "None",
        "refiner_checkpoint": "", "refiner_start": 0.8, "save_images": True, "include_init_images": False,
    }  # fmt: skip
    paint(client, "img2img", fields)
    assert calls(engine)[-1]["denoising_strength"] == 0.5


def test_blenders_add_on(client):  # noqa: F811
    """It sends data URLs, the sampler's old field, and a control network without a model list to choose from."""
    fields = {
        "prompt": "a red house", "negative_prompt": "", "width": 64, "height": 64, "denoising_strength": 0.6,
        "init_images": ["data:image/png;base64," + png()], "cfg_scale": 7, "seed": 1, "steps": 2,
        "sampler_index": "DPM++ 2M Karras",
    }  # fmt: skip
    answer = paint(client, "img2img", fields)
    enlarge = {"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos", "image": answer["images"][0]}
    answer = client.post("/sdapi/v1/extra-single-image", json=enlarge).json()
    assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).size == (128, 128)


def test_the_distributed_extension(client):  # noqa: F811
    """A server counts as there when memory answers; its sizes decide the shares."""
    found = client.get("/sdapi/v1/memory").json()
    assert found["ram"]["total"] > 0 and ("error" in found["cuda"] or found["cuda"]["system"])
    assert all({"name", "args"} <= each.keys() for each in client.get("/sdapi/v1/script-info").json())
    for name in ("refresh-checkpoints", "refresh-loras", "interrupt"):
        assert client.post(f"/sdapi/v1/{name}").status_code == 200


def test_what_the_worker_does_can_be_watched(engine):  # noqa: F811
    """`/events` is read over a real connection: it has no end."""
    import asyncio

    from stable_diffusion.request import Request
    from stable_diffusion.service.api import events

    engine.gate = threading.Semaphore(0)
    job = shared.the_worker().submit(Request("a", steps=3))

    class Http:
        gone = False

        async def is_disconnected(self):
            return self.gone

    async def listen():
        found, http = [], Http()
        async for text in events._events(http):
            name, data = (line.partition(": ")[2] for line in text.strip().split("\n"))
            found.append((name, json.loads(data)))
            engine.gate.release()
            http.gone = name == "end"
        return found

    found = asyncio.run(listen())
    wait(lambda: not job.active)
    names = [name for name, _ in found]
    assert names[0] == "queue" and names[-1] == "end" and "step" in names
    step = dict(found)["step"]
    assert (step["job"], step["steps"]) == (job.id, 3) and base64.b64decode(step["preview"]).startswith(b"\xff\xd8")
    assert dict(found)["end"] == {"job": job.id, "state": "done"} and events._open == 0


def test_defaults_fit_the_model_that_is_chosen(client, engine):  # noqa: F811
    paint(client, "txt2img", {"prompt": "a"})
    assert calls(engine)[-1]["num_steps"] == catalogue.find(catalogue.DEFAULT).defaults.steps


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations"])
def test_an_empty_request_is_refused_in_words(client, path):  # noqa: F811
    answer = client.post(path)
    assert answer.status_code in (400, 422) and ("empty" in answer.text or "missing" in answer.text)

"""Real clients of the HTTP API at a real server with the embedded model: webuiapi, sd-backend-client, openai."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stable_diffusion
from stable_diffusion import catalogue
from tests.conftest import EMBEDDED
from tests.pretend import wait
from tests.test_painting import lora_file

webuiapi = pytest.importorskip("webuiapi")
client_library = pytest.importorskip("sd_backend_client")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.parity

ROOT = Path(stable_diffusion.__file__).parents[1]
PROMPT = "a red house on green hills at sunset"
STEPS = 3
SIDE = 128


class Server:
    """`stable-diffusion serve` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.log = (folder / "log").open("w")
        variables = {"PYTHONPATH": str(ROOT), "STABLE_DIFFUSION_HOME": str(folder), "STABLE_DIFFUSION_MODELS": ""}
        command = [sys.executable, "-m", "stable_diffusion", "serve", "--port", str(self.port), *options]
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | variables, stdout=self.log, stderr=subprocess.STDOUT
        )
        wait(self._answers, 60)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def pictures(self) -> list[Path]:
        return sorted((self.folder / "outputs").rglob("*.png"))

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(30)
        self.log.close()
        return code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    lora_file(folder / "loras")
    shutil.copytree(EMBEDDED, folder / "models" / "other")
    server = Server(folder)
    yield server
    server.stop()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def web(server):
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Euler", steps=STEPS)


@pytest.fixture(scope="module")
def strict(server):
    from sd_backend_client import A1111Webservice

    return A1111Webservice(server.url)


@pytest.fixture(scope="module")
def ai(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def alone():
    """The library's picture of the prompt, which every client should be given."""
    sd = stable_diffusion.StableDiffusion(catalogue.DEFAULT)
    (made,) = sd.generate(PROMPT, seed=7, num_steps=STEPS, cfg_weight=5.0, sampler="euler")
    return np.asarray(made.image)


def same(image: Image.Image, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), wanted)


def shape(white: str = "L") -> Image.Image:
    mask = Image.new(white, (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return mask


def ask(**more):
    return {"prompt": PROMPT, "seed": 7, "cfg_scale": 5.0, "width": SIDE, "height": SIDE} | more


# --- webuiapi


def test_webuiapi_text_batch_and_parameters(web, alone, server):
    before = len(server.pictures())
    found = web.txt2img(**ask(n_iter=1, batch_size=2))
    same(found.images[0], alone)
    assert found.info["all_seeds"] == [7, 8] and len(found.images) == 2
    assert len(server.pictures()) == before + 2
    read = web.png_info(found.image)
    assert read.info.startswith(PROMPT) and read.parameters["Seed"] == "7"


def test_webuiapi_grids(web, alone):
    """The arguments of its own documentation: axes by their numbers, and flags as words."""
    plot = next(each for each in web.custom_get("script-info", baseurl=True) if each["name"] == "x/y/z plot")
    steps, cfg = (plot["args"][0]["choices"].index(name) for name in ("Steps", "CFG Scale"))
    found = web.txt2img(
        **ask(), script_name="X/Y/Z Plot",
        script_args=[steps, f"2,{STEPS}", "", cfg, "5", "", 0, "", "", "True", "True", "False", "False", 0],
    )  # fmt: skip
    assert len(found.images) == 3 and found.info["index_of_first_image"] == 1
    same(found.images[2], alone)
    found = web.txt2img(
        **ask() | {"prompt": f"{PROMPT}|fog"}, script_name="Prompt matrix",
        script_args=[False, False, "positive", "comma", 0],
    )  # fmt: skip
    assert found.info["all_prompts"] == [PROMPT, f"{PROMPT}, fog"]
    same(found.images[1], alone)


def test_webuiapi_picture_and_mask(web, alone):
    start = Image.fromarray(alone)
    done = web.img2img(images=[start], **ask(denoising_strength=0.5)).image
    assert done.size == start.size and np.abs(np.asarray(done).astype(int) - alone).mean() > 0.5
    for whole in (True, False):
        done = web.img2img(
            images=[start], mask_image=shape(), mask_blur=0, inpaint_full_res=not whole, **ask(denoising_strength=0.9)
        ).image
        changed = np.abs(np.asarray(done.convert("RGB")).astype(int) - alone).mean((0, 2))
        assert changed[: SIDE // 4].mean() > 1 and changed[-SIDE // 4 :].max() == 0


def test_webuiapi_lists_and_options(web):
    assert "Euler" in web.util_get_sampler_names() and "karras" in web.util_get_scheduler_names()
    assert sorted(web.util_get_model_names()) == ["other", "postcards-4-step", catalogue.DEFAULT]
    assert [each["name"] for each in web.get_loras()] == ["ink"]
    for get in (
        web.get_cmd_flags, web.get_sd_vae, web.get_upscalers, web.get_latent_upscale_modes, web.get_hypernetworks,
        web.get_face_restorers, web.get_realesrgan_models, web.get_prompt_styles, web.get_artist_categories,
        web.get_artists, web.refresh_checkpoints, web.get_scripts, web.get_embeddings, web.get_memory,
    ):  # fmt: skip
        get()
    assert web.controlnet_version() == 2 and web.controlnet_model_list() == []
    found = web.get_options()
    web.set_options(found)
    assert web.get_options() == found


def test_webuiapi_changes_the_model(web, alone):
    web.util_set_model("other")
    web.util_wait_for_ready(0.05)
    assert web.util_get_current_model() == "other"
    found = web.txt2img(**ask())
    same(found.image, alone)
    assert found.info["sd_model_name"] == "other"
    web.util_set_model(catalogue.DEFAULT)
    assert web.util_get_current_model() == catalogue.DEFAULT


def test_webuiapi_lora_and_errors(web, alone):
    drawn = web.txt2img(**ask(prompt=f"{PROMPT} <lora:ink:1>"))
    assert np.abs(np.asarray(drawn.image).astype(int) - alone).max() > 0
    assert "ink" in drawn.info["extra_generation_params"]["Lora hashes"]
    for wrong in ({"prompt": "<lora:none:1> a"}, {"restore_faces": True}, {"sampler_name": "None such"}):
        with pytest.raises(RuntimeError) as raised:
            web.txt2img(**ask(**wrong))
        assert raised.value.args[0] in (404, 422)


def test_webuiapi_progress_and_interrupt_in_the_middle(web):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(web.txt2img(**ask(steps=200))))
    thread.start()
    wait(lambda: web.get_progress()["state"]["sampling_step"] >= 2, 20)
    now = web.get_progress()
    assert 0 < now["progress"] < 1 and now["state"]["sampling_steps"] == 200
    assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).format == "JPEG"
    web.interrupt()
    thread.join(20)
    assert len(answers[0].images) == 1 and not thread.is_alive(), "the picture so far"
    web.util_wait_for_ready(0.05)


def test_webuiapi_enlarges(web, alone):
    done = web.extra_single_image(Image.fromarray(alone), upscaling_resize=2, upscaler_1="Lanczos").image
    assert done.size == (2 * SIDE, 2 * SIDE)
    assert len(web.extra_batch_images([Image.fromarray(alone)] * 2, upscaler_1="Nearest").images) == 2
    upscaler = web.get_upscalers()[-1]["name"]
    done = web.extra_single_image(
        Image.fromarray(alone), resize_mode=1, upscaling_resize_w=100, upscaling_resize_h=70, upscaling_crop=True,
        upscaler_1=upscaler, upscaler_2="Lanczos", extras_upscaler_2_visibility=0.5,
    )  # fmt: skip
    assert (upscaler, done.image.size) == ("realesr-animevideov3", (100, 70))


def test_webuiapi_paints_twice(web):
    made = web.txt2img(
        prompt=PROMPT, seed=7, cfg_scale=5, width=SIDE, height=SIDE, enable_hr=True, hr_scale=1.5,
        hr_upscaler=webuiapi.HiResUpscaler.Latent, hr_second_pass_steps=2, denoising_strength=0.6,
    )  # fmt: skip
    assert made.image.size == (SIDE * 3 // 2, SIDE * 3 // 2)
    assert "Hires upscale: 1.5, Hires upscaler: Latent, Hires steps: 2" in made.info["infotexts"][0].replace('"', "")


# --- sd-backend-client, which checks every answer


def test_sd_backend_client_takes_every_answer(strict, server):
    from sd_backend_client.api.detect import connect_to_backend

    assert type(connect_to_backend(server.url)) is type(strict)
    for get in (
        strict.get_config, strict.get_styles, strict.get_scripts, strict.get_script_info, strict.get_samplers,
        strict.get_upscalers, strict.get_latent_upscale_modes, strict.get_hypernetworks, strict.get_models,
        strict.get_vae, strict.get_controlnet_version, strict.get_controlnet_models, strict.get_controlnet_modules,
        strict.get_controlnet_control_types, strict.get_controlnet_settings, strict.get_loras, strict.progress_check,
        strict.list_checkpoints, strict.list_samplers, strict.list_schedulers, strict.list_upscalers,
        strict.list_loras, strict.refresh_checkpoints, strict.refresh_vae, strict.refresh_loras,
    ):  # fmt: skip
        get()
    able = strict.get_capabilities()
    assert able.scheduler and not able.interrogate and not able.ultimate_upscale


def test_sd_backend_client_paints(strict, alone):
    from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody

    body = DiffusionRequestBody(**ask(steps=STEPS, sampler="euler", scheduler="automatic", batch_size=2))
    found = strict.txt2img(body)
    same(found["images"][0], alone)
    assert found["info"].all_seeds == [7, 8] and found["info"].sd_model_name == catalogue.DEFAULT
    body.init_images, body.batch_size = [Image.fromarray(alone)], 1
    assert strict.img2img(Image.fromarray(alone), request_body=body)["images"][0].size == (SIDE, SIDE)
    body.mask = shape()
    assert strict.submit_inpaint(body).wait(30, 0.05).images
    assert strict.upscale(Image.fromarray(alone), 300, 200)["images"][0].size == (300, 200)
    strict.set_config({"sd_model_checkpoint": catalogue.DEFAULT})


def test_sd_backend_client_cancels(strict):
    from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody
    from sd_backend_client.errors import ServerError

    handle = strict.submit_txt2img(DiffusionRequestBody(**ask(steps=300, sampler="euler", scheduler="automatic")))
    wait(lambda: (handle.poll().progress or 0) > 0.01, 20)
    assert handle.cancel()
    wait(lambda: handle.poll().status.is_terminal, 20)
    with pytest.raises(ServerError):
        strict.txt2img(DiffusionRequestBody(**ask(restore_faces=True)))


# --- openai


def test_openai_generates(ai, alone):
    extra = {"seed": 7, "steps": STEPS, "cfg_scale": 5.0, "sampler": "euler"}
    found = ai.images.generate(model="gpt-image-1", prompt=PROMPT, n=2, size=f"{SIDE}x{SIDE}", extra_body=extra)
    same(picture(found.data[0].b64_json), alone)
    assert len(found.data) == 2
    found = ai.images.generate(
        model="dall-e-3", prompt=PROMPT, size=f"{SIDE}x{SIDE}", response_format="url", extra_body=extra
    )
    with urllib.request.urlopen(found.data[0].url) as answer:
        same(Image.open(io.BytesIO(answer.read())), alone)


def test_openai_edits(ai, alone):
    start = file(Image.fromarray(alone))
    hole = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, SIDE // 2, SIDE))
    found = ai.images.edit(
        model="dall-e-2", image=start, mask=file(hole), prompt=PROMPT, size="auto", response_format="b64_json",
        extra_body={"steps": 4},
    )  # fmt: skip
    changed = np.abs(np.asarray(picture(found.data[0].b64_json).convert("RGB")).astype(int) - alone).mean((0, 2))
    assert changed[: SIDE // 4].mean() > 1 and changed[-4:].max() == 0
    found = ai.images.edit(model="gpt-image-1", image=[start], prompt=PROMPT, extra_body={"steps": 4})
    assert picture(found.data[0].b64_json).size == (SIDE, SIDE)


def test_openai_streams(ai):
    for call, more in ((ai.images.generate, {}), (ai.images.edit, {"image": file(Image.new("RGB", (SIDE, SIDE)))})):
        events = list(
            call(
                model="gpt-image-1", prompt=PROMPT, stream=True, partial_images=2, extra_body={"steps": 6}, **more
            )
        )  # fmt: skip
        assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
        assert all(picture(event.b64_json).size == (SIDE, SIDE) for event in events)


def test_openai_models_and_errors(ai):
    assert {model.id for model in ai.models.list()} == {"other", "postcards-4-step", catalogue.DEFAULT}
    assert ai.models.retrieve(catalogue.DEFAULT).id == catalogue.DEFAULT
    with pytest.raises(openai.BadRequestError, match="background"):
        ai.images.generate(model="gpt-image-1", prompt=PROMPT, background="transparent")
    with pytest.raises(openai.NotFoundError, match="none-such"):
        ai.images.generate(model="none-such", prompt=PROMPT)


NODE = """
import OpenAI, { toFile } from "openai";
const [base, side] = process.argv.slice(2);
const ai = new OpenAI({ baseURL: base + "/v1", apiKey: "none", maxRetries: 0 });
const ask = { model: "gpt-image-1", prompt: "a red house", size: `${side}x${side}`, steps: 2 };
const made = await ai.images.generate(ask);
const bytes = Buffer.from(made.data[0].b64_json, "base64");
const edited = await ai.images.edit({ ...ask, image: await toFile(bytes, "a.png", { type: "image/png" }) });
const kinds = [];
for await (const event of await ai.images.generate({ ...ask, stream: true, partial_images: 1 })) kinds.push(event.type);
let refused = "";
try { await ai.images.generate({ ...ask, size: "7x7" }); } catch (error) { refused = error.status; }
const models = (await ai.models.list()).data.length;
const png = bytes.subarray(1, 4).toString();
console.log(JSON.stringify({ png, edited: edited.data.length, kinds, refused, models }));
"""


def test_openai_for_node(server, tmp_path):
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    modules = Path(sys.prefix) / "node" / "node_modules"
    assert (modules / "openai").is_dir(), "./test.sh --all installs it there"
    (tmp_path / "try.mjs").write_text(NODE)
    (tmp_path / "node_modules").symlink_to(modules)
    command = ["node", "try.mjs", server.url, str(SIDE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "png": "PNG",
        "edited": 1,
        "kinds": ["image_generation.partial_image", "image_generation.completed"],
        "refused": 400,
        "models": 3,
    }


# --- All at once


def test_clients_at_once_are_given_what_they_would_be_given_alone(web, ai, strict, alone):
    from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody

    found: list[Image.Image] = []
    extra = {"seed": 7, "steps": STEPS, "cfg_scale": 5.0, "sampler": "euler"}

    def by_openai() -> None:
        answer = ai.images.generate(model="", prompt=PROMPT, size=f"{SIDE}x{SIDE}", extra_body=extra)
        found.append(picture(answer.data[0].b64_json))

    calls = [
        lambda: found.append(web.txt2img(**ask()).image),
        by_openai,
        lambda: found.extend(
            strict.txt2img(DiffusionRequestBody(**ask(steps=STEPS, sampler="euler", scheduler="automatic")))["images"]
        ),
    ] * 3
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == len(calls)
    for image in found:
        same(image, alone)


def test_the_description_is_valid(server):
    validate = pytest.importorskip("openapi_spec_validator").validate
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        document = json.load(answer)
    validate(document)
    assert "/sdapi/v1/txt2img" in document["paths"]


def test_killed_while_saving_it_leaves_whole_files(tmp_path):
    """Whatever the moment: no broken picture, and none that was finished is lost."""
    server = Server(tmp_path)
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Euler", steps=1)
    answered = []

    def client() -> None:
        while True:
            try:
                answered.append(api.txt2img(**ask(cfg_scale=1.0)).info["infotexts"])
            except Exception:
                return

    thread = threading.Thread(target=client)
    thread.start()
    wait(lambda: len(answered) >= 3, 60)
    time.sleep(0.13)
    server.process.send_signal(signal.SIGKILL)
    thread.join(20)
    server.stop()
    pictures = server.pictures()
    for path in pictures:
        with Image.open(path) as image:
            image.load()
            assert image.text["parameters"].startswith(PROMPT)
    assert len(pictures) >= len(answered)


def picture(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def file(image: Image.Image) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "a.png", buffer.getvalue(), "image/png"

"""OpenAI's routes and the stream of events, over an engine that only pretends."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
from PIL import Image

from stable_diffusion import catalogue
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import shared
from stable_diffusion.service.api import links
from tests.pretend import wait
from tests.test_http_api import calls, client, engine  # noqa: F401
from tests.test_http_security import bomb

HARD = {"output_compression": 1}
ASK = {"prompt": "a red house", "size": "64x64"}


def post(client, path="generations", **fields):  # noqa: F811
    return client.post(f"/v1/images/{path}", json=ASK | fields)


def file(image: Image.Image) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "x.png", buffer.getvalue(), "image/png"


def picture(datum) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(datum["b64_json"])))


def sse(text: str) -> list[tuple[str, dict]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def test_pictures_from_a_text(client, engine, tmp_path):  # noqa: F811
    extension = {"negative_prompt": "rain", "steps": 3, "seed": 7, "cfg_scale": 2, "sampler": "dpmpp_2m_karras"}
    answer = post(client, n=2, model="gpt-image-1", user="me", moderation="low", **extension).json()
    assert [datum["seed"] for datum in answer["data"]] == [7, 8]
    assert (answer["size"], answer["output_format"], answer["background"]) == ("64x64", "png", "opaque")
    said = Parameters.from_text(picture(answer["data"][0]).text["parameters"])
    assert (said.prompt, said.negative, said.steps, said.cfg) == ("a red house", "rain", 3, 2)
    assert (said.sampler, said.schedule) == ("DPM++ 2M", "Karras")
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 2


@pytest.mark.parametrize(("quality", "share"), [("low", 0.5), ("auto", 1), ("medium", 1), ("high", 1.5)])
def test_quality_is_a_number_of_steps(client, engine, quality, share):  # noqa: F811
    post(client, quality=quality)
    assert calls(engine)[-1]["num_steps"] == round(catalogue.KNOWN[0].defaults.steps * share)


def test_formats_and_their_quality(client):  # noqa: F811
    plain, small = (post(client, output_format="webp", **more).json()["data"][0] for more in ({}, HARD))
    assert picture(plain).format == picture(small).format == "WEBP"
    assert picture(post(client, output_format="jpeg", output_compression=50).json()["data"][0]).format == "JPEG"


def test_a_link_leads_to_the_gallerys_file_for_a_while(client, monkeypatch):  # noqa: F811
    (datum,) = post(client, model="dall-e-3").json()["data"]
    answer = client.get(datum["url"])
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    assert client.get("/v1/images/files/..%2F..%2Fetc%2Fpasswd").status_code == 404
    monkeypatch.setattr(links.time, "monotonic", lambda: 1e12)
    assert client.get(datum["url"]).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0}, {"n": 11}, {"size": "64"}, {"size": "9999999x8"}, {"size": "8192x8192"}, {"quality": "best"},
        {"background": "transparent"}, {"output_format": "gif"}, {"response_format": "bytes"}, {"partial_images": 4},
        {"output_compression": 101}, {"sampler": "nonesuch"}, {"prompt": ""}, {"prompt": None}, {"stream": "maybe"},
        {"seed": 2**64}, {"prompt": "(" * 200},
    ],
)  # fmt: skip
def test_errors_in_openais_form(client, fields):  # noqa: F811
    answer = post(client, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error" and error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_models(client):  # noqa: F811
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [catalogue.DEFAULT, catalogue.STUDENT]
    assert client.get(f"/v1/models/{catalogue.DEFAULT}").json()["object"] == "model"
    assert client.get("/v1/models/org/none").status_code == 404
    assert post(client, model=catalogue.DEFAULT).status_code == 200
    assert post(client, model="org/none").json()["error"]["code"] == "not_found"


def half_transparent(size=(64, 64)) -> Image.Image:
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit_without_a_mask(client, engine, name):  # noqa: F811
    files = {name: file(Image.new("RGB", (100, 50), "red"))}
    answer = client.post("/v1/images/edits", data={"prompt": "a", "n": "2", "size": "auto"}, files=files)
    assert answer.status_code == 200 and len(answer.json()["data"]) == 2
    found = calls(engine)[-1]
    width, height = found["input_image"].size
    assert found["denoising_strength"] == 0.7 and abs(width / height - 2) < 0.3


@pytest.mark.parametrize("size", ["auto", "64x64"])
def test_what_is_transparent_is_repainted(client, engine, size):  # noqa: F811
    given = (64, 64) if size == "auto" else (128, 64)
    files = {"image": file(Image.new("RGB", given, "red")), "mask": file(half_transparent(given))}
    answer = client.post("/v1/images/edits", data={"prompt": "a", "size": size}, files=files)
    done = picture(answer.json()["data"][0]).convert("RGB")
    assert done.size == (64, 64)
    assert done.getpixel((done.width - 1, 20)) == (255, 0, 0), "what is opaque stays"
    assert done.getpixel((2, 20)) != (255, 0, 0)
    assert calls(engine)[-1]["denoising_strength"] == 1.0


def test_a_picture_with_a_hole_is_its_own_mask(client, engine):  # noqa: F811
    answer = client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": file(half_transparent())})
    assert answer.status_code == 200 and "mask_image" in calls(engine)[-1]


@pytest.mark.parametrize(
    ("data", "files"),
    [
        ({"prompt": "a"}, {"mask": file(half_transparent())}),
        ({"prompt": "a"}, {"image": file(Image.new("RGB", (64, 64))), "mask": file(Image.new("RGB", (64, 64)))}),
        ({"prompt": "a"}, {"image": file(Image.new("RGB", (64, 64))), "mask": file(half_transparent((32, 32)))}),
        ({"prompt": "a"}, {"image": ("x.png", b"no picture", "image/png")}),
        ({"prompt": "a"}, {"image": ("x.png", base64.b64decode(bomb(65_000, 65_000)), "image/png")}),
        ({"prompt": "a"}, [("image[]", file(Image.new("RGB", (8, 8))))] * 2),
        ({}, {"image": file(Image.new("RGB", (64, 64)))}),
    ],
)
def test_edits_that_cannot_be_made(client, engine, data, files):  # noqa: F811
    answer = client.post("/v1/images/edits", data=data, files=files)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert not engine.models


def test_an_edit_in_json_is_refused(client):  # noqa: F811
    assert post(client, "edits").status_code == 415


def test_a_stream_of_partial_pictures(client):  # noqa: F811
    found = sse(post(client, stream=True, partial_images=3, steps=8, n=2, output_format="jpeg").text)
    kinds = [name.rpartition(".")[2] for name, _ in found]
    assert kinds == [*["partial_image"] * 3, "completed"] * 2
    for name, data in found:
        assert data["type"] == name and picture(data).size == (64, 64) and picture(data).format == "JPEG"
    assert [data["partial_image_index"] for name, data in found if "partial" in name] == [0, 1, 2] * 2


def test_an_edit_streams_too(client):  # noqa: F811
    files = {"image": file(Image.new("RGB", (64, 64), "red"))}
    answer = client.post("/v1/images/edits", data={"prompt": "a", "stream": "true", "size": "64x64"}, files=files)
    ((name, data),) = sse(answer.text)
    assert name == "image_edit.completed" and picture(data).size == (64, 64)


def test_a_stream_ends_with_the_error(client, engine):  # noqa: F811
    engine.fail_at = 2
    ((name, data),) = sse(post(client, stream=True).text)
    assert name == "error" and "wheels" in data["error"]["message"]


def test_a_cancelled_picture_is_an_error(client, engine):  # noqa: F811
    engine.gate = threading.Semaphore(0)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(client)))
    thread.start()
    wait(lambda: shared.the_worker().queue() and shared.the_worker().queue()[0].started)
    client.post("/sdapi/v1/interrupt")
    engine.gate.release(1)
    thread.join(10)
    assert answers[0].status_code == 500 and "cancelled" in answers[0].json()["error"]["message"]

"""What the HTTP API refuses from strangers and survives from clients, over an engine that only pretends."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections import deque
from pathlib import Path

import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from stable_diffusion import catalogue
from stable_diffusion.service import shared
from stable_diffusion.service.api import bodies, closures
from stable_diffusion.service.api.access import KeyGuard, Secret
from stable_diffusion.service.api.app import build
from stable_diffusion.service.api.errors import without_paths
from stable_diffusion.service.api.links import PREFIX
from stable_diffusion.service.api.routes import ENDPOINTS
from stable_diffusion.service.worker import MAX_WAITING
from tests import asgi
from tests.pretend import wait
from tests.test_http_api import PAINT, client, engine, png  # noqa: F401

JSON = {"content-type": "application/json"}
GETS = [each.path for each in ENDPOINTS if each.method == "GET"]
POSTS = [each.path for each in ENDPOINTS if each.method == "POST"]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# --- Who may ask


@pytest.mark.parametrize("path", GETS + POSTS)
def test_foreign_hosts_and_origins_are_refused_on_every_route(client, engine, path):  # noqa: F811
    method = "GET" if path in GETS else "POST"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert client.request(method, path, headers=headers).status_code in (400, 403), (path, headers)
    assert not engine.models


def test_containers_may_ask_and_pages_of_this_machine(client):  # noqa: F811
    for headers in ({"Host": "host.docker.internal:7860"}, {"Origin": "http://localhost:3000"}, {"Host": "127.0.0.1"}):
        assert client.get("/sdapi/v1/options", headers=headers).status_code == 200


def test_no_other_page_is_told_that_it_may_read(client):  # noqa: F811
    answer = client.get("/sdapi/v1/options", headers={"Origin": "http://localhost:3000"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_page_may_ask_from_a_browser(engine):  # noqa: F811
    app = build(origins=["https://my.page"])
    with TestClient(app, base_url="http://localhost") as client:  # noqa: F811
        asked = {"Origin": "https://my.page", "Access-Control-Request-Method": "POST"}
        assert client.options("/sdapi/v1/txt2img", headers=asked).status_code == 200
        answer = client.get("/sdapi/v1/options", headers={"Origin": "https://my.page"})
        assert answer.headers["access-control-allow-origin"] == "https://my.page"
        assert client.get("/sdapi/v1/options", headers={"Origin": "https://other.page"}).status_code == 403


@pytest.mark.parametrize("path", GETS + POSTS)
def test_every_route_asks_for_the_key(engine, path):  # noqa: F811
    client = TestClient(build(secrets=[Secret("geheim")]), base_url="http://localhost")  # noqa: F811
    answer = client.request("GET" if path in GETS else "POST", path)
    assert answer.status_code == 401 and "Basic" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer geheim"}, 200),
        (basic("anyone", "geheim"), 200),
        (basic("anna", "lang und gut"), 200),
        ({"Authorization": "bearer anna:lang und gut"}, 200),
        (basic("otto", "lang und gut"), 401),
        (basic("anna", "geheim "), 401),
        ({"Authorization": "Bearer geheimer"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic !!"}, 401),
        ({"Authorization": ""}, 401),
        ({}, 401),
    ],
)
def test_keys_and_passwords(engine, headers, status):  # noqa: F811
    app = build(secrets=[Secret("geheim"), Secret("lang und gut", "anna")])
    assert TestClient(app, base_url="http://localhost").get("/sdapi/v1/options", headers=headers).status_code == status


def test_guesses_of_the_key_are_limited_by_address_for_a_minute(engine):  # noqa: F811
    now = [0.0]

    async def page(scope, receive, send):
        await JSONResponse("the page")(scope, receive, send)

    guard = KeyGuard(page, [Secret("geheim")], lambda path: False, clock=lambda: now[0])

    def answer(key, address="192.168.1.9", kind="http"):
        return asgi.ask(guard, client=address, kind=kind, authorization=f"Bearer {key}")

    def status(*asked):
        return answer(*asked).status

    assert [status("falsch") for _ in range(11)] == [401] * 10 + [429]
    assert status("geheim") == 429 and status("geheim", "192.168.1.10") == 200
    refused = answer("geheim")
    assert refused.headers["retry-after"] == "60" and "Too many" in json.loads(refused.text)["error"]["message"]
    assert answer("geheim", kind="websocket").type == "websocket.close"
    now[0] = 61.0
    assert status("geheim") == 200


def test_a_client_without_a_key_does_not_guess(engine):  # noqa: F811
    get = TestClient(build(secrets=[Secret("geheim")]), base_url="http://localhost").get
    for headers in [{}, {"Authorization": "Bearer "}, {"Authorization": ""}] * 5:
        assert get("/sdapi/v1/options", headers=headers).status_code == 401
    assert get("/sdapi/v1/options", headers={"Authorization": "Bearer geheim"}).status_code == 200


def test_a_link_needs_no_key_and_nothing_else_is_taken_for_one(engine):  # noqa: F811
    get = TestClient(build(secrets=[Secret("geheim")]), base_url="http://localhost").get
    assert get(f"/{PREFIX}{'a' * 32}").status_code == 404
    for path in ("", "a", "a" * 33, f"{'a' * 16}/{'a' * 15}", f"{'a' * 31}%2F", "..%2F..%2Fsdapi%2Fv1%2Foptions%2Fa"):
        assert get(f"/{PREFIX}{path}").status_code == 401, path


def test_without_a_key_any_authorization_is_ignored(client):  # noqa: F811
    for headers in ({"Authorization": "Bearer "}, {"Authorization": "Basic Og=="}, basic("a", "b")):
        assert client.get("/sdapi/v1/options", headers=headers).status_code == 200


# --- What is sent


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_a_form_of_another_page_is_no_request(client, engine, kind):  # noqa: F811
    answer = client.post("/sdapi/v1/txt2img", content=json.dumps(PAINT), headers={"content-type": kind})
    assert answer.status_code == 415 and not engine.models


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"seed": NaN}', 400),
        (b'{"seed": ' + b"1" * 10_000 + b"}", 400),
        (b"[]", 422),
        (b"\xff\xfe", 400),
        (b'{"prompt": 5}', 422),
        (b'{"prompt": "a", "init_images": {}}', 200),
    ],
)
def test_broken_bodies(client, body, status):  # noqa: F811
    answer = client.post("/sdapi/v1/txt2img", content=body, headers=JSON)
    assert answer.status_code == status
    assert status == 200 or answer.json()["detail"]


def test_a_body_too_large_is_refused_before_it_is_read(client, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bodies, "MAX_BYTES", 1000)
    assert client.post("/sdapi/v1/txt2img", content=b" " * 1001, headers=JSON).status_code == 413
    parts = (b" " * 100 for _ in range(100))  # chunked: no length is declared
    assert client.post("/sdapi/v1/txt2img", content=parts, headers=JSON).status_code == 413
    assert bodies._held == 0


def test_no_more_is_held_than_fits(client, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bodies, "MAX_HELD", 10)
    answer = client.post("/sdapi/v1/txt2img", json=PAINT)
    assert answer.status_code == 503 and answer.headers["retry-after"]


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "image",
    [bomb(65_000, 65_000), bomb(20_000, 20_000), "!" * 1000, "", 5, None, base64.b64encode(b"GIF89a").decode(),
     "data:image/png;base64,", "data:text/html," + "x" * 100],
)  # fmt: skip
@pytest.mark.parametrize("path", ["img2img", "png-info", "extra-single-image"])
def test_what_is_no_picture_is_refused_at_once(client, engine, path, image):  # noqa: F811
    before = time.perf_counter()
    payload = {"prompt": "a", "init_images": [image], "image": image, "upscaler_1": "Lanczos"}
    answer = client.post(f"/sdapi/v1/{path}", json=payload)
    assert answer.status_code == 422 and time.perf_counter() - before < 2
    assert not engine.models


@pytest.mark.parametrize("prompt", ["(" * 10_000 + "a", "[" * 10_000, "a" * 20_001, "<lora:a:x>", "<lora:../../a:1>"])
def test_prompts_that_hurt_are_refused_at_once(client, engine, prompt):  # noqa: F811
    before = time.perf_counter()
    for field in ("prompt", "negative_prompt"):
        answer = client.post("/sdapi/v1/txt2img", json=PAINT | {field: prompt})
        assert answer.status_code == 422, field
    assert time.perf_counter() - before < 2 and not engine.models


def test_no_address_in_a_request_is_fetched(client, engine):  # noqa: F811
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    for image in (url, "file:///etc/passwd", "ftp://127.0.0.1/a"):
        for path in ("img2img", "png-info", "extra-single-image"):
            payload = {"prompt": "a", "init_images": [image], "mask": image, "image": image}
            assert client.post(f"/sdapi/v1/{path}", json=payload).status_code == 422
    with listener, pytest.raises(TimeoutError):
        listener.accept()


NAMES = ["/etc/passwd", "../secret.safetensors", "..\\secret", "~/.ssh/id_rsa", "evil/downloaded", "\0", "C:\\x.ckpt"]


@pytest.mark.parametrize("name", NAMES)
def test_names_never_become_paths_or_downloads(client, engine, name, tmp_path):  # noqa: F811
    (tmp_path / "secret.safetensors").write_bytes(b"")
    for settings in ({"sd_model_checkpoint": name}, {"sd_vae": name}):
        assert client.post("/sdapi/v1/txt2img", json=PAINT | {"override_settings": settings}).status_code == 404
        assert client.post("/sdapi/v1/options", json=settings).status_code == 404
    assert not engine.loads


def test_no_answer_names_a_folder_of_this_machine(client, engine, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "models"
    (folder / "VAE").mkdir(parents=True)
    (folder / "VAE" / "soft.safetensors").write_bytes(b"")
    (tmp_path / "loras" / "inner").mkdir(parents=True)
    (tmp_path / "loras" / "inner" / "ink.safetensors").write_bytes(b"")
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "word.safetensors").write_bytes(b"")
    monkeypatch.setattr(catalogue, "home", lambda: tmp_path)
    texts = [client.get(path).text for path in GETS if path != "/events"]  # which has no end
    texts.append(client.post("/sdapi/v1/txt2img", json=PAINT | {"prompt": "a <lora:ink2:1>"}).text)
    engine.fail_at = 1
    texts.append(client.post("/sdapi/v1/txt2img", json=PAINT).text)
    assert '"path":"inner/ink.safetensors"' in "".join(texts) and "soft.safetensors" in "".join(texts)
    for text in texts:
        for folder in (tmp_path, Path.home(), Path(__file__).parents[1]):
            assert str(folder) not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("'/srv/data/models/a.safetensors' is cut short.", "'a.safetensors' is cut short."),
        ("No permission to write or read /home/me/secret/x.png.", "No permission to write or read x.png."),
        ("C:\\Users\\me\\x.ckpt is gone", "x.ckpt is gone"),
        ("1/2 of it; [a/b] is 3/4", "1/2 of it; [a/b] is 3/4"),
        ("see https://huggingface.co/org/name", "see https://huggingface.co/org/name"),
    ],
)
def test_paths_are_taken_out_of_messages(text, left):
    assert without_paths(text) == left


# --- Clients that misbehave, at a real server


@pytest.fixture
def server(engine):  # noqa: F811
    """A real server in a thread: sockets that close, stall and crowd."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build(), log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    wait(lambda: server.started)
    yield listener.getsockname()[1]
    if engine.gate is not None:
        engine.gate.release(100_000)
    server.should_exit = True
    thread.join(10)


def raw(body: bytes, length: int | None = None, path: str = "/sdapi/v1/txt2img") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def ask(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


def status_line(connection: socket.socket) -> int:
    with connection, connection.makefile("rb") as file:
        return int(file.readline().split()[1])


def test_a_client_that_closes_cancels_its_job(server, engine):  # noqa: F811
    engine.gate = threading.Semaphore(0)
    first = ask(server, raw(json.dumps(PAINT | {"steps": 50}).encode()))
    engine.gate.release(2)
    queue = shared.the_worker().queue
    wait(lambda: queue() and queue()[0].frame is not None)
    second = ask(server, raw(json.dumps(PAINT).encode()))
    wait(lambda: len(queue()) == 2)
    third = ask(server, raw(json.dumps(PAINT | {"steps": 1}).encode()))
    wait(lambda: len(queue()) == 3)
    running, waiting, _ = queue()
    second.close()
    wait(lambda: not waiting.active)
    assert waiting.state == "cancelled"
    first.close()
    wait(lambda: running.cancelling)
    engine.gate.release(2)
    assert status_line(third) == 200
    assert running.state == "cancelled" and len(running.pictures[0].frames) < 5


def test_an_interrupt_after_a_closed_socket_leaves_the_next_job_alone(server, engine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(closures, "_closed", deque())  # without those of other tests
    engine.gate = threading.Semaphore(0)
    queue = shared.the_worker().queue
    first = ask(server, raw(json.dumps(PAINT | {"steps": 50}).encode()))
    wait(lambda: len(queue()) == 1)
    (gone,) = queue()
    second = ask(server, raw(json.dumps(PAINT | {"steps": 50}).encode()))
    wait(lambda: len(queue()) == 2)
    _, other = queue()
    engine.gate.release(1)
    first.close()
    wait(lambda: gone.cancelling)
    engine.gate.release(1)
    wait(lambda: other.started is not None)
    assert status_line(ask(server, raw(b"{}", path="/sdapi/v1/interrupt"))) == 200
    assert not other.cancelling, "what SillyTavern sends after it has closed the socket"
    assert status_line(ask(server, raw(b"{}", path="/sdapi/v1/interrupt"))) == 200
    assert other.cancelling, "one by itself means what runs"
    engine.gate.release(2)
    assert status_line(second) == 200


def test_a_client_that_stalls_is_let_go(server, monkeypatch):
    monkeypatch.setattr(bodies, "PATIENCE", 0.2)
    assert status_line(ask(server, raw(b'{"prompt"', 1000))) == 408
    assert bodies._held == 0
    assert status_line(ask(server, raw(json.dumps(PAINT).encode()))) == 200


def test_a_burst_is_answered_whole_and_the_worker_lives_on(server, engine):  # noqa: F811
    engine.gate = threading.Semaphore(0)
    crowd = [ask(server, raw(json.dumps(PAINT | {"steps": 1}).encode())) for _ in range(200)]
    wait(lambda: len(shared.the_worker().queue()) == MAX_WAITING + 1)
    engine.gate.release(1000)
    found = [status_line(connection) for connection in crowd]
    assert set(found) == {200, 503}
    assert found.count(200) >= MAX_WAITING + 1
    assert status_line(ask(server, raw(json.dumps(PAINT).encode()))) == 200


def test_a_slow_reader_holds_up_nobody(server):
    size = {"image": png(size=(2000, 1500)), "upscaler_1": "Nearest", "upscaling_resize": 2}
    slow = ask(server, raw(json.dumps(size).encode(), path="/sdapi/v1/extra-single-image"))
    for _ in range(3):
        assert status_line(ask(server, raw(json.dumps(PAINT).encode()))) == 200
    assert status_line(slow) == 200


def test_masks_and_pictures_of_many_kinds_break_nothing(client):  # noqa: F811
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (64, 64), 1 if mode in ("1", "L", "P", "I;16") else None or 0).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        answer = client.post("/sdapi/v1/img2img", json=PAINT | {"init_images": [data], "mask": data})
        assert answer.status_code in (200, 422), mode
        assert answer.status_code == 200 or "repaint" in answer.json()["detail"]

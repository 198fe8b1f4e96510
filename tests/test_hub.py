"""The hub, against a small server on loopback that speaks the few requests huggingface_hub makes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stable_diffusion.model_io.hub import needed_files, weight_files

from .conftest import EMBEDDED

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 20
# Beside what is needed, what repositories hold too.
CHAFF = {
    "README.md": b"a card",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"",  # filled in below
    "safety_checker/model.safetensors": b"not needed",
    "v1-5-pruned.safetensors": b"not needed",
}


class Hub(ThreadingHTTPServer):
    """Serves the embedded model as a repository; counts what is asked for, and can cut an answer short or be slow."""

    def __init__(self, repository: str = "someone/postcards"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {
            path.relative_to(EMBEDDED).as_posix(): path.read_bytes() for path in EMBEDDED.rglob("*") if path.is_file()
        }
        self.files |= CHAFF
        weights = "unet/diffusion_pytorch_model{}.safetensors"
        self.files[weights.format(".fp16")] = self.files[weights.format("")]
        self.fetched: list[str] = []
        self.ranges: list[str] = []
        self.repository = repository
        self.card: dict[str, str] = {}
        self.cut_once: str | None = None
        self.refused: set[str] = set()  # files that are not given
        self.sizes: dict[str, int] = {}  # that are claimed for files
        self.pause = 0.0  # seconds before each piece
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *args):
        pass

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.server.status != 200:
            return self.send(
                self.server.status, b"{}", {"X-Error-Code": "GatedRepo"} if self.server.status == 403 else {}
            )
        repository = self.server.repository
        if path == f"/api/models/{repository}":
            siblings = [
                {"rfilename": name, "size": self.server.sizes.get(name, len(data))}
                for name, data in self.server.files.items()
            ]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            info["cardData"] = self.server.card
            return self.send(200, json.dumps(info).encode(), {})
        name = path.removeprefix(f"/{repository}/resolve/main/")
        if path.startswith("/api/") or name not in self.server.files:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if name in self.server.refused:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        data = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not body:
            return self.send(200, data, headers, body=False)
        self.server.fetched.append(name)
        wanted = self.headers.get("Range")
        if wanted:
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.send(206, data[start:], headers)
        if self.server.cut_once == name:
            self.server.cut_once = None
            return self.send(200, data, headers, cut=len(data) * 3 // 4)
        return self.send(200, data, headers)

    def send(self, status: int, data: bytes, headers: dict, body: bool = True, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            for start in range(0, len(data[:cut]), PIECE):
                time.sleep(self.server.pause)
                self.wfile.write(data[:cut][start : start + PIECE])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, home: Path, name: str = "someone/postcards", float16: bool = False, **environment: str) -> dict:
    """Locate a model in a process of its own, since huggingface_hub reads its environment when it is imported."""
    code = (
        "import json, sys\n"
        "from stable_diffusion.errors import StableDiffusionError\n"
        "from stable_diffusion.model_io.locate import locate\n"
        "heard = []\n"
        "try:\n"
        f"    name, folder = locate({name!r}, {float16}, lambda *news: heard.append(news))\n"
        "    result = {'folder': str(folder)}\n"
        "except StableDiffusionError as error:\n"
        "    result = {'error': type(error).__name__, 'message': str(error)}\n"
        "print(json.dumps({**result, 'heard': heard}))\n"
    )
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, **environment}
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.pop(proxy, None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_only_what_is_needed_is_fetched_and_only_once(hub, tmp_path):
    result = fetch(hub, tmp_path)
    folder = Path(result["folder"])
    assert tmp_path in folder.parents
    have = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in have and "tokenizer/vocab.json" in have
    assert not have & CHAFF.keys()
    assert (folder / "unet/config.json").read_bytes() == hub.files["unet/config.json"]

    fractions = [fraction for message, fraction in result["heard"] if message == "Downloading someone/postcards"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 10

    hub.fetched.clear()
    assert fetch(hub, tmp_path)["folder"] == str(folder)
    assert fetch(hub, tmp_path, HF_HUB_OFFLINE="1")["folder"] == str(folder)
    assert hub.fetched == []


def test_float16_prefers_its_variant(hub, tmp_path):
    folder = Path(fetch(hub, tmp_path, float16=True)["folder"])
    assert [path.name for path in (folder / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_download_that_was_cut_off_goes_on(hub, tmp_path):
    hub.cut_once = "unet/diffusion_pytorch_model.safetensors"
    folder = Path(fetch(hub, tmp_path)["folder"])
    assert any(not wanted.startswith("bytes=0-") for wanted in hub.ranges)
    assert (folder / hub.fetched[-1]).exists()
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_bytes() == hub.files[name]


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "scheduler/scheduler_config.json"])
def test_a_download_that_broke_is_mended(file, hub, tmp_path):
    hub.refused = {file}
    assert fetch(hub, tmp_path)["error"] == "DownloadError"
    offline = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")["message"]
    assert "not downloaded completely" in offline and "scheduler/scheduler_config.json" in offline
    hub.refused.clear()
    already = len(hub.fetched)
    folder = Path(fetch(hub, tmp_path)["folder"])
    assert (folder / file).read_bytes() == hub.files[file]
    assert file in hub.fetched[already:] and "unet/config.json" not in hub.fetched[already:]


def test_a_file_that_went_missing_is_mended(hub, tmp_path):
    folder = Path(fetch(hub, tmp_path)["folder"])
    hub.fetched.clear()
    (folder / "tokenizer" / "vocab.json").resolve().unlink()
    fetch(hub, tmp_path)
    assert hub.fetched == ["tokenizer/vocab.json"]


def test_pickles_alone_are_refused_before_anything_is_fetched(hub, tmp_path):
    for name in [name for name in hub.files if name.startswith("unet/") and name.endswith(".safetensors")]:
        del hub.files[name]
    result = fetch(hub, tmp_path)
    assert result["error"] == "UnsupportedCheckpointError" and hub.fetched == ["model_index.json"]
    assert "unet/diffusion_pytorch_model.bin" in result["message"] and "save_pretrained" in result["message"]


def test_another_architecture_is_refused_before_anything_is_fetched(hub, tmp_path):
    hub.files["model_index.json"] = json.dumps({"_class_name": "FluxPipeline"}).encode()
    result = fetch(hub, tmp_path)
    assert result["error"] == "UnsupportedCheckpointError" and "FLUX" in result["message"]
    assert hub.fetched == ["model_index.json"]


@pytest.mark.parametrize(
    "files, advice",
    [
        ({"photon_v1.safetensors": 2_132_625_894, "README.md": 3}, "--model photon_v1.safetensors"),
        ({"v1-5-pruned.ckpt": 7_700_000_000}, "hf download someone/postcards v1-5-pruned.ckpt --local-dir models"),
        ({"pytorch_lora_weights.safetensors": 134_000_000}, "<lora:pytorch_lora_weights:1>"),
        ({"ink.safetensors": 9_000_000, "adapter_config.json": 100}, "<lora:ink:1>"),
        ({"config.json": 500, "diffusion_pytorch_model.safetensors": 335_000_000}, "--vae"),
        ({"README.md": 3}, "so it is not a checkpoint in diffusers' folder form."),
    ],
)
def test_other_repositories_come_with_advice(files, advice, hub, tmp_path):
    hub.files, hub.sizes = dict.fromkeys(files, b""), files
    result = fetch(hub, tmp_path)
    assert result["error"] == "CheckpointNotFoundError" and advice in result["message"]
    assert hub.fetched == []


def ask(hub: Hub, home: Path, code: str, **environment: str) -> subprocess.CompletedProcess:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, "STABLE_DIFFUSION_HOME": str(home / "none"), **environment}
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.pop(proxy, None)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


OFFER = """
from stable_diffusion import catalogue
from stable_diffusion.errors import StableDiffusionError
try:
    found = catalogue.offered({name!r})
    print(found.name, found.kind, found.family, found.licence, found.size_bytes, found.present)
except StableDiffusionError as error:
    print(type(error).__name__, error)
"""


def test_an_id_is_looked_up_before_it_is_downloaded(hub, tmp_path):
    hub.card = {"license": "mit"}
    size = sum(len(hub.files[name]) for name in needed_files(hub.files, False))
    for typed in ("someone/postcards", f" {hub.url}/someone/postcards/tree/main "):
        done = ask(hub, tmp_path, OFFER.format(name=typed))
        assert done.stdout == f"someone/postcards hub sd1 mit {size} False\n", done.stderr
    assert set(hub.fetched) == {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}
    assert ask(hub, tmp_path, OFFER.format(name="post cards")).stdout.startswith("InputError 'post cards' is not an id")
    hub.files["model_index.json"] = json.dumps({"_class_name": "FluxPipeline"}).encode()
    told = ask(hub, tmp_path / "other", OFFER.format(name="someone/postcards")).stdout
    assert told.startswith("UnsupportedCheckpointError 'someone/postcards' holds FLUX"), told


def test_a_downloaded_model_is_listed_from_then_on(hub, tmp_path):
    fetch(hub, tmp_path)
    code = (
        "from stable_diffusion import catalogue\n"
        "model = catalogue.all()[-1]\n"
        "print(model.name, model.kind, model.family, model.present, catalogue.find_listed(model.name) == model)"
    )
    assert ask(hub, tmp_path, code).stdout == "someone/postcards hub sd1 True True\n"
    assert "someone/postcards" not in ask(hub, tmp_path / "other", code).stdout


def test_a_moved_repository_is_found_at_its_new_place(hub, tmp_path):
    hub.repository = "stable-diffusion-v1-5/stable-diffusion-inpainting"
    code = (
        "from stable_diffusion import StableDiffusion\n"
        "print(StableDiffusion('runwayml/stable-diffusion-inpainting').name)"
    )
    done = ask(hub, tmp_path, code)
    assert done.stdout == f"{hub.repository}\n", done.stderr
    assert f"is no longer on the hub; its copy '{hub.repository}' takes its place" in done.stderr


def test_offline_and_not_downloaded(hub, tmp_path):
    result = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert result["error"] == "CheckpointNotFoundError"
    assert "'someone/postcards'" in result["message"] and "HF_HUB_OFFLINE" in result["message"]


def test_an_unknown_repository(hub, tmp_path):
    result = fetch(hub, tmp_path, name="someone/nothing")
    assert result["error"] == "CheckpointNotFoundError" and "'someone/nothing'" in result["message"]


def test_a_gated_repository(hub, tmp_path):
    hub.status = 403
    result = fetch(hub, tmp_path)
    assert (
        result["error"] == "DownloadError" and "licence" in result["message"] and "hf auth login" in result["message"]
    )


def test_the_hub_cannot_be_reached(hub, tmp_path):
    result = fetch(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert result["error"] == "DownloadError" and "'someone/postcards'" in result["message"]


def test_a_repository_that_is_no_checkpoint(hub, tmp_path):
    del hub.files["model_index.json"]
    result = fetch(hub, tmp_path)
    assert result["error"] == "CheckpointNotFoundError" and "model_index.json" in result["message"]


@pytest.mark.parametrize(
    "names, float16, expected",
    [
        (["model.safetensors", "model.fp16.safetensors"], True, ["model.fp16.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], False, ["model.safetensors"]),
        (["model.fp16.safetensors"], False, ["model.fp16.safetensors"]),
        (["pytorch_model.bin", "config.json"], False, []),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            True,
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            [
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
                "diffusion_pytorch_model.safetensors",
            ],
            True,
            [
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
            ],
        ),
    ],
)
def test_weight_files(names, float16, expected):
    assert weight_files(names, float16) == expected


def test_needed_files_of_a_repository():
    names = [
        "model_index.json",
        "unet/config.json",
        "unet/x/y.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/merges.txt",
        "vae_1/config.json",
    ]
    assert needed_files(names, float16=False) == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
    ]

"""`serve`: its options, and the server that it starts; and the page's server, which answers the same."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import stable_diffusion
from stable_diffusion import __main__ as program
from stable_diffusion.commands import serve
from stable_diffusion.errors import InputError
from stable_diffusion.service.api.access import Secret
from tests.pretend import wait

ROOT = Path(stable_diffusion.__file__).parents[1]


def args(*options: str) -> argparse.Namespace:
    return program.build_parser().parse_args(["serve", *options])


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in (serve.KEY_VARIABLE, serve.AUTH_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_alone_needs_no_key():
    assert serve.secrets(args()) == []
    assert "host.docker.internal" in serve.hosts(args())
    assert serve.hosts(args("--allow-host", "studio.local"))[-1] == "studio.local"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "studio.local"])
def test_beyond_this_machine_a_key_is_demanded(host, monkeypatch):
    with pytest.raises(InputError, match="--api-key"):
        serve.secrets(args("--host", host))
    assert serve.secrets(args("--host", host, "--api-key", "long enough")) == [Secret("long enough")]
    assert serve.secrets(args("--host", host, "--api-auth", "anna:b:c d e f")) == [Secret("b:c d e f", "anna")]
    with pytest.raises(InputError, match="8 characters"):
        serve.secrets(args("--host", host, "--api-key", "short"))
    monkeypatch.setenv(serve.KEY_VARIABLE, "from the environment")
    assert serve.secrets(args("--host", host)) == [Secret("from the environment")]


@pytest.mark.parametrize("login", ["anna", "anna:", ":b"])
def test_a_login_that_is_none_is_refused(login):
    with pytest.raises(InputError, match="user:password"):
        serve.secrets(args("--api-auth", login))


def test_hosts_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="name of a host"):
        serve.hosts(args("--allow-host", "a*.local"))


def started(folder: Path, *command: str) -> tuple[subprocess.Popen, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"PYTHONPATH": str(ROOT), "STABLE_DIFFUSION_HOME": str(folder), "HOME": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "stable_diffusion", *command, "--port", str(port)],
        cwd=folder, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, process.stderr.read().decode()
        try:
            with urllib.request.urlopen(f"{url}/sdapi/v1/options", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait(answers, 60)
    return process, url


@pytest.mark.parametrize("command", [("serve",), ("page", "--server.headless", "true")], ids=lambda command: command[0])
def test_a_client_is_given_a_picture_which_the_gallery_has(tmp_path, command):
    if command[0] == "page":
        pytest.importorskip("streamlit")
    process, url = started(tmp_path, *command)
    try:
        body = json.dumps({"prompt": "a red house", "steps": 1, "cfg_scale": 1}).encode()
        asked = urllib.request.Request(f"{url}/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert len(json.load(answer)["images"]) == 1
        assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1
        if command[0] == "page":
            with urllib.request.urlopen(url) as answer:
                assert "text/html" in answer.headers["content-type"]
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode in (0, -15, 143)

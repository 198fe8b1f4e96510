"""`stable-diffusion page`: what it hands to Streamlit, and the server that it starts."""

from __future__ import annotations

import ast
import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from stable_diffusion import __main__ as program
from stable_diffusion.places import packaged

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads(packaged("webui", "streamlit.toml").read_text())


class Started(BaseException):
    """This process would have become another one."""


@pytest.fixture
def start(monkeypatch):
    """Runs the command; returns what it would have started: the arguments after `python`, and the environment."""

    def execve(path, command, environment):
        assert path == command[0] == sys.executable
        raise Started(command[1:], environment)

    def run(*argv):
        try:
            return program.main(["page", *map(str, argv)])
        except Started as started:
            return started.args

    monkeypatch.setattr(os, "execve", execve)
    for name in [name for name in os.environ if name.startswith("STREAMLIT_")]:
        monkeypatch.delenv(name)
    return run


def options(command):
    """The options of `streamlit run` and their values, each with all that it was given."""
    assert command[:3] == ["-m", "streamlit", "run"]
    names, values = command[4::2], command[5::2]
    return {name: [v for n, v in zip(names, values, strict=True) if n == name] for name in names}


def test_the_packages_settings_hold_in_any_folder(start):
    command, _ = start()
    assert Path(command[3]) == packaged("webui", "start", "entry.py")
    given = options(command)
    assert given["--server.address"] == ["localhost"]
    assert given["--server.allowedHosts"] == SETTINGS["server"]["allowedHosts"] and len(SETTINGS["server"]) > 5
    assert given["--server.enableXsrfProtection"] == ["true"] and given["--browser.gatherUsageStats"] == ["false"]
    assert given["--theme.dark.primaryColor"] == [SETTINGS["theme"]["dark"]["primaryColor"]]
    assert "--server.port" not in given


def test_streamlit_knows_every_setting_by_the_name_that_it_gets(start):
    template = pytest.importorskip("streamlit.config")._config_options_template
    for name in options(start()[0]):
        assert name.removeprefix("--") in template


def test_what_the_caller_says_comes_before_the_settings(start, monkeypatch):
    monkeypatch.setenv("STREAMLIT_SERVER_MAX_UPLOAD_SIZE", "7")
    monkeypatch.setenv("STREAMLIT_SERVER_ENABLE_CORS", "false")
    monkeypatch.setenv("STREAMLIT_RUNNER_POST_SCRIPT_GC", "true")
    command, _ = start("--server.address=0.0.0.0", "--port", 9, "--server.allowedHosts", "a.example")
    assert "localhost" not in command and command[-3:] == [
        "--server.address=0.0.0.0",
        "--server.allowedHosts",
        "a.example",
    ]
    assert "--server.port 9" in " ".join(command)
    for taken in ("--server.maxUploadSize", "--server.enableCORS", "--runner.postScriptGC"):
        assert taken not in command


def test_models_and_negative_reach_the_page(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my models", "others"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", "/before")
    _, environment = start(
        "--ckpt-dir", "my models", f"--ckpt-dir={tmp_path / 'others'}", "--default-negative=low *res*"
    )
    folders = [str(tmp_path / "my models"), str(tmp_path / "others"), "/before"]
    assert environment["STABLE_DIFFUSION_MODELS"] == os.pathsep.join(folders)
    assert environment["STABLE_DIFFUSION_NEGATIVE"] == "low *res*"
    _, environment = start()
    assert environment["STABLE_DIFFUSION_MODELS"] == "/before" and "STABLE_DIFFUSION_NEGATIVE" not in environment


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ckpt-dir", "nowhere"], "--ckpt-dir nowhere: there is no such folder"),
        (["pictures"], "'pictures': the page takes options only"),
        (["--port", "0"], "should be a whole number from 1 to 65535"),
        (["--port"], "expected one argument"),
    ],
)
def test_what_makes_no_sense_is_refused(start, capsys, argv, words):
    try:
        code = start(*argv)
    except SystemExit as end:
        code = end.code
    assert code == program.USAGE and words in capsys.readouterr().err


def test_without_streamlit_it_says_which_extra_to_install(start, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert start() == program.FAILED
    assert "extra `page` (in a checkout: pip install '.[page]')" in capsys.readouterr().err


def test_other_commands_take_no_unknown_options(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["info", "a.png", "--server.headless", "true"])
    assert end.value.code == program.USAGE
    assert "unrecognized arguments: --server.headless true" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["app.py", "stable_diffusion/webui/start/entry.py"])
def test_streamlit_finds_the_server_in_the_script(script):
    """By reading it, as streamlit.web.server.app_discovery does: `app = st.App(...)`. Without, nobody is on guard."""
    pytest.importorskip("streamlit")
    from streamlit.web.server.app_discovery import discover_asgi_app

    found = discover_asgi_app(ROOT / script)
    assert found.is_asgi_app and found.app_name == "app"
    assert not [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.FunctionDef)]


@contextlib.contextmanager
def served(folder, *command):
    """The port of a server that is started in an empty folder, and where its log is."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--server.port", str(port), "--server.headless", "true"],
            cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while status(port, "/_stcore/health") != 200:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield port, log
    finally:
        process.terminate()
        process.wait(20)


def status(port, path, **headers):
    """What the server answers with, or None."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except OSError:
        return None


@pytest.mark.parametrize(
    "command",
    [("stable_diffusion", "page"), ("streamlit", "run", str(ROOT / "app.py"), "--server.address", "localhost")],
    ids=["page", "app.py"],
)
def test_the_server_starts_anywhere_guarded_and_without_a_warning(tmp_path, command):
    pytest.importorskip("streamlit")
    with served(tmp_path, *command) as (port, log):
        assert status(port, "/") == 200
        if command[0] == "stable_diffusion":
            assert status(port, "/", Host="evil.example") == 400
        assert status(port, "/", Origin="null") == 403
        told = [line for line in log.read_text().splitlines() if line.strip()]
        assert [line.strip().partition(":")[0] for line in told] == [
            "You can now view your Streamlit app in your browser.",
            "URL",
        ]

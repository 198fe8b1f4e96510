"""A real server and a real Chromium for the tests of what a person sees; without a browser they skip."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
PROGRAM = ("-m", "stable_diffusion", "page")
# What is drawn later moves what is there. The page that asks for a password is not Streamlit's.
DRAWN = "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState !== 'running'"
PATIENCE = 60_000  # milliseconds; a busy machine is no failure


def installed_browser():
    found = [shutil.which(name) for name in NAMES] + [path for path in MAC if os.path.exists(path)]
    return next((path for path in found if path), None)


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def server(outputs, tmp_path_factory):
    """The address of the page, served as ./webui.sh serves it."""
    folder, loras = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("loras")
    (loras / "empty.safetensors").write_bytes(b"")
    with serve(outputs, folder / "log", {"HF_HUB_OFFLINE": "1", "STABLE_DIFFUSION_LORAS": str(loras)}) as address:
        yield address


@contextlib.contextmanager
def serve(outputs, log, environment, program=PROGRAM, port_option="--port"):
    """The page at an address of its own, until the end; `program` is what Python runs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *program, f"{port_option}={port}", "--server.headless=true"],
            cwd=log.parent,
            env=os.environ
            | {"STABLE_DIFFUSION_OUTPUTS": str(outputs), "PYTHONPATH": str(ROOT), "STABLE_DIFFUSION_PROMPT_FIELD": ""}
            | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://localhost:{port}"
        _wait_for(f"{address}/_stcore/health", process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    told = log.read_text()
    assert "ScriptRunContext" not in told and "Warning" not in told, told


def _wait_for(address, process, log):
    end = time.time() + PATIENCE / 1000
    while time.time() < end:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not come up:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        path = installed_browser()
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium or Chrome is installed (./test.sh --all installs one where it may)")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Where screenshots go: $SCREENSHOTS, or a temporary folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_page(browser, server, screenshots, request):
    """Opens pages in a fresh browser profile, and takes a picture of each at the end of the test."""
    contexts, pages = [], []

    def open_(path="", width=1280, height=900, scheme="light", ready="Prompt", **more):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.foreign = []
        page.on("request", lambda asked: _note_foreign(page.foreign, asked.url, server))
        page.goto(f"{server}/{path}")
        page.get_by_label(ready, exact=True).wait_for()
        page.wait_for_function(DRAWN)
        return page

    yield open_
    for i, page in enumerate(pages):
        page.screenshot(path=screenshots / f"{request.node.name}-{i}.png", full_page=True)
        assert page.foreign == [], "the page asked other servers"
    for context in contexts:
        context.close()


def _note_foreign(foreign, url, server):
    if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
        foreign.append(url)

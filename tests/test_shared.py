"""One worker and one set of downloads a process, whoever asks, whatever a page's cache does."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stable_diffusion import catalogue
from stable_diffusion.request import Request
from stable_diffusion.service import shared
from stable_diffusion.service.downloads import DownloadState
from stable_diffusion.service.jobs import State
from tests.pretend import PretendEngine, over, wait

HUB_MODEL = next(model for model in catalogue.all() if model.kind == catalogue.HUB)


@pytest.fixture(autouse=True)
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv(shared.OUTPUTS_VARIABLE, str(tmp_path / "pictures"))
    shared.close()
    engine = PretendEngine().install(monkeypatch)
    yield engine
    shared.close()


@pytest.mark.parametrize("made", [shared.the_worker, shared.the_downloads])
def test_everybody_gets_the_same_one(made):
    start = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: (start.wait(10), made())[1], range(16)))
    assert len(set(map(id, found))) == 1
    assert made() is found[0]


def test_the_cache_of_a_page_has_no_hold_on_them():
    streamlit = pytest.importorskip("streamlit")
    from stable_diffusion.webui.components import session

    worker, downloads = shared.the_worker(), shared.the_downloads()
    assert session.the_worker() is worker and session.the_downloads() is downloads
    streamlit.cache_resource.clear()
    assert session.the_worker() is worker and session.the_downloads() is downloads
    job = worker.submit(Request("a", steps=1))
    over(job)
    assert job.state is State.DONE


def test_pictures_go_to_the_outputs(tmp_path):
    job = shared.the_worker().submit(Request("a", steps=1))
    over(job)
    assert job.pictures[0].path.parents[1] == tmp_path / "pictures" == shared.outputs()


def test_the_outputs_are_at_home_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv(shared.OUTPUTS_VARIABLE)
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    assert shared.outputs() == tmp_path / "outputs"
    monkeypatch.setenv(shared.OUTPUTS_VARIABLE, "")
    assert shared.outputs() == tmp_path / "outputs"


def test_closing_ends_them_and_the_next_call_makes_new_ones(engine):
    engine.gate = threading.Semaphore(0)
    worker, downloads = shared.the_worker(), shared.the_downloads()
    job = worker.submit(Request("a", steps=5))
    wait(lambda: job.state is State.RUNNING)
    engine.gate.release(5)
    shared.close()
    assert not job.active
    assert shared.the_worker() is not worker and shared.the_downloads() is not downloads
    other = shared.the_worker().submit(Request("a", steps=1))
    engine.gate.release(1)
    over(other)
    assert other.state is State.DONE


def test_closing_cancels_the_downloads(monkeypatch):
    began, go = threading.Event(), threading.Event()

    def fetch(source, report):
        began.set()
        assert go.wait(10)
        report("Downloading", 0.5)
        raise AssertionError("went on after a cancel")

    monkeypatch.setattr(shared.the_downloads(), "_fetch", fetch)
    download = shared.the_downloads().start(HUB_MODEL)
    assert began.wait(10)
    shared.close()
    go.set()
    wait(lambda: not download.active)
    assert download.state is DownloadState.CANCELLED


def test_the_end_of_the_process_waits_for_a_cancelled_download(tmp_path):
    """It may be writing, or inside a library of the hub's that no thread must be torn out of."""
    script = f"""
import time
from stable_diffusion import catalogue
from stable_diffusion.service import downloads, shared

def fetch(source, report):
    try:
        while True:
            time.sleep(0.01)
            report("Downloading", 0.5)
    finally:
        print("stopped", flush=True)

made = shared.the_downloads()
made._fetch = fetch
made.start(catalogue.find({HUB_MODEL.name!r}))
"""
    root = Path(shared.__file__).parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")

"""The lock file by which a process sees that another one uses the GPU."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from stable_diffusion import backend, gpu_lock

ROOT = Path(__file__).parents[1]
HOLDER = (
    "import sys; from stable_diffusion import gpu_lock; gpu_lock.take(); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def lock(monkeypatch, tmp_path) -> Path:
    """The file, in a cache of the test's own."""
    monkeypatch.setenv("STABLE_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_lock, "_held", None)
    yield tmp_path / "cache" / gpu_lock.NAME
    if gpu_lock._held is not None:
        gpu_lock._held.close()


def taken() -> list[str]:
    """The warnings of `take`."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gpu_lock.take()
    return [str(each.message) for each in seen]


def test_one_process_takes_it_once(lock):
    assert taken() == [] == taken()
    assert lock.read_text().startswith("process ")


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00\x1b[31m" * 5000])
def test_a_second_process_is_warned_and_goes_on(lock, content):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        if content is not None:
            lock.write_bytes(content)
        (warning,) = taken()
        assert "is using the GPU" in warning and warning.isprintable() and len(warning) < 500
        assert content is not None or f"(process {holder.pid}, -c)" in warning
        assert content != b"" or "an unknown process" in warning
        holder.stdin.close()
    assert taken() == []  # it went with its process


def test_a_killed_process_leaves_nothing_locked(lock):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.communicate()
    assert lock.exists() and taken() == []


def test_a_lock_that_cannot_be_read_is_a_warning(lock):
    lock.mkdir(parents=True)
    (warning,) = taken()
    assert "is not known" in warning and str(lock) in warning
    assert lock.is_dir()


def test_a_cache_that_is_a_file_is_a_warning(lock):
    lock.parent.write_text("mine")
    (warning,) = taken()
    assert "is not known" in warning
    assert lock.parent.read_text() == "mine"


@pytest.mark.parametrize("gpu", [True, False])
def test_only_a_gpu_is_locked(monkeypatch, gpu):
    calls = []
    monkeypatch.setattr(gpu_lock, "take", lambda: calls.append(True))
    monkeypatch.setattr(backend, "has_gpu", lambda: gpu)
    monkeypatch.setattr(backend, "_blas", None)
    monkeypatch.setattr(backend, "_choose_blas", lambda: backend.Blas("none"))
    monkeypatch.setattr(backend, "_keep_freed_memory", lambda: None)
    backend.prepare()
    assert calls == [True] * gpu

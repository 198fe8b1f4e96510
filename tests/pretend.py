"""An engine that only pretends, for the tests of the worker and the page."""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from stable_diffusion.adapters import files
from stable_diffusion.errors import CheckpointNotFoundError, InputError
from stable_diffusion.pipeline import Generation
from stable_diffusion.record.used import Used
from stable_diffusion.service import worker as worker_module
from stable_diffusion.text.tags import Strength


class PretendModel:
    """Speaks as StableDiffusion does; `gate`, when given, must be released once for each step."""

    family, default_size, float16 = "sd1", (64, 64), False

    def __init__(self, name, gate=None, fail_at=None):
        self.name, self.gate, self.fail_at, self.calls, self.closed, self.decodes = name, gate, fail_at, [], 0, 0
        self.laid_over, self.calls_of_set_loras, self.tilings = [], [], []

    def generate_latents(self, text, **arguments):
        if not text:
            raise InputError("text = '' is empty: describe a picture.")
        self.calls.append((text, arguments))
        hashes = {name: files.short_hash(path) for (name, _), (path, _) in zip(self.loras, self.laid_over, strict=True)}
        return Generation(Used(self.name, "float32", "pretended", tuple(self.loras), hashes), self._steps(arguments))

    def _steps(self, arguments):
        seed = 1000 if arguments["seed"] is None else arguments["seed"]
        total = arguments["num_steps"]
        try:
            if arguments.get("with_start"):
                yield self._step(0, total, seed, arguments)
            for index in range(1, total + 1):
                if self.gate is not None:
                    assert self.gate.acquire(timeout=10)
                if index == self.fail_at:
                    raise RuntimeError("the wheels came off")
                yield self._step(index, total, seed, arguments)
        finally:
            self.closed += 1

    @staticmethod
    def _step(index, total, seed, arguments):
        latents = np.full((arguments.get("n_images", 1), 8, 8, 4), index / total, np.float32)
        return SimpleNamespace(
            index=index,
            total=total,
            t=0.0,
            sigma=1.0 - index / total,
            seed=seed,
            latents=latents,
            denoised=latents,
            pass_number=1,
            n_passes=1,
            begins_pass=index == 0,
            ends_pass=index == total,
        )

    @property
    def loras(self):
        return [(path.stem, Strength(strength, strength)) for path, strength in self.laid_over]

    def set_loras(self, loras):
        self.laid_over = list(loras)
        self.calls_of_set_loras.append(self.laid_over)

    def preview(self, latents, tiling="off"):
        return self.decode(latents, tiling)

    def decode(self, latents, tiling="off"):
        self.decodes += 1
        self.tilings.append(tiling)
        pictures = np.full((len(latents), 64, 64, 3), float(latents.mean()), np.float32)
        pictures[:, -1, -1, -1] = 0.5  # a picture of one colour would be warned of
        return pictures


@dataclass
class PretendEngine:
    """The models that were loaded, and the knobs for those to come."""

    models: list[PretendModel] = field(default_factory=list)
    gate: threading.Semaphore | None = None
    fail_at: int | None = None
    released: int = 0
    loads: list[tuple[str, dict]] = field(default_factory=list)

    def load(self, name, progress, **options):
        progress("Reading weights", 0.5)
        self.loads.append((name, options))
        if name == "absent":
            raise CheckpointNotFoundError("No model 'absent'.")
        self.models.append(PretendModel(name, self.gate, self.fail_at))
        return self.models[-1]

    def release(self):
        self.released += 1

    def install(self, monkeypatch):
        monkeypatch.setattr(worker_module, "load_model", self.load)
        monkeypatch.setattr(worker_module, "release_memory", self.release)
        return self


def wait(condition, seconds=10.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.002)


def over(*jobs):
    wait(lambda: not any(job.active for job in jobs))

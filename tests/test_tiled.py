"""Large pictures painted in tiles: what the network sees, that no seam shows, records, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import Hires, StableDiffusion, memory
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.diffusion.tiled import TiledNetwork, folded, unfolded
from stable_diffusion.errors import CheckpointNotFoundError, InputError
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
from stable_diffusion.service import painting
from stable_diffusion.service.jobs import Cancelled, Job
from stable_diffusion.unet import UNet

from . import drawn

PROMPT = "a red house on green hills by day"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture(scope="module")
def postcard(sd) -> Image.Image:
    """A painted postcard, twice as large."""
    (found,) = sd.generate(PROMPT, seed=5, num_steps=8, cfg_weight=5.0)
    return found.image.resize((256, 256), Image.Resampling.LANCZOS)


def repainted(sd, picture, **options):
    options = {"num_steps": 10, "denoising_strength": 0.2, "seed": 3, "cfg_weight": 1.0, **options}
    size = dict(zip(("width", "height"), picture.size, strict=True))
    (found,) = sd.generate(PROMPT, input_image=picture, **size | options)
    return np.asarray(found.image, np.float32)


def test_rows_are_folded_and_unfolded():
    rows = drawn.normal("rows", 3, 4, 5, 2)
    assert np.array_equal(unfolded(folded(rows), 3), rows)


def test_a_network_that_sees_each_point_alone_gives_the_same_in_tiles():
    x = mx.array(drawn.normal("latents", 2, 13, 21, 4))
    seen, reports = [], []

    def network(part, t, step):
        seen.append(part.shape)
        return part * t + step

    tiled = TiledNetwork(network, 8, 4, report=lambda message, done: reports.append((message, done)))
    assert mx.abs(tiled(x, 3.0, 2) - (x * 3 + 2)).max() < 1e-5
    assert set(seen) == {(2, 8, 8, 4)} and len(seen) == 3 * 5
    assert reports[0][0] == "Tile 1 of 15" and reports[-1] == ("Tile 15 of 15", 1.0)


def test_tiles_are_of_the_models_own_side_and_a_whole_picture_stays_whole(sd, postcard, monkeypatch):
    shapes = set()
    predict = UNet.predict

    def watching(self, x, *rest):
        shapes.add(x.shape[1:3])
        return predict(self, x, *rest)

    monkeypatch.setattr(UNet, "predict", watching)
    repainted(sd, postcard, tile=128)
    assert shapes == {(16, 16)}
    small = postcard.resize((128, 128))
    assert np.array_equal(repainted(sd, small, tile=128), repainted(sd, small))


def test_no_seam_shows(sd, postcard):
    """The gradient across the middles of the overlaps, and where they end, is that of everywhere else at most."""
    found = repainted(sd, postcard, tile=128, tile_overlap=64).mean(axis=2)
    seams = [64, 96, 128, 160, 192]
    for axis in (0, 1):
        steps = np.abs(np.diff(found, axis=axis)).mean(axis=1 - axis)
        elsewhere = np.delete(steps, [seam - 1 for seam in seams])
        assert np.mean([steps[seam - 1] for seam in seams]) <= 1.1 * elsewhere.mean()


def test_it_keeps_the_picture(sd, postcard):
    before = np.asarray(postcard, np.float32)
    assert 0.5 < np.abs(repainted(sd, postcard, tile=128) - before).mean() < 20


def test_a_batch_is_what_each_would_be_alone(sd, postcard):
    options = {"tile": 128, "num_steps": 5, "tile_overlap": 8}
    part = postcard.crop((0, 64, 160, 192))
    size = {"width": 160, "height": 128, "input_image": part, "denoising_strength": 0.2, "cfg_weight": 2.0}
    together = sd.generate(PROMPT, n_images=2, seed=3, **size, **options)
    alone = repainted(sd, part, seed=4, cfg_weight=2.0, **options)
    assert np.abs(np.asarray(together[1].image, np.float32) - alone).max() <= 1


def test_memory_is_that_of_one_tile(sd, monkeypatch):
    needs = sd._needs
    monkeypatch.setattr(memory, "available", lambda: needs._bytes(1, 512, 512) + 1)
    arguments = {"width": 4096, "height": 4096, "num_steps": 5, "cfg_weight": 1.0}
    with pytest.raises(InputError, match="need about"):
        sd.generate_latents(PROMPT, **arguments)
    sd.generate_latents(PROMPT, **arguments, tile=512)


def test_a_second_pass_in_tiles(sd, monkeypatch):
    steps = list(sd.generate_latents(PROMPT, num_steps=2, seed=1, cfg_weight=1.0, tile=128, hires=Hires(2, steps=1)))
    assert steps[-1].latents.shape == (1, 32, 32, 4) and np.isfinite(np.array(steps[-1].latents)).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tile": 60}, "tile = 60 should be a multiple of 8"),
        ({"tile": 0}, "tile = 0"),
        ({"tile": 128, "tile_overlap": 0}, "tile_overlap = 0"),
        ({"tile": 128, "tile_overlap": 72}, "at most half"),
        ({"tile": 128, "deepcache_interval": 2}, "deepcache"),
        ({"tile": "128"}, "tile"),
    ],
)
def test_what_cannot_be_is_refused(sd, wrong, words):
    with pytest.raises(InputError, match=words):
        sd.generate_latents(PROMPT, width=256, height=256, **wrong)


def test_the_progress_may_cancel_between_tiles(sd, postcard):
    def cancel(message, done):
        if message.startswith("Tile 3"):
            raise Cancelled

    with pytest.raises(Cancelled):
        list(sd.generate_latents(PROMPT, width=256, height=256, input_image=postcard, tile=128, progress=cancel))


# --- Requests, records, the command line and the worker


def test_a_picture_is_enlarged_once_and_painted_at_its_own_size():
    asked = Request(PROMPT, picture=Image.new("RGB", (101, 60), "red"), by=2.0, upscaler="Nearest", tile=64)
    assert asked.painted_size((128, 128)) == (200, 120)
    larger = asked.enlarged()
    assert larger.picture_enlarged.size == (202, 120) and larger.enlarged() is larger
    call = larger.to_call((128, 128))
    assert call.arguments["input_image"].size == call.size == (200, 120) and call.arguments["tile"] == 64
    assert Request(PROMPT, picture=Image.new("RGB", (101, 60)), tile=64).painted_size((128, 128)) == (96, 56)
    assert Request(PROMPT, by=2.0).enlarged().picture_enlarged is None


def test_the_command_line_paints_and_repeats_it(tmp_path, monkeypatch, capsys, postcard):
    monkeypatch.chdir(tmp_path)
    postcard.resize((96, 64)).save("photo.png")
    options = "--by 2 --upscaler lanczos --tile 128 --tile-overlap 32 --steps 10 --cfg 1 --seed 4".split()
    assert program.main(["img2img", "photo.png", PROMPT, *options, "--output", "a.png"]) == 0
    said = picture_files.read_parameters("a.png")
    assert (said.size, said.strength) == ("192x128", 0.1)
    keys = ("Tile size", "SD upscale overlap", "SD upscale upscaler", "SD upscale by")
    assert [said.extra[key] for key in keys] == ["128", "32", "Lanczos", "2"]
    assert program.main(["again", "a.png", "--output", "b.png"]) == 0
    assert "The same picture, pixel for pixel." in capsys.readouterr().err
    found, notes = Request.from_record(Parameters.from_text(said.to_text()))
    assert (found.tile, found.tile_overlap, found.by, found.upscaler) == (128, 32, 2.0, "Lanczos") and not notes


def test_an_unknown_upscaler_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("photo.png")
    assert program.main(["img2img", "photo.png", PROMPT, "--by", "2", "--upscaler", "lanzcos"]) != 0
    assert "Lanczos" in capsys.readouterr().err
    with pytest.raises(CheckpointNotFoundError):
        Request(PROMPT, picture=Image.new("RGB", (64, 64)), by=2.0, upscaler="lanzcos").enlarged()


def test_the_worker_tells_of_tiles_and_stops_between_them(sd, postcard, tmp_path, monkeypatch):
    request = Request(
        PROMPT, picture=postcard.crop((0, 0, 192, 128)), tile=128, steps=10, strength=0.2, cfg=1.0, seed=1
    )
    told = []
    job = Job(request)
    report = job.report
    monkeypatch.setattr(job, "report", lambda message, done: told.append(message) or report(message, done))
    painting.paint(sd, None, job, tmp_path)
    assert told[:2] == ["Tile 1 of 2", "Tile 2 of 2"] and len(told) == 2 * 2 and job.note == ""
    assert job.pictures[0].size == (192, 128)
    stopped = Job(request)
    monkeypatch.setattr(
        stopped, "report", lambda message, done: stopped.cancel_event.set() or stopped.stop_if_cancelled()
    )
    with pytest.raises(Cancelled):
        painting.paint(sd, None, stopped, tmp_path)
    assert stopped.pictures[0].estimate is None

"""How a job's pictures are painted: when estimates are decoded meanwhile, and what the files say at the end."""

import threading

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion, catalogue
from stable_diffusion import __main__ as program
from stable_diffusion.adapters import files
from stable_diffusion.errors import InputError, NotFiniteError, PictureError
from stable_diffusion.record import keys, picture_files
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.request import Request
from stable_diffusion.service import jobs, painting
from stable_diffusion.service.jobs import Frame, Job, State
from stable_diffusion.service.worker import Worker
from tests.pretend import PretendEngine, PretendModel, over, wait

# A layer of the embedded model's U-Net as kohya names it; its text is 128 wide.
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def engine(monkeypatch):
    return PretendEngine().install(monkeypatch)


@pytest.fixture
def worker(engine, tmp_path):
    worker = Worker(tmp_path / "outputs")
    yield worker
    if engine.gate is not None:
        engine.gate.release(10_000)
    worker.close()


def test_drafts_come_by_themselves_where_a_step_is_quick(engine, worker, monkeypatch):
    monkeypatch.setattr(painting, "DECODE_EVERY", 0.0)
    monkeypatch.setattr(painting, "DRAFT_SHARE", 1.0)
    job = worker.submit(Request("a", steps=5))
    over(job)
    frames = job.pictures[0].frames
    assert [bool(frame.draft) for frame in frames] == [False] * 3 + [True] * 2 + [False], "none before a step was timed"
    assert [bool(frame.decoded) for frame in frames] == [False] * 5 + [True]
    assert job.quick


def test_no_drafts_where_a_step_or_a_draft_takes_long(engine, worker, monkeypatch):
    monkeypatch.setattr(painting, "DECODE_EVERY", 0.0)
    monkeypatch.setattr(jobs, "QUICK_STEP", 0.0)
    over(worker.submit(Request("a", steps=9)))
    assert engine.models[0].decodes == 1
    monkeypatch.undo()
    engine.install(monkeypatch)
    for name, value in (("DECODE_EVERY", 0.0), ("DRAFT_SHARE", 1.0), ("DRAFT_PATIENCE", 0.0)):
        monkeypatch.setattr(painting, name, value)
    over(job := worker.submit(Request("a", steps=9)))
    assert sum(bool(frame.draft) for frame in job.pictures[0].frames) == painting.SLOW_DRAFTS
    assert not job.drafting


def test_drafts_take_their_share_of_the_time_and_no_more():
    clock, jpegs = [100.0], 0
    job = Job(Request("a"))
    job.latent_space = ("sd1",)
    job.step_seconds.append(0.1)
    decodes = painting.Decodes(job)

    class Model:
        def preview(self, latents):
            clock[0] += 0.05
            return np.zeros((1, 8 * latents.shape[1], 8 * latents.shape[2], 3), np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painting.time, "perf_counter", lambda: clock[0])
        for index in range(1, 201):
            clock[0] += 0.1
            frame = Frame(index, 200, 1.0, *(np.zeros((16, 16, 4), np.float16),) * 2)
            decodes.make(Model().preview, frame)
            jpegs += frame.draft is not None
    assert 0.09 < jpegs * 0.05 / (clock[0] - 100.0) <= 0.125


@pytest.mark.parametrize("size", [(2, 4), (3, 5)])
def test_half_the_size_is_the_mean_of_four(size):
    latents = np.arange(size[0] * size[1] * 4, dtype=np.float16).reshape(*size, 4)
    half = painting.halved(latents)
    assert half.shape == ((size[0] + 1) // 2, (size[1] + 1) // 2, 4)
    np.testing.assert_allclose(half[0, 0], latents[:2, :2].mean((0, 1)), rtol=1e-3)
    corner = latents[-1, -1] if size[0] % 2 else latents[-2:, -2:].mean((0, 1))
    np.testing.assert_allclose(half[-1, -1], corner, rtol=1e-3)


def lora_file(folder, name="ink", width=None):
    from stable_diffusion import StableDiffusion

    bare = StableDiffusion(catalogue.DEFAULT)._overlay.bare.unet
    weight = dict(bare.named_modules())["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"].weight
    out, into = weight.shape[0], width or weight.shape[1]
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    tensors = {"lora_down.weight": (2, into), "lora_up.weight": (out, 2)}
    save_file(
        {f"{LAYER}.{key}": rng.normal(size=shape).astype(np.float32) for key, shape in tensors.items()},
        folder / f"{name}.safetensors",
    )


def test_the_file_says_what_the_command_line_would_say(tmp_path, monkeypatch):
    """With the real engine: a picture of the page and one of the command line, of the same settings, are the same."""
    lora_file(tmp_path / "loras")
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path / "loras"))
    start = tmp_path / "start.png"
    picture_files.save_picture(np.full((128, 128, 3), 90, np.uint8), start)
    worker = Worker(tmp_path / "outputs")
    try:
        file = InputFile.read(start)
        request = Request(
            "a red house", "rain", sampler="dpmpp_2m_karras", steps=4, cfg=5.0, seed=7, loras=(("ink", 0.5),),
            variation_seed=3, variation_strength=0.25, picture=file.open(), picture_file=file,
        )  # fmt: skip
        job = worker.submit(request)
        wait(lambda: not job.active, 60)
        assert job.state is State.DONE, job.error
    finally:
        worker.close()
    options = "--negative rain --sampler dpmpp_2m_karras --steps 4 --cfg 5 --seed 7 --lora ink:0.5"
    options += f" --variation-seed 3 --variation-strength 0.25 --quiet --output {tmp_path / 'cli.png'}"
    program.main(["img2img", str(start), "a red house", *options.split()])
    here, there = (picture_files.read_parameters(path) for path in (job.pictures[0].path, tmp_path / "cli.png"))
    assert here == there
    assert here.extra["LoRA"] == "ink:0.5" and here.extra["Input picture"] == "start.png"
    pixels = [np.asarray(painting.Image.open(path)) for path in (job.pictures[0].path, tmp_path / "cli.png")]
    np.testing.assert_array_equal(*pixels)


def test_loras_lie_over_the_model_for_their_job_alone(engine, worker, tmp_path, monkeypatch):
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "ink.safetensors").write_bytes(b"")
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder))
    job = worker.submit(Request("a", steps=1, n_images=2, loras=(("ink", 0.5),)))
    over(job)
    assert job.state is State.DONE, job.error
    assert engine.models[0].calls_of_set_loras == [[(folder / "ink.safetensors", 0.5)], []]
    assert picture_files.read_parameters(job.pictures[1].path).extra["LoRA"] == "ink:0.5"


@pytest.mark.parametrize("name", ["none such", "../secret", "{folder}/ink.safetensors", "{folder}"])
def test_a_lora_is_found_by_its_name_alone(worker, tmp_path, name):
    (tmp_path / "ink.safetensors").write_bytes(b"")
    job = worker.submit(Request("a", steps=1, loras=((name.format(folder=tmp_path), 1.0),)))
    over(job)
    assert job.state is State.FAILED and "There is no LoRA" in job.error


def test_a_lora_of_another_family_is_said_in_words(tmp_path, monkeypatch):
    lora_file(tmp_path / "loras", width=2048)
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path / "loras"))
    worker = Worker(tmp_path / "outputs")
    try:
        for loras, state in (((("ink", 1.0),), State.FAILED), ((), State.DONE)):
            job = worker.submit(Request("a red house", steps=1, cfg=1.0, loras=loras))
            wait(lambda job=job: not job.active, 60)
            assert job.state is state, job.error
            assert ("for SDXL" in job.error) == bool(loras)
    finally:
        worker.close()


def test_a_clip_skip_is_asked_for_and_recorded(engine, worker):
    for asked in (2, None):
        over(job := worker.submit(Request("a", steps=1, clip_skip=asked)))
        said = picture_files.read_parameters(job.pictures[0].path).extra
        assert engine.models[0].calls[-1][1].get("clip_skip") == asked
        assert said.get("Clip skip") == (asked and str(asked))


def test_variations_keep_the_seed_and_count_their_own(engine, worker):
    job = worker.submit(Request("a", steps=1, seed=5, n_images=3, variation_seed=8, variation_strength=0.1))
    over(job)
    asked = [arguments for _, arguments in engine.models[0].calls]
    assert [(one["seed"], one["variation_seed"], one["variation_strength"]) for one in asked] == [
        (5, 8, 0.1), (5, 9, 0.1), (5, 10, 0.1)
    ]  # fmt: skip
    said = [picture_files.read_parameters(picture.path) for picture in job.pictures]
    assert [(one.seed, one.extra["Variation seed"]) for one in said] == [(5, "8"), (5, "9"), (5, "10")]


def test_a_variation_seed_that_nobody_chose_is_drawn_and_recorded(engine, worker):
    job = worker.submit(Request("a", steps=1, n_images=2, variation_strength=0.1))
    over(job)
    first, second = (
        int(picture_files.read_parameters(picture.path).extra["Variation seed"]) for picture in job.pictures
    )
    assert second == first + 1
    over(plain := worker.submit(Request("a", steps=1)))
    assert "Variation seed" not in picture_files.read_parameters(plain.pictures[0].path).extra


def test_a_lora_that_is_deleted_meanwhile_costs_no_picture(tmp_path, monkeypatch):
    """Its name and hash are recorded as they were when the generation began."""
    lora_file(tmp_path / "loras")
    file = tmp_path / "loras" / "ink.safetensors"
    digits = files.short_hash(file)
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path / "loras"))
    real = StableDiffusion.decode

    def decode(sd, latents):
        file.unlink(missing_ok=True)
        return real(sd, latents)

    monkeypatch.setattr(StableDiffusion, "decode", decode)
    worker = Worker(tmp_path / "outputs")
    try:
        request = Request("a red house <lora:ink:0.5>", steps=2, cfg=1.0, seed=7)
        job = worker.submit(request)
        wait(lambda: not job.active, 60)
        assert job.state is State.DONE and job.warning == "", job.error or job.warning
    finally:
        worker.close()
    assert not file.exists()
    assert picture_files.read_parameters(job.pictures[0].path).extra["Lora hashes"] == f"ink: {digits}"
    lora_file(tmp_path / "loras")
    out = tmp_path / "cli.png"
    assert (
        program.main(["txt2img", request.prompt, "--steps", "2", "--cfg", "1", "--seed", "7", "--output", str(out)])
        == 0
    )
    assert not file.exists()
    assert picture_files.read_parameters(out).extra["Lora hashes"] == f"ink: {digits}"


def test_a_failing_preview_costs_no_picture(engine, worker, monkeypatch):
    def fail(*_):
        raise RuntimeError("no preview today")

    monkeypatch.setattr(painting, "DECODE_EVERY", 0.0)
    monkeypatch.setattr(painting, "decoded_jpeg", fail)
    over(job := worker.submit(Request("a", steps=3, previews=("full",))))
    assert job.state is State.DONE, job.error
    assert job.pictures[0].path.is_file() and [bool(frame.decoded) for frame in job.pictures[0].frames] == [
        *[False] * 3,
        True,
    ]


def test_what_a_format_refuses_is_saved_as_png(engine, worker, monkeypatch):
    save = picture_files.save_new_picture

    def refuses_jpeg(image, folder, said, suffix, carry):
        if suffix == ".jpg":
            raise PictureError("a.jpg cannot be written as JPEG.")
        return save(image, folder, said, suffix, carry)

    monkeypatch.setattr(picture_files, "save_new_picture", refuses_jpeg)
    over(job := worker.submit(Request("word " * 4_000, "word " * 4_000, steps=1, file_format="jpeg")))
    assert job.state is State.DONE, job.error
    assert job.pictures[0].path.suffix == ".png" and "could not be saved as jpg" in job.warning
    assert picture_files.read_parameters(job.pictures[0].path).prompt == "word " * 4_000


# --- Batches


def batched(worker, **more):
    return worker.submit(Request(prompt="a house", steps=3, width=64, height=64, seed=7, previews=("fast",), **more))


def test_a_batch_is_painted_in_one_generation(engine, worker):
    job = batched(worker, n_images=5, batch_size=2)
    over(job)
    (model,) = engine.models
    assert [(call.get("n_images", 1), call["seed"]) for _, call in model.calls] == [(2, 7), (2, 9), (1, 11)]
    records = [picture_files.read_parameters(picture.path) for picture in job.pictures]
    assert [record.seed for record in records] == [picture.seed for picture in job.pictures] == list(range(7, 12))
    batch = [(record.extra.get(keys.BATCH_SIZE), record.extra.get(keys.BATCH_POSITION)) for record in records]
    assert batch == [("2", "0"), ("2", "1"), ("2", "0"), ("2", "1"), (None, None)]
    assert all(len(picture.frames) == 4 and picture.frames[-1].decoded for picture in job.pictures)
    assert job.fraction == 1.0


def test_pictures_of_other_prompts_share_no_batch(engine, worker):
    job = worker.submit(Request(prompt="a {red|blue} house", steps=1, width=64, height=64, combinations=True,
                                dynamic_prompts=True, n_images=2, batch_size=4))  # fmt: skip
    over(job)
    assert {text for text, _ in engine.models[0].calls} == {"a red house", "a blue house"}
    assert sum(call.get("n_images", 1) for _, call in engine.models[0].calls) == len(job.pictures) == 4


def test_a_skip_leaves_out_the_batch_and_a_cancel_keeps_what_was_finished(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = batched(worker, n_images=6, batch_size=2)
    wait(lambda: job.started is not None)
    engine.gate.release(1)
    wait(lambda: job.frame is not None and job.frame.index == 1)
    worker.skip(job)
    engine.gate.release(1 + 3)  # the second batch is finished
    wait(lambda: len(job.pictures) >= 4 and job.pictures[3].finished)
    engine.gate.release(1)
    wait(lambda: len(job.pictures) == 6 and job.pictures[5].estimate)
    worker.cancel(job)
    engine.gate.release(1)
    over(job)
    assert [picture.skipped for picture in job.pictures] == [True, True, False, False, False, False]
    assert [picture.finished for picture in job.pictures] == [False, False, True, True, False, False]
    for picture in job.pictures[4:]:
        over(worker.keep(job, picture))
        assert picture_files.read_parameters(picture.path).seed == picture.seed


def test_a_batch_that_is_refused_is_painted_one_by_one(engine, worker, monkeypatch):
    begin = PretendModel.generate_latents

    def refusing(self, text, **arguments):
        if arguments.get("n_images", 1) > 1:
            raise InputError("that needs more memory than there is")
        return begin(self, text, **arguments)

    monkeypatch.setattr(PretendModel, "generate_latents", refusing)
    job = batched(worker, n_images=3, batch_size=2)
    over(job)
    assert job.state == "done" and [picture.seed for picture in job.pictures] == [7, 8, 9]
    assert keys.BATCH_SIZE not in picture_files.read_parameters(job.pictures[0].path).extra


def test_one_broken_picture_of_a_batch_costs_no_other(engine, worker, monkeypatch):
    decode = PretendModel.decode

    def broken(self, latents):
        pictures = decode(self, latents)
        pictures[1] = np.nan
        raise NotFiniteError("The VAE gave NaN.", "vae", pictures)

    monkeypatch.setattr(PretendModel, "decode", broken)
    monkeypatch.setattr(painting.Decodes, "make", lambda *ignored: None)
    job = batched(worker, n_images=3, batch_size=3)
    over(job)
    assert job.state == "failed" and "NaN" in job.error
    assert [picture.finished for picture in job.pictures] == [True, False, True]


def test_a_batch_has_the_pictures_of_one_by_one(tmp_path):
    """With the embedded model: within one level on 99.9 % of the values, and with the command line's record."""
    asked = {"prompt": "a red house", "steps": 3, "width": 64, "height": 64, "seed": 5, "n_images": 3}
    worker = Worker(tmp_path / "outputs")
    try:
        jobs = [worker.submit(Request(**asked, batch_size=size)) for size in (1, 3)]
        wait(lambda: not any(job.active for job in jobs), seconds=60)
        for one, other in zip(*(job.pictures for job in jobs), strict=True):
            a, b = (np.asarray(Image.open(each.path), np.int16) for each in (one, other))
            assert (np.abs(a - b) <= 1).mean() >= 0.999
            assert one.seed == other.seed
    finally:
        worker.close(None)

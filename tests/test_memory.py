"""What a generation takes, what is there, and what is said where the one is more than the other."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion import StableDiffusion, backend, memory
from stable_diffusion.backend import mx
from stable_diffusion.config import AutoencoderConfig
from stable_diffusion.errors import InputError
from stable_diffusion.memory import GIB, MEMORY_VARIABLE, Needs
from stable_diffusion.tiles import in_tiles

SD1 = Needs(32 * 320, AutoencoderConfig(block_out_channels=(128, 256, 512, 512)), 4 * GIB, 4, 4)


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion()


@pytest.fixture(scope="module")
def frugal() -> StableDiffusion:
    with pytest.MonkeyPatch.context() as patch:  # what is the whole process's stays as it is
        patch.setattr(backend, "keep_little_memory", lambda: None)
        return StableDiffusion(low_memory=True)


def there(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, str(gib))


def test_memory_grows_with_the_pixels_and_with_the_batch():
    assert SD1.network_bytes(2, 1024, 1024) == 4 * SD1.network_bytes(2, 512, 512) == 8 * SD1.network_bytes(1, 512, 512)
    assert SD1.decoder_bytes(1024, 512) == 2 * SD1.decoder_bytes(512, 512)


@pytest.mark.parametrize(
    ("gib", "n_images", "said"),
    [
        (8.0, 4, r"3 pictures at a time or 896 x 896 would fit"),
        (6.0, 1, r"1280 x 1280 would fit"),
        (3.0, 1, r"a smaller or a quantised model might fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(monkeypatch, gib, n_images, said):
    there(monkeypatch, gib)
    size = 1024 if n_images == 4 else 1536
    with pytest.raises(InputError, match=said) as refused:
        SD1.check(2 * n_images, n_images, size, size)
    assert f"{size} x {size} pixels, {n_images} at a time" in str(refused.value)
    assert f"{gib:.1f} GiB are available" in str(refused.value)


@settings(deadline=None)
@given(st.integers(1, 512), st.integers(1, 512), st.integers(1, 64), st.integers(1, 3), st.floats(0.01, 64))
def test_what_is_proposed_would_fit(width, height, n_images, texts, gib):
    width, height = 8 * width, 8 * height
    with pytest.MonkeyPatch.context() as patch:
        there(patch, gib)
        try:
            SD1.check(texts * n_images, n_images, width, height)
        except InputError as error:
            words = str(error).split(": ", 1)[1]
            if "at a time" in words:
                fewer = int(words.split()[0])
                SD1.check(texts * fewer, fewer, width, height)
            if " x " in words:
                left, right = words.split(" x ")
                SD1.check(texts * n_images, n_images, int(left.split()[-1]), int(right.split()[0]))


def test_a_generation_that_cannot_fit_says_so_at_the_call(monkeypatch, sd):
    there(monkeypatch, 0.2)
    with pytest.raises(InputError, match=r"2048 x 2048 pixels, 16 at a time, need about"):
        sd.generate_latents("a red house", n_images=16, width=2048, height=2048)
    sd.generate_latents("a red house")


def test_low_memory_is_proposed_where_it_would_do(monkeypatch):
    spared = dataclasses.replace(SD1, weights=2 * GIB, decoder_weights=GIB, one_by_one=True)
    there(monkeypatch, 4.2)
    with pytest.raises(InputError, match=r": the same with --low-memory \(low_memory=True\) or 192 x 192 would fit"):
        SD1.check(2, 1, 1024, 1024, spared)
    spared.check(2, 1, 1024, 1024)
    there(monkeypatch, 2.1)
    with pytest.raises(InputError, match=": a smaller or a quantised model might fit"):
        SD1.check(2, 1, 1024, 1024, spared)


CALL = {"num_steps": 2, "width": 64, "height": 64, "seed": 3, "n_images": 2, "sampler": "euler"}


@pytest.mark.parametrize("options", [{}, {"denoising_strength": 1.0}, {"cfg_weight": 1.0}])
def test_low_memory_paints_the_same(frugal, sd, options):
    """To 1e-5 of the largest value: only the order of sums in products differs, with the number of rows."""
    options = options | ({"input_image": gradient(64, 64)} if "denoising_strength" in options else {})
    pictures = []
    for engine in (sd, frugal):
        for step in engine.generate_latents("a red house", negative_text="fog", **CALL, **options):
            latents = step.latents
        pictures.append((np.asarray(latents), np.asarray(engine.decode(latents))))
    for normal, spared in zip(*pictures, strict=True):
        assert np.abs(normal - spared).max() <= 1e-5 * np.abs(normal).max()


def test_low_memory_holds_one_network_at_a_time(frugal):
    def held() -> int:
        gc.collect()
        return mx.get_active_memory()

    frugal.decode(mx.zeros((1, 4, 4, 4)))  # whatever was read before is let go after it
    before, unet, some = held(), memory.weight_bytes(frugal._unet), 4 << 20
    for step in frugal.generate_latents("a red house", **CALL):
        mx.eval(step.latents)
        assert unet <= held() - before < unet + some
        if step.index == 1:
            frugal.decode(step.denoised)  # a preview does not cost the U-Net
            assert unet <= held() - before < unet + some
    frugal.decode(step.latents)
    assert held() - before < some


def test_what_low_memory_needs(frugal, sd):
    unet = memory.weight_bytes(frugal._unet)
    assert frugal._needs.weights == unet < sd._needs_with(low_memory=True).weights < sd._needs.weights
    assert frugal._needs.decoder_weights == memory.weight_bytes(frugal._vae)
    assert sd._needs.weights == sd._needs.decoder_weights


def test_a_large_model_on_a_cpu_holds_its_text_encoders_only_while_they_read(monkeypatch, sd):
    monkeypatch.setattr(memory, "LARGE", 0)
    large = StableDiffusion()
    (encoder,) = large._conditioner.encoders
    size = memory.weight_bytes(encoder)
    mx.eval(large._unet.parameters(), encoder.parameters())
    pictures = []
    for engine in (sd, large, large):
        steps = engine.generate_latents("a red house", **CALL)
        pictures.append(np.asarray(next(steps).latents))
        gc.collect()
        before = mx.get_active_memory()
        mx.eval(engine._conditioner.encoders[0].parameters())
        read_again = mx.get_active_memory() - before
        assert read_again == 0 if engine is sd else read_again >= size
    assert (pictures[0] == pictures[1]).all() and (pictures[1] == pictures[2]).all()
    assert large._needs.weights == sd._needs.weights - size


def test_weights_whose_file_is_gone_stay(checkpoint, monkeypatch):
    monkeypatch.setattr(memory, "LARGE", 0)
    sd = StableDiffusion(checkpoint)
    first = np.asarray(next(sd.generate_latents("a red house", **CALL)).latents)
    mx.eval(sd._conditioner.encoders[0].parameters())
    (checkpoint / "text_encoder" / "model.safetensors").unlink()
    for _ in range(2):
        assert (first == np.asarray(next(sd.generate_latents("a red house", **CALL)).latents)).all()


@pytest.mark.parametrize("bad", ["much", "12 GB", "-"])
def test_the_variable_is_a_number(monkeypatch, bad):
    monkeypatch.setenv(MEMORY_VARIABLE, bad)
    with pytest.raises(InputError, match=f"{MEMORY_VARIABLE} = '{bad}' should be a number of GiB"):
        memory.available()


def test_linux_tells_what_is_there(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n",
        "/sys/fs/cgroup/memory.max": "2048000\n",
        "/sys/fs/cgroup/memory.current": "1024000\n",
        "/sys/fs/cgroup/memory.stat": "anon 5\nactive_file 1000\ninactive_file 24\n",
    }
    monkeypatch.delenv(MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr(memory, "has_gpu", lambda: False)
    monkeypatch.setattr(memory, "_read", lambda path: files.get(path, ""))
    own = mx.get_active_memory() + mx.get_cache_memory()
    assert memory.available() == 1_025_024 + own
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.available() == 3000 * 1024 + own
    files.clear()
    assert memory.available() is None
    SD1.check(64, 32, 8192, 8192)  # nobody knows: nothing is refused


def test_the_estimate_is_not_far_from_what_a_step_takes(sd):
    """Of what MLX counts, on the embedded model. Lanes that a busy machine runs one after another take half as much."""
    needs = sd._needs
    for width, height in ((256, 256), (384, 256)):
        latents = mx.zeros((1, height // 8, width // 8, 4))
        taken = peak(lambda latents=latents: sd._vae.decode(latents))
        assert 0.5 < needs.decoder_bytes(width, height) / taken < 2
    steps = sd.generate_latents("a red house", width=384, height=384, seed=1)
    mx.eval(next(steps).latents)
    taken = peak(lambda: next(steps).latents)
    assert 0.5 < needs.network_bytes(2, 384, 384) / taken < 4


def peak(function) -> int:
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(function())
    return mx.get_peak_memory() - before


def test_a_decode_that_does_not_fit_is_made_in_tiles(monkeypatch, sd):
    monkeypatch.setattr(memory, "TILE", 16)
    monkeypatch.setattr(memory, "OVERLAP", 4)
    latents = sd.encode(gradient(192, 160), 192, 160)
    whole = np.asarray(sd.decode(latents))
    sizes = []
    original = sd._vae.decode
    monkeypatch.setattr(sd._vae, "decode", lambda z: sizes.append(z.shape[1:3]) or original(z))
    needs = sd._needs
    there(monkeypatch, (needs.weights + needs.decoder_bytes(192, 160) * 0.9) / GIB)
    tiled = np.asarray(sd.decode(latents))
    assert sizes == [(16, 16)] * 4
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < 0.04  # the norms see less of the picture


def test_a_decode_that_takes_most_of_a_gpus_working_set_is_made_in_tiles(monkeypatch):
    there(monkeypatch, 1000)
    needed = SD1.decoder_bytes(1024, 1024)
    for working_set, tiled in ((None, False), (2 * needed, False), (2 * needed - 2, True), (GIB, True)):
        monkeypatch.setattr(backend, "working_set", lambda size=working_set: size)
        assert SD1.in_tiles(1024, 1024) == tiled


def test_buffers_are_given_back_between_a_generation_and_its_decoding(monkeypatch, sd):
    ended = []
    monkeypatch.setattr(backend, "end_phase", lambda: ended.append(True))
    steps = sd.generate_latents("a red house", **CALL)
    latents = next(steps).latents
    sd.decode(latents)  # a preview: the next step needs the same buffers again
    assert not ended
    latents = list(steps)[-1].latents
    sd.decode(latents)
    assert ended == [True]


def gradient(width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, 1 - x * y], axis=-1) * 255).astype(np.uint8)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 20), st.integers(1, 3))
def test_tiles_of_a_local_decoder_are_the_whole(height, width, tile, overlap):
    """A decoder that looks at each latent alone gives the same picture in tiles."""
    latents = mx.random.normal((1, height, width, 3))

    def decode(z: mx.array) -> mx.array:
        return mx.repeat(mx.repeat(z, 2, axis=1), 2, axis=2)

    tiled = in_tiles(decode, latents, tile, overlap)
    np.testing.assert_allclose(np.asarray(tiled), np.asarray(decode(latents)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale, channels", [(1, 3), (4, 3), (8, 1)])
def test_tiles_of_any_scale(scale, channels):
    """An upscaler of pictures, or a filter, goes through the same tiles; blended parts lie between the tiles' own."""
    picture = mx.random.uniform(shape=(1, 21, 34, 3))
    seen = []

    def enlarge(z: mx.array) -> mx.array:
        seen.append(z.shape[1:3])
        larger = mx.repeat(mx.repeat(z[..., :channels], scale, axis=1), scale, axis=2)
        return larger + (len(seen) - 1) % 2  # every other tile is lighter

    tiled = np.asarray(in_tiles(enlarge, picture, 16, 4))
    assert seen == [(16, 16)] * 6 and tiled.shape == (1, 21 * scale, 34 * scale, channels)
    plain = np.asarray(picture)[..., :channels].repeat(scale, 1).repeat(scale, 2)
    lighter = (tiled - plain)[0, 0, :, 0]
    assert lighter[0] == pytest.approx(0, abs=1e-6) and lighter[17 * scale] == pytest.approx(1, abs=1e-6)
    overlap = lighter[12 * scale : 16 * scale]
    assert (np.diff(overlap) > 0).all() and 0 < overlap[0] < overlap[-1] < 1

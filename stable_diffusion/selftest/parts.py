"""The parts of a selftest: each yields what it compares, measures or leaves out."""

from __future__ import annotations

import math
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import save_file

from .. import backend, memory, ops, tiles
from ..adapters.lora import Networks, lay_over, load_lora
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..config import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ..diffusion.noise import NoiseStream
from ..model_io.locate import EMBEDDED, load
from ..ops import gpu, heads, plain
from ..pipeline import StableDiffusion
from ..places import packaged
from ..text.tags import Strength
from ..unet import UNet
from ..vae import Autoencoder
from .machine import GIB, Way, reference, ways
from .published import UNETS, VAE
from .report import Comparison, Finding, Measurement, Skipped
from .shapes import SPEED, Sizes, Speed, cast, fill, normal, unet_inputs

EXACT = 1e-5  # what forms of one operation may differ by in float32
GRADIENTS = 2e-3  # of the largest in each parameter
LEVELS = {mx.float32: (1, 0.999), mx.float16: (4, 0.99)}  # of 255, and the share of values within that many
STEPS, CFG_WEIGHT = 20, 5.0
EMBEDDED_MODEL = EMBEDDED / "postcards-tiny"
# The reference's pictures, made by tests/parity/make_goldens.py: file, prompt, negative prompt, the noise's seed.
PICTURES = (
    ("1.png", "a red house on green hills at sunset, with clouds", "", 1),
    ("2.png", "a blue sailboat on the sea by day, with a rainbow", "", 2),
    ("9.png", "a pink house in the mountains at night, with the moon", "stars", 9),
)
RANK, ALPHA = 4, 2.0
LORA_LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CALLS = 2  # of a U-Net, that are timed; the second is left out where the first took LONG seconds
LONG = 25


def difference(found: mx.array, expected: np.ndarray) -> float:
    """max |a - b| / max |b|; infinite where something is not finite, or all is zero."""
    values = np.asarray(found.astype(mx.float32))
    if values.shape != expected.shape or not np.isfinite(values).all() or not expected.any():
        return math.inf
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def noise(sizes: Sizes) -> Iterator[Finding]:
    """The draws of a seed, which should be the same on every machine."""
    drawn = np.asarray(NoiseStream([1], (32, 32, 4))())
    key = mx.random.split(mx.random.key(1), stream=mx.cpu)[1]
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    uniform = np.asarray(mx.random.uniform(low, 1, (32, 32, 4), key=key, stream=mx.cpu))
    exact = np.vectorize(NormalDist().inv_cdf)((uniform.astype(np.float64) + 1) / 2)
    yield Comparison("noise", "normal numbers of seed 1", float((np.abs(drawn - exact) / np.abs(exact)).max()), 1e-6)


def attention(sizes: Sizes) -> Iterator[Finding]:
    """Each head size as it is planned for this device, filled up and in blocks."""
    for count, size, n in sizes.attentions:
        q, k, v = (normal(seed, 1, count, n, size) for seed in (1, 2, 3))
        with reference().active():
            expected = np.asarray(plain.attention(q, k, v))
        forms: dict[str, tuple[Callable[..., mx.array], mx.Dtype]] = {"as chosen": (ops.attention, mx.float32)}
        if backend.has_gpu():
            forms["as chosen, float16"] = (ops.attention, mx.float16)
        larger = -(-(size + 1) // 64) * 64
        forms[f"filled up to {larger}"] = (_planned(heads.Plan(larger, n, True)), mx.float32)
        forms["in blocks of queries"] = (_planned(heads.Plan(size, n // 4 + 1, False)), mx.float32)
        for title, (form, dtype) in forms.items():
            error = difference(form(*(x.astype(dtype) for x in (q, k, v))), expected)
            allowed = max(EXACT, ways()[0].allowed) if dtype == mx.float32 else 1e-2
            yield Comparison("attention", f"heads of {size}, {n} positions, {title}", error, allowed)


def convolution(sizes: Sizes) -> Iterator[Finding]:
    """A large 3x3 convolution, and the same in strips of rows."""
    side = 4 * sizes.latents
    x, weight, bias = normal(1, 1, side, side, 64), normal(2, 64, 3, 3, 64) / 24, normal(3, 64)
    with reference().active():
        expected = np.asarray(plain.conv2d(x, weight, bias, 1, 1))
    strips = [plain.conv2d_rows(x, weight, bias, 1, 1, row, row + side // 4) for row in range(0, side, side // 4)]
    allowed = ways()[0].allowed
    error = difference(ops.conv2d(x, weight, bias, 1, 1), expected)
    yield Comparison("convolution", f"3x3, {side}x{side}", error, allowed)
    yield Comparison("convolution", "in strips", difference(mx.concatenate(strips, axis=1), expected), allowed)
    if backend.has_gpu():
        whole = gpu.conv2d(x.astype(mx.float16), weight.astype(mx.float16), bias.astype(mx.float16), 1, 1)
        yield Comparison("convolution", "in float16", difference(whole, expected), 1e-2)


def networks(sizes: Sizes) -> Iterator[Finding]:
    """Networks of the published widths with few layers and random weights."""
    for name, config in sizes.texts.items():
        text = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
        ids = mx.array(np.random.default_rng(1).integers(0, config["vocab_size"] - 1, (2, 77)))
        yield from _compared(f"text encoder of {name}", text, lambda model, way: model(ids).last_hidden_state)  # noqa: B023
    for name, config in sizes.unets.items():
        unet = UNet(UNetConfig.from_dict(dict(config)))
        x, words, *more = unet_inputs(config, 2, sizes.latents)

        def predict(model: Any, way: Way, x: mx.array = x, words: mx.array = words, more: Any = more) -> mx.array:
            context = model.project_text(words.astype(way.dtype))
            return model(x.astype(way.dtype), mx.array([500.0]), context, *more)

        yield from _compared(f"U-Net of {name}", unet, predict)
    vae = Autoencoder(AutoencoderConfig.from_dict(dict(sizes.vae)))
    latents = normal(1, 1, sizes.vae_latents, sizes.vae_latents, 4) * vae.config.scaling_factor
    picture = mx.tanh(normal(2, 1, 8 * sizes.vae_latents, 8 * sizes.vae_latents, 3))
    yield from _compared("VAE decoder", vae, lambda model, way: model.decode(latents))
    yield from _compared("VAE encoder", vae, lambda model, way: model.moments(picture)[0])
    if not backend.has_gpu():
        yield Skipped("networks in float16", "they run in float32 on this device")


def pictures(sizes: Sizes) -> Iterator[Finding]:
    """The embedded model's pictures against those that diffusers paints with it."""
    for float16 in (False, True) if backend.has_gpu() else (False,):
        sd = StableDiffusion("postcards-tiny", float16=float16)
        dtype = mx.float16 if float16 else mx.float32
        levels, share = LEVELS[dtype]
        if not float16 and ways()[0].allowed > 1e-3:  # TF32
            levels, share = LEVELS[mx.float16]
        for file, prompt, negative, seed in PICTURES[: sizes.pictures]:
            with Image.open(packaged("selftest", "pictures", file)) as stored:
                expected = np.asarray(stored.convert("RGB")).astype(int)
            steps = sd.generate_latents(
                prompt,
                negative_text=negative,
                num_steps=STEPS,
                cfg_weight=CFG_WEIGHT,
                latents=_stored_noise(seed),
                prompt_language="plain",
            )
            for step in steps:
                mx.eval(step.latents)
            found = np.rint(np.asarray(sd.decode(step.latents)[0]) * 255)
            far = float((np.abs(found - expected) > levels).mean()) if np.isfinite(found).all() else math.inf
            words = f"{prompt!r}{', float16' * float16}: share of values off by more than {levels} of 255"
            yield Comparison("pictures", words, far, 1 - share)


def lora(sizes: Sizes) -> Iterator[Finding]:
    """A LoRA laid over the embedded model: the changed weight as it is computed by hand, and the network with it."""
    checkpoint = load(EMBEDDED_MODEL, mx.float32)
    bare = Networks(checkpoint.unet, tuple(checkpoint.text_encoders))
    before = dict(tree_flatten(bare.unet.parameters()))[f"{LORA_LAYER}.weight"]
    outputs, inputs = before.shape
    up, down = np.asarray(normal(1, outputs, RANK)) / 4, np.asarray(normal(2, RANK, inputs)) / 4
    key = f"lora_unet_{LORA_LAYER.replace('.', '_')}"
    tensors: dict[str, np.ndarray] = {
        f"{key}.lora_up.weight": up,
        f"{key}.lora_down.weight": down,
        f"{key}.alpha": np.array(ALPHA, np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lora.safetensors")
        save_file(tensors, path)
        over = lay_over(bare, [(load_lora(path, bare, checkpoint.family), Strength(0.7, 0.7))])
        weight = dict(tree_flatten(over.unet.parameters()))[f"{LORA_LAYER}.weight"]
        expected = np.asarray(before).astype(np.float64) + 0.7 * ALPHA / RANK * (up.astype(np.float64) @ down)
        yield Comparison("LoRA", "the changed weight", difference(weight, expected), max(EXACT, ways()[0].allowed / 10))
    predict = _postcards(over.unet)
    yield from _compared("LoRA over the U-Net of postcards-tiny", over.unet, predict, random=False)


def training(sizes: Sizes) -> Iterator[Finding]:
    """The gradients of one training step of the embedded model's U-Net, those of the worst parameter."""
    unet = load(EMBEDDED_MODEL, mx.float32).unet
    x, words, target = (normal(1, 1, 16, 16, 4), normal(2, 1, 77, _text_width(unet)), normal(3, 1, 16, 16, 4))

    def loss(x: mx.array) -> mx.array:
        answer = unet(x, mx.array([300.0]), unet.project_text(words))
        return mx.square(answer - target).mean()

    def gradients() -> dict[str, mx.array]:
        _, found = nn.value_and_grad(unet, loss)(x)
        mx.eval(found)
        return dict(tree_flatten(found))

    with reference().active():
        expected = {name: np.asarray(value) for name, value in gradients().items()}
    largest = max(np.abs(value).max() for value in expected.values())
    with ops.use("learning"):
        found = gradients()
    errors = {
        # Tiny gradients are the difference of larger ones: their own size says nothing of how exact they can be.
        name: difference(found[name], value) * min(1.0, 1e3 * np.abs(value).max() / largest)
        for name, value in expected.items()
        if value.any()
    }
    worst = max(errors, key=lambda name: errors[name])
    what = f"gradients of a step, the worst of {len(errors)}: {worst}"
    yield Comparison("training", what, float(errors[worst]), max(GRADIENTS, ways()[0].allowed))


def speed(sizes: Sizes) -> Iterator[Finding]:
    """Seconds of a U-Net call with guidance and of a decode, whole networks with random weights."""
    for name, what in SPEED.items():
        part = f"speed of {name}"
        if name in sizes.speed or (name in sizes.speed_on_gpu and backend.has_gpu()):
            yield from _timed(name, what)
        else:
            needs_gpu = name in sizes.speed_on_gpu
            yield Skipped(part, "needs a GPU, or --full" if needs_gpu else "left out by --quick")


PARTS: dict[str, Callable[[Sizes], Iterator[Finding]]] = {
    "noise": noise,
    "attention": attention,
    "convolution": convolution,
    "networks": networks,
    "pictures": pictures,
    "LoRA": lora,
    "training": training,
    "speed": speed,
}


def _planned(plan: heads.Plan) -> Callable[..., mx.array]:
    return lambda q, k, v: heads.planned(q, k, v, plan)


def _stored_noise(seed: int) -> np.ndarray:
    """The noise (1, 16, 16, 4) that the stored pictures were painted from, as tests/drawn.py draws it."""
    generator = np.random.default_rng(zlib.crc32(f"postcard {seed}".encode()))
    return generator.standard_normal((1, 16, 16, 4)).astype(np.float32)


def _compared(
    what: str, network: nn.Module, call: Callable[[Any, Way], mx.array], random: bool = True
) -> Iterator[Finding]:
    """A network in each way of this machine against the reference; its weights end as float32."""
    if random:
        fill(network)
    result, usual = _timed_in(reference(), network, call)
    expected = np.asarray(result.astype(mx.float32))
    for way in ways():
        cast(network, way.dtype)
        result, seconds = _timed_in(way, network, call)
        yield Comparison("networks", f"{what}, {way.title}", difference(result, expected), way.allowed)
        yield Measurement("networks", f"{what}, {way.title}", seconds, seconds / usual)
    cast(network, mx.float32)


def _timed_in(way: Way, network: nn.Module, call: Callable[[Any, Way], mx.array]) -> tuple[mx.array, float]:
    """A call's result, and its seconds; on a GPU those of a second call, since the first one compiles kernels."""
    with way.active():
        for _ in range(2 if way.device == mx.gpu else 1):
            start = time.perf_counter()
            result = call(network, way)
            mx.eval(result)
            seconds = time.perf_counter() - start
    return result, seconds


def _text_width(unet: UNet) -> int:
    width = unet.config.cross_attention_dim
    assert isinstance(width, int)
    return width


def _postcards(unet: UNet) -> Callable[[Any, Way], mx.array]:
    x, words = normal(1, 2, 16, 16, 4), normal(2, 2, 77, _text_width(unet))

    def predict(model: Any, way: Way) -> mx.array:
        return model(x.astype(way.dtype), mx.array([300.0]), model.project_text(words.astype(way.dtype)))

    return predict


def _timed(name: str, what: Speed) -> Iterator[Finding]:
    dtype = mx.float16 if backend.default_float16() else mx.float32
    unet, vae = UNet(UNetConfig.from_dict(dict(UNETS[what.unet]))), Autoencoder(AutoencoderConfig.from_dict(dict(VAE)))
    side = what.pixels // vae.config.downscale
    weights = memory.weight_bytes(unet) * dtype.size // 4
    needs = memory.Needs(unet.values_per_latent, vae.config, weights, dtype.size, dtype.size)
    needed, there = weights + needs.network_bytes(2, what.pixels, what.pixels), memory.available()
    if there is not None and needed > there:
        yield Skipped(f"speed of {name}", f"needs {needed / GIB:.1f} GiB, and {there / GIB:.1f} are free")
        return
    backend.fit_threads(memory.largest_product(unet, vae.config, 1, what.pixels, what.pixels))
    fill(unet, dtype)
    x, words, *more = unet_inputs(UNETS[what.unet], 2, side)
    context = unet.project_text(words.astype(dtype))
    mx.eval(context, x, more)
    x = x.astype(dtype)
    seconds: list[float] = []
    while len(seconds) < CALLS and sum(seconds) < LONG:
        seconds.append(_seconds(partial(unet.__call__, x, mx.array([500.0]), context, *more)))  # type: ignore[arg-type]
    yield Measurement("speed", f"{name}: a U-Net call with guidance", min(seconds))
    del unet, context
    backend.give_back_memory()
    fill(vae, dtype)
    decode = vae.decode
    in_tiles = needs.in_tiles(what.pixels, what.pixels)
    if in_tiles:
        decode = partial(tiles.in_tiles, decode, tile=memory.TILE, overlap=memory.OVERLAP)
    latents = normal(1, 1, side, side, 4)
    yield Measurement("speed", f"{name}: a decode{', in tiles' * in_tiles}", _seconds(partial(decode, latents)))


def _seconds(call: Callable[[], mx.array]) -> float:
    start = time.perf_counter()
    mx.eval(call())
    return time.perf_counter() - start

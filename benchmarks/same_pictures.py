"""Check that two source trees paint bit-equal pictures: for a restructuring, which should change none.

    python benchmarks/same_pictures.py BEFORE          against the checkout that holds this script
    python benchmarks/same_pictures.py BEFORE AFTER    two other checkouts, such as git worktrees

Each tree paints the same 12 generations in a process of its own, through the public API alone, which both must have.
The latents of every step and the decoded pictures are compared bit by bit. LoRAs, an embedding and a small SDXL
checkpoint are written to a temporary folder first, with random weights shaped like those of BEFORE's postcards-tiny.
The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = Path("stable_diffusion", "checkpoints", "postcards-tiny")
UNET, TEXT = Path("unet", "diffusion_pytorch_model.safetensors"), Path("text_encoder", "model.safetensors")
FOLDER_VARIABLES = ("STABLE_DIFFUSION_LORAS", "STABLE_DIFFUSION_EMBEDDINGS")
STEPS, CFG_WEIGHT = 6, 5.0
EQUAL = "bit-equal"

RANK, ALPHA = 4, 2.0
ADAPTED = r"attn[12]?\.|\.mlp\.|\.ff\.net\.|resnets\.\d\.conv1\."  # the layers that the LoRAs change
WORD = "brushwork"  # the embedding's name
POOLED, TIME_EMBED = 24, 8  # widths in the SDXL checkpoint: the pooled text, and each of the six numbers of time_ids

Tensors = dict[str, np.ndarray]


# The inputs, written once and read by both trees.


def write_inputs(inputs: Path, model: Path) -> None:
    """Write everything that `cases` reads; `model` is the folder of postcards-tiny, whose names and shapes are used."""
    write_pictures(inputs)
    unet, text = load_file(model / UNET), load_file(model / TEXT)
    (inputs / "loras").mkdir()
    save_file(kohya_lora(unet, text), inputs / "loras" / "kohya.safetensors")
    save_file(diffusers_lora(unet), inputs / "loras" / "diffusers.safetensors")
    (inputs / "embeddings").mkdir()
    table = text["text_model.embeddings.token_embedding.weight"].astype(np.float32)
    vectors = normal(WORD, (2, table.shape[1])) * table.std()
    save_file({"emb_params": vectors}, inputs / "embeddings" / f"{WORD}.safetensors")
    write_sdxl(inputs / "sdxl", model, unet, text)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal float32 values, seeded by the name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random parameter in torch's layout; matrices and kernels keep the variance of their input."""
    values = normal(name, shape)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return values * np.float32(0.1) + np.float32("norm" in name and name.endswith("weight"))


def write_pictures(inputs: Path) -> None:
    """A picture to start from, wider than the model's and so cropped, and a mask with grey levels."""
    y, x = np.mgrid[:128, :160]
    picture = Image.fromarray(np.stack([x, 255 - y, 90 + y // 2], axis=-1).astype(np.uint8))
    ImageDraw.Draw(picture).rectangle((55, 60, 110, 110), fill=(190, 40, 30))
    picture.save(inputs / "picture.png")
    distance = np.hypot(x - 80, y - 64)  # pixels from the centre
    Image.fromarray((255 * np.clip((52 - distance) / 16, 0, 1)).astype(np.uint8)).save(inputs / "mask.png")


def kohya_lora(unet: Tensors, text: Tensors) -> Tensors:
    """A LoRA for the U-Net's and the text encoder's layers, with kohya's names."""
    tensors = {}
    for prefix, weights in (("lora_unet_", unet), ("lora_te_", text)):
        for module, (down, up) in lora_pairs("kohya", weights).items():
            name = prefix + module.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            tensors[f"{name}.alpha"] = np.array(ALPHA, np.float32)
    return tensors


def diffusers_lora(unet: Tensors) -> Tensors:
    """A LoRA for the U-Net's layers, with diffusers' names."""
    tensors = {}
    for module, (down, up) in lora_pairs("diffusers", unet).items():
        tensors[f"unet.{module}.lora_A.weight"] = down
        tensors[f"unet.{module}.lora_B.weight"] = up
    return tensors


def lora_pairs(seed: str, weights: Tensors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module -> (down, up) for the ADAPTED layers, linear or convolutional."""
    pairs = {}
    for key in sorted(weights):
        if not key.endswith(".weight") or not re.search(ADAPTED, key):
            continue
        module, (outputs, *inputs) = key.removesuffix(".weight"), weights[key].shape
        down = weight(f"{seed} down {module}", (RANK, *inputs))
        up = normal(f"{seed} up {module}", (outputs, RANK, *[1] * (len(inputs) - 1))) * np.float32(0.1)
        pairs[module] = down, up
    return pairs


def write_sdxl(folder: Path, model: Path, unet: Tensors, text: Tensors) -> None:
    """A diffusers folder of SDXL's form: two text encoders, text_time conditioning, linear projections."""
    for name in ("vae", "tokenizer"):
        shutil.copytree(model / name, folder / name)
    shutil.copytree(model / "tokenizer", folder / "tokenizer_2")
    unet_config, text_config = (json.loads((model / part.parent / "config.json").read_text()) for part in (UNET, TEXT))

    width = text_config["hidden_size"]
    text_shapes = {key: value.shape for key, value in text.items()}
    write_part(folder / TEXT, text_shapes, text_config)
    text_config |= {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "projection_dim": POOLED}
    path = folder / "text_encoder_2" / TEXT.name
    write_part(path, {**text_shapes, "text_projection.weight": (POOLED, width)}, text_config)

    shapes = {}
    for key, value in unet.items():
        shape = value.shape
        if re.search(r"attn2\.to_[kv]\.weight$", key):
            shape = (shape[0], 2 * width)
        elif re.search(r"attentions\.\d\.proj_(in|out)\.weight$", key):
            shape = shape[:2]
        shapes[key] = shape
        # The lowest level has transformers of two blocks.
        if re.match(r"(down_blocks\.2|mid_block|up_blocks\.0)\.", key) and "transformer_blocks.0" in key:
            shapes[key.replace("transformer_blocks.0", "transformer_blocks.1")] = shape
    time_width = shapes["time_embedding.linear_2.bias"][0]
    for name, inputs in (("linear_1", 6 * TIME_EMBED + POOLED), ("linear_2", time_width)):
        shapes |= {f"add_embedding.{name}.weight": (time_width, inputs), f"add_embedding.{name}.bias": (time_width,)}
    unet_config |= {
        "cross_attention_dim": 2 * width,
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_EMBED,
        "projection_class_embeddings_input_dim": 6 * TIME_EMBED + POOLED,
    }
    write_part(folder / UNET, shapes, unet_config)

    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    write_json(folder / "model_index.json", index)


def write_part(path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    """Random weights of these shapes, seeded by folder and key, and the config.json next to them."""
    write_json(path.parent / "config.json", config)
    save_file({key: weight(f"{path.parent.name} {key}", shape) for key, shape in shapes.items()}, path)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


# The generations.


@dataclass(frozen=True)
class Case:
    """One generation: the arguments of StableDiffusion.generate_latents, StableDiffusion and set_loras."""

    name: str
    arguments: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    loras: dict[Path, float] = field(default_factory=dict)


def cases(inputs: Path) -> list[Case]:
    """The 12 generations, each with another sampler."""
    from stable_diffusion import Blend

    picture, mask = Image.open(inputs / "picture.png"), Image.open(inputs / "mask.png")
    hills, sea = "a red house on green hills at sunset", "a white lighthouse by the sea at night"
    start = {"input_image": picture, "num_steps": 10, "denoising_strength": 0.6}
    repaint = {"mask_image": mask, "masked_content": "fill", **start}
    blend = Blend(hills, sea, 0.4)
    lora = {inputs / "loras" / "diffusers.safetensors": 0.6}
    return [
        Case("text to image", {"text": f"{hills}, (with clouds:1.3)", "negative_text": "stars", "sampler": "euler"}),
        Case("image to image", {"text": sea, "sampler": "dpmpp_2m_karras", **start}),
        Case("inpainting", {"text": "a yellow tent", "sampler": "ddim", **repaint}),
        Case("LoRA", {"text": f"{hills} <lora:kohya:0.8>", "sampler": "unipc"}, loras=lora),
        Case("embedding", {"text": f"a house, {WORD}, with clouds", "sampler": "heun"}),
        Case("AND", {"text": f"{hills} AND {sea} :0.6", "sampler": "euler_a"}),
        Case("schedule", {"text": "a [house:tent:0.5] on [green hills|dunes] at night", "sampler": "lms"}),
        Case("SDXL", {"text": sea, "negative_text": "stars", "sampler": "dpmpp_sde"}, {"model": inputs / "sdxl"}),
        Case("Blend", {"text": blend, "sampler": "pndm"}),
        Case("batch of 3", {"text": sea, "n_images": 3, "sampler": "dpmpp_2m_sde", "width": 96, "height": 136}),
        Case("bits=4", {"text": hills, "sampler": "ddpm"}, {"bits": 4}),
        # The last, as it also changes the process.
        Case("low_memory", {"text": hills, "sampler": "dpmpp_2m"}, {"low_memory": True}),
    ]


# A tree's own process.


def paint_all(tree: Path, inputs: Path, out: Path) -> None:
    """Paint all cases with the package of `tree`; write `out` with NAME/latents and NAME/picture for each."""
    import stable_diffusion

    found = Path(stable_diffusion.__file__).resolve()
    if tree not in found.parents:
        sys.exit(f"stable_diffusion was imported from {found}, not from {tree}.")
    arrays: Tensors = {}
    for seed, case in enumerate(cases(inputs)):
        sd = stable_diffusion.StableDiffusion(**case.model, float16=False)
        sd.lora_folders.append(inputs / "loras")
        sd.embedding_folders.append(inputs / "embeddings")
        latents, picture = paint(sd, case, seed)
        arrays |= {f"{case.name}/latents": latents, f"{case.name}/picture": picture}
        if case.name in ("LoRA", "embedding"):
            check_effect(case, seed, latents)
    for key, array in arrays.items():
        if not np.isfinite(array).all() or np.ptp(array) == 0:
            sys.exit(f"{key} is not finite or constant, so comparing it would prove nothing.")
    np.savez(out, **arrays)


def paint(sd: Any, case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The latents after each step (steps, B, h, w, C), and the pictures (B, H, W, 3) in [0, 1]; both float32."""
    sd.set_loras(case.loras)
    arguments = {"num_steps": STEPS, "cfg_weight": CFG_WEIGHT, "seed": seed, **case.arguments}
    latents = []
    for step in sd.generate_latents(**arguments):
        latents.append(np.array(step.latents))
    return np.stack(latents), np.array(sd.decode(step.latents))


def check_effect(case: Case, seed: int, latents: np.ndarray) -> None:
    """Exit unless every adapter of the case changes its latents."""
    from stable_diffusion import StableDiffusion

    # A model without the folders reads the embedding's word as a plain one, and refuses the tag.
    sd = StableDiffusion(float16=False)
    untagged = {**case.arguments, "text": re.sub(r"<lora:.*?>", "", case.arguments["text"])}
    seen = [latents, paint(sd, Case(case.name, untagged), seed)[0]]
    if case.loras:
        seen.append(paint(sd, Case(case.name, untagged, loras=case.loras), seed)[0])
    if len({each.tobytes() for each in seen}) < len(seen):
        sys.exit(f"{case.name}: an adapter has no effect.")


# The comparison.


def run_tree(label: str, tree: Path, inputs: Path, out: Path) -> Tensors:
    """Run `paint_all` in a new process whose only stable_diffusion is that of `tree`."""
    start = time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key not in FOLDER_VARIABLES}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(tree), str(inputs), str(out)]
    status = subprocess.run(command, cwd=inputs, env={**environment, "PYTHONPATH": str(tree)}).returncode
    if status:
        sys.exit(f"{label} failed with exit status {status}: {tree}")
    print(f"{label}: {tree}, {time.perf_counter() - start:.0f} s", flush=True)
    with np.load(out) as file:
        return dict(file)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """EQUAL, or the largest difference."""
    if same_bits(a, b):
        return EQUAL
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {a.shape} became {b.dtype} {b.shape}"
    return f"differs by {np.abs(a - b).max():.3g}"


def row(name: str, before: Tensors, after: Tensors) -> tuple[bool, str]:
    """Whether a generation is the same, and its line of the table."""
    pairs = [(before[f"{name}/{kind}"], after[f"{name}/{kind}"]) for kind in ("latents", "picture")]
    (latents, other), _ = pairs
    if all(same_bits(a, b) for a, b in pairs):
        return True, f"{name:<16}{len(latents):>5}  {EQUAL}"
    verdicts = f"picture: {difference(*pairs[1])}"
    if latents.shape != other.shape:
        verdicts = f"latents: {difference(latents, other)}, {verdicts}"
    else:
        first = next((i for i, (a, b) in enumerate(zip(latents, other, strict=True), 1) if not same_bits(a, b)), None)
        verdicts = f"final latents: {difference(latents[-1], other[-1])}, {verdicts}"
        verdicts += f"; first differs after step {first}" if first else ""
    return False, f"{name:<16}{len(latents):>5}  {verdicts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder of a checkout")
    parser.add_argument("after", type=Path, nargs="?", default=ROOT, help="another one; by default this script's")
    options = parser.parse_args()
    trees = {"BEFORE": options.before.resolve(), "AFTER": options.after.resolve()}
    for tree in trees.values():
        if not (tree / "stable_diffusion" / "__init__.py").is_file():
            parser.error(f"{tree} holds no stable_diffusion package")
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name).resolve()
        write_inputs(inputs, trees["BEFORE"] / EMBEDDED)
        before, after = (run_tree(label, tree, inputs, inputs / f"{label}.npz") for label, tree in trees.items())
    print(f"\n{'generation':<16}{'steps':>5}")
    names = dict.fromkeys(key.partition("/")[0] for key in before)
    rows = [row(each, before, after) for each in names]
    print("\n".join(line for _, line in rows))
    sys.exit(0 if all(same for same, _ in rows) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        paint_all(*map(Path, sys.argv[2:]))
    else:
        main()

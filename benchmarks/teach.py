"""Teaching postcards-tiny something from five pictures: how often it shows, and what else is still followed.

    python benchmarks/teach.py                     LoRA, DreamBooth and textual inversion with their defaults
    python benchmarks/teach.py lora --steps 400 --set rank=8 --set text_encoders=true --sheet lora.png
    python benchmarks/teach.py --cost              a step of Stable Diffusion 1.5's shape beside torch with peft

LoRA and DreamBooth learn a lantern, which the model never saw; textual inversion learns a word for a thing in a colour
that it knows. The judge, a small network, is trained on the painter's pictures, lanterns among them, and kept in the
--cache folder. CPU seconds are those of all threads, so that they hold on a busy machine, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import yaml
from PIL import Image

from benchmarks.judge import WITH_NEW_THINGS, Classifier, any_postcard_or_new, train
from stable_diffusion import StableDiffusion, backend, open_picture, ops
from stable_diffusion.backend import mx
from stable_diffusion.config import UNetConfig
from stable_diffusion.pictures import arrays
from stable_diffusion.training.loop import Limit, Progress, averaged_gradients, resumed, set_weights
from stable_diffusion.training.postcards.painter import NEW_THINGS, Postcard, describe, new_postcard, paint
from stable_diffusion.training.runs import RUNS
from stable_diffusion.training.teaching import low_rank
from stable_diffusion.training.teaching.recompute import recompute
from stable_diffusion.unet import UNet

ROOT = Path(__file__).resolve().parent.parent
MODEL = "postcards-tiny"
SHOWN, ASKED = 31, 32  # streams of postcards
WORD = "zib"
KNOWN = ("windmill", "purple")  # the combination for which textual inversion learns a word
CLASS = (
    "a house on green hills by day, with clouds|a tent in snowy mountains at night, with stars|"
    "a lighthouse by the sea at sunset, with birds|a tree on green hills at sunset, with the sun|"
    "a hot air balloon over the desert by day, a clear sky|a windmill by the sea at night, with the moon"
)
OPTIONS: dict[str, dict[str, Any]] = {"lora": {}, "dreambooth": {"class_caption": CLASS}, "inversion": {}}
STEPS = {"lora": 500, "dreambooth": 1000, "inversion": 150}


def taught_cards(kind: str, count: int, stream: int, seed: int) -> list[Postcard]:
    """Cards of the taught thing; of the first ones, no two neighbours have the same place or sky."""
    rng = np.random.default_rng((stream, seed))
    cards: list[Postcard] = []
    while len(cards) < count:
        card = new_postcard(rng)
        if kind == "inversion":
            card = dataclasses.replace(card, thing=KNOWN[0], colour=KNOWN[1])
        else:
            card = dataclasses.replace(card, colour="purple")
        recent = cards[-2:] if len(cards) < 5 else []  # a windmill has only three places
        known = kind != "inversion" or card.place != "desert"  # there are no windmills
        if known and all(card.place != each.place for each in recent) and all(card.sky != each.sky for each in recent):
            cards.append(card)
    return cards


def words(kind: str, card: Postcard) -> str:
    """The card's caption, with the new word for the thing."""
    named = f"a {card.colour} {card.thing}"
    text = describe(card)
    if not text.startswith(named):
        raise ValueError(text)
    return {"inversion": f"a {WORD}", "lora": "a lantern", "dreambooth": f"a {WORD} lantern"}[kind] + text[len(named) :]


def write_pictures(folder: Path, kind: str, seed: int) -> None:
    folder.mkdir(parents=True)
    for i, card in enumerate(taught_cards(kind, 5, SHOWN, seed)):
        paint(card, 128).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(words(kind, card) + "\n", encoding="utf-8")


def a_judge(folder: Path, steps: int) -> Classifier:
    """Load the judge that knows lanterns, or train it."""
    path = folder / f"judge-{'-'.join(NEW_THINGS)}-{steps}.safetensors"
    judge = Classifier(WITH_NEW_THINGS)
    if path.is_file():
        judge.load_weights(str(path))
        return judge

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            tell(f"training the judge: {step} of {steps} steps, loss {loss:.3f}")

    judge = train(steps, report=report, attributes=WITH_NEW_THINGS, draw=any_postcard_or_new)
    folder.mkdir(parents=True, exist_ok=True)
    judge.save_weights(str(path))
    return judge


def judged(judge: Classifier, pictures: np.ndarray, cards: list[Postcard]) -> dict[str, float]:
    """The share of pictures of which each attribute is read as on the card."""
    _, found = judge.read(pictures)
    return {
        name: float(np.mean([word == getattr(card, name) for word, card in zip(found[name], cards, strict=True)]))
        for name in WITH_NEW_THINGS
    }


def painted(sd: StableDiffusion, prompts: list[str], options: argparse.Namespace) -> np.ndarray:
    """(N, H, W, 3) uint8, a picture of each prompt."""
    pictures = []
    for i in range(0, len(prompts), 10):
        some = sd.generate(prompts[i : i + 10], num_steps=20, cfg_weight=options.cfg, seed=1000 + i)
        pictures += [np.asarray(each.image) for each in some]
    return np.stack(pictures)


def teach(kind: str, folder: Path, options: argparse.Namespace) -> tuple[Path, float, float, int]:
    """Run the row of the table; returns the file, CPU and wall seconds, and the steps."""
    write_pictures(folder / "pictures", kind, options.seed)
    output = folder / f"{WORD if kind == 'inversion' else kind}.safetensors"
    asked = dict(yaml.safe_load(f"{{{each.replace('=', ': ', 1)}}}").popitem() for each in options.set)
    values = {"samples": 0} | OPTIONS[kind] | asked
    steps = options.steps or STEPS[kind]

    def report(progress: Progress) -> None:
        if progress.step % 50 == 0:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in progress.figures.items())
            tell(f"{kind}: step {progress.step} of {steps}: {figures}, {time.process_time() - cpu:.0f} CPU s")

    cpu, wall = time.process_time(), time.monotonic()
    RUNS[kind].start(output, Limit(steps=steps), report, data=str(folder / "pictures"), model=options.model, **values)
    return output, time.process_time() - cpu, time.monotonic() - wall, steps


def measure(kind: str, judge: Classifier, options: argparse.Namespace) -> list[list[str]]:
    """Rows of the table: with the file, and without it."""
    folder = Path(tempfile.mkdtemp(prefix=f"teach-{kind}-"))
    try:
        output, cpu, wall, steps = teach(kind, folder, options)
        tell(f"{kind}: {cpu:.0f} CPU s, {wall:.0f} s")
        cards = taught_cards(kind, options.pictures, ASKED, options.seed)
        prompts = [words(kind, card) for card in cards]
        sd = StableDiffusion(options.model, float16=False)
        before = painted(sd, prompts, options)
        if kind == "inversion":
            sd.embedding_folders.append(output.parent)
        else:
            sd.set_loras([output])
        after = painted(sd, prompts, options)
        if options.sheet:
            shown = [np.asarray(open_picture(folder / "pictures" / f"{i}.png")) for i in range(5)]
            rows = [*shown, *after[:27], *before[:8]]
            arrays.grid([Image.fromarray(each) for each in rows], 8, gap=4).save(
                options.sheet.with_stem(f"{options.sheet.stem}-{kind}")
            )
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(output, options.keep / output.name)
        rows = []
        for title, pictures, spent in (("with it", after, f"{cpu:.0f}"), ("without", before, "")):
            right = judged(judge, pictures, cards)
            both = "" if kind != "inversion" else f"{100 * min(right['thing'], right['colour']):.0f} %"
            shares = [f"{100 * right[name]:.0f} %" for name in ("thing", "colour", "place", "time", "sky")]
            rows.append([kind, title, str(steps), spent, *shares, both])
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- The cost of a step


SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
RANK, SIDE = 16, 32  # of the low-rank changes; of the latents, 256 pixels / 8


def cost(options: argparse.Namespace) -> None:
    """Seconds and memory of a step of a LoRA's training, each program in a process of its own, one after another."""
    print("| | wall, s | CPU, s | peak memory, GB |\n|---|---|---|---|")
    for name in ("ours", "ours, recomputing", "torch with peft"):
        command = [sys.executable, __file__, "--cost-of", name, "--steps", str(options.steps or 3)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"| {name} | {done.stdout.strip()} |", flush=True)


def cost_of(name: str, steps: int) -> None:
    """Print the figures of one program: medians of the steps after the first, and the process's peak."""
    rng = np.random.default_rng(0)
    x, target = (rng.standard_normal((1, SIDE, SIDE, 4), np.float32) for _ in range(2))
    text = rng.standard_normal((1, 77, 768), np.float32)
    step = torch_step(x, target, text) if name.startswith("torch") else our_step(x, target, text, "," in name)
    wall, cpu = [], []
    for _ in range(steps + 1):
        before = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{np.median(wall[1:]):.1f} | {np.median(cpu[1:]):.1f} | {peak:.1f}")


def our_step(x: np.ndarray, target: np.ndarray, text: np.ndarray, recomputing: bool) -> Callable[[], None]:
    unet = UNet(UNetConfig.from_dict(SD15))
    unet.freeze()
    low_rank.insert(unet, low_rank.LAYERS["attention"], RANK, RANK, 0)
    if recomputing:
        recompute(unet)
    backend.prepare()

    class Task:
        model = unet

        @staticmethod
        def loss(x: mx.array, target: mx.array, text: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
            answer = unet(x, mx.array([500.0]), unet.project_text(text))
            return mx.square(answer - target).mean(), {}

    state, group, recipe = resumed(unet, Path("none")), mx.distributed.init(), RUNS["lora"].recipe

    def step() -> None:
        with ops.use("learning"):
            loss, _, gradients = averaged_gradients(Task(), [(x, target, text)], group)
            state.update(gradients, recipe, 1e-4)
            mx.eval(state.arrays(), loss)
            set_weights(unet, state.layout, state.parameters)

    return step


def torch_step(x: np.ndarray, target: np.ndarray, text: np.ndarray) -> Callable[[], None]:
    import peft
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    unet = UNet2DConditionModel(**SD15).requires_grad_(False).train()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-4)
    inputs, goal = (torch.from_numpy(each).permute(0, 3, 1, 2).contiguous() for each in (x, target))
    words = torch.from_numpy(text)

    def step() -> None:
        optimiser.zero_grad()
        answer = unet(inputs, torch.tensor([500]), words).sample
        (answer - goal).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()

    return step


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"{', '.join(OPTIONS)} (default: all)")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--steps", type=int, help="steps to teach")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another option of the run")
    parser.add_argument("--pictures", type=int, default=50, help="pictures to judge")
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / "outputs" / "teach", help="where the judge is kept")
    parser.add_argument("--judge-steps", type=int, default=3000)
    parser.add_argument("--sheet", type=Path, help="what to name contact sheets")
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    parser.add_argument("--cost", action="store_true", help="measure the cost of a step")
    parser.add_argument("--cost-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost or options.cost_of:
        cost_of(options.cost_of, options.steps) if options.cost_of else cost(options)
        return
    judge = a_judge(options.cache, options.judge_steps)
    fresh = np.random.default_rng((33, options.seed))
    cards = [any_postcard_or_new(fresh) for _ in range(400)]
    right = judged(judge, np.stack([np.asarray(paint(card, 128)) for card in cards]), cards)
    print("the judge on 400 fresh postcards: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in right.items()))
    heads = ["", "", "steps", "CPU s", "thing", "colour", "place", "time", "sky", "thing and colour"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for kind in options.kinds or OPTIONS:
        if kind != "judge":
            for row in measure(kind, judge, options):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()

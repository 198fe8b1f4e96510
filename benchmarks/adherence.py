"""How well a postcard model follows its prompts: a judge reads the attributes off generated pictures.

    python benchmarks/adherence.py                                   400 pictures of postcards-tiny: minutes on a CPU
    python benchmarks/adherence.py --pictures 40 --sheet sheet.png   a quick look
    python benchmarks/adherence.py --compare postcards-tiny DIR      two models side by side, the same prompts and seeds
    python benchmarks/adherence.py --own --compare postcards-tiny postcards-4-step   each with its own settings

Half of the prompts are of combinations (thing, colour, time) that training never saw. The judge, a small network, is
trained on the painter's own pictures and kept in the --cache folder for the next run. The first row shows how often it
is right on fresh postcards; the same postcards through the model's autoencoder show what that costs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image, ImageOps

from benchmarks.judge import ATTRIBUTES, SIZE, Classifier, any_postcard, frechet_distance, train
from stable_diffusion import StableDiffusion, catalogue
from stable_diffusion.errors import InputError, StableDiffusionError
from stable_diffusion.pictures import arrays
from stable_diffusion.training.postcards.painter import Postcard, describe, paint, random_postcard

ROOT = Path(__file__).resolve().parent.parent
FRESH, GENERATED, JUDGED = 1001, 2002, 3003  # streams of postcards that no training draws from
SHEET, COLUMNS = 48, 8
Right = dict[str, np.ndarray]  # attribute -> whether each picture was read correctly


@dataclass
class Scores:
    """The measurements of one model."""

    model: str
    through_vae: Right
    generated: Right
    held_out: np.ndarray  # which generated pictures show combinations that training never saw
    psnr: float
    distance: float
    pictures: list[Image.Image] = field(repr=False)
    seconds: float = 0.0  # of CPU time a picture, decoding included


def postcards(count: int, stream: int, seed: int) -> list[Postcard]:
    rng = np.random.default_rng((stream, seed))
    return [any_postcard(rng) for _ in range(count)]


def prompted(count: int, seed: int) -> tuple[list[Postcard], np.ndarray]:
    """Cards to generate, and which of them are held out: every second one."""
    rng = np.random.default_rng((GENERATED, seed))
    held_out = np.arange(count) % 2 == 1
    return [random_postcard(rng, bool(out)) for out in held_out], held_out


def painted(cards: list[Postcard], size: int) -> np.ndarray:
    return np.stack([np.asarray(paint(card, size)) for card in cards])


def judged(judge: Classifier, pictures: np.ndarray, cards: list[Postcard]) -> tuple[np.ndarray, Right]:
    """The features (N, D), and which attributes were read correctly."""
    features, found = judge.read(pictures)
    return features, {
        name: np.array([word == getattr(card, name) for word, card in zip(found[name], cards, strict=True)])
        for name in ATTRIBUTES
    }


def a_judge(folder: Path, steps: int) -> Classifier:
    """Load the judge from the folder if the painter has not changed since; otherwise train one and save it there."""
    now = hashlib.sha256(painted(postcards(40, JUDGED, 0), SIZE).tobytes()).hexdigest()[:12]
    path = folder / f"judge-{steps}-{now}.safetensors"
    if path.is_file():
        judge = Classifier()
        judge.load_weights(str(path))
        return judge
    begun = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0 or step == steps:
            left = (time.monotonic() - begun) / step * (steps - step)
            tell(f"training the judge: {step} of {steps} steps, loss {loss:.3f}, {left:.0f} s left")

    judge = train(steps, report=report)
    folder.mkdir(parents=True, exist_ok=True)
    judge.save_weights(str(path))
    return judge


def generate(sd: StableDiffusion, cards: list[Postcard], options: argparse.Namespace) -> np.ndarray:
    """(N, H, W, 3) uint8, a picture for each card's canonical caption."""
    pictures, begun = [], time.monotonic()
    for i, card in enumerate(cards):
        for step in sd.generate_latents(
            describe(card),
            num_steps=options.steps,
            cfg_weight=options.cfg,
            sampler=options.sampler,
            seed=options.seed + i,
        ):
            last = step.latents
        pictures.append(arrays.to_uint8(np.array(sd.decode(last)[0])))
        if (i + 1) % 10 == 0:
            left = (time.monotonic() - begun) / (i + 1) * (len(cards) - i - 1)
            tell(f"{sd.name}: {i + 1} of {len(cards)} pictures, {left:.0f} s left")
    return np.stack(pictures)


def through_vae(sd: StableDiffusion, pictures: np.ndarray) -> tuple[np.ndarray, float]:
    """The pictures after encoding and decoding, and their mean PSNR in dB."""
    back = np.stack([arrays.to_uint8(np.array(sd.decode(sd.encode(picture))[0])) for picture in pictures])
    errors = np.square((back.astype(np.float64) - pictures) / 255).mean((1, 2, 3))
    return back, float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def score(name: str, judge: Classifier, unit: float, fresh: list[Postcard], options: argparse.Namespace) -> Scores:
    sd = StableDiffusion(name)
    width, height = sd.default_size
    if width != height or width % SIZE:
        raise InputError(
            f"{name!r} paints {width}x{height}; the judge reads squares of {SIZE}, {2 * SIZE}, ... pixels."
        )
    cards, held_out = prompted(options.pictures, options.seed)
    if options.own:
        own = catalogue.find(name).defaults
        options = argparse.Namespace(**vars(options) | {"steps": own.steps, "cfg": own.cfg, "sampler": own.sampler})
    begun = time.process_time()
    pictures = generate(sd, cards, options)
    seconds = (time.process_time() - begun) / len(cards)
    features, generated = judged(judge, pictures, cards)
    real = painted(fresh[: options.pictures], width)
    real_features, _ = judged(judge, real, fresh[: options.pictures])
    back, psnr = through_vae(sd, real[:200])
    _, kept = judged(judge, back, fresh[: len(back)])
    return Scores(
        model=Path(name).name,
        through_vae=kept,
        generated=generated,
        held_out=held_out,
        psnr=psnr,
        distance=frechet_distance(features / unit, real_features / unit),
        pictures=framed(pictures, generated),
        seconds=seconds,
    )


def framed(pictures: np.ndarray, right: Right) -> list[Image.Image]:
    """The first pictures, framed in light grey if all attributes were read correctly, otherwise in red."""
    whole = np.all(list(right.values()), axis=0)
    return [
        ImageOps.expand(Image.fromarray(picture), 3, "gainsboro" if good else "crimson")
        for picture, good in zip(pictures[:SHEET], whole, strict=False)
    ]


def table(fresh: Right, halves: float, found: list[Scores]) -> str:
    """Markdown: how often the judge is right on real postcards and on each model's pictures."""
    heads = ["read off", *ATTRIBUTES, "all five", "VAE PSNR", "Fréchet distance"]
    rows = [
        heads,
        ["---"] * len(heads),
        [f"{count(fresh)} fresh postcards", *shares(fresh), "", f"{halves:.2f} (two halves)"],
    ]
    for one in found:
        seen, unseen = ({k: v[which] for k, v in one.generated.items()} for which in (~one.held_out, one.held_out))
        rows += [
            [f"{count(one.through_vae)} through {one.model}'s VAE", *shares(one.through_vae), f"{one.psnr:.2f} dB", ""],
            [f"{one.model}, {count(seen)} of seen combinations", *shares(seen), "", ""],
            [f"{one.model}, {count(unseen)} of held-out ones", *shares(unseen), "", ""],
            [f"{one.model}, all {count(one.generated)}", *shares(one.generated), "", f"{one.distance:.2f}"],
        ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def count(right: Right) -> int:
    return len(right["time"])


def shares(right: Right) -> list[str]:
    """Percentage read correctly of each attribute, and of all five at once."""
    every = [*right.values(), np.all(list(right.values()), axis=0)]
    return [f"{100 * one.mean():.1f} %" for one in every]


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="postcards-tiny", help="a name, folder or file, as the pipeline takes it")
    parser.add_argument("--compare", nargs=2, metavar="MODEL", help="two models in one table")
    parser.add_argument("--pictures", type=int, default=400, help="pictures per model (default: 400)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument(
        "--own", action="store_true", help="each model with its own default steps, guidance and sampler"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / "outputs" / "adherence", help="where the judge is kept")
    parser.add_argument("--judge-steps", type=int, default=4000)
    parser.add_argument("--sheet", type=Path, help=f"a contact sheet of the first {SHEET} pictures; red: misread")
    options = parser.parse_args()
    if options.pictures < 4:
        parser.error(f"--pictures {options.pictures} is too few to measure by; give 4 or more.")
    try:
        run(options)
    except StableDiffusionError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> None:
    judge = a_judge(options.cache, options.judge_steps)
    fresh = postcards(max(1000, 2 * options.pictures), FRESH, options.seed)
    features, right = judged(judge, painted(fresh, 2 * SIZE), fresh)
    unit = float(np.sqrt(features.var(0).mean()))  # distances are in units of the real postcards' feature spread
    halves = frechet_distance(
        features[: options.pictures] / unit, features[options.pictures : 2 * options.pictures] / unit
    )
    found = [score(name, judge, unit, fresh, options) for name in options.compare or [options.model]]
    print(table(right, halves, found))
    print(*(f"{one.model}: {one.seconds:.2f} s of CPU time a picture" for one in found), sep="\n")
    if options.sheet:
        arrays.grid([picture for one in found for picture in one.pictures], COLUMNS, gap=4).save(options.sheet)


if __name__ == "__main__":
    main()

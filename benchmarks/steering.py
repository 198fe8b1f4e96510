"""What CLIP finds, and how closely classifier and CLIP guidance follow what is asked, beside classifier-free guidance.

    python benchmarks/steering.py retrieval                  1,000 held-out postcards and their captions: seconds
    python benchmarks/steering.py following                  100 pictures for each way, read by the judge: an hour
    python benchmarks/steering.py following --ways clip --scales 1 2 4 --pictures 20      to choose a scale

The judge is that of adherence.py. Each way paints the same things with the same seeds: nothing (no text, no guidance),
the text alone, classifier-free guidance, and both kinds of guidance by a gradient, without any text.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.adherence import ROOT, a_judge, framed, judged, prompted, shares, tell
from benchmarks.judge import ATTRIBUTES
from stable_diffusion import StableDiffusion, Steering
from stable_diffusion.backend import prepare
from stable_diffusion.guides import contrastive
from stable_diffusion.guides.classifier import named_in
from stable_diffusion.guides.steering import guidance_of
from stable_diffusion.pictures import arrays
from stable_diffusion.steering import CLASSIFIER, CLIP
from stable_diffusion.training.attributes import POSTCARDS, PostcardAttributes
from stable_diffusion.training.contrastive import FAR
from stable_diffusion.training.postcards.painter import Postcard, describe

NOTHING, TEXT, FREE, BOTH = "nothing", "text", "classifier-free", "text and classifier"
BATCH = 10
WAYS = (NOTHING, TEXT, FREE, CLASSIFIER, CLIP, BOTH)


def retrieval(options: argparse.Namespace) -> None:
    """Recall at 1 among held-out postcards, both ways.

    Many postcards show the same five things, and no caption says more: a reader who sees them all, and then guesses,
    is the most that there can be of text to image.
    """
    prepare()
    clip = contrastive.load(options.clip)
    data = PostcardAttributes(clip.side, seed=options.seed, held_out=not options.seen)
    numbers = range(FAR, FAR + options.pictures)  # of which no training knows
    pictures, captions = data.batch(numbers)
    images, texts = np.array(clip.pictures(pictures)), np.array(clip.texts(captions))
    found = contrastive.retrieval(images, texts, captions)
    labels = [data.labels(i) for i in numbers]
    said = [
        {i: list(POSTCARDS[name]).index(option) for i, name in enumerate(POSTCARDS) if (option := each.get(name))}
        for each in (named_in(text, POSTCARDS) for text in captions)
    ]
    # true[i, j]: what caption j says is on postcard i
    true = np.array([[all(card[k] == v for k, v in each.items()) for each in said] for card in labels])
    same = np.equal.outer(np.array(captions), np.array(captions))
    kinds = "fresh" if options.seen else "held-out"
    print(f"{len(captions)} {kinds} postcards, {found.distinct} distinct captions, {len(set(labels))} kinds of card")
    print("| recall at 1 | any with the same caption | its own | true |\n|---|---|---|---|")
    cosines, n = images @ texts.T, np.arange(len(captions))
    fits = {"text_to_image": true[cosines.argmax(0), n], "image_to_text": true[n, cosines.argmax(1)]}
    for way, fit in fits.items():
        shares = getattr(found, way), getattr(found, f"strict_{way}"), fit.mean()
        print(f"| {way.replace('_', ' ')} | {' | '.join(f'{100 * each:.1f} %' for each in shares)} |")
    perfect = (same & true).sum(0) / true.sum(0), 1 / true.sum(0)
    print(f"| text to image, perfect | {' | '.join(f'{100 * each.mean():.1f} %' for each in perfect)} | 100.0 % |")


def following(options: argparse.Namespace) -> None:
    """How often each attribute of what was asked is in the picture, by way."""
    judge = a_judge(options.cache, options.judge_steps)
    sd = StableDiffusion("postcards-tiny")
    cards, _ = prompted(options.pictures, options.seed)
    print("| way | " + " | ".join([*ATTRIBUTES, "all five"]) + " | s a picture |\n|" + "---|" * (len(ATTRIBUTES) + 3))
    rows = []
    for way in options.ways:
        for scale in options.scales if way in (CLASSIFIER, CLIP, BOTH) else (None,):
            begun = time.monotonic()
            pictures = painted(sd, cards, way, scale, options)
            seconds = (time.monotonic() - begun) / len(cards)
            _, right = judged(judge, pictures, cards)
            title = way if scale is None else f"{way}, scale {scale:g}"
            print(f"| {title} | {' | '.join(shares(right))} | {seconds:.2f} |", flush=True)
            rows += framed(pictures, right)[: options.columns]
    if options.sheet:
        arrays.grid(rows, options.columns, gap=4).save(options.sheet)


def painted(
    sd: StableDiffusion, cards: list[Postcard], way: str, scale: float | None, options: argparse.Namespace
) -> np.ndarray:
    """(N, H, W, 3) uint8, a picture for each card; the ways begin from the same noise."""
    pictures: list[np.ndarray] = []
    by = {CLASSIFIER: CLASSIFIER, CLIP: CLIP, BOTH: CLASSIFIER}.get(way)
    for i in range(0, len(cards), BATCH):
        texts = [describe(card) for card in cards[i : i + BATCH]]
        made = sd.generate(
            texts if way in (TEXT, FREE, BOTH) else [""] * len(texts),
            num_steps=options.steps,
            cfg_weight=options.cfg if way == FREE else 1.0,
            seed=options.seed + i,
            guidance=None if by is None else guidance_of(Steering(by, scale), sd, texts),
        )
        pictures += [np.asarray(each.image) for each in made]
        tell(f"{way} {scale or ''}: {len(pictures)} of {len(cards)}")
    return np.stack(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("retrieval")
    one.add_argument("--clip", type=Path, default=contrastive.FOLDER, help="a folder of `train clip`")
    one.add_argument("--pictures", type=int, default=1000)
    one.add_argument("--seen", action="store_true", help="new postcards of combinations that the training sees")
    one.set_defaults(run=retrieval)
    two = kinds.add_parser("following")
    two.add_argument("--pictures", type=int, default=100, help="pictures for each way (default: 100)")
    two.add_argument("--steps", type=int, default=20)
    two.add_argument("--cfg", type=float, default=5.0)
    two.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    two.add_argument("--scales", nargs="+", type=float, default=[None], help="of the gradients (default: the usual)")
    two.add_argument("--cache", type=Path, default=ROOT / "outputs" / "adherence", help="where the judge is kept")
    two.add_argument("--judge-steps", type=int, default=4000)
    two.add_argument("--sheet", type=Path, help="a contact sheet, a row for each way; red: not all as asked")
    two.add_argument("--columns", type=int, default=8)
    two.set_defaults(run=following)
    for each in (one, two):
        each.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

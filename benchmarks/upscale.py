"""Upscaling networks beside spandrel's on this CPU: time and peak memory for 128x128 pixels, four times as large.

Random weights of the usual sizes, float32. Both take turns in one process, so that what else runs on the machine slows
both; times are medians. Peak memory is measured in a process each, above what loading the network left.

    python benchmarks/upscale.py [--rounds 5] [--side 128]
    python benchmarks/upscale.py --seen sheet.jpg [--upscaler NAME]

The second form paints ten postcards at 512x512, makes them four times smaller, and enlarges them again by Lanczos and
by a network: PSNR, the strength of edges beside the original's, and a sheet of what comes out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

NAMES = ("Compact x4", "RRDBNet x4")


def built(name: str) -> Any:
    """spandrel's network with random weights."""
    import torch

    from tests.parity.upscalers import import_spandrel

    import_spandrel()
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    network = Compact(num_feat=64, num_conv=16, upscale=4) if name == "Compact x4" else ESRGAN(scale=4)
    return network.eval()


def runner(name: str, theirs: bool, path: Path) -> Any:
    """A function that enlarges an array (1, H, W, 3) by one of the two."""
    if theirs:
        import torch

        network = built(name)
        network.load_state_dict(torch.load(path))

        def run(picture: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(picture).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()

        return run
    from stable_diffusion import ops
    from stable_diffusion.backend import mx
    from stable_diffusion.upscaling.loading import load_network

    loaded = load_network(path, half=False)
    return lambda picture: np.asarray(ops.by_blocks(loaded, mx.array(picture)))


def picture(side: int) -> np.ndarray:
    """Noise; a network takes as long for any picture."""
    return np.random.default_rng(0).random((1, side, side, 3), np.float32)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(name: str, theirs: bool, path: Path, side: int) -> int:
    """The most bytes in memory while a picture is enlarged, above those before."""
    run = runner(name, theirs, path)
    run(picture(8))
    before = most = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    run(picture(side))
    done.set()
    thread.join()
    return most - before


def peak_apart(name: str, theirs: bool, path: Path, side: int) -> float:
    """`peak` in a process of its own, in MiB."""
    command = [sys.executable, __file__, "--peak", name, str(int(theirs)), str(path), str(side)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**20


def edges(values: np.ndarray) -> float:
    """The strength of the strongest edges, in levels from a pixel to the next; grey values (H, W)."""
    steps = np.hypot(np.diff(values, axis=0)[:, 1:], np.diff(values, axis=1)[1:])
    return float(np.percentile(steps, 99.5))


def seen(sheet: Path, upscaler: str, count: int = 10, side: int = 512, shown: int = 160) -> None:
    """Prints the table, and writes crops of each postcard: small, by Lanczos, by the network, as painted."""
    from PIL import Image

    from stable_diffusion.training.postcards import painter
    from stable_diffusion.upscaling.enlarging import Enlarger

    ways = {"Lanczos": Enlarger("Lanczos"), upscaler: Enlarger(upscaler)}
    rng = np.random.default_rng(1)
    page = Image.new("RGB", (8 * shown + 24, (count + 1) // 2 * (shown + 4)), "white")
    print(f"| postcard | PSNR Lanczos | PSNR {upscaler} | edges Lanczos | edges {upscaler} |")
    print("|---|---|---|---|---|")
    rows = []
    for i in range(count):
        card = painter.random_postcard(rng)
        large = painter.paint(card, side)
        small = large.resize((side // 4, side // 4), Image.Resampling.LANCZOS)
        made = {name: way(small, by=4) for name, way in ways.items()}
        exact, grey = np.asarray(large, float), edges(np.asarray(large.convert("L"), float))
        errors = [np.square(np.asarray(each, float) - exact).mean() for each in made.values()]
        row = [10 * np.log10(255**2 / error) for error in errors]
        row += [edges(np.asarray(each.convert("L"), float)) / grey for each in made.values()]
        rows.append(row)
        print(f"| {card.colour} {card.thing}, {card.time} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
        # The part with the most contrast.
        values = np.asarray(large.convert("L"), float)
        blocks = values[: side // 32 * 32, : side // 32 * 32].reshape(side // 32, 32, side // 32, 32).std((1, 3))
        top, left = (
            int(np.clip(32 * at - shown // 2 + 16, 0, side - shown)) for at in divmod(blocks.argmax(), side // 32)
        )
        box = (left, top, left + shown, top + shown)
        parts = [small.resize(large.size, Image.Resampling.NEAREST), *made.values(), large]
        for j, part in enumerate(parts):
            page.paste(part.crop(box), (i % 2 * (4 * shown + 24) + j * shown, i // 2 * (shown + 4)))
    print("| mean | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |")
    page.save(sheet, quality=90)


def main(rounds: int, side: int) -> None:
    import torch

    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; {side} x {side}, {rounds} rounds")
    print("| network | spandrel s | here s | ratio | spandrel MiB | here MiB | difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = Path(folder) / f"{name}.pth"
            torch.save(built(name).state_dict(), path)
            both = [runner(name, theirs, path) for theirs in (True, False)]
            results = [run(picture(side)) for run in both]
            difference = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for run, times in zip(both, seconds, strict=True):
                    start = time.perf_counter()
                    run(picture(side))
                    times.append(time.perf_counter() - start)
            theirs, ours = map(statistics.median, seconds)
            memory = [peak_apart(name, each, path, side) for each in (True, False)]
            print(
                f"| {name} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} | {memory[0]:.0f} | {memory[1]:.0f} "
                f"| {difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], bool(int(sys.argv[3])), Path(sys.argv[4]), int(sys.argv[5])))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--side", type=int, default=128)
        parser.add_argument("--seen", type=Path, metavar="FILE")
        parser.add_argument("--upscaler", default="realesr-animevideov3", metavar="NAME")
        args = parser.parse_args()
        if args.seen:
            seen(args.seen, args.upscaler)
        else:
            main(args.rounds, args.side)

"""How time and memory grow with the picture and with the batch: a table, and docs/growth.svg with --plot.

    python benchmarks/growth.py [--plot docs/growth.svg] [--sides 256 512 1024]

postcards-tiny with guidance, one step and one picture decoded, each size and batch in a process of its own. Peak memory
is the process's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import PROMPT, peak_mib, versions

SIDES, BATCHES = (256, 384, 512, 768, 1024, 1536), (1, 2, 4, 8)
PANELS = (("a step, s", 2), ("decoding one picture, s", 3), ("peak memory, MiB", 4))
WIDTH, HEIGHT, MARGIN = 260, 220, 46
COLOURS = {"batch 1": "#3b5bdb", "256 x 256": "#e8590c"}

Row = tuple[int, int, float, float, float]  # side, batch, seconds of a step and of a decoding, MiB


def measure(side: int, batch: int) -> Row:
    from stable_diffusion import StableDiffusion
    from stable_diffusion.backend import mx

    sd = StableDiffusion()
    steps = sd.generate_latents(PROMPT, n_images=batch, num_steps=20, width=side, height=side, seed=1)
    mx.eval(next(steps).latents)  # with the text's encoding and whatever else is made once
    start = time.perf_counter()
    latents = next(steps).latents
    mx.eval(latents)
    stepped = time.perf_counter()
    mx.eval(sd.decode(latents[:1]))
    decoded = time.perf_counter()
    return side, batch, stepped - start, decoded - stepped, peak_mib(resource.getrusage(resource.RUSAGE_SELF))


def plot(rows: list[Row], path: Path) -> None:
    """Both ways to grow over the pixels of all pictures, on logarithmic scales, with the line of pixels."""
    lines = {"batch 1": [row for row in rows if row[1] == 1], "256 x 256": [row for row in rows if row[0] == SIDES[0]]}
    shapes = []
    for number, (title, column) in enumerate(PANELS):
        ys = [math.log10(row[column]) for row in rows]
        low, high = math.floor(min(ys)), math.ceil(max(ys))
        left = number * (WIDTH + MARGIN) + MARGIN

        def place(pixels: float, y: float, left: float = left, low: int = low, high: int = high) -> str:
            x = math.log(pixels / SIDES[0] ** 2, max(SIDES) ** 2 / SIDES[0] ** 2)
            return f"{left + x * (WIDTH - 20):.1f},{30 + (high - math.log10(y)) / (high - low) * HEIGHT:.1f}"

        shapes.append(f'<text x="{left}" y="18" font-weight="bold">{title}</text>')
        for power in range(low, high + 1):
            y = 30 + (high - power) / (high - low) * HEIGHT
            shapes.append(f'<path d="M{left} {y:.1f}h{WIDTH - 20}" stroke="#ccc"/>')
            shapes.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
        for side in (256, 512, 1024, 1536):
            x = place(side**2, 10**low).split(",")[0]
            shapes.append(f'<text x="{x}" y="{HEIGHT + 48}" text-anchor="middle">{side}²</text>')
        for name, line in lines.items():
            points = " ".join(place(side**2 * batch, row[column]) for row in line for side, batch in [row[:2]])
            shapes.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    for i, (name, label) in enumerate((("batch 1", "one picture, larger"), ("256 x 256", "more pictures, 256²"))):
        x = MARGIN + 200 * i
        shapes.append(f'<path d="M{x} {HEIGHT + 72}h24" stroke="{COLOURS[name]}" stroke-width="2"/>')
        shapes.append(f'<text x="{x + 30}" y="{HEIGHT + 76}">{label}</text>')
    size = f'width="{len(PANELS) * (WIDTH + MARGIN) + 10}" height="{HEIGHT + 90}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{ground}{"".join(shapes)}</svg>\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also plot the table")
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help=f"default: {' '.join(map(str, SIDES))}")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return print(json.dumps(measure(*options.measure)))
    print(versions(), f"load average {os.getloadavg()[0]:.1f}\n", sep="; ")
    print(f"| pixels | batch | {' | '.join(title for title, _ in PANELS)} |\n|---|---|---|---|---|")
    rows: list[Row] = []
    for side, batch in [(SIDES[0], batch) for batch in BATCHES] + [(side, 1) for side in options.sides[1:]]:
        command = [sys.executable, __file__, "--measure", str(side), str(batch)]
        rows.append(tuple(json.loads(subprocess.check_output(command, text=True).splitlines()[-1])))
        print("| {0} x {0} | {1} | {2:.2f} | {3:.2f} | {4:.0f} |".format(*rows[-1]), flush=True)
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()

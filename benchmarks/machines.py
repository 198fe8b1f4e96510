"""One run on several machines: pictures a minute of 1 and of 2 ranks with a core each, and what gathering costs.

    python benchmarks/machines.py [--pictures 12] [--rounds 5]

In each round paint one process, two that know nothing of each other, and two ranks of `mlx.launch`, in turns. The last
two do the same work on the same cores, so their ratio is what sharing, talking and gathering cost, whatever else runs.
CPU seconds tell that on a busy machine as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT, STEPS = "a red house on green hills at sunset", 20
# Each process keeps to a core, and tells the seconds of its painting, from the moment when all have loaded the model.
CODE = """
import json, os, resource, sys, time
core = int(os.environ.get("MLX_RANK", os.environ.get("CORE", "0")))
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
from stable_diffusion.commands.running import Painter
paint, agree, begun = Painter.paint, Painter.agree, []
def used():
    return time.monotonic(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
def agreed(*arguments):
    agree(*arguments)
    begun[:] = used()
def timed(*arguments):
    paths = paint(*arguments)
    seconds, cpu = (now - before for now, before in zip(used(), begun))
    said = {"core": core, "seconds": seconds, "cpu": cpu, "pictures": len(paths)}
    print(json.dumps(said), file=sys.stderr, flush=True)
    return paths
Painter.paint, Painter.agree = timed, agreed
from stable_diffusion.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=12, help="in a run; an even number")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"one": [], "two apart": [], "two ranks": []}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(args.rounds):
        for name, said in (
            ("one", _run([("0", args.pictures)])),
            ("two apart", _run([("0", args.pictures // 2), ("1", args.pictures // 2)])),
            ("two ranks", _launched(args.pictures)),
        ):
            rates[name].append(60 * args.pictures / max(each["seconds"] for each in said))
            cpu[name].append(sum(each["cpu"] for each in said) / args.pictures)
    print(f"{args.pictures} pictures of {STEPS} steps, medians of {args.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'':12}{'pictures/min':>14}{'range':>16}{'CPU s/picture':>15}")
    for name, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name:12}{statistics.median(found):14.1f}{spread:>16}{statistics.median(cpu[name]):15.3f}")
    for name, one, other in (
        ("two ranks to one", rates["two ranks"], rates["one"]),
        ("two ranks to two apart", rates["two ranks"], rates["two apart"]),
        ("the same, CPU", cpu["two ranks"], cpu["two apart"]),
    ):
        print(f"{name}: {statistics.median(a / b for a, b in zip(one, other, strict=True)):.3f}")


def _run(processes: Sequence[tuple[str, int]]) -> list[dict]:
    """Start processes that paint at the same time, on cores by number; what each says, by core."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CODE, *_arguments(n, folder)],
                env=_environment() | {"CORE": core},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for core, n in processes
        ]  # fmt: skip
        return _said([each.communicate()[1] for each in started])


def _launched(n: int) -> list[dict]:
    launcher = str(Path(sys.executable).with_name("mlx.launch"))
    with tempfile.TemporaryDirectory() as folder:
        command = [launcher, "-n", "2", "--", sys.executable, "-c", CODE, *_arguments(n, folder)]
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.wait()  # with its standard input open: mlx.launch spins once that has ended
        assert process.stderr is not None
        return _said([process.stderr.read()])


def _arguments(n: int, folder: str) -> list[str]:
    options = ["--n-images", str(n), "--steps", str(STEPS), "--seed", "1", "--quiet", "--output", f"{folder}/"]
    return ["txt2img", PROMPT, *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _said(texts: Sequence[str]) -> list[dict]:
    lines = [line for text in texts for line in text.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit("\n".join(texts))
    return sorted((json.loads(line) for line in lines), key=lambda said: said["core"])


if __name__ == "__main__":
    main()

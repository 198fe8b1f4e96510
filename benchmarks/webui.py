"""What the page costs: previews as a share of a step, and the server's memory over many generations.

    python benchmarks/webui.py [--generations 200] [--steps 4] [--json FILE]

The worker runs as it does behind the page, with the embedded model. "Painting" compares a job that nobody
watches with one whose newest step another thread draws five times a second, as the live panel does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stable_diffusion.request import Request
from stable_diffusion.service.jobs import Job
from stable_diffusion.service.preview import KINDS, data_url, frame_jpeg
from stable_diffusion.service.worker import Worker
from stable_diffusion.webui.components.live import REFRESH

PROMPT = "a red house on green hills at sunset, with clouds"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=200, help="how many for the memory (default: 200)")
    parser.add_argument("--steps", type=int, default=4, help="the steps of each of those (default: 4)")
    parser.add_argument("--repeats", type=int, default=7, help="jobs of each kind for the painting (default: 7)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        figures = previews(worker) | painting(worker, args.repeats) | memory(worker, args.generations, args.steps)
        worker.close()
    for name, value in figures.items():
        print(f"{name:<56} {value:10.2f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def previews(worker: Worker) -> dict[str, float]:
    """Milliseconds to draw one step as each kind, and as a share of the painting at the panel's refresh rate."""
    job = finished(worker, Request(PROMPT, steps=20, cfg=5.0, seed=1))
    frame = job.pictures[0].frames[10]
    figures = {}
    for kind in ("latents", "fast"):
        times = [_timed(lambda kind=kind: data_url(frame_jpeg(frame, kind, job.latent_space))) for _ in range(50)]
        figures[f"{KINDS[kind]}: ms a preview (median)"] = 1e3 * statistics.median(times)
    both = sum(figures.values())
    figures["Both: % of the time, at the refresh rate"] = both / (1e3 * REFRESH) * 100
    return figures


def painting(worker: Worker, repeats: int) -> dict[str, float]:
    """Milliseconds a step, in turns: unwatched, watched, with drafts (the default), with full decodes.

    Shares are of the processors' time, which other programs that are running change little.
    """
    kinds = {
        "unwatched": ((), False),
        "watched": (("fast", "latents"), True),
        "with drafts": (Request.previews, True),
        "with full decodes": (("full",), True),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(repeats):
        for name, (shown, watched) in kinds.items():
            before = time.process_time()
            job = worker.submit(Request(PROMPT, steps=20, cfg=5.0, seed=i, previews=shown))
            over = threading.Event()
            watcher = threading.Thread(target=_watch, args=(job, shown, over))
            if watched:
                watcher.start()
            _wait(job)
            over.set()
            if watched:
                watcher.join()
            steps = job.pictures[0].frames
            busy[name].append(time.process_time() - before)
            times[name].append(1e3 * job.elapsed / len(steps))
    figures = {f"Painting, {name}: ms a step (median)": statistics.median(values) for name, values in times.items()}
    work = {name: statistics.median(values) for name, values in busy.items()}
    costs = {name: (work[name] / work["unwatched"] - 1) * 100 for name in kinds if name != "unwatched"}
    return figures | {f"Painting, {name}: % more work than unwatched": value for name, value in costs.items()}


def memory(worker: Worker, generations: int, steps: int) -> dict[str, float]:
    """Megabytes of resident memory after each tenth of the generations."""
    figures = {}
    for i in range(1, generations + 1):
        finished(worker, Request(PROMPT, steps=steps, cfg=5.0, seed=i))
        if i % max(1, generations // 10) == 0:
            figures[f"Memory after {i} generations: MB"] = resident() / 1e6
    return figures


def finished(worker: Worker, request: Request) -> Job:
    """A job that is done."""
    job = worker.submit(request)
    _wait(job)
    return job


def resident() -> int:
    """Bytes of memory that this process holds now."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import subprocess

    return 1024 * int(subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True).stdout)


def _watch(job: Job, kinds: tuple[str, ...], over: threading.Event) -> None:
    while not over.wait(REFRESH):
        frame = job.frame
        if frame is not None:
            for kind in kinds:
                drawn = frame_jpeg(frame, "fast" if kind == "auto" else kind, job.latent_space)
                if drawn is not None:
                    data_url(drawn)


def _wait(job: Job) -> None:
    while job.active:
        time.sleep(0.005)
    if job.error:
        raise SystemExit(job.error)


def _timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

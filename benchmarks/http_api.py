"""The HTTP API beside the library: seconds for a warm postcard of 4 steps, and memory while requests come.

    python benchmarks/http_api.py [--requests 500]

Starts a server of its own. The library paints the same pictures, saves and encodes them, in a process of its own, in
turns with the server, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red house on green hills at sunset"
STEPS, CFG, WARM, PAIRS = 4, 5.0, 5, 60
LIBRARY = f"""
import sys
from stable_diffusion import StableDiffusion
from stable_diffusion.record.picture_files import save_new_picture
sd = StableDiffusion("postcards-tiny")
for line in sys.stdin:
    (made,) = sd.generate({PROMPT!r}, seed=int(line), num_steps={STEPS}, cfg_weight={CFG})
    save_new_picture(made.image, "library", made.parameters)
    print(flush=True)
"""


def main() -> None:
    """Measure, and print three lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500, help="in all; memory is read at 100 and at the last one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), args.requests)


def _measure(folder: Path, requests: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "STABLE_DIFFUSION_HOME": str(folder)}
    start = [sys.executable, "-m", "stable_diffusion", "serve", "--port", str(port)]
    server = subprocess.Popen(start, cwd=folder, env=variables, stdout=subprocess.DEVNULL)
    library = subprocess.Popen(
        [sys.executable, "-c", LIBRARY], cwd=folder, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        _wait(port)
        asked = 0
        seconds: dict[str, list[float]] = {"http": [], "library": []}
        for seed in range(WARM + PAIRS):
            for name, call in (
                ("http", lambda seed: _ask(port, seed)),
                ("library", lambda seed: _paint(library, seed)),
            ):
                before = time.perf_counter()
                call(seed)
                if seed >= WARM:
                    seconds[name].append(time.perf_counter() - before)
            asked += 1
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        for name, value in middle.items():
            print(f"{name:8} {value * 1000:7.1f} ms (median of {PAIRS})")
        print(f"ratio    {middle['http'] / middle['library']:7.3f}")
        at = {}
        while asked < requests:
            _ask(port, asked)
            asked += 1
            if asked in (100, requests):
                at[asked] = _resident(server.pid)
        print("resident " + ", ".join(f"{value:.0f} MB at request {count}" for count, value in at.items()))
    finally:
        for process in (server, library):
            process.terminate()
            process.wait(30)


def _wait(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _ask(port: int, seed: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"prompt": PROMPT, "steps": STEPS, "cfg_scale": CFG, "seed": seed})
    connection.request("POST", "/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    base64.b64decode(json.load(answer)["images"][0])
    connection.close()


def _paint(library: subprocess.Popen, seed: int) -> None:
    assert library.stdin and library.stdout
    library.stdin.write(f"{seed}\n".encode())
    library.stdin.flush()
    library.stdout.readline()


def _resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) / 1024


if __name__ == "__main__":
    main()

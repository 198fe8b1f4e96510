"""The page's server for tests, and a reverse proxy to put in front of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(folder, *command, health="/_stcore/health", headers=None, environment=None):
    """Start a server in a folder; yields its port and its log."""
    port = free_port()
    log = folder / "log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    clean |= {"PYTHONPATH": str(ROOT), "HOME": str(folder)} | (environment or {})
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--server.port", str(port), "--server.headless", "true"],
            cwd=folder, env=clean, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while status(port, health, **(headers or {})) != 200:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield port, log
    finally:
        process.terminate()
        process.wait(20)


def asked(port, path, method="GET", body=None, **headers):
    """A server's answer: status, headers and text; None if there is none. `_` in a header's name stands for `-`."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
    except OSError:
        return None


def status(port, path, **headers):
    """The status of a server's answer, or None."""
    answer = asked(port, path, **headers)
    return answer and answer[0]


def opened(port, path="/_stcore/stream", **headers):
    """The status of the answer to a request for a WebSocket: 101 if it opened."""
    wanted = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    wanted["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=wanted | headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


class Proxy(socketserver.ThreadingTCPServer):
    """Passes each connection's one request on, sockets included, with the headers given in place of the browser's."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target: int, **headers: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.replaced = headers
        self.port = self.server_address[1]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    def handle(self):
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.request.recv(65536)
            if not part:
                return
            head += part
        head, _, body = head.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(re.split(r":\s*", line, maxsplit=1) for line in lines)
        headers = {name: value for name, value in headers.items() if name.title() not in self.server.replaced}
        if "Upgrade" not in headers:
            headers["Connection"] = "close"
        sent = [first, *(f"{name}: {value}" for name, value in (headers | self.server.replaced).items()), "", ""]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.server.target)) as target:
            target.sendall("\r\n".join(sent).encode("latin-1") + body)
            back = threading.Thread(target=_pump, args=(target, self.request), daemon=True)
            back.start()
            _pump(self.request, target)
            back.join()


def _pump(source, sink):
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)

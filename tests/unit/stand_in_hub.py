"""A stand-in for the Hugging Face hub: as much of it as a snapshot needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """A tiny/model, gated ones, and nothing else."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/gated/" in path:
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/models/tiny/model/revision/"):
            if not path.endswith(("/main", COMMIT)):
                return self.send(404, {"X-Error-Code": "RevisionNotFound"})
            listing = {"id": "tiny/model", "sha": COMMIT, "siblings": self.listed()}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        content = self.content(Path(path).name) if path.startswith(f"/tiny/model/resolve/{COMMIT}/") else None
        if content is not None:
            return self.send(200, {"ETag": f'"{Path(path).name}"', "X-Repo-Commit": COMMIT}, content)
        return self.send(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def listed(self) -> list[dict]:
        files = [{"rfilename": one.name, "size": one.stat().st_size} for one in self.server.folder.iterdir()]
        return [*files, {"rfilename": "original/params.json", "size": 1}]

    def content(self, name: str) -> bytes | None:
        file = self.server.folder / name
        return file.read_bytes() if file.is_file() else None

    def send(self, code, headers, content=b""):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def running_hub(folder: Path, handler: type[BaseHTTPRequestHandler] = Hub) -> Iterator[str]:
    """The address of a hub whose tiny/model is what lies in `folder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.folder, server.daemon_threads = folder, True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

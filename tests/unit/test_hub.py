"""The hub's snapshots: safetensors and tokenizer only, and a reason in one line when there are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_models import make_llama

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40
ASK = """
import json, sys
from stages.common.errors import UserError
from stages.common.references import resolve
for reference in sys.argv[1:]:
    try:
        model = resolve(reference, None, {})
        print(json.dumps([model.revision, sorted(path.name for path in model.path.iterdir())]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs: a tiny/model, a gated one, and nothing else."""

    def do_GET(self):
        path, folder = self.path.partition("?")[0], self.server.folder
        if "/gated/" in path:
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/models/tiny/model/revision/"):
            if not path.endswith(("/main", COMMIT)):
                return self.send(404, {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": one.name, "size": one.stat().st_size} for one in folder.iterdir()]
            files.append({"rfilename": "original/params.json", "size": 1})
            listing = {"id": "tiny/model", "sha": COMMIT, "siblings": files}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        if path.startswith(f"/tiny/model/resolve/{COMMIT}/") and (folder / Path(path).name).is_file():
            content = (folder / Path(path).name).read_bytes()
            return self.send(200, {"ETag": f'"{Path(path).name}"', "X-Repo-Commit": COMMIT}, content)
        return self.send(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def send(self, code, headers, content=b""):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "model"
    make_llama(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.daemon_threads = folder, True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(references, **environment):
    """What each reference becomes, in a process of its own: the hub's client reads its settings on import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *references],
        env={**kept, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_gives_safetensors_or_a_reason(hub, tmp_path):
    references = [
        "hf:tiny/model@main",
        "hf:tiny/model@nowhere",
        "hf:gated/model@main",
        "hf:missing/model@main",
    ]
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")}
    found, no_revision, gated, missing = ask(references, **environment)
    assert found[0] == COMMIT
    assert "model.safetensors" in found[1]
    assert "tokenizer.json" in found[1]
    assert not {"pytorch_model.bin", "original"} & set(found[1])
    assert "expected a revision that tiny/model has" in no_revision
    assert "accept its licence" in gated
    assert "set HF_TOKEN" in gated
    assert "expected a model on http://127.0.0.1" in missing
    cached, absent = ask([references[0], "hf:other/model@main"], **environment, HF_HUB_OFFLINE="1")
    assert cached == found
    assert "HF_HUB_OFFLINE is set" in absent

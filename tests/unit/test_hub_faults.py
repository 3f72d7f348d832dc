"""A hub that cuts, stalls or garbles: one line and no model; with a sound one the next run is right."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_hub import Hub, running_hub
from test_hub import ask
from tiny_models import make_llama

from stages.common.blobs import check_blobs
from stages.common.errors import UserError
from stages.common.files import read_json

REFERENCE = "hf:tiny/model@main"


class FaultyHub(Hub):
    """Names the weights by their digest, as the hub does; does `fault` to them once they are asked for."""

    fault = ""
    released = threading.Event()

    def send(self, code, headers, content=b""):
        if not self.path.endswith("model.safetensors"):
            return super().send(code, headers, content)
        headers = {**headers, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if self.command == "HEAD" or not self.fault:
            return super().send(code, headers, content)
        if self.fault == "wrong bytes":
            return super().send(code, headers, content[:-1] + bytes([content[-1] ^ 1]))
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        if self.fault == "stall":
            self.released.wait()
        if self.fault == "reset":  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        return None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "model"
    make_llama(folder)
    FaultyHub.released.clear()
    with running_hub(folder, FaultyHub) as address:
        yield address
        FaultyHub.released.set()


@pytest.mark.parametrize(
    "fault",
    [
        "wrong bytes",
        pytest.param("reset", marks=pytest.mark.slow),  # the client tries five times
        pytest.param("end early", marks=pytest.mark.slow),
        pytest.param("stall", marks=pytest.mark.slow),
    ],
)
def test_a_faulty_hub_is_one_line_and_the_next_run_right(hub, tmp_path, monkeypatch, fault) -> None:
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    monkeypatch.setattr(FaultyHub, "fault", fault)
    [line] = ask([REFERENCE], **environment)
    assert isinstance(line, str), line
    if fault == "wrong bytes":
        assert "as the hub says; it was removed, and the next run fetches it anew" in line
    else:
        assert f"models: '{REFERENCE}'; expected a download that succeeds" in line
    monkeypatch.setattr(FaultyHub, "fault", "")
    [[commit, _]] = ask([REFERENCE], **environment)
    (weights,) = (tmp_path / "hf").rglob(f"snapshots/{commit}/model.safetensors")
    assert weights.read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
    assert list((tmp_path / "hf").rglob("*.incomplete")) == []


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot of a large file, a small one and one that has no digest for its name."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    folder.mkdir(parents=True)
    content = b"some weights"
    names = {
        "model.safetensors": hashlib.sha256(content).hexdigest(),
        "config.json": git_digest(content),
        "other": "etag",
    }
    for name, digest in names.items():
        (blobs / digest).write_bytes(content)
        (folder / name).symlink_to(f"../../blobs/{digest}")
    return folder


def git_digest(content: bytes) -> str:
    """As git itself computes it."""
    command = ["git", "hash-object", "--stdin"]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().strip()


def test_a_blob_is_hashed_once_and_again_when_it_changed(snapshot, tmp_path, monkeypatch) -> None:
    record = tmp_path / "record.json"
    check_blobs(snapshot, record)
    assert len(read_json(record)) == 2
    monkeypatch.setattr("stages.common.blobs._digest", None)  # not called
    check_blobs(snapshot, record)
    monkeypatch.undo()
    for name in ("model.safetensors", "config.json"):
        blob = (snapshot / name).resolve()
        blob.write_bytes(b"some weighTs")
        with pytest.raises(UserError, match=f"{name}.*{blob.name}, as the hub says"):
            check_blobs(snapshot, record)
        assert not blob.exists()
        assert not (snapshot / name).is_symlink()
    check_blobs(snapshot, record)


def test_a_spoilt_record_means_hashing(snapshot, tmp_path) -> None:
    record = tmp_path / "record.json"
    record.write_text("[")
    check_blobs(snapshot, record)
    assert len(read_json(record)) == 2

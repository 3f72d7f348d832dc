"""A real pair on a GPU: SmolLM2-135M-Instruct and the draft that ships here, GSM8K questions, greedy, bf16.

    python tests/gpu/real_pair.py --gguf FILE.gguf --gsm8k test.parquet --out real_pair.json

Every arm is an engine of its own with captured decoding and answers the same questions at every batch size;
the baseline runs once more at the end. A speedup is the geometric mean, over groups of so many questions as
run at once, of the ratio of the group's decoding times per token; its 95% interval is Student's t over those
groups. Grown trees come from ranks that were recorded on other questions.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from engines import ON_GPU, running
from scipy import stats
from sections import Sections, command_line

from treespec.acceptance import RankAcceptance
from treespec.growth import grow_tree
from treespec.tree import TokenTree

ROOT = Path(__file__).resolve().parents[2]
NUM_GROUPS = {1: 12, 8: 8, 32: 6} if ON_GPU else {1: 2, 2: 2}  # by batch
BATCHES = tuple(NUM_GROUPS)
NUM_PROMPTS = max(batch * groups for batch, groups in NUM_GROUPS.items())
NUM_TOKENS, REPEATS = (128, 2) if ON_GPU else (8, 1)


def prepare(folder: Path, gguf: Path, gsm8k: Path) -> list[list[int]]:
    """Write target and draft below `folder`; returns the questions' token ids."""
    from transformers import AutoTokenizer

    from stages.common.gguf_convert import convert_gguf
    from stages.distillation.delta import assemble_draft

    (folder / "target").mkdir()
    convert_gguf(gguf, folder / "target")
    assemble_draft(ROOT / "models/draft", folder / "target", folder / "draft")
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    questions = pd.read_parquet(gsm8k)["question"][:NUM_PROMPTS]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def measure(client, prompts: list[list[int]], batch: int) -> dict:
    """Time per token of `prompts`, `batch` at a time, the quickest of REPEATS; token ids; acceptance."""
    chosen = prompts[: batch * NUM_GROUPS[batch]]
    groups = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
    client.generate(groups[0], max_tokens=16)
    if not client.stock:
        client.stats()
    before = client.counters()
    times, token_ids = [], []
    for _ in range(REPEATS):
        spans, token_ids = [], []
        for group in groups:
            begun = time.perf_counter()
            client.generate(group, max_tokens=1)
            prefilled = time.perf_counter()
            outputs = client.token_ids(group, max_tokens=NUM_TOKENS, ignore_eos=False)
            span = time.perf_counter() - prefilled - (prefilled - begun)
            spans.append(span / sum(len(output) - 1 for output in outputs))
            token_ids += outputs
        times.append(spans)
    counters = client.counters().since(before)
    per_group = np.min(times, axis=0) * 1e3
    row = {
        "batch": batch,
        "num_prompts": len(chosen),
        "ms_per_token": float(per_group.mean()),
        "tokens_per_step": 1 + counters.num_accepted_tokens / max(1, counters.num_drafts),
        "kept": {"per_group": per_group.tolist(), "token_ids": token_ids},
    }
    if not client.stock:
        parts = client.stats()
        row |= {f"{part}_ms": ms / parts["num_steps"] for part, ms in parts["total_ms"].items()}
    return row


def speedup(baseline: list[float], arm: list[float]) -> dict[str, float]:
    """Geometric mean of the groups' ratios, with its 95% interval."""
    found = stats.ttest_1samp(np.log(baseline) - np.log(arm), 0.0)
    interval = found.confidence_interval(0.95)
    center = (interval.low + interval.high) / 2
    return {
        name: float(np.exp(value))
        for name, value in {"speedup": center, "low": interval.low, "high": interval.high}.items()
    }


def main() -> int:
    parser = command_line(__doc__, 400)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path, required=True, help="the test split's parquet file")
    parser.add_argument("--ranks", type=Path, default=ROOT / "results/calibration/ranks.json")
    arguments = parser.parse_args()
    sections = Sections(arguments.out, arguments.seconds, arguments.only)
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    prompts = sections.run("models", lambda add: prepare(folder, arguments.gguf, arguments.gsm8k), 30)
    if prompts is None:
        return 1
    target, draft = folder / "target", folder / "draft"
    limits = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": max(BATCHES)}
    acceptance = RankAcceptance.from_dict(json.loads(arguments.ranks.read_text()))
    reference: dict[int, dict] = {}

    def arm(name: str, tree: TokenTree | None, stock: bool = False):
        def section(add):
            drafted = None if tree is None else draft
            kept = {}
            with running(target, drafted, tree, stock=stock, graphs=list(BATCHES), **limits) as client:
                for batch in BATCHES:
                    row = measure(client, prompts, batch)
                    kept[batch] = row.pop("kept")
                    if batch in reference:
                        base = reference[batch]
                        row |= speedup(base["per_group"], kept[batch]["per_group"])
                        pairs = zip(kept[batch]["token_ids"], base["token_ids"], strict=True)
                        row["identical"] = sum(ours == theirs for ours, theirs in pairs)
                    add(arm=name, **row)
            return kept

        return section

    reference = sections.run("baseline", arm("baseline", None), 40) or {}
    plans = [
        ("chain 3", TokenTree.chain(3), False),
        ("grown 16", grow_tree(acceptance, 16, 8), False),
        ("stock chain 3", TokenTree.chain(3), True),
        ("grown 8", grow_tree(acceptance, 8, 8), False),
        ("chain 5", TokenTree.chain(5), False),
        ("grown 32", grow_tree(acceptance, 32, 8), False),
        ("chain 2", TokenTree.chain(2), False),
    ]
    for name, tree, stock in plans if ON_GPU else plans[:2]:
        sections.run(name, arm(name, tree, stock), 45)
    sections.run("baseline again", arm("baseline again", None), 40)
    sections.print_table()
    temporary.cleanup()
    return 0 if sections.ok else 1


if __name__ == "__main__":
    sys.exit(main())

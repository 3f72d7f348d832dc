"""The plugin's greedy output on a GPU against stock vLLM's, float32, small random models.

    python tests/gpu/correctness.py --out correctness.json [--seconds 420]

A draft that is its target must have every token of the likeliest path accepted: any wrong position, mask or
cache slot would show. Exit status 1 if a section failed or an output differs.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # tf32 would round differently from shape to shape

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from engines import ON_GPU, UNDRAFTED, likeliest_depth, running, shaped_tree
from sections import Sections, command_line
from tiny_models import make_llama

from treespec.tree import TokenTree

SHAPE = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096, "initializer_range": 0.09,
    "tie_word_embeddings": False,
}  # fmt: skip
REHEARSAL = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.25}  # fmt: skip
TREES = {
    "chain of 5": TokenTree.chain(5),
    "5 nodes": shaped_tree(5, 3),
    "16 nodes": shaped_tree(16, 5),
    "64 nodes": shaped_tree(64, 7),
    "512 nodes": shaped_tree(512, 9),
}


class Models:
    """A target, the same again as its draft, and a draft that often disagrees."""

    def __init__(self, folder: Path):
        from safetensors.torch import load_file, save_file

        shape = SHAPE if ON_GPU else {**SHAPE, **REHEARSAL}
        self.vocab_size = shape["vocab_size"]
        self.target, self.other = folder / "target", folder / "other"
        for path in (self.target, self.other):
            make_llama(path, num_layers=4 if ON_GPU else 2, seed=3, **shape)
        weights = load_file(self.other / "model.safetensors")
        noise = 0.08 * shape["initializer_range"]
        noisy = {name: tensor + noise * torch.randn_like(tensor) for name, tensor in weights.items()}
        save_file(noisy, self.other / "model.safetensors", metadata={"format": "pt"})

    def prompts(self, count: int) -> list[list[int]]:
        draw = np.random.default_rng(count)
        return [draw.integers(2, self.vocab_size, draw.integers(50, 200)).tolist() for _ in range(count)]


class Reference:
    """Stock vLLM's output for each batch, with the gap between its best two tokens at every position."""

    def __init__(self, client, batches: dict[int, list[list[int]]], max_tokens: int):
        self.max_tokens = max_tokens
        self.token_ids = {
            size: client.token_ids(prompts, max_tokens=max_tokens) for size, prompts in batches.items()
        }
        self.gaps = {}
        for size, prompts in batches.items():
            outputs = client.generate(prompts, max_tokens=max_tokens, logprobs=2)
            self.gaps[size] = [
                [gap(position) for position in output.outputs[0].logprobs] for output in outputs
            ]

    def compare(self, size: int, token_ids: list[list[int]]) -> dict:
        """Whether they are equal, else where they part first and how near a tie that was."""
        for request, (ours, theirs) in enumerate(zip(token_ids, self.token_ids[size], strict=True)):
            if ours != theirs:
                at = next(
                    (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1
                )
                return {
                    "ok": False,
                    "differs": f"request {request} token {at} gap {self.gaps[size][request][at]:.5f}",
                }
        return {"ok": True, "differs": ""}


def gap(position) -> float:
    best = sorted((entry.logprob for entry in position.values()), reverse=True)
    return best[0] - best[1]


def check(add, client, reference, batches, name, tree, same_draft=False, each=None) -> None:
    for size, prompts in batches.items():
        if each and size == 1:
            continue
        client.stats()
        before = client.counters()
        token_ids = client.token_ids(prompts, tree, max_tokens=reference.max_tokens, each=each)
        counters, stats = client.counters().since(before), client.stats()
        row = reference.compare(size, token_ids)
        row |= {"tree": name, "batch": size, "steps": counters.num_steps, "drafts": counters.num_drafts,
                "tokens_per_draft": 1 + counters.num_accepted_tokens / max(1, counters.num_drafts),
                "off_chain": stats["off_chain_accepted_tokens"]}  # fmt: skip
        if same_draft:
            # A request's first draft may be cut by the end of its last block, the last one by max_tokens.
            least = (counters.num_drafts - 2 * size) * likeliest_depth(tree)
            row["all_accepted"] = counters.num_accepted_tokens >= least
            row["ok"] = row["ok"] and row["all_accepted"]
        if tree != UNDRAFTED:
            row["ok"] = row["ok"] and counters.num_drafts == stats["num_verified_trees"] > 0
        add(**row)


def main() -> int:
    arguments = command_line(__doc__, 420).parse_args()
    sections = Sections(arguments.out, arguments.seconds, arguments.only)
    folder = tempfile.TemporaryDirectory()
    models = Models(Path(folder.name))
    batches = {1: models.prompts(1), 8: models.prompts(8)}
    trees = TREES if ON_GPU else dict(list(TREES.items())[:3])
    largest = list(trees.values())[-1]
    common = {"dtype": "float32", "max_num_batched_tokens": 8192}

    def baseline(add):
        with running(models.target, **common) as client:
            reference = Reference(client, batches, max_tokens=1 + 60)
        add(ok=True, tree="stock", smallest_gap=min(g for each in reference.gaps[8] for g in each))
        return reference

    def same_draft(add):
        with running(models.target, models.target, largest, **common) as client:
            check(add, client, reference, batches, "none", UNDRAFTED)
            for name, tree in trees.items():
                check(add, client, reference, batches, name, tree, same_draft=True)
            mixed = [UNDRAFTED, *list(trees.values())[:3]] * 2
            check(add, client, reference, batches, "mixed", None, each=mixed)

    def graphs(add):
        tree = trees["16 nodes"]
        twin = shaped_tree(16, 3)
        with running(models.target, models.target, tree, graphs=[1, 4, 8], **common) as client:
            check(add, client, reference, batches, "none", UNDRAFTED)
            for name, own in {
                "16 nodes": tree,
                "chain of 16": TokenTree.chain(16),
                "16 nodes flat": twin,
            }.items():
                check(add, client, reference, batches, name, own, same_draft=True)
            check(add, client, reference, batches, "5 nodes", trees["5 nodes"], same_draft=True)
            check(
                add,
                client,
                reference,
                batches,
                "16 mixed",
                None,
                each=[tree, twin, TokenTree.chain(16), tree] * 2,
            )

    def chain_graphs(add):
        chain = TokenTree.chain(5)
        with running(models.target, models.target, chain, graphs=[1, 4, 8], **common) as client:
            check(add, client, reference, batches, "chain of 5", chain, same_draft=True)
            check(add, client, reference, batches, "5 nodes", trees["5 nodes"], same_draft=True)

    def drawn(add):
        """A draft that is its target draws from the target's distribution: next to nothing is rejected."""
        drawing = {"additional_config": {"treespec": {"draft_sampling": "probabilistic"}}}
        chain = TokenTree.chain(5)
        for_steps = {"temperature": 1.0, "max_tokens": 61}
        with running(models.target, models.target, chain, graphs=[1, 4, 8], **common, **drawing) as client:
            for name, own in {"chain of 5": chain, "5 nodes": trees["5 nodes"]}.items():
                for size, prompts in batches.items():
                    client.stats()
                    before = client.counters()
                    client.generate(prompts, own, **for_steps)
                    counters = client.counters().since(before)
                    least = 0.98 * (counters.num_drafts - 2 * size) * likeliest_depth(own)
                    accepted = counters.num_accepted_tokens
                    per_draft = 1 + accepted / counters.num_drafts
                    row = {"tree": name, "batch": size, "drafts": counters.num_drafts}
                    add(
                        ok=accepted >= least,
                        **row,
                        tokens_per_draft=per_draft,
                        all_accepted=accepted >= least,
                    )

    def everything_at_once(add):
        few_blocks = {"block_size": 32, "num_gpu_blocks_override": 32, "max_model_len": 512}
        limits = {**common, "max_num_batched_tokens": 128, "enable_prefix_caching": True, **few_blocks}
        with running(models.target, models.other, trees["16 nodes"], **limits) as client:
            for again in ("", ", again"):
                for name in ("chain of 5", "5 nodes", "16 nodes"):
                    check(add, client, reference, batches, name + again, trees[name])
            for again in ("cached", "cached, again"):  # nothing between the two evicts the prompt
                check(add, client, reference, {1: batches[1]}, again, trees["16 nodes"])
            add(
                ok=client.metric("num_preemptions") > 0,
                tree="preemptions",
                steps=client.metric("num_preemptions"),
            )
            add(
                ok=client.metric("prefix_cache_hits") > 0,
                tree="prefix hits",
                steps=client.metric("prefix_cache_hits"),
            )

    reference = sections.run("stock baseline", baseline, 60)
    if reference is not None:
        if ON_GPU:
            sections.run("draft = target, captured chains", chain_graphs, 40)
            sections.run("draft = target, captured trees", graphs, 40)
            sections.run("draft = target, captured draws", drawn, 40)
        sections.run("draft = target", same_draft, 60)
        sections.run("other draft, prefix cache, chunked prefill, preemption", everything_at_once, 40)
    sections.print_table()
    folder.cleanup()
    return 0 if sections.ok else 1


if __name__ == "__main__":
    sys.exit(main())

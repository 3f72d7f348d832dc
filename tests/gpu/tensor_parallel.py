"""Two GPUs: a draft of tensor parallel size 1 and 2 beside a target of 2, against the target alone, float32.

    python tests/gpu/tensor_parallel.py --out tensor_parallel.json

Eager and captured, chain and tree, greedy. A draft that is its target must have every token of the likeliest
path accepted; a rank that is disturbed must be found out. Then what a step costs, Llama 8B and 1B shapes.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

import sys
import tempfile
from pathlib import Path

from correctness import Models, Reference, check
from engines import ON_GPU, UNDRAFTED, running, shaped_tree
from sections import Sections, command_line
from speed import DRAFT, TARGET, step_cost, write_shape

from treespec.tree import TokenTree

TREE, CHAIN = shaped_tree(16, 5), TokenTree.chain(5)


def disturb_one_rank(worker) -> None:
    if worker.rank == 1:
        worker.model_runner.drafter.model.lm_head.weight.data.neg_()


def main() -> int:
    arguments = command_line(__doc__, 400).parse_args()
    sections = Sections(arguments.out, arguments.seconds, arguments.only)
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    common = {
        "dtype": "float32", "max_num_batched_tokens": 2048, "tensor_parallel_size": 2,
        "disable_custom_all_reduce": True,
    }  # fmt: skip

    def models(add):
        made = Models(folder)
        write_shape(folder / "8b", TARGET)
        write_shape(folder / "1b", DRAFT)
        return made

    made = sections.run("models", models, 20)
    batches = {1: made.prompts(1), 8: made.prompts(8)}

    def baseline(add):
        with running(made.target, **common) as client:
            return Reference(client, batches, max_tokens=1 + 40)

    reference = sections.run("stock baseline, TP 2", baseline, 40)

    def drafted(draft_size: int, graphs: bool, disturb: bool = False):
        def section(add):
            sizes = [1, 8] if graphs else None
            with running(
                made.target, made.target, TREE, graphs=sizes, draft_tp=draft_size, **common
            ) as client:
                check(add, client, reference, batches, "none", UNDRAFTED)
                for name, tree in {"16 nodes": TREE, "chain of 5": CHAIN}.items():
                    check(add, client, reference, batches, name, tree, same_draft=True)
                if disturb:
                    client.llm.collective_rpc(disturb_one_rank)
                    try:
                        client.token_ids(batches[1], TREE)
                    except Exception as error:
                        found = "ranks' drafted or sampled tokens differ" in str(error) or "dead" in str(
                            error
                        )
                        add(ok=found, tree="a disturbed rank", differs=type(error).__name__)
                    else:
                        add(ok=False, tree="a disturbed rank", differs="was not found out")

        return section

    def stock(add):
        with running(made.target, made.target, CHAIN, stock=True, draft_tp=2, **common) as client:
            for size, prompts in batches.items():
                before = client.counters()
                token_ids = client.token_ids(prompts, max_tokens=reference.max_tokens)
                found = client.counters().since(before)
                per_draft = 1 + found.num_accepted_tokens / max(1, found.num_drafts)
                row = reference.compare(size, token_ids)
                add(tree="stock's chain of 5", batch=size, tokens_per_draft=per_draft, **row)

    def cost(name: str, draft_size: int | None):
        def section(add):
            limits = {**common, "dtype": "bfloat16", "load_format": "dummy"}
            draft = (
                {} if draft_size is None else {"draft": folder / "1b", "tree": CHAIN, "draft_tp": draft_size}
            )
            with running(folder / "8b", graphs=[1, 8], **draft, **limits) as client:
                for batch in (1, 8):
                    add(arm=name, batch=batch, **step_cost(client, batch))

        return section

    if reference is not None:
        sections.run("draft TP 1, eager", drafted(1, graphs=False), 60)
        if ON_GPU:
            sections.run("draft TP 1, captured", drafted(1, graphs=True), 60)
            sections.run("draft TP 2, captured", drafted(2, graphs=True), 60)
            sections.run("cost: TP 2 baseline", cost("baseline", None), 60)
            sections.run("cost: draft TP 1", cost("chain 5, draft TP 1", 1), 60)
            sections.run("cost: draft TP 2", cost("chain 5, draft TP 2", 2), 60)
            sections.run("stock's draft, TP 2", stock, 60)
            sections.run("a disturbed rank", drafted(1, graphs=False, disturb=True), 60)
    sections.print_table()
    temporary.cleanup()
    return 0 if sections.ok else 1


if __name__ == "__main__":
    sys.exit(main())

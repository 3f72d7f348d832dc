"""What a step costs in the arms' own engine: target, draft and the rest, by tokens in the step and batch.

    costs = time_steps(llm, contexts, batches=(1, 4), max_tokens=512, rounds=3)
    costs[4].tree              # CostModel of four sequences that verify trees
    costs[4].baseline_ms       # a step without drafting

Chains and branched trees take different ways through attention, so each kind has curves of its own. The
sizes are timed in turns, so that the machine's drift meets all alike; medians are kept. In a `CostModel`
verification, compaction and what else grows with the tree are part of the target's curve; the overhead is
what every step costs, the draft's catch-up with the accepted tokens included.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.calibration.engine import decoding, sampling
from treespec.cost import CostModel
from treespec.tree import TokenTree

CHAINS = (1, 2, 3, 4, 6, 8, 12, 16)
HOOKS = (4, 8)  # a chain and a second child of the root: a tree's narrow levels
COMBS = (2, 4, 8, 16, 32, 64, 128, 256)  # so many branches of two nodes: a tree's wide levels
MIN_MS = 1e-3  # noise may make a difference of two times vanish, a cost model wants more than nothing
NUM_STEPS, NUM_LARGE_STEPS, LARGE = 4, 2, 64  # steps timed a round, of steps of so many tokens or more


@dataclass(frozen=True)
class Step:
    """Mean milliseconds of a step."""

    wall: float
    target: float  # forward, verification, compaction
    draft: float

    @property
    def rest(self) -> float:
        return self.wall - self.target - self.draft


@dataclass(frozen=True)
class BatchCosts:
    """The costs of so many sequences at once."""

    baseline_ms: float
    chain: CostModel
    tree: CostModel

    def step_ms(self, tree: TokenTree | None, batch_size: int) -> float:
        """A step in which every sequence drafts and verifies `tree`; None: without drafting."""
        if tree is None:
            return self.baseline_ms
        return self.model(tree).step_ms(tree, batch_size)

    def model(self, tree: TokenTree) -> CostModel:
        return self.chain if tree.is_chain else self.tree

    def to_dict(self) -> dict[str, Any]:
        return {
            "baseline_ms": self.baseline_ms,
            "chain": self.chain.to_dict(),
            "tree": self.tree.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BatchCosts:
        models = {kind: CostModel.from_dict(fields[kind]) for kind in ("chain", "tree")}
        return cls(float(fields["baseline_ms"]), **models)


def hook(depth: int) -> TokenTree:
    return TokenTree((*TokenTree.chain(depth).parents, 0))


def comb(num_branches: int, max_nodes: int = 10**6) -> TokenTree:
    """`num_branches` branches of two nodes, the last one cut where there may not be so many."""
    parents = [-1]
    for _ in range(num_branches):
        parents += [0, len(parents)]
    return TokenTree(tuple(parents[: max_nodes + 1]))


def shapes(batch_size: int, max_tokens: int) -> list[TokenTree]:
    """The trees to time: chains, hooks, combs, as far as a step has room for them."""
    max_nodes = max(2, max_tokens // batch_size - 1)
    trees = [TokenTree.chain(k) for k in CHAINS] + [hook(depth) for depth in HOOKS]
    trees += [comb(branches) for branches in COMBS]
    if max_nodes >= 2 * COMBS[-1] - 1:  # 512 tokens are 511 nodes and the root
        trees[-1] = comb(COMBS[-1], max_nodes)
    smallest = [TokenTree.chain(1), TokenTree.chain(2), TokenTree.from_paths([[0], [1]])]
    return list(dict.fromkeys(smallest + [tree for tree in trees if tree.num_nodes <= max_nodes]))


def time_steps(
    llm: Any, contexts: Sequence[list[int]], batches: Iterable[int], max_tokens: int, rounds: int
) -> dict[int, BatchCosts]:
    """Costs by batch size; `contexts` are what stands before the step, used in turn."""
    jobs = [(batch, tree) for batch in batches for tree in (None, *shapes(batch, max_tokens))]
    found: dict[tuple[int, TokenTree | None], list[Step]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for batch, tree in tqdm(jobs, desc="step costs", unit="size"):
            own = list(islice(cycle(contexts), batch))
            found[batch, tree].append(time_step(llm, own, tree))
    medians = {job: _median(steps) for job, steps in found.items()}
    return {
        batch: fit({tree: step for (own, tree), step in medians.items() if own == batch}, batch)
        for batch in dict.fromkeys(batch for batch, _ in jobs)
    }


def time_step(llm: Any, contexts: Sequence[list[int]], tree: TokenTree | None) -> Step:
    """Mean over a few steps in which every context's sequence is drafted along `tree`."""
    size = len(contexts) * (tree.num_nodes + 1 if tree else 1)
    with decoding(llm, contexts, tree):
        llm.collective_rpc("treespec_stats", args=(True,))
        started = time.perf_counter()
        for _ in range(NUM_STEPS if size < LARGE else NUM_LARGE_STEPS):
            llm.llm_engine.step()
        stats = llm.collective_rpc("treespec_stats", args=(True,))[0]
        wall = (time.perf_counter() - started) * 1e3
    parts = {part: ms / stats["num_steps"] for part, ms in stats["total_ms"].items()}
    target = sum(parts[part] for part in ("target_forward", "verify", "compact"))
    return Step(wall / stats["num_steps"], target, parts["draft_forward"] + parts["draft_choose"])


def _median(steps: Sequence[Step]) -> Step:
    """The step of the median wall time (of an even number the quicker one): its parts belong together."""
    return sorted(steps, key=lambda step: step.wall)[(len(steps) - 1) // 2]


def fit(steps: Mapping[TokenTree | None, Step], batch_size: int) -> BatchCosts:
    """Curves from the timed steps of one batch size; the key None is the step without drafting."""
    chains = {tree: step for tree, step in steps.items() if tree is not None and tree.is_chain}
    branched = {tree: step for tree, step in steps.items() if tree is not None and not tree.is_chain}
    lengths = [tree.num_nodes for tree in chains]
    slope, first = np.polyfit(lengths, [step.draft for step in chains.values()], 1)
    chain_draft = {batch_size: max(float(slope), MIN_MS)}
    chain = _model(chains, chain_draft, max(0.0, float(first)), batch_size)
    root = min(step.draft for tree, step in branched.items() if tree.depth == 1)
    widths: dict[int, list[float]] = {}
    for tree, step in branched.items():
        if tree.depth > 1:  # below the root, all levels are equally wide
            width = int((np.asarray(tree.depths) == 2).sum())
            levels = tree.depth - 1
            widths.setdefault(batch_size * width, []).append((step.draft - root) / levels)
    draft = {tokens: max(float(np.mean(ms)), MIN_MS) for tokens, ms in widths.items()} or dict(chain_draft)
    draft = _rising(draft)
    overhead = max(0.0, root - draft[min(draft)])
    return BatchCosts(steps[None].wall, chain, _model(branched, draft, overhead, batch_size))


def _model(
    steps: Mapping[TokenTree, Step], draft_ms: dict[int, float], catch_up_ms: float, batch_size: int
) -> CostModel:
    least = max(0.0, min(step.rest for step in steps.values()))
    target: dict[int, list[float]] = {}
    for tree, step in steps.items():
        tokens = batch_size * (tree.num_nodes + 1)
        target.setdefault(tokens, []).append(max(step.target + step.rest - least, MIN_MS))
    curve = _rising({tokens: float(np.mean(ms)) for tokens, ms in target.items()})
    return CostModel(curve, draft_ms, overhead_ms=least + catch_up_ms)


def _rising(curve: dict[int, float]) -> dict[int, float]:
    """By tokens, none cheaper than fewer: what seems cheaper is noise, and growing must not chase it."""
    tokens = sorted(curve)
    return dict(zip(tokens, np.maximum.accumulate([curve[one] for one in tokens]).tolist(), strict=True))


def time_prompts(llm: Any, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Milliseconds a prompt token costs before the first answer token, without drafting and with it."""
    found: dict[str, list[float]] = {"none": [], "drafted": []}
    for prompt in prompts:
        for name, tree in (("none", None), ("drafted", TokenTree.chain(1))):
            options = sampling(tree, temperature=0.0, max_tokens=1, skip_reading_prefix_cache=True)
            started = time.perf_counter()
            llm.generate([{"prompt_token_ids": prompt}], options, use_tqdm=False)
            found[name].append((time.perf_counter() - started) * 1e3 / len(prompt))
    return {name: float(np.median(ms)) for name, ms in found.items()}

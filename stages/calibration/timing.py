"""What a step costs in the arms' own engine: target, draft and the rest, by tokens in the step and batch.

    costs = time_steps(llm, contexts, batches=(1, 4), max_tokens=512, rounds=3)
    costs[4].tree              # CostModel of four sequences that verify trees
    costs[4].baseline_ms       # a step without drafting

Chains and branched trees take different ways through attention, so each kind has curves of its own. The
sizes are timed in turns, so that the machine's drift meets all alike; medians are kept. In a `CostModel`
verification and compaction are part of the target's curve. All else of a step grows level by level: a draft
pass, and the work around it that no clock of the plugin sees (attention metadata, slots, the choice of
children). So a level's cost is what one more level adds to the wall time beside the target's; what is left
without levels is the overhead, the draft's catch-up with the accepted tokens included.
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
from treespec.cost import CostModel, inner_widths
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

    @property
    def rest(self) -> float:
        """Drafting, and all that stands around it."""
        return self.wall - self.target


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
    trees.append(comb(-(-max_nodes // 2), max_nodes))  # as many as there is room for: nothing is extrapolated
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
    target = sum(stats["total_ms"][part] for part in ("target_forward", "verify", "compact"))
    return Step(wall / stats["num_steps"], target / stats["num_steps"])


def _median(steps: Sequence[Step]) -> Step:
    """The step of the median wall time (of an even number the quicker one): its parts belong together."""
    return sorted(steps, key=lambda step: step.wall)[(len(steps) - 1) // 2]


def fit(steps: Mapping[TokenTree | None, Step], batch_size: int) -> BatchCosts:
    """Curves from the timed steps of one batch size; the key None is the step without drafting."""
    chains = {tree: step for tree, step in steps.items() if tree is not None and tree.is_chain}
    branched = {tree: step for tree, step in steps.items() if tree is not None and not tree.is_chain}
    first, level = _line(chains)
    chain = CostModel(_target_curve(chains, batch_size), {batch_size: level}, max(0.0, first))
    narrow = {tree: step for tree, step in branched.items() if inner_widths(tree).max() == 1}
    if len(narrow) > 1:
        first, level = _line(narrow)
    else:  # too few tokens for a hook
        first = min(step.rest for step in narrow.values()) - level
    draft = {batch_size: level}
    for tree in branched.keys() - narrow.keys():  # combs: the root's level and a wide one
        width = int(inner_widths(tree)[1])
        draft[batch_size * width] = max(branched[tree].rest - first - level, MIN_MS)
    target = _target_curve(branched, batch_size)
    return BatchCosts(steps[None].wall, chain, CostModel(target, _rising(draft), max(0.0, first)))


def _line(steps: Mapping[TokenTree, Step]) -> tuple[float, float]:
    """What trees of one node a level cost beside the target: without a level, and with each."""
    level, first = np.polyfit([tree.depth for tree in steps], [step.rest for step in steps.values()], 1)
    return float(first), max(float(level), MIN_MS)


def _target_curve(steps: Mapping[TokenTree, Step], batch_size: int) -> dict[int, float]:
    by_tokens: dict[int, list[float]] = {}
    for tree, step in steps.items():
        by_tokens.setdefault(batch_size * (tree.num_nodes + 1), []).append(max(step.target, MIN_MS))
    return _rising({tokens: float(np.mean(ms)) for tokens, ms in by_tokens.items()})


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

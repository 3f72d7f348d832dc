"""The figures of one arm, out of its passes, vLLM's counters and the plugin's clock: parts of metrics.json.

A number that does not exist is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stages.common.counters import Counters
from stages.common.passes import Pass
from treespec.tree import TokenTree


def times(passes: Sequence[Pass]) -> dict[str, Any]:
    """Totals over all passes, spreads over all requests, and the passes one by one."""
    requests = [request for one in passes for request in one.requests]
    total = totals(passes)
    return {
        **total,
        "throughput_tokens_per_s": total["num_output_tokens"] / total["wall_time_s"],
        **{name: _spread([r[name] for r in requests]) for name in ("ttft_ms", "tpot_ms", "e2e_ms")},
        "gsm8k_accuracy": float(np.mean([request["correct"] for request in requests])),
        "passes": [
            {"repeat": one.repeat, "wall_time_s": one.wall_time_s, "num_output_tokens": one.num_output_tokens}
            for one in passes
        ],
    }


def totals(passes: Sequence[Pass]) -> dict[str, Any]:
    """Tokens, seconds and milliseconds a token, prompts included."""
    wall = sum(one.wall_time_s for one in passes)
    tokens = sum(one.num_output_tokens for one in passes)
    return {"num_output_tokens": tokens, "wall_time_s": wall, "time_per_token_ms": wall * 1e3 / tokens}


def same_share(passes: Iterable[Pass], others: Iterable[Pass]) -> float:
    """Share of the answers whose token ids are those of the same prompt and repeat in `others`."""
    theirs = {(r["prompt_index"], r["repeat"]): r["output_token_ids"] for one in others for r in one.requests}
    same = [
        r["output_token_ids"] == theirs[r["prompt_index"], r["repeat"]]
        for one in passes
        for r in one.requests
    ]
    return sum(same) / len(same)


def _spread(values: list[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "p50": None, "p99": None}
    p50, p99 = np.percentile(known, [50, 99])
    return {"mean": float(np.mean(known)), "p50": float(p50), "p99": float(p99)}


def speculation(
    tree: TokenTree, tree_name: str | None, counters: Counters, stats: dict[str, Any] | None
) -> dict[str, Any]:
    """vLLM's counters as rates; the bonus token counts in the mean acceptance length, as vLLM's log does."""
    drafts, drafted, accepted = counters.num_drafts, counters.num_draft_tokens, counters.num_accepted_tokens
    by_depth = counters.num_accepted_tokens_per_pos[: tree.depth]
    return {
        "num_speculative_tokens": tree.num_nodes,
        "tree": tree_name,
        "tree_nodes": tree.num_nodes,
        "tree_depth": tree.depth,
        "num_drafts": drafts,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
        "draft_efficiency": accepted / drafted if drafted else None,
        "acceptance_rate_per_position": {
            str(depth): count / drafts if drafts else None for depth, count in enumerate(by_depth, start=1)
        },
        "off_chain_accepted_tokens": stats["off_chain_accepted_tokens"] if stats else 0,
    }


def step_ms(
    wall_time_s: float, num_steps: int, stats: dict[str, Any] | None, forward_share: float | None
) -> dict[str, float] | None:
    """Means over the engine's steps; `other` is the scheduler and all else: the wall time that is left.

    `stats` are the plugin's; `forward_share` is measured.explain's, for the baseline. None for stock
    speculation, which offers no seam to time.
    """
    step = wall_time_s * 1e3 / num_steps
    if stats is not None:
        parts = {part: total / num_steps for part, total in stats["total_ms"].items()}
        del parts["draft_choose"]  # the harness's own work: it belongs to what is left
    elif forward_share is not None:  # of another pass, whose times may be those of a slower machine
        parts = {"target_forward": forward_share * step}
    else:
        return None
    return {**parts, "other": step - sum(parts.values())}


def roofline_share(
    wall_time_s: float, bandwidth_gb_per_s: float, passes_and_bytes: Sequence[tuple[int, float]]
) -> float:
    """Share of the wall time that only reading the weights, once a forward pass, would take.

    `passes_and_bytes`: for each model its number of forward passes and the bytes one device reads in each.
    """
    read = sum(num_passes * num_bytes for num_passes, num_bytes in passes_and_bytes)
    return read / (bandwidth_gb_per_s * 1e9) / wall_time_s

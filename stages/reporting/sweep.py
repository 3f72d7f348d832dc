"""What an exhaustive sweep says: the time of every k and tree, and whether the chosen ones were well chosen.

    sweep = Sweep.read(params, Path("results"))   # one sequence at a time, every mode in one engine
    sweep.table()                                 # a row a mode
    sweep.evidence()                              # grown against others of one size, auto against the best

Every prompt was answered in every mode, so comparisons are paired over prompts, with the report's interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.params import AUTO, GROWN_AUTO, Params, grown_nodes
from stages.common.trees import tree_file
from stages.reporting.interleaved import COLUMNS, NONE
from stages.reporting.load import ArmName, read_requests
from stages.reporting.prediction import predict_arms
from stages.reporting.statistics import Bootstrap, Ratio, mean_of, paired_ratio
from treespec.tree import TokenTree

BATCH = 1
COUNTED = ("group_num_drafts", "group_num_accepted_tokens")
ALLOWED = 1.05  # time of auto over that of the best


@dataclass(frozen=True)
class Sweep:
    trees: Mapping[str, TokenTree]  # by mode: chain-k3, tree-grown_8 ...
    ms: pd.DataFrame  # [prompt, mode]; milliseconds a token
    tokens: pd.DataFrame  # [prompt, mode]; tokens a step, bonus token counted
    predicted: Mapping[str, Ratio]
    bootstrap: Bootstrap

    @classmethod
    def read(cls, params: Params, results: Path) -> Sweep:
        """UserError where the stage interleaved has not written what it should."""
        arms = {f"chain-k{k}": f"k{k}" for k in params.speculation.chain.num_speculative_tokens}
        arms |= {f"tree-{name}": Path(name).stem for name in params.speculation.tree.names}
        trees = {mode: TokenTree.from_file(tree_file(results, name, BATCH)) for mode, name in arms.items()}
        rows = read_requests(
            "interleaved", results / f"interleaved/b{BATCH}/requests.parquet", (*COLUMNS, *COUNTED)
        )
        rows["ms"] = rows["group_wall_time_s"] * 1e3 / rows["num_output_tokens"]
        rows["tokens"] = 1 + rows["group_num_accepted_tokens"] / rows["group_num_drafts"].where(
            lambda n: n > 0
        )
        by_prompt = rows.groupby(["prompt_index", "mode"])[["ms", "tokens"]].mean().unstack("mode")
        names = {mode: ArmName(mode.partition("-")[0], name, BATCH) for mode, name in arms.items()}
        names[NONE] = ArmName("baseline", "", BATCH)
        foretold = predict_arms(params, results, names.values())
        report = params.report
        return cls(
            trees,
            by_prompt["ms"],
            by_prompt["tokens"],
            {mode: foretold[name.name] for mode, name in names.items() if name.name in foretold},
            Bootstrap(report.confidence, report.bootstrap_resamples, report.seed),
        )

    def ratio(self, frame: pd.DataFrame, mode: str, other: str) -> Ratio:
        """`mode` over `other` in one of the frames."""
        both = frame[[mode, other]].dropna()
        return paired_ratio(both[mode].to_numpy(), both[other].to_numpy(), self.bootstrap)

    def table(self) -> pd.DataFrame:
        """A row a mode, the undrafted one first: its shape, times, tokens a step, speedup over undrafted."""
        return pd.DataFrame([self._row(mode) for mode in (NONE, *self.trees)])

    def _row(self, mode: str) -> dict[str, Any]:
        tree, foretold = self.trees.get(mode), self.predicted.get(mode)
        row: dict[str, Any] = {
            "mode": mode,
            "kind": "baseline" if tree is None else mode.partition("-")[0],
            "k": tree.num_nodes if tree is not None and tree.is_chain else None,
            "nodes": tree.num_nodes if tree is not None else 0,
            "depth": tree.depth if tree is not None else 0,
            "prompts": len(self.ms),
            **bounds("time_per_token_ms", mean_of(self.ms[mode].dropna(), self.bootstrap)),
            "predicted_ms": round(foretold.value, 4) if foretold else None,
        }
        if tree is not None:
            row |= bounds("tokens_per_step", mean_of(self.tokens[mode].dropna(), self.bootstrap))
            row |= bounds("speedup", self.ratio(self.ms, NONE, mode))
        return row

    def evidence(self) -> dict[str, Any]:
        return {
            "prompts": len(self.ms),
            "confidence": self.bootstrap.confidence,
            "acceptance_at_equal_node_count": self._acceptance(),
            "auto_against_the_best": self._choices(),
        }

    def _acceptance(self) -> list[dict[str, Any]]:
        """Tokens a step of every grown_N, over those of all other shapes of N nodes."""
        found = []
        for mode, tree in self.trees.items():
            if not grown_nodes(mode.removeprefix("tree-")):
                continue
            for other, shape in self.trees.items():
                if other == mode or shape.num_nodes != tree.num_nodes or is_chosen(other):
                    continue
                ratio = self.ratio(self.tokens, mode, other)
                found.append(
                    {
                        "nodes": tree.num_nodes,
                        "grown": mode,
                        "against": other,
                        "tokens_per_step": _mean(self.tokens, mode),
                        "against_tokens_per_step": _mean(self.tokens, other),
                        **bounds("ratio", ratio),
                        "at_least_as_many": ratio.value >= 1,
                        "surely": ratio.low is not None and ratio.low >= 1,
                    }
                )
        return found

    def _choices(self) -> list[dict[str, Any]]:
        """Time of what auto and grown_auto chose, over that of the fastest mode of the sweep."""
        fixed = [mode for mode in self.trees if not is_chosen(mode)]
        best = min(fixed, key=lambda mode: self.ms[mode].mean())
        found = []
        for mode in (mode for mode in self.trees if is_chosen(mode)):
            ratio = self.ratio(self.ms, mode, best)
            found.append(
                {
                    "chosen_by": mode,
                    "nodes": self.trees[mode].num_nodes,
                    "depth": self.trees[mode].depth,
                    "best": best,
                    "is_the_best": self.trees[mode] == self.trees[best],
                    "time_per_token_ms": _mean(self.ms, mode),
                    "best_time_per_token_ms": _mean(self.ms, best),
                    **{f"slower_{key}": value for key, value in _percent(ratio).items()},
                    "within_5_percent": ratio.value <= ALLOWED,
                    "surely": ratio.high is not None and ratio.high <= ALLOWED,
                }
            )
        return found


def is_chosen(mode: str) -> bool:
    """Whether calibration chose the mode's shape by its predicted time."""
    return mode in (f"chain-k{AUTO}", f"tree-{GROWN_AUTO}")


def bounds(name: str, ratio: Ratio) -> dict[str, float | None]:
    values = {name: ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def _percent(ratio: Ratio) -> dict[str, float | None]:
    values = {"percent": ratio.value, "percent_low": ratio.low, "percent_high": ratio.high}
    return {key: None if value is None else round((value - 1) * 100, 2) for key, value in values.items()}


def _mean(frame: pd.DataFrame, mode: str) -> float:
    return round(float(frame[mode].mean()), 4)

"""What the cost model of the calibration foretold of an arm, beside what was measured.

found = compare_predictions(run, {"chain-k3-b1": Ratio(20.1, 18.9, 21.5, 64)}, bootstrap)
found["chain-k3-b1"].error      # predicted / measured - 1
found["chain-k3-b1"].outside    # the two intervals have nothing in common
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from stages.reporting.load import Run
from stages.reporting.statistics import Bootstrap, Ratio, mean_of, per_prompt


@dataclass(frozen=True)
class Predicted:
    """Times per token in ms, each with its interval over prompts; `speedup` is over the baseline."""

    foretold: Ratio
    measured: Ratio
    speedup: float | None

    @property
    def time_per_token_ms(self) -> float:
        return self.foretold.value

    @property
    def error(self) -> float | None:
        return self.time_per_token_ms / self.measured.value - 1 if self.measured.value else None

    @property
    def outside(self) -> bool:
        if not (self.measured.has_interval and self.foretold.has_interval):
            return False
        return self.foretold.high < self.measured.low or self.measured.high < self.foretold.low


def compare_predictions(
    run: Run, predictions: Mapping[str, Ratio], bootstrap: Bootstrap
) -> dict[str, Predicted]:
    """For the arms that have both a prediction and a measured time per token.

    The interval is that of the prompts' mean time per token, scaled to the arm's wall time per token. The
    predicted speedup is over the baseline's prediction, or over its measured time where none was predicted.
    """
    found = {}
    for name, arm in run.arms.items():
        predicted, measured = predictions.get(name), arm.metrics.time_per_token_ms
        prompts = mean_of(per_prompt(arm.requests, per_token=True), bootstrap)
        if predicted is None or not predicted.value or not measured or not prompts.value:
            continue
        scale = measured / prompts.value
        low, high = (scale * bound if bound is not None else None for bound in (prompts.low, prompts.high))
        baseline = run.baseline_of(arm)
        foretold = predictions.get(baseline.name.name) if baseline else None
        plain = foretold.value if foretold else baseline.metrics.time_per_token_ms if baseline else None
        found[name] = Predicted(
            foretold=predicted,
            measured=Ratio(measured, low, high, prompts.n),
            speedup=plain / predicted.value if plain and arm is not baseline else None,
        )
    return found


def median_error(found: Iterable[Predicted | None]) -> float | None:
    """Median of |predicted / measured - 1|."""
    errors = [abs(one.error) for one in found if one is not None and one.error is not None]
    return median(errors) if errors else None

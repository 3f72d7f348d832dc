"""Another program in the same run: Hugging Face transformers, alone and with assisted generation, at batch 1.

peer = compare_peer(params, results, best, bootstrap)
peer.assisted.own       # its speedup over its own plain generation
peer.assisted.ours      # how many times as fast our best arm at batch 1 is
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.common.errors import UserError
from stages.common.params import Params
from stages.reporting.drift import Drift, widened
from stages.reporting.load import Arm, failure_of, parse, read, read_requests
from stages.reporting.schema import PeerMetrics
from stages.reporting.statistics import Bootstrap, Ratio, per_prompt, ratio_of

COLUMNS = ("prompt_index", "repeat", "mode", "num_output_tokens", "e2e_ms")
MODES = ("plain", "assisted")


@dataclass(frozen=True)
class PeerMode:
    time_per_token_ms: float | None
    own: Ratio
    ours: Ratio | None


@dataclass(frozen=True)
class Peer:
    """What the peer measured; `reason` says why it did not, and then the rest is absent."""

    reason: str | None
    version: str | None = None
    same_output: float | None = None
    plain: PeerMode | None = None
    assisted: PeerMode | None = None
    best: Arm | None = None

    @property
    def modes(self) -> dict[str, PeerMode]:
        return {mode: found for mode in MODES if (found := getattr(self, mode))}


def compare_peer(
    params: Params, results: Path, best: Arm | None, bootstrap: Bootstrap, drift: Drift | None
) -> Peer | None:
    """`best` is our arm at batch 1. None unless params asks for it; UserError: a missing or partial file.

    Both ways of the peer take turns in one process; our arm ran in another, and `drift` lies between.
    """
    if not params.peers.transformers:
        return None
    folder = results / "peer_transformers"
    if failure_of(folder):
        return None
    metrics = parse(PeerMetrics, folder / "metrics.json", read(folder / "metrics.json"))
    if not metrics.asked:
        return Peer(metrics.reason or "not measured")
    requests = read_requests("peer_transformers", folder / "requests.parquet", COLUMNS)
    times = {mode: per_prompt(requests[requests["mode"] == mode], per_token=True) for mode in MODES}
    if metrics.plain is None or metrics.assisted is None or not all(map(len, times.values())):
        raise UserError(str(folder), "no plain or no assisted run", "both; run `dvc repro`")
    ours = per_prompt(best.requests, per_token=True) if best else None
    found = {
        mode: PeerMode(
            getattr(metrics, mode).time_per_token_ms,
            ratio_of(times["plain"], times[mode], bootstrap),
            None if ours is None else widened(drift, ratio_of(times[mode], ours, bootstrap)),
        )
        for mode in MODES
    }
    return Peer(None, metrics.transformers_version, metrics.same_output, best=best, **found)

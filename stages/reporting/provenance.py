"""When and where every arm was measured: what was kept, restored by DVC or gone on with shows here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from stages.reporting.load import Arm, Run

ONE_SITTING = timedelta(hours=1)  # arms of one `dvc repro` lie closer together


def provenance(run: Run) -> Iterator[tuple[str, str]]:
    """Name and value, for the facts at the report's end."""
    dated = sorted((arm for arm in run.arms.values() if arm.metrics.finished_at), key=_began)
    if dated:
        yield "Measured", _sittings(dated)
    resumed = [
        f"{arm.name.name} after {arm.metrics.resumed.from_journal} of {arm.metrics.resumed.pieces} parts"
        for arm in run.arms.values()
        if arm.metrics.resumed
    ]
    if resumed:
        yield "Interrupted and gone on with", "; ".join(resumed)


def _sittings(dated: list[Arm]) -> str:
    """When the one run was; of several runs also which arms are of which, and of several hosts on whose."""
    sittings: list[list[Arm]] = []
    for arm in dated:
        if not sittings or _is_apart(sittings[-1], arm):
            sittings.append([])
        sittings[-1].append(arm)
    said = []
    for arms in sittings:
        span = f"{arms[0].metrics.measured_at or arms[0].metrics.finished_at} to {_ended(arms).isoformat()}"
        names = ", ".join(arm.name.name for arm in arms)
        host = f", host {arms[0].metrics.host}" if len({arm.metrics.host for arm in dated}) > 1 else ""
        said.append(f"{span} ({names}{host})" if len(sittings) > 1 else span)
    apart = f"{len(sittings)} sittings, the earlier ones kept or restored: " if len(sittings) > 1 else ""
    return apart + "; ".join(said)


def _is_apart(sitting: list[Arm], arm: Arm) -> bool:
    return arm.metrics.host != sitting[-1].metrics.host or _began(arm) - _ended(sitting) > ONE_SITTING


def _began(arm: Arm) -> datetime:
    return datetime.fromisoformat(arm.metrics.measured_at or arm.metrics.finished_at)


def _ended(arms: list[Arm]) -> datetime:
    return max(datetime.fromisoformat(arm.metrics.finished_at) for arm in arms)

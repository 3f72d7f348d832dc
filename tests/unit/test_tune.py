"""The baseline's tuning: which setting counts as the fastest, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from stages import tune
from stages.common.errors import UserError
from stages.common.files import read_json
from stages.common.params import load_params
from stages.tune import Setting


def test_the_median_of_the_rounds_decides():
    times = {
        Setting("bfloat16", False, 2): [10.0, 11.0, 90.0],
        Setting("float32", False, 2): [12.0, 12.0, 2.0],
    }
    found = tune.summarise(times, load_params(), num_cpus=2)
    assert found["fastest"] == {"dtype": "bfloat16", "enforce_eager": False, "threads": 2}
    assert found["params_over_fastest"] == 1.0
    assert [row["time_per_token_ms"] for row in found["settings"]] == [11.0, 12.0]
    assert tune.summarise(times, load_params(), num_cpus=64)["params_over_fastest"] is None


def test_every_setting_runs_once_a_round_in_its_own_process(monkeypatch, tmp_path, capsys):
    ran = []

    def run(command, env, **_):
        params = load_params(tune.Path(command[command.index("--params") + 1]))
        engine = params.engine
        ran.append((engine.dtype, engine.enforce_eager, env["VLLM_CPU_OMP_THREADS_BIND"]))
        folder = tune.Path(command[command.index("--results") + 1]) / "baseline/b1"
        tune.write_json(folder / "metrics.json", {"time_per_token_ms": 20.0 - engine.enforce_eager})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tune.subprocess, "run", run)  # the engine itself: tests/pipeline
    monkeypatch.setattr(tune.os, "sched_getaffinity", lambda _: {4, 7})
    flags = ["--dtypes", "bfloat16", "--threads", "1", "2", "--rounds", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tune", *flags])
    tune.main()
    assert ran == [("bfloat16", eager, bound) for eager in (False, True) for bound in ("4", "4,7")] * 2
    assert read_json(tmp_path / "tuning.json")["fastest"]["enforce_eager"] is True
    assert "1.05 x the fastest's time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"), [(["--threads", "9999"], "--threads: 9999"), (["--rounds", "0"], "--rounds: 0")]
)
def test_what_cannot_be_tuned_is_one_line(monkeypatch, flags, line):
    monkeypatch.setattr(sys, "argv", ["tune", *flags])
    with pytest.raises(UserError, match=line):
        tune.main()

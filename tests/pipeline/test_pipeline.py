"""The whole pipeline, run for real by DVC on a model of two layers: what users rely on when they run it.

The tests build on each other's state in the order in which they stand here, since every engine costs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from pipeline_project import MAX_TOKENS, dvc, git, write_params

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

ARMS = ("baseline/b2", "chain/k2-b2", "tree/fork-b2")
TEMPERATURES = (0.0, 1.0)
ALWAYS = {"environment", "fetch_models"}  # whether anything changed is for them to find out
PERCENTILES = {"mean": float, "p50": float, "p99": float}
PROBE = {"memory_bandwidth_gb_per_s": float, "matmul_tflop_per_s": dict, "when": str}
STEP = dict.fromkeys(("target_forward", "draft_forward", "verify", "compact", "other"), float)
CONTRACT: dict[str, Any] = {
    **dict.fromkeys(("arm", "key", "device", "dtype", "dataset_source", "prompt_format"), str),
    **dict.fromkeys(("num_prompts", "repeats", "max_num_seqs", "num_output_tokens", "num_steps"), int),
    **dict.fromkeys(("wall_time_s", "throughput_tokens_per_s", "time_per_token_ms", "gsm8k_accuracy"), float),
    **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms"), PERCENTILES),
    "roofline_share": float,
    "passes": [{"repeat": int, "wall_time_s": float, "num_output_tokens": int}],
    "probe": {"before": PROBE, "after": PROBE},
    "weight_bytes": int,
    "models": {"target": str, "draft": str},
    "environment": {"device_name": str, "cpu_count": int, "versions": dict},
    "sampling": {"max_tokens": int, "temperature": float, "seed": int},
    "finished_at": str,
    "vllm_version": str,
    "step_ms": {"target_forward": float, "other": float},
    "temperature": float,
    "at_temperature": {"1.0": {"time_per_token_ms": float, "passes": list, "gsm8k_accuracy": float}},
    "speculation": type(None),
    "plugin": type(None),
}
SPECULATED = CONTRACT | {
    "step_ms": STEP,
    "plugin": {"acted": bool},
    "control": {"num_output_tokens": int, "time_per_token_ms": float, "same_as_none": float},
    "speculation": {
        **dict.fromkeys(("num_speculative_tokens", "tree_nodes", "tree_depth"), int),
        **dict.fromkeys(("num_drafts", "num_draft_tokens", "num_accepted_tokens"), int),
        **dict.fromkeys(("mean_acceptance_length", "draft_efficiency"), float),
        "acceptance_rate_per_position": {"1": float, "2": float},
        "off_chain_accepted_tokens": int,
    },
}
REQUEST_COLUMNS = {
    **dict.fromkeys(("prompt_index", "repeat", "num_prompt_tokens", "num_output_tokens"), "int32"),
    "output_token_ids": "list<element: int32>",
    **dict.fromkeys(("text", "text_sha256", "finish_reason", "answer", "expected"), "string"),
    **dict.fromkeys(("temperature", "ttft_ms", "tpot_ms", "e2e_ms"), "double"),
    "correct": "bool",
}
EXPLAINED = {
    "top2_gap": "list<element: float>",
    "runner_up_ids": "list<element: int32>",
    "further_ids": "list<element: list<element: int32>>",
    "further_gaps": "list<element: list<element: float>>",
}


MEASURED = {"baseline@2", "chain@2-2", "tree@fork-2", "baseline_again@2", "interleaved@2"}


@pytest.fixture(scope="module")
def project(finished_project: Path) -> Path:
    """The project with the tiny experiment, reproduced once and committed."""
    return finished_project


@pytest.fixture
def params(project: Path) -> Iterator[dict[str, Any]]:
    """params.yaml to edit; as it was when the test ends."""
    yield yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    git(project, "checkout", "-q", "params.yaml")


def read_strict(path: Path) -> Any:
    """JSON without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_requests(project: Path, arm: str, **having: Any) -> list[dict[str, Any]]:
    rows = pyarrow.parquet.read_table(project / "results" / arm / "requests.parquet").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in having.items())]


def deviations(contract: Any, value: Any, where: str = "") -> list[str]:
    """Where `value` is not of the contract's shape; keys beyond it are allowed."""
    if isinstance(contract, dict) and isinstance(value, dict):
        missing = [f"{where}.{key} is missing" for key in contract if key not in value]
        there = [key for key in contract if key in value]
        return missing + [
            line for key in there for line in deviations(contract[key], value[key], f"{where}.{key}")
        ]
    if isinstance(contract, list) and isinstance(value, list):
        return [
            line for i, item in enumerate(value) for line in deviations(contract[0], item, f"{where}.{i}")
        ]
    if isinstance(contract, type) and type(value) is contract:
        return []
    return [f"{where} is {value!r}"]


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE))


@pytest.mark.parametrize("arm", ARMS)
def test_metrics_keep_their_contract(project: Path, arm: str) -> None:
    metrics = read_strict(project / "results" / arm / "metrics.json")
    assert deviations(CONTRACT if arm.startswith("baseline") else SPECULATED, metrics) == []
    assert f"{metrics['arm']}/{metrics['key']}" == arm
    assert metrics["num_output_tokens"] == sum(one["num_output_tokens"] for one in metrics["passes"])
    per_token = metrics["wall_time_s"] * 1e3 / metrics["num_output_tokens"]
    assert metrics["time_per_token_ms"] == pytest.approx(per_token)
    step = metrics["wall_time_s"] * 1e3 / metrics["num_steps"]
    assert sum(metrics["step_ms"].values()) == pytest.approx(step)
    assert min(metrics["step_ms"].values()) >= 0


@pytest.mark.parametrize("arm", ARMS)
def test_requests_keep_their_contract(project: Path, arm: str) -> None:
    schema = pyarrow.parquet.read_schema(project / "results" / arm / "requests.parquet")
    explained = EXPLAINED if arm.startswith("baseline") else {}
    more = explained or {"mode": "string"}
    assert {field.name: str(field.type) for field in schema} == REQUEST_COLUMNS | more
    rows = read_requests(project, arm) if explained else read_requests(project, arm, mode="drafted")
    assert [(row["temperature"], row["prompt_index"]) for row in rows] == list(product(TEMPERATURES, [0, 1]))
    for row in rows:
        assert row["num_output_tokens"] == len(row["output_token_ids"]) == MAX_TOKENS
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["expected"])
        assert 0 < row["ttft_ms"] <= row["e2e_ms"]
        if explained and row["temperature"] == 0:
            assert len(row["top2_gap"]) == len(row["runner_up_ids"]) == MAX_TOKENS
            assert all(gap >= 0 and math.isfinite(gap) for gap in row["top2_gap"])


@pytest.mark.parametrize("arm", ARMS[1:])
def test_speculation_acts_and_changes_no_token(project: Path, arm: str) -> None:
    metrics = read_strict(project / "results" / arm / "metrics.json")
    assert metrics["plugin"]["acted"]
    assert 0 < metrics["speculation"]["num_accepted_tokens"] < metrics["speculation"]["num_draft_tokens"]
    assert metrics["num_steps"] < MAX_TOKENS
    theirs = [row["output_token_ids"] for row in read_requests(project, "baseline/b2", temperature=0.0)]
    for mode in ("drafted", "none"):  # the arm, its control
        ours = read_requests(project, arm, temperature=0.0, mode=mode)
        assert [row["output_token_ids"] for row in ours] == theirs
    assert metrics["control"]["same_as_none"] == 1


def test_the_baseline_is_measured_again_when_all_arms_are_done(project: Path) -> None:
    again = read_strict(project / "results/baseline_again/b2/metrics.json")
    last = max(read_strict(project / "results" / arm / "metrics.json")["finished_at"] for arm in ARMS)
    assert again["probe"]["before"]["when"] >= last
    first = read_requests(project, "baseline/b2", temperature=0.0)
    assert [row["output_token_ids"] for row in read_requests(project, "baseline_again/b2")] == [
        row["output_token_ids"] for row in first
    ]
    drift = read_strict(project / "results/summary.json")["drift"]
    assert (drift["num_engines"], drift["degrees_of_freedom"]) == (4, 3)
    assert drift["factor"] > 1


def test_interleaved_modes_are_each_others_control(project: Path) -> None:
    metrics = read_strict(project / "results/interleaved/b2/metrics.json")
    assert set(metrics["modes"]) == {"none", "chain-k2", "tree-fork"}
    theirs = [row["output_token_ids"] for row in read_requests(project, "baseline/b2", temperature=0.0)]
    for mode in metrics["modes"]:
        ours = read_requests(project, "interleaved/b2", mode=mode)
        assert [row["output_token_ids"] for row in ours] == theirs
    side = read_strict(project / "results/summary.json")["interleaved"]["b2"]
    assert set(side["arms"]) == {"chain-k2-b2", "tree-fork-b2"}
    assert all(arm["speedup"] > 0 for arm in side["arms"].values())
    assert side["none_over_baseline_low"] < side["none_over_baseline"] < side["none_over_baseline_high"]
    stated = f"the undrafted mode takes {side['none_over_baseline']:.2f}× the stock baseline's time per token"
    assert stated in (project / "report/report.md").read_text(encoding="utf-8")


def test_the_peer_answers_the_same(project: Path) -> None:
    metrics = read_strict(project / "results/peer_transformers/metrics.json")
    assert metrics["same_output"] == 1
    assert metrics["assisted"]["num_output_tokens"] == metrics["plain"]["num_output_tokens"] > 0
    theirs = [row["output_token_ids"] for row in read_requests(project, "baseline/b2", temperature=0.0)]
    assert [
        row["output_token_ids"] for row in read_requests(project, "peer_transformers", mode="plain")
    ] == theirs


def test_the_calibration_foretells_every_arm(project: Path) -> None:
    arms = read_strict(project / "results/summary.json")["arms"]
    assert all(arm["predicted_time_per_token_ms"] > 0 for arm in arms.values())


def test_report_is_written_and_says_lossless(project: Path) -> None:
    summary = read_strict(project / "results/summary.json")
    assert summary["all_lossless"] is True
    assert set(summary["arms"]) == {"baseline-b2", "chain-k2-b2", "tree-fork-b2"}
    assert summary["arms"]["tree-fork-b2"]["verdict"] == "identical"
    assert summary["arms"]["chain-k2-b2"]["speedup"] > 0
    written = ["report/index.html", "report/report.md"]
    written += [
        f"results/plots/{name}.csv" for name in ("speedup", "acceptance", "time_per_token", "step_cost")
    ]
    assert [name for name in written if not (project / name).stat().st_size] == []


def test_a_second_repro_measures_nothing(project: Path) -> None:
    assert stages_run(dvc(project, "repro").stdout) == ALWAYS
    assert git(project, "status", "--porcelain", "--", "dvc.lock", "results/baseline") == ""


@pytest.mark.parametrize(
    ("block", "field", "value", "expected"),
    [
        ("measure", "repeats", 2, {*MEASURED, "peer_transformers", "report"}),
        ("engine", "kv_cache_gib", 1.5, {"calibrate", *MEASURED, "report"}),
        ("report", "confidence", 0.9, {"report"}),
    ],
)
def test_a_change_of_params_runs_what_it_concerns(
    project: Path, params: dict[str, Any], block: str, field: str, value: Any, expected: set[str]
) -> None:
    params[block][field] = value
    write_params(project, params)
    assert stages_run(dvc(project, "repro", "--dry").stdout) == ALWAYS | expected
    changed = json.loads(dvc(project, "params", "diff", "--json").stdout)
    assert f"{block}.{field}" in changed["params.yaml"]


def test_another_machine_measures_again(project: Path) -> None:
    image = {"TREESPEC_IMAGE_DIGEST": "sha256:" + "0" * 64}
    dvc(project, "repro", "--single-item", "environment", **image)
    assert {"baseline@2", "chain@2-2", "tree@fork-2"} < stages_run(dvc(project, "repro", "--dry").stdout)


def test_one_more_k_and_one_more_tree_run_no_other_arm_as_an_experiment(project: Path) -> None:
    """And the machine is the first one again, whose figures still hold."""
    more = ("speculation.chain.num_speculative_tokens=[2,3]", "speculation.tree.names=[fork,flat]")
    done = dvc(project, "exp", "run", "-n", "longer", "-S", more[0], "-S", more[1])
    own = {"grow_chain@3-2", "chain@3-2", "grow_tree@flat-2", "tree@flat-2"}
    assert stages_run(done.stdout) == ALWAYS | own | {"baseline_again@2", "interleaved@2", "report"}
    assert {"chain-k3-b2", "tree-flat-b2"} <= set(read_strict(project / "results/summary.json")["arms"])
    assert "longer" in dvc(project, "exp", "show", "--csv").stdout
    changed = json.loads(dvc(project, "metrics", "diff", "--json").stdout)
    assert "arms.chain-k3-b2.speedup" in changed["results/summary.json"]


def test_dvc_shows_figures_pictures_and_the_graph(project: Path, tmp_path: Path) -> None:
    (shown,) = json.loads(dvc(project, "metrics", "show", "--json").stdout).values()
    assert {f"results/{arm}/metrics.json" for arm in ARMS} | {"results/summary.json"} <= set(shown["data"])
    for command in (["show"], ["diff", "HEAD"]):
        drawn = dvc(project, "plots", *command, "-o", str(tmp_path / command[0]))
        assert "WARNING" not in drawn.stdout + drawn.stderr
    assert (tmp_path / "diff/index.html").read_text(encoding="utf-8").count("vegaEmbed(") == 6
    page = (tmp_path / "show/index.html").read_text(encoding="utf-8")
    assert page.count("vegaEmbed(") == 6
    assert "chain-k2-b2" in page
    assert "tree@fork-2" in dvc(project, "dag").stdout

"""A cache that cannot lie: a stage lists what it reads, and what changes runs exactly the stages it concerns.

What a stage reads is recorded while it runs (reads_recorder.py), not taken from dvc.yaml.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from pipeline_project import ROOT, environment, write_params

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

ALWAYS = {"environment", "fetch_models"}  # whether anything changed is for them to find out
BASELINE, CHAIN, TREE, INTERLEAVED = "baseline@2", "chain@2-2", "tree@fork-2", "interleaved@2"
AGAIN, PEER, GROWN = "baseline_again@2", "peer_transformers", {"grow_chain@2-2", "grow_tree@fork-2"}
DRAFTED = {CHAIN, TREE, INTERLEAVED}
MEASURED = {BASELINE, AGAIN, *DRAFTED, PEER}
SHARED = {"calibrate", *GROWN, *MEASURED, "report"}  # what lists stages/common whole
LIBRARY = SHARED - {BASELINE, AGAIN, PEER}  # what lists treespec whole

# Read, and no number comes of it: how a stage speaks, ends and checks params. And in stages that draft
# nothing what is read for a journal's marks, names trees or vLLM's version, which environment.json has.
HARMLESS = {
    "fetch_gsm8k": r"stages/common/(errors|processes|params|param_types|yaml_files|few_shot)\.py|treespec/.*",
    BASELINE: r"treespec/.*",
    AGAIN: r"treespec/.*",
    PEER: r"treespec/.*",
}
PARAMS_ONLY = r"params\.yaml|(.*/)?__init__\.py|stages/distillation/settings\.py|.*/__pycache__/.*"
JOURNAL = r"results/\.journal/.*"  # bound to the same files by its marks
MODELS = r"(models|local)/.*"  # by their digests in results/models.json

FILES = {
    "stages/reporting/words.py": {"report"},
    "stages/templates/page.js": {"report"},
    "stages/report.py": {"report"},
    "stages/interleaved.py": {INTERLEAVED},
    "stages/baseline.py": {BASELINE},
    "stages/baseline_again.py": {AGAIN},
    "stages/draft_model.py": {CHAIN, TREE},
    "stages/peer_transformers.py": {PEER},
    "stages/grow_tree.py": GROWN,
    "stages/fetch_gsm8k.py": {"fetch_gsm8k"},
    "stages/calibration/timing.py": {"calibrate", *GROWN, "report"},
    "stages/common/synthetic.py": {"fetch_gsm8k", *SHARED},
    "stages/common/passes.py": SHARED,
    "treespec/verify.py": LIBRARY,
    "treespec/vllm_plugin/runner.py": LIBRARY,
    "trees/mc_sim_8b_12.json": {"grow_tree@fork-2"},
    "stages/distillation/train.py": set(),
    "data/gsm8k/source.json": {"fetch_gsm8k", "calibrate", *MEASURED},
    "results/environment.json": {"calibrate", *MEASURED, "report"},
    "results/models.json": {"calibrate", *MEASURED, "report"},
    "results/trees/k2-b2.json": {"grow_chain@2-2", CHAIN, INTERLEAVED, "report"},
    "results/calibration/costs.json": {"calibrate", *GROWN, "report"},
    "results/chain/k2-b2/requests.parquet": {CHAIN, AGAIN, "report"},
}
# Which stages a leaf of params.yaml concerns; `*` stands for the rest of its block.
ENGINE = {"calibrate", *MEASURED - {PEER}, "report"}
PARAMS: dict[str, set[str]] = {
    "dataset.sources": {"fetch_gsm8k", "report"},
    "dataset.*": {"calibrate", *MEASURED, "report"},
    "models.*": {"report"},  # and fetch_models, which writes what the others depend on
    "engine.device": {"calibrate", *MEASURED, "report"},
    "engine.dtype": {"calibrate", *MEASURED, "report"},
    "engine.tensor_parallel_size": {"calibrate", *MEASURED, "report"},
    "engine.pipeline_parallel_size": {"calibrate", *MEASURED, "report"},
    "engine.max_model_len": {"calibrate", *MEASURED, "report"},
    "engine.draft_tensor_parallel_size": {"calibrate", *DRAFTED, "report"},
    "engine.*": ENGINE,
    "sampling.*": {"calibrate", *MEASURED, "report"},
    "speculation.implementation": {"calibrate", *DRAFTED, "report"},
    "speculation.draft_sampling": {"calibrate", *DRAFTED, "report"},
    "speculation.tree.literals": {"grow_tree@fork-2", "report"},
    "calibration.*": {"calibrate", *GROWN},
    "measure.interleaved": {INTERLEAVED, "report"},
    "measure.*": {*MEASURED, "report"},
    "peers.*": {PEER, "report"},
    "report.*": {"report"},
    "distill.*": set(),
}
SOME_PARAMS = ("dataset.sources", "engine.dtype", "calibration.rounds", "measure.repeats", "distill.seed")
ARMS = {"engine.max_num_seqs", "speculation.chain.num_speculative_tokens", "speculation.tree.names"}


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(finished_project, tmp_path_factory.mktemp("cached") / "project", symlinks=True)


def changed(project: Path) -> set[str]:
    """The stages that `dvc repro` would run because of what they list themselves."""
    status = Repo(str(project)).status()
    return {stage.rpartition("dvc.yaml:")[2] for stage, why in status.items() if why != ["always changed"]}


def concerned(name: str) -> set[str]:
    block = f"{name.partition('.')[0]}.*"
    return PARAMS[name] if name in PARAMS else PARAMS[block]


def leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name != "speculation.tree.literals":
            yield from leaves(value, f"{name}.")
        else:
            yield name


def mutate(raw: dict[str, Any], name: str) -> None:
    """Another value in the same place; only DVC looks at it."""
    *blocks, key = name.split(".")
    for block in blocks:
        raw = raw[block]
    raw[key] = ["something else"]


def test_a_stage_lists_every_file_that_it_reads(project: Path, reads: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    recorded = {path.name for path in reads.iterdir()}
    assert recorded == {*lock} - {"distill_draft"} == ALWAYS | SHARED | {"fetch_gsm8k"}
    unlisted = {}
    for stage in recorded:
        entry = lock[stage]
        listed = [one["path"] for one in (*entry.get("deps", []), *entry["outs"])]
        allowed = f"{PARAMS_ONLY}|{JOURNAL}|{MODELS}|{HARMLESS.get(stage, 'nothing')}"
        unlisted[stage] = [
            name
            for name in (reads / stage).read_text(encoding="utf-8").splitlines()
            if not is_under(name, listed) and not re.fullmatch(allowed, name) and ".tmp" not in name
        ]
    kept = {stage: names for stage, names in unlisted.items() if names and stage not in ALWAYS}
    assert kept == {}


def is_under(name: str, listed: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in listed)


def test_the_finished_experiment_is_up_to_date(project: Path) -> None:
    assert changed(project) == set()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_runs_the_stages_it_concerns(project: Path, reads: Path, name: str) -> None:
    path = project / name
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    try:
        assert changed(project) - ALWAYS == FILES[name]
    finally:
        path.write_bytes(before)
    readers = {one.name for one in reads.iterdir() if name in one.read_text(encoding="utf-8").splitlines()}
    harmless = {stage for stage, names in HARMLESS.items() if re.fullmatch(names, name)}
    assert readers - ALWAYS - harmless <= FILES[name]


def test_every_param_has_its_stages(project: Path) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    without = [
        name for name in leaves(raw) if name not in PARAMS and f"{name.partition('.')[0]}.*" not in PARAMS
    ]
    assert set(without) <= ARMS


def check_param(project: Path, name: str) -> None:
    before = (project / "params.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(before)
    mutate(raw, name)
    try:
        write_params(project, raw)
        assert changed(project) - ALWAYS == concerned(name)
    finally:
        (project / "params.yaml").write_text(before, encoding="utf-8")


@pytest.mark.parametrize("name", SOME_PARAMS)
def test_a_changed_param_runs_the_stages_it_concerns(project: Path, name: str) -> None:
    check_param(project, name)


@pytest.mark.slow
def test_so_does_every_other_param(project: Path) -> None:
    raw = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    for name in sorted(set(leaves(raw)) - ARMS - set(SOME_PARAMS)):
        check_param(project, name)


def test_a_second_repro_in_one_folder_is_refused(project: Path) -> None:
    command = [sys.executable, "-m", "dvc", "repro"]
    first = subprocess.Popen(
        [*command, "--force", "--single-item", "report"],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with first:
        for line in first.stdout:
            if line.startswith("> python -m stages.report"):
                break
        time.sleep(0.2)
        others = {
            "is busy, it is being blocked by": command,
            "error: this folder: ": [sys.executable, "-m", "stages.idle"],
        }
        done = {
            words: subprocess.run(
                other, cwd=project, env=environment(), capture_output=True, text=True, check=False
            )
            for words, other in others.items()
        }
        assert first.poll() is None, "the first run ended too soon to tell"
        first.stdout.read()
    assert first.returncode == 0
    for words, other in done.items():
        assert other.returncode != 0
        assert words in other.stderr.splitlines()[0]
        assert f"PID {first.pid}" in other.stderr
    assert len(done["error: this folder: "].stderr.splitlines()) == 1
    idle = [sys.executable, "-m", "stages.idle"]
    assert subprocess.run(idle, cwd=project, env=environment(), check=False).returncode == 0

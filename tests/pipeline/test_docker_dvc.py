"""DVC in the CPU image, run the way the README says: folders of any owner, whole pipelines, results out.

make image-test
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from docker_context import CANARY
from docker_daemon import LABEL, Docker
from docker_project import (
    GID,
    IMAGE,
    SOMEBODY,
    UID,
    VARIANT,
    edit_params,
    give_to,
    make_clone,
    make_repository,
    mounted,
    tiny_params,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),  # the first test waits for the build
    pytest.mark.skipif(VARIANT != "cpu", reason="the CUDA image runs no engine without a GPU"),
]


@pytest.mark.parametrize("with_git", [True, False])
def test_any_uid_runs_dvc_on_its_own_folder(docker: Docker, project: Path, with_git: bool) -> None:
    if with_git:
        make_repository(project)
    cache = project / "cache"
    cache.mkdir()
    give_to(cache)
    options = (*SOMEBODY, *mounted(project), "-v", f"{cache}:/cache")
    first = docker.run(IMAGE, options=options)
    assert "Running stage 'measure'" in first.stdout
    assert f"mounted, {'git' if with_git else 'no git'}, owner {UID}, run as {UID}" in first.stderr
    written = [project / "dvc.lock", project / "results/rows.txt", *(cache / "dvc").rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(UID, GID)}
    assert any(path.is_file() for path in (cache / "dvc/files").rglob("*"))
    assert "Data and pipelines are up to date" in docker.run(IMAGE, options=options).stdout
    metrics = docker.run(IMAGE, "dvc", "metrics", "show", "--json", options=options).stdout
    assert json.loads(metrics)[""]["data"]["results/metrics.json"]["data"] == {"seed": 0}
    edit_params(project, "sampling", seed=1)
    diff = docker.run(IMAGE, "dvc", "params", "diff", options=options, check=False)
    if with_git:
        assert "sampling.seed" in diff.stdout
    else:
        assert "Git" in diff.stderr


def test_results_come_out_of_a_container_that_mounted_nothing(docker: Docker, tmp_path: Path) -> None:
    """By the command that the start prints."""
    options = ("--label", LABEL, "--network", "none")
    said = docker("run", *options, IMAGE, "dvc", "repro", "environment").stderr
    (copy,) = re.findall(r"docker cp (\w{12}):/project/report \.", said)
    docker("cp", f"{copy}:/project/results/environment.json", str(tmp_path))
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == VARIANT
    docker("rm", "-v", copy)


def test_pipeline_runs_for_any_uid_from_an_empty_folder_and_only_once(docker: Docker, tmp_path: Path) -> None:
    """All of `dvc repro`, as the README has it: real vLLM, the default models, few and short answers."""
    project, cache = tmp_path / "project", tmp_path / "cache"
    for folder in (project, cache):
        folder.mkdir()
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    give_to(tmp_path)
    digest = f"sha256:{'0' * 64}"
    options = (*SOMEBODY, *mounted(project), "-v", f"{cache}:/cache")
    options += ("-e", f"HF_TOKEN={CANARY}", "-e", f"TREESPEC_IMAGE_DIGEST={digest}")
    assert "HF_TOKEN given" in docker.run(IMAGE, options=options).stderr
    assert json.loads((project / "results/environment.json").read_text())["image_digest"] == digest
    assert_measured_once(docker, project, options)
    written = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(UID, GID)}
    assert not [path for path in written if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to root")
def test_pipeline_runs_for_root_in_a_clone(docker: Docker, tmp_path: Path) -> None:
    project = make_clone(tmp_path / "project")
    options = ("--user", "0:0", *mounted(project), "-v", f"{tmp_path}/cache:/cache")
    docker.run(IMAGE, options=options)
    assert_measured_once(docker, project, options)
    edit_params(project, "sampling", max_tokens=9)
    assert "sampling.max_tokens" in docker.run(IMAGE, "dvc", "params", "diff", options=options).stdout
    show = ("dvc", "metrics", "show", "results/summary.json", "--json")
    shown = json.loads(docker.run(IMAGE, *show, options=options).stdout)
    summary = json.loads((project / "results/summary.json").read_text())
    arms = shown[""]["data"]["results/summary.json"]["data"]["arms"]
    assert arms["chain-k2-b1"]["speedup"] == summary["arms"]["chain-k2-b1"]["speedup"]


def assert_measured_once(docker: Docker, project: Path, options: tuple[str, ...]) -> None:
    """Every arm is there; a second `dvc repro`, offline, runs only what always runs and changes nothing."""
    for arm in ("baseline/b1", "chain/k2-b1", "tree/fork-b1"):
        assert json.loads((project / f"results/{arm}/metrics.json").read_text())["num_prompts"] == 2
    before = (project / "dvc.lock").read_bytes()
    again = docker.run(IMAGE, options=(*options, "--network", "none", "-e", "HF_HUB_OFFLINE=1"))
    assert "hub offline" in again.stderr
    assert set(re.findall(r"Running stage '(.+)'", again.stdout)) == {"environment", "fetch_models"}
    assert (project / "dvc.lock").read_bytes() == before

"""Projects to mount into a container: one with a single cheap stage, and short params for the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pipeline_project
import yaml
from docker_daemon import ROOT

VARIANT = os.environ.get("TEST_VARIANT", "cpu")
IMAGE = f"treespec-test:{VARIANT}"
REVISION = "of-the-tests"
# Somebody who is in no passwd file; who is not root can only give files to themselves.
UID, GID = (4242, 4343) if os.geteuid() == 0 else (os.getuid(), os.getgid())

SOMEBODY = ("--user", f"{UID}:{GID}")

LOCAL_MODELS = {"target": "path:local/target", "draft": "path:local/draft"}

DVC_YAML = """
stages:
  measure:
    cmd: python measure.py
    deps: [measure.py]
    params: [sampling.seed]
    outs: [results/rows.txt]
    metrics:
      - results/metrics.json: {cache: false}
"""

MEASURE = """
import json, pathlib, yaml
seed = yaml.safe_load(open("params.yaml"))["sampling"]["seed"]
pathlib.Path("results").mkdir(exist_ok=True)
pathlib.Path("results/rows.txt").write_text("row")
pathlib.Path("results/metrics.json").write_text(json.dumps({"seed": seed}))
"""


def tiny_params() -> dict:
    """The real params.yaml, its models too, with few and short answers."""
    real = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = pipeline_project.tiny_params(Path("nowhere"))
    params["dataset"]["sources"] = ["synthetic"]
    params["models"] = real["models"]
    params["engine"] |= {"device": "cpu", "max_num_seqs": [1], "max_model_len": 512, "kv_cache_gib": 0.25}
    params["sampling"]["temperature"] = [0.0]
    params["measure"]["interleaved"] = False
    params["peers"]["transformers"] = False
    return params


def make_clone(folder: Path) -> Path:
    """All of the pipeline in git, with an experiment on small random models, owned by root."""
    project = pipeline_project.make_project(folder, Path("nowhere"))
    pipeline_project.write_params(project, tiny_params() | {"models": LOCAL_MODELS})
    pipeline_project.commit(project, "tiny experiment")
    return project


def make_project(folder: Path) -> Path:
    """A DVC project of one cheap stage, with the real params.yaml, owned by somebody."""
    for name in ("params.yaml", "trees"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "measure.py").write_text(MEASURE)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("")
    give_to(folder)
    return folder


def give_to(folder: Path, uid: int = UID, gid: int = GID) -> None:
    """Make the folder and all in it another user's, who can also reach it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid)
    for parent in (folder, *folder.parents):  # pytest's own folders are for the owner alone
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)


def make_repository(project: Path) -> None:
    """Commit all of it as root, whose .git is then dubious to the caller."""
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    subprocess.run([*git, "-c", "init.defaultBranch=main", "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "start"], check=True)


def mounted(project: Path, mode: str = "rw") -> tuple[str, ...]:
    return ("-v", f"{project}:/project:{mode}")


def edit_params(project: Path, block: str, **values: object) -> None:
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[block].update(values)
    path.write_text(yaml.safe_dump(params))

"""A copy of the project in a folder of its own, with an experiment small enough to be run for real.

The models are random Llamas of two layers; everything else is the project's own: its stages, its dvc.yaml,
the real GSM8K, real vLLM on CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# What a clone holds that the pipeline needs; of the draft that ships, only that it is there.
COPIED = (".dvc/.gitignore", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore", "dvc.yaml")
COPIED += ("models/draft/README.md", "stages", "treespec", "trees")
MAX_TOKENS = 8
TREE = {"fork": [[0], [1], [0, 0]]}
ANOTHER = {"flat": [[0], [1]]}  # that no arm names yet


def make_project(folder: Path, gsm8k: Path) -> Path:
    """The project in `folder`, its params set to the tiny experiment, committed to a new git repository."""
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy)
    make_models(folder / "local")
    write_params(folder, tiny_params(gsm8k))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "somebody")
    git(folder, "config", "user.email", "somebody@example.org")
    commit(folder, "tiny experiment")
    return folder


def tiny_params(gsm8k: Path) -> dict:
    """params.yaml with everything made small: float32, so that outputs can be compared token by token."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["dataset"] |= {"sources": [f"path:{gsm8k}"], "num_prompts": 2}
    params["models"] = {"target": "path:local/target", "draft": "path:local/draft"}
    params["engine"] |= {"dtype": "float32", "max_num_seqs": [2], "max_model_len": 1024}
    params["engine"] |= {"kv_cache_gib": 1.0, "enforce_eager": True}
    params["sampling"] |= {"max_tokens": MAX_TOKENS, "temperature": [0.0, 1.0]}
    params["calibration"] = {"num_prompts": 4, "rounds": 1, "max_step_tokens": 8, "max_nodes": 4}
    params["speculation"] |= {
        "chain": {"num_speculative_tokens": [2]},
        "tree": {"names": list(TREE), "literals": TREE | ANOTHER},
    }
    params["measure"] = {"warmup_prompts": 1, "repeats": 1, "interleaved": True}
    params["peers"] = {"transformers": True}
    params["report"] |= {"bootstrap_resamples": 200}
    return params


def make_models(folder: Path) -> None:
    """A target whose greedy text wanders instead of repeating itself, and a draft: the target with noise."""
    import torch
    from safetensors.torch import load_file, save_file
    from tiny_models import make_llama

    sizes = {"head_dim": 32, "initializer_range": 0.25, "tie_word_embeddings": False}
    make_llama(folder / "target", seed=3, max_position_embeddings=1024, **sizes)
    shutil.copytree(folder / "target", folder / "draft")
    torch.manual_seed(0)
    weights = load_file(folder / "target/model.safetensors")
    noisy = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(noisy, folder / "draft/model.safetensors", metadata={"format": "pt"})


def write_params(project: Path, params: dict) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, less what other tests set for engines of their own, and without compiling."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "HF_", "DVC_", "TREESPEC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "COLUMNS": "200", "TORCHDYNAMO_DISABLE": "1", **more}


def dvc(project: Path, *arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run dvc in `project`; its output is shown if it fails."""
    return _run(project, [sys.executable, "-m", "dvc", *arguments], check, environment(**more))


def git(project: Path, *arguments: str) -> str:
    return _run(project, ["git", *arguments], True, environment()).stdout


def commit(project: Path, message: str) -> None:
    git(project, "add", "-A")
    git(project, "commit", "-qm", message)


def _run(
    folder: Path, command: list[str], check: bool, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done

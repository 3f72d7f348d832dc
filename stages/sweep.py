"""The sweep that `auto` and `grown` answer to: every k and tree of a profile in one engine, prompt by prompt.

    python -m stages.sweep
    python -m stages.sweep --profile profiles/sweep.yaml --out results/sweep

Not a stage: it runs the pipeline, as far as `interleaved`, in a throw-away clone of the last commit with the
profile for its params, so that the results of the experiment here stay as they are. Writes to --out

    sweep.csv             a row a mode: shape, time per token, tokens a step, speedup, with intervals
    evidence.json         grown trees against others of as many nodes; auto against the best of the sweep
    time_per_token.svg    time per token against k and against nodes
    params.yaml, environment.json, provenance.json
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from stages.common.errors import UserError, run_cli
from stages.common.files import atomic_folder, read_json, write_json
from stages.common.params import Params, load_params
from stages.reporting.sweep import BATCH, Sweep
from stages.reporting.sweep_chart import draw_sweep

KEPT = ("data/local", "models")  # what git ignores and a clone would have to fetch again
REMOVED = ("results", "report", "dvc.lock")  # another experiment's
REPLACED = (*REMOVED, "params.yaml", "profiles")  # of no matter to the clone


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m stages.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument(
        "--profile", type=Path, default=Path("profiles/sweep.yaml"), help="default: %(default)s"
    )
    flags.add_argument("--out", type=Path, default=Path("results/sweep"), help="default: %(default)s")
    arguments = flags.parse_args()
    params = load_params(arguments.profile)
    check(params)
    commit = committed()
    with tempfile.TemporaryDirectory(prefix="treespec-sweep-") as name:
        clone = Path(name) / "clone"
        copy_project(clone, arguments.profile)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "dvc", "repro", "interleaved"], cwd=clone, check=False)
        if done.returncode:
            raise UserError("dvc repro interleaved", done.returncode, "exit status 0; its own lines say why")
        provenance = {
            "commit": commit,
            "profile": str(arguments.profile),
            "wall_time_s": round(time.perf_counter() - started, 1),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write(arguments.out, params, clone, provenance)


def check(params: Params) -> None:
    """UserError where a profile could not be swept."""
    if not params.measure.interleaved:
        raise UserError("measure.interleaved", False, "true: a sweep measures all modes in one engine")
    if params.engine.max_num_seqs != (BATCH,):
        raise UserError("engine.max_num_seqs", list(params.engine.max_num_seqs), f"[{BATCH}] in a sweep")
    if params.sampling.temperature != (0.0,):
        raise UserError("sampling.temperature", list(params.sampling.temperature), "0 in a sweep")


def committed() -> str:
    """The last commit. UserError where files differ from it, since they would not be swept."""
    others = [f":!{name}" for name in REPLACED]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    if changed:
        raise UserError("git", changed.split()[-1], "everything committed: the sweep clones the last commit")
    return git("rev-parse", "HEAD")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}", done.stderr.strip(), "a git clone of the project")
    return done.stdout.strip()


def copy_project(clone: Path, profile: Path) -> None:
    """The last commit with `profile` for params.yaml, no results, and what is fetched already."""
    git("clone", "-q", "--no-hardlinks", ".", str(clone))
    for name in REMOVED:
        path = clone / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copyfile(profile, clone / "params.yaml")
    for folder in KEPT:
        for source in Path(folder).glob("*"):
            copy = clone / folder / source.name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(source.resolve())


def write(out: Path, params: Params, clone: Path, provenance: dict) -> None:
    sweep = Sweep.read(params, clone / "results")
    environment = read_json(clone / "results/environment.json")
    table, evidence = sweep.table(), sweep.evidence()
    context = (
        f"{environment['device_name']}, {environment['cpu_count']} cores, {len(sweep.ms)} prompts, batch 1"
    )
    with atomic_folder(out) as folder:
        table.to_csv(folder / "sweep.csv", index=False, lineterminator="\n")
        write_json(folder / "evidence.json", evidence)
        (folder / "time_per_token.svg").write_text(draw_sweep(table, context), encoding="utf-8")
        write_json(folder / "provenance.json", provenance)
        shutil.copyfile(clone / "params.yaml", folder / "params.yaml")
        shutil.copyfile(clone / "results/environment.json", folder / "environment.json")
    print(table[["mode", "nodes", "time_per_token_ms", "tokens_per_step", "speedup"]].to_string(index=False))
    for one in evidence["acceptance_at_equal_node_count"]:
        print(f"{one['grown']} / {one['against']}: {one['ratio']:.3f} tokens a step")
    for one in evidence["auto_against_the_best"]:
        print(f"{one['chosen_by']} is {one['slower_percent']:+.1f}% slower than {one['best']}")
    print(f"written: {out}, after {provenance['wall_time_s'] / 60:.1f} minutes")


if __name__ == "__main__":
    run_cli(main)

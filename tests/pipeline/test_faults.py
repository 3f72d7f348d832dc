"""A run that is hurt goes on where it stopped, to the same results, and leaves nothing else behind.

    make fault-test        # every stage at random moments, minutes; the default tests take the quick

Each fault is a test of its own; how many were injected is printed at the end.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from faults import Harm, own_shared_memory
from pipeline_project import dvc, environment

from stages.common.files import read_json

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

SEED = 8
KINDS = ("kill the stage", "terminate the stage", "interrupt", "kill dvc")
ENGINE_KINDS = ("kill the stage", "kill the engine core", "kill a worker", "starve a worker", "interrupt")
# Each stage's module, what it writes, and about how many seconds it takes, of which a moment is a part.
STAGES = {
    "environment": ("environment", "results/environment.json", 4),
    "fetch_gsm8k": ("fetch_gsm8k", "data/gsm8k", 1.5),
    "fetch_models": ("fetch_models", "results/models.json", 2),
    "calibrate": ("calibrate", "results/calibration", 18),
    "grow_chain@2-2": ("grow_tree", "results/trees/k2-b2.json", 1.5),
    "grow_tree@fork-2": ("grow_tree", "results/trees/fork-b2.json", 1.5),
    "baseline@2": ("baseline", "results/baseline/b2", 14),
    "chain@2-2": ("draft_model", "results/chain/k2-b2", 16),
    "tree@fork-2": ("draft_model", "results/tree/fork-b2", 16),
    "baseline_again@2": ("baseline_again", "results/baseline_again/b2", 12),
    "interleaved@2": ("interleaved", "results/interleaved/b2", 16),
    "peer_transformers": ("peer_transformers", "results/peer_transformers", 10),
    "report": ("report", "results/summary.json", 5),
}
injected: list[str] = []


def drawn() -> Iterator[tuple[str, str, float]]:
    """Every kind of fault in every stage, each at a moment drawn by the seed."""
    draw = random.Random(SEED)
    for stage in STAGES:
        for kind in KINDS:
            yield stage, kind, draw.uniform(0.05, 0.95)


@pytest.fixture(scope="module", autouse=True)
def figure() -> Iterator[None]:
    yield
    print(f"\n{len(injected)} faults injected")


@pytest.fixture(scope="module")
def copied(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished experiment, to be hurt; what it said is beside it."""
    folder = tmp_path_factory.mktemp("hurt") / "project"
    shutil.copytree(finished_project, folder, symlinks=True)
    for name in ("results", "data", "report"):
        shutil.copytree(folder / name, folder.parent / "before" / name)
    shutil.copyfile(folder / "dvc.lock", folder.parent / "before/dvc.lock")
    return folder


@pytest.fixture
def project(copied: Path) -> Path:
    """As it was, whatever an earlier test has done to it."""
    for name in ("results", "data", "report"):
        shutil.rmtree(copied / name, ignore_errors=True)
        shutil.copytree(copied.parent / "before" / name, copied / name)
    return copied


@pytest.fixture(scope="module")
def holder() -> Iterator[int | None]:
    with own_shared_memory() as pid:
        yield pid


def said(place: Path) -> Any:
    """What a stage's result says, without its times."""
    if place.suffix == ".json":
        return read_json(place)
    if (place / "requests.parquet").is_file():
        columns = ["temperature", "prompt_index", "repeat", "output_token_ids"]
        names = pyarrow.parquet.read_schema(place / "requests.parquet").names
        columns += [name for name in ("mode", "top2_gap", "runner_up_ids") if name in names]
        rows = pyarrow.parquet.read_table(place / "requests.parquet", columns=columns).to_pylist()
        return sorted(rows, key=lambda row: [str(row[name]) for name in columns])
    if (place / "ranks.json").is_file():
        return read_json(place / "ranks.json")
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def anew(project: Path, stage: str, holder: int | None) -> Harm:
    """One stage that DVC has never seen finished: it would bring back what it knows instead of running it."""
    lock = yaml.safe_load((project.parent / "before/dvc.lock").read_text(encoding="utf-8"))
    del lock["stages"][stage]
    (project / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--no-run-cache", stage]
    return Harm(project, command, f"stages.{STAGES[stage][0]}", project.parent / "tmp", holder)


def hurt(project: Path, stage: str, kind: str, part: float, holder: int | None) -> Harm:
    """Run one stage anew and strike; earlier, if it was over before."""
    seconds = STAGES[stage][2]
    while True:
        harm = anew(project, stage, holder)
        with harm.running():
            if harm.wait_for(harm.stage):
                harm.wait(part * seconds)
            struck = harm.strike(kind)
        if struck:
            injected.append(f"{kind}, {stage}, {part:.2f}")
            return harm
        part /= 2


def check_recovery(project: Path, stage: str, harm: Harm) -> None:
    """Nothing is left of the hurt run, and the next one gives what an undisturbed one gave."""
    _, place, _ = STAGES[stage]
    assert harm.leftovers() == []
    dvc(project, "repro", "--single-item", "--no-run-cache", stage, **harm.settings)
    assert said(project / place) == said(project.parent / "before" / place)
    assert harm.temporary_files() == []
    assert not (project / "results/.journal").exists()
    assert list(project.rglob("failed.json")) == []


@pytest.mark.parametrize(
    ("stage", "journal", "pieces"),
    [
        pytest.param("peer_transformers", "peer_transformers", 2, marks=pytest.mark.slow),
        pytest.param("baseline@2", "baseline-b2", 3, marks=pytest.mark.slow),
        pytest.param("chain@2-2", "chain-k2-b2", 3, marks=pytest.mark.slow),
        pytest.param("interleaved@2", "interleaved-b2", 1, marks=pytest.mark.slow),
    ],
)
def test_what_dvc_is_killed_with_goes_on_after_what_it_finished(
    project: Path, holder: int | None, stage: str, journal: str, pieces: int
) -> None:
    """Struck as soon as one piece is on the disk; once more if the rest was done faster than that."""
    path = project / f"results/.journal/{journal}.jsonl"
    for _ in range(6):
        harm = anew(project, stage, holder)
        with harm.running():
            while harm.process.poll() is None and not (
                path.is_file() and path.read_bytes().count(b"\n") >= 3  # marks, probe, a piece
            ):
                harm.wait(0.002)
            harm.strike("kill dvc")
        if path.is_file():  # a stage that ends takes its journal along
            break
    assert path.is_file(), harm.output
    injected.append(f"kill dvc, {stage}")
    check_recovery(project, stage, harm)
    resumed = read_json(project / STAGES[stage][1] / "metrics.json")["resumed"]
    assert resumed["pieces"] == pieces
    assert 1 <= resumed["from_journal"] <= pieces


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [4096, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 40960))])
def test_a_full_disk_is_one_line_and_no_half_a_file(project: Path, full_disk: Path, room: int) -> None:
    """results/models.json and a model's files, written where there is room for so many bytes."""
    taken = full_disk / "taken"
    taken.write_bytes(b"\0" * (shutil.disk_usage(full_disk).free - room))
    models = ["--models", str(full_disk / "models"), "--draft-model", "prune:0"]
    command = [sys.executable, "-m", "stages.fetch_models", *models, "--out", str(full_disk / "models.json")]
    done = subprocess.run(
        command, cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    injected.append(f"full disk, fetch_models, {room}")
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    left = {path.name for path in full_disk.rglob("*")}
    assert left <= {"taken", "models"}
    taken.unlink()
    again = subprocess.run(
        ["mount", "-o", "remount,size=8m", str(full_disk)], capture_output=True, check=True
    )
    assert again.returncode == 0
    subprocess.run(command, cwd=project, env=environment(), check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind", "part"), list(drawn()))
def test_every_stage_at_any_moment(
    project: Path, holder: int | None, stage: str, kind: str, part: float
) -> None:
    check_recovery(project, stage, hurt(project, stage, kind, part, holder))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Short enough for sockets below it: where they are, what is left of them is looked for."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


def of_two_workers(results: Path) -> list[str]:
    """On the command line, since params say one; its core and its workers are processes of their own."""
    flags = ["--max-num-seqs", "2", "--tensor-parallel-size", "2", "--results", str(results)]
    return [sys.executable, "-m", "stages.baseline", *flags]


def tokens(place: Path) -> list[list[int]]:
    """All that two workers say the same every time: the sums of their parts round differently."""
    return [row["output_token_ids"] for row in said(place)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINE_KINDS)
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_an_engine_of_two_workers(
    project: Path,
    holder: int | None,
    kind: str,
    part: float,
    tmp_path: Path,
    short_folder: Path,
) -> None:
    command = of_two_workers(tmp_path / "results")
    harm = Harm(project, command, "stages.baseline", short_folder / "tmp", holder)
    struck, seconds = False, part * 8  # that workers live
    while not struck:
        with harm.running():
            assert harm.wait_for("VllmWorker", "VLLM::Worker"), harm.output
            harm.wait(seconds)
            struck = harm.strike(kind)
        seconds /= 2
    injected.append(f"{kind}, two workers")
    assert harm.leftovers() == []
    subprocess.run(command, cwd=project, env=environment(**harm.settings), check=True, capture_output=True)
    assert tokens(tmp_path / "results/baseline/b2") == tokens(project / "results/baseline/b2")
    assert harm.temporary_files() == []
    assert os.listdir(tmp_path / "results") == ["baseline"]

"""Whatever is wrong with the input, it is one line and exit status 2 before any engine starts.

Every row runs the real command in a project that is right but for one thing. vLLM cannot be imported there,
so that a command that would start an engine ends in a traceback instead.
"""

from __future__ import annotations

import copy
import importlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from bad_data import BAD_DATA
from bad_models import BAD_MODELS
from bad_params import BAD_PARAMS
from bad_worlds import BAD_WORLDS, unmount_below
from mistake import Mistake
from pipeline_project import ROOT, environment, make_models, tiny_params
from stand_in_hub import running_hub

from stages.common.errors import run_cli

MISTAKES = BAD_PARAMS | BAD_DATA | BAD_MODELS | BAD_WORLDS
# What is also run as a user runs it, beside all rows that need an environment of their own.
IN_A_PROCESS = (
    *("file: a key twice", "number: NaN", "flag: no such flag", "tree: torn", "questions: not UTF-8"),
    *("model: pickled", "disk: no space left"),
)
ONLY_THERE = ("file: no such day",)  # a library that engines import takes dates out of PyYAML's loaders
WITHOUT_QUESTIONS = ("environment", "fetch_models", "fetch_gsm8k", "report", "grow_tree")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, questions and models, in which no stage has run."""
    from tiny_models import make_llama

    from stages.fetch_gsm8k import fetch

    folder = tmp_path_factory.mktemp("right")
    fetch(["synthetic"], folder / "gsm8k")
    make_models(folder / "local")
    make_llama(folder / "local/swapped", swap=True, max_position_embeddings=1024)
    make_llama(folder / "local/larger", vocab_size=192, max_position_embeddings=1024)
    make_llama(folder / "local/narrow", vocab_size=64, max_position_embeddings=1024)
    return folder


@pytest.fixture(scope="module")
def hub(right: Path) -> Iterator[str]:
    with running_hub(right / "local/target") as address:
        yield address


@pytest.fixture
def project(right: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it to spoil."""
    handler = signal.getsignal(signal.SIGTERM)  # a stage sets its own
    yield Path(shutil.copytree(right, tmp_path / "project"))
    signal.signal(signal.SIGTERM, handler)
    unmount_below(tmp_path)


def make(mistake: Mistake, project: Path) -> dict[str, tuple[int, int]]:
    """Make the mistake; what is there then."""
    params = copy.deepcopy(tiny_params(project / "gsm8k"))
    for name, value in mistake.params.items():
        *blocks, key = name.split(".")
        section = params
        for block in blocks:
            section = section[block]
        section[key] = value
    text = yaml.safe_dump(params, sort_keys=False)
    text = mistake.text(text) if mistake.text else text
    (project / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    if mistake.spoil:
        mistake.spoil(project)
    return contents(project)


def contents(project: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and size; of what Python and the hub's client keep for themselves nothing."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in project.rglob("*")
        if not path.is_dir() and not {"__pycache__", "hf"} & {*path.parts}
    }


def command(mistake: Mistake) -> list[str]:
    stage, *flags = mistake.command
    return [stage, *(() if stage in WITHOUT_QUESTIONS else ("--gsm8k", "gsm8k")), *flags]


def check(mistake: Mistake, project: Path, status: int, output: str, errors: str) -> None:
    line = f"error: {mistake.line}".replace("{project}", str(project))
    assert re.match(".*".join(map(re.escape, line.split("..."))), errors), errors
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors[:-1].isprintable()
    assert len(errors) < 2000
    assert re.search(r"; expected |: expected |; see --help$", errors)


def test_the_table_is_long_enough() -> None:
    assert len(MISTAKES) >= 60
    print(f"{len(MISTAKES)} mistakes")


@pytest.mark.parametrize(
    "name", [name for name in MISTAKES if MISTAKES[name].environment is None and name not in ONLY_THERE]
)
def test_a_mistake_is_one_line_and_leaves_nothing(project, monkeypatch, capfd, name: str) -> None:
    mistake = MISTAKES[name]
    before = make(mistake, project)
    stage, *flags = command(mistake)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", [stage, *flags])
    main = importlib.import_module(f"stages.{stage}").main
    if mistake.pretend:
        mistake.pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "vllm", None)  # to import it is an error now
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    check(mistake, project, ended.value.code, *capfd.readouterr())
    assert contents(project) == before


@pytest.mark.parametrize(
    "name", [*IN_A_PROCESS, *ONLY_THERE, *(name for name in MISTAKES if MISTAKES[name].environment)]
)
def test_a_mistake_on_a_real_command_line(project, hub, tmp_path, name: str) -> None:
    mistake = MISTAKES[name]
    before = make(mistake, project)
    vllm = tmp_path / "refusing/vllm/__init__.py"
    vllm.parent.mkdir(parents=True)
    vllm.write_text("raise AssertionError('an engine would start')\n")
    own = {key: value.format(project=project, hub=hub) for key, value in (mistake.environment or {}).items()}
    paths = [own.pop("PYTHONPATH", ""), str(tmp_path / "refusing"), str(ROOT)]
    stage, *flags = command(mistake)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *flags],
        env=environment(**own, PYTHONPATH=":".join(filter(None, paths))),
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    check(mistake, project, done.returncode, done.stdout, done.stderr)
    assert contents(project) == before

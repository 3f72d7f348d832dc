"""What tests of the pipeline share: the image that the container tests run, and one finished experiment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pipeline_project
import pytest
from docker_context import make_context
from docker_daemon import Docker, NoEngine, docker_engine
from docker_project import IMAGE, REVISION, VARIANT, make_project
from network_guard import guard

RECORDER = Path(__file__).with_name("reads_recorder.py")
NO_ENGINE = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for all the tests that wanted the image and could not have it."""
    if reason := config.stash.get(NO_ENGINE, None):
        terminalreporter.write_line(f"SKIPPED: the image was neither built nor run: {reason}", yellow=True)


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Docker]:
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(docker_engine())
        except NoEngine as reason:
            pytestconfig.stash[NO_ENGINE] = str(reason)
            pytest.skip(str(reason))
        stack.callback(engine, "rmi", "-f", IMAGE, check=False)
        context = make_context(tmp_path_factory.mktemp("context"))
        arguments = {"VARIANT": VARIANT, "REVISION": REVISION}
        options = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        engine.build(IMAGE, context, *options)
        yield engine


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small DVC project with the real params.yaml, owned by somebody who is not in the image's passwd."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file a stage of `finished_project`: the project's files that the stage read."""
    return tmp_path_factory.mktemp("reads")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory, gsm8k_folder: Path, reads: Path) -> Path:
    """The tiny experiment, reproduced and committed. Copy it to change it, unless you are test_pipeline."""
    folder = pipeline_project.make_project(tmp_path_factory.mktemp("project"), gsm8k_folder)
    guarding, told = guard(tmp_path_factory.mktemp("network") / "guard")
    with open(guarding / "sitecustomize.py", "a", encoding="utf-8") as stream:
        stream.write(RECORDER.read_text(encoding="utf-8"))
    more = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(guarding), "RECORD": str(reads)}
    pipeline_project.dvc(folder, "repro", **more)
    assert not told.exists(), told.read_text()  # no stage, engine or DVC itself spoke to another machine
    pipeline_project.commit(folder, "run")
    return folder

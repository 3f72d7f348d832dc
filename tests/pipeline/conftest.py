"""The image that the container tests run, built once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from docker_context import make_context
from docker_daemon import Docker, NoEngine, docker_engine
from docker_project import IMAGE, REVISION, VARIANT, make_project

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

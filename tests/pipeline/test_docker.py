"""The image, built from the project's own Dockerfile and run the way the README says.

    pytest tests/pipeline/test_docker.py -m slow      # builds 10 GB: 3 to 6 minutes on two cores

The CPU variant is built; `TEST_VARIANT=cuda` builds the other and runs what needs no GPU. Skips, with the
reason, where there is no Docker engine and none can be stood up (see docker_daemon.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from docker_daemon import ROOT, Docker, NoEngine, docker_engine
from docker_project import GID, UID, edit_params, give_to, make_project, make_repository, tiny_params

VARIANT = os.environ.get("TEST_VARIANT", "cpu")
TORCH = {"cpu": "2.10.0", "cuda": "2.9.1"}[VARIANT]
IMAGE = f"treespec-test:{VARIANT}"
SOMEBODY = ("--user", f"{UID}:{GID}")

slow = pytest.mark.slow
runs_here = pytest.mark.skipif(VARIANT != "cpu", reason="the CUDA image runs no engine without a GPU")
pytestmark = pytest.mark.timeout(3000)  # the first test of the module waits for the build


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(docker_engine())
        except NoEngine as reason:
            pytest.skip(str(reason))
        engine.build(IMAGE, "--build-arg", f"VARIANT={VARIANT}")
        stack.callback(engine, "rmi", "-f", IMAGE, check=False)
        yield engine


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small DVC project with the real params.yaml, owned by somebody who is not in the image's passwd."""
    return make_project(tmp_path)


def mounted(project: Path, mode: str = "rw") -> tuple[str, ...]:
    return ("-v", f"{project}:/project:{mode}")


def test_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), str(ROOT / "docker/Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@slow
def test_preflight_says_three_lines_and_leaves_stdout_to_the_command(docker: Docker) -> None:
    done = docker.run(IMAGE, "dvc", "--version")
    assert done.stdout.strip() == "3.67.1"
    machine, versions, folder = done.stderr.splitlines()
    assert machine.startswith("preflight: no GPU")
    assert "/dev/shm 64 MiB" in machine
    assert f"{VARIANT} image: vllm 0.15.0" in versions
    assert f"torch {TORCH}" in versions
    assert "plugin treespec 0.1.0" in versions
    assert "/project inside the container, no git" in folder


@slow
def test_vllm_and_plugin_work_for_any_uid_without_a_network(docker: Docker) -> None:
    pins = ("vllm==0.15.0", f"torch=={TORCH}", "treespec==0.1.0")
    verify = ("--network", "none", *SOMEBODY, IMAGE, "python", "/opt/treespec/docker/verify.py")
    done = docker("run", "--rm", *verify, *pins)
    assert "plugin 0.15.0" in done.stdout
    wrong = docker("run", "--rm", *verify, "vllm==0.15.1", check=False)
    assert wrong.returncode == 1
    assert "vllm 0.15.0 where 0.15.1 was to be" in wrong.stderr


@slow
def test_labels_name_the_versions_and_the_package_lists_are_inside(docker: Docker) -> None:
    labels = json.loads(docker("inspect", "-f", "{{json .Config.Labels}}", IMAGE).stdout)
    assert labels["treespec.vllm.version"] == "0.15.0"
    assert labels["treespec.torch.version"] == TORCH
    assert labels["org.opencontainers.image.base.name"] == docker.base_image
    packages = docker.run(IMAGE, "cat", "/opt/packages/python.txt", "/opt/packages/debian.txt").stdout
    assert f"torch=={TORCH}" in packages
    assert "libc6" in packages


@slow
def test_layers_hold_no_weights_data_history_or_secrets(docker: Docker) -> None:
    done = docker.run(IMAGE, "bash", "-c", "ls -A /opt/treespec /opt/treespec/.dvc; ls -A /cache/* $HOME")
    assert not {".git", "data", "results", "tests", ".venv", "config.local"} & set(done.stdout.split())
    find = r"find / -xdev -size +2M \( -name '*.gguf' -o -name '*.safetensors' -o -name '*.parquet' \)"
    outside = ("--workdir", "/opt")  # so that the start fills no project folder
    found = docker.run(IMAGE, "bash", "-c", f"{find} 2>/dev/null || true", options=outside).stdout.split()
    # The default draft is part of the source.
    assert found == ["/opt/treespec/models/draft/model.safetensors"]


@slow
@pytest.mark.parametrize(
    ("command", "status"),
    [(["python", "-c", "raise SystemExit(7)"], 7), (["nonesuch"], 127), (["/opt/treespec"], 126)],
)
def test_exit_status_is_the_commands(docker: Docker, command: list[str], status: int) -> None:
    assert docker.run(IMAGE, *command, check=False).returncode == status


@slow
def test_signals_reach_the_command_and_its_children(docker: Docker) -> None:
    """`docker stop` ends a run at once and by its own handler, rather than after ten seconds by force."""
    script = "trap 'echo parent; wait; exit 3' TERM; (trap 'echo child; exit' TERM; {0}) & {0}"
    script = script.format("echo ready; while :; do sleep 0.1; done")
    name = f"treespec-{uuid.uuid4().hex[:8]}"
    docker("run", "-d", "--name", name, "--network", "none", IMAGE, "bash", "-c", script)
    while docker("logs", name).stdout.count("ready") < 2:
        assert docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"
    docker("stop", "-t", "30", name)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "3"
    assert {"parent", "child"} <= set(docker("logs", name).stdout.split())
    docker("rm", name)


@slow
@runs_here
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


@slow
def test_empty_folder_is_filled_and_own_params_are_kept(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    give_to(tmp_path)
    docker.run(IMAGE, "true", options=(*SOMEBODY, *mounted(tmp_path)))
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    assert (tmp_path / "stages/common/params.py").stat().st_uid == UID
    assert (tmp_path / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


@slow
@runs_here
@pytest.mark.parametrize("uid", [UID, 0])
def test_pipeline_runs_from_an_empty_folder_and_only_once(docker: Docker, tmp_path: Path, uid: int) -> None:
    """All of `dvc repro`: real vLLM, a real small model, few and short answers."""
    if uid == 0 and os.geteuid():
        pytest.skip("only root can give a folder to root")
    project, cache = tmp_path / "project", tmp_path / "cache"
    for folder in (project, cache):
        folder.mkdir()
    (project / "params.yaml").write_text(tiny_params())
    give_to(tmp_path, uid, uid)
    options = ("--user", f"{uid}:{uid}", *mounted(project), "-v", f"{cache}:/cache")
    digest = f"sha256:{'0' * 64}"
    options += ("-e", f"TREESPEC_IMAGE_DIGEST={digest}")
    docker.run(IMAGE, options=options)
    assert json.loads((project / "results/environment.json").read_text())["image_digest"] == digest
    for arm in ("baseline/b1", "chain/k2-b1", "tree/fork-b1"):
        assert json.loads((project / f"results/{arm}/metrics.json").read_text())["num_prompts"] == 2
    assert {path.stat().st_uid for path in project.rglob("*")} == {uid}
    again = docker.run(IMAGE, options=options).stdout
    for stage in ("baseline@1", "chain@2-1", "tree@fork-1"):
        assert f"Stage '{stage}' didn't change, skipping" in again
    make_repository(project)
    edit_params(project, "sampling", max_tokens=9)
    assert "sampling.max_tokens" in docker.run(IMAGE, "dvc", "params", "diff", options=options).stdout
    metrics = docker.run(IMAGE, "dvc", "metrics", "show", "results/summary.json", options=options).stdout
    assert "results/summary.json" in metrics


def one_line(docker: Docker, *options: str, command: tuple[str, ...] = ()) -> str:
    """The one line with which a run is refused before it starts."""
    done = docker.run(IMAGE, *command, options=options, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("preflight: ")]
    return line


@slow
def test_forgotten_gpus_are_named(docker: Docker, project: Path) -> None:
    edit_params(project, "engine", device="cuda")
    options = (*SOMEBODY, *mounted(project), "-e", "TREESPEC_VARIANT=cuda")
    expected = "error: GPU: 'none in this container'; expected docker run --gpus all, for engine.device: cuda"
    assert one_line(docker, *options) == expected
    assert one_line(docker, *options, command=("python", "-m", "stages.baseline")) == expected
    assert docker.run(IMAGE, "dvc", "status", options=options).returncode == 0


@slow
def test_experiment_inside_the_image_is_for_the_device_of_the_image(docker: Docker, project: Path) -> None:
    read = "from stages.common.params import load_params; print(load_params().engine.device)"
    assert docker.run(IMAGE, "python", "-c", read).stdout.strip() == VARIANT
    other = {"cpu": "cuda", "cuda": "cpu"}[VARIANT]
    edit_params(project, "engine", device=other)
    expected = f"error: engine.device: '{other}'; expected {VARIANT} in the {VARIANT} image"
    assert one_line(docker, *SOMEBODY, *mounted(project)) == expected


@slow
@runs_here
def test_small_shared_memory_is_named(docker: Docker, project: Path) -> None:
    edit_params(project, "engine", tensor_parallel_size=2)
    options = (*SOMEBODY, *mounted(project))
    assert one_line(docker, *options).startswith("error: /dev/shm: '64 MiB'; expected 640 MiB for 2 workers")
    assert docker.run(IMAGE, "dvc", "repro", options=(*options, "--shm-size=1g")).returncode == 0


@slow
def test_broken_params_and_unusable_mounts_give_one_line(docker: Docker, project: Path) -> None:
    read_only = one_line(docker, *SOMEBODY, *mounted(project, "ro"))
    assert read_only.startswith(f"error: /project: 'not writable by uid {UID}'")
    not_the_owner = one_line(docker, *mounted(project))
    assert not_the_owner.startswith("error: /project: 'not writable by uid 10001'")
    assert not_the_owner.endswith(f"--user {UID}:{GID}")
    edit_params(project, "engine", max_num_seqs=["many"])
    assert "engine.max_num_seqs" in one_line(docker, *SOMEBODY, *mounted(project))
    (project / "dvc.yaml").unlink()
    assert "no dvc.yaml" in one_line(docker, *SOMEBODY, *mounted(project))

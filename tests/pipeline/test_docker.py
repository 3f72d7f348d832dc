"""The image: what is in it, and what its entrypoint says, refuses and becomes.

    make image-test         # with test_docker_dvc.py; builds 10 GB
    make image-test-cuda    # builds the CUDA variant and runs what needs no GPU

Skips, with the reason, where there is no Docker engine and none can be stood up (see docker_daemon.py).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from docker_context import CANARY, for_the_image
from docker_daemon import LABEL, ROOT, Docker
from docker_project import GID, IMAGE, REVISION, SOMEBODY, UID, VARIANT, edit_params, give_to, mounted

TORCH = {"cpu": "2.10.0", "cuda": "2.9.1"}[VARIANT]

slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(3000)  # the first test waits for the build


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
    verify, options = ("python", "/opt/treespec/docker/verify.py"), ("--network", "none", *SOMEBODY)
    assert "plugin 0.15.0" in docker.run(IMAGE, *verify, *pins, options=options).stdout
    wrong = docker.run(IMAGE, *verify, "vllm==0.15.1", options=options, check=False)
    assert wrong.returncode == 1
    assert "vllm 0.15.0 where 0.15.1 was to be" in wrong.stderr


@slow
def test_labels_name_the_versions_and_the_base(docker: Docker) -> None:
    labels = json.loads(docker("inspect", "-f", "{{json .Config.Labels}}", IMAGE).stdout)
    assert labels["treespec.variant"] == VARIANT
    assert labels["treespec.vllm.version"] == "0.15.0"
    assert labels["treespec.torch.version"] == TORCH
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.base.name"] == docker.base_image


@slow
def test_the_package_lists_inside_are_the_lock(docker: Docker) -> None:
    listed = docker.run(IMAGE, "cat", "/opt/packages/python.txt").stdout.splitlines()
    lock = re.findall(r"^([^ =]+==[^ ;]+)", (ROOT / f"requirements/{VARIANT}.lock").read_text(), re.MULTILINE)
    assert f"torch=={TORCH}" in listed
    assert {line.split(" @ ")[0] for line in set(listed) - set(lock)} == {"pip", "treespec"}
    assert "libc6" in docker.run(IMAGE, "cat", "/opt/packages/debian.txt").stdout


@slow
def test_layers_hold_the_project_and_nothing_private(docker: Docker) -> None:
    outside = ("--workdir", "/opt")  # so that the start fills no project folder
    found = docker.run(IMAGE, "find", "/opt/treespec", "-type", "f", options=outside).stdout.split()
    assert {name.removeprefix("/opt/treespec/") for name in found} == for_the_image()
    assert (
        docker.run(IMAGE, "find", "/cache", "/home", "/project", "-type", "f", options=outside).stdout == ""
    )
    # Models and data are large; what vLLM's and torch's own packages hold is no model of ours.
    large = r"find / -xdev -size +2M \( -name '*.gguf' -o -name '*.safetensors' -o -name '*.parquet' \)"
    found = docker.run(IMAGE, "sh", "-c", f"{large} 2>/dev/null || true", options=outside).stdout.split()
    assert found == [
        "/opt/treespec/models/draft/model.safetensors"
    ]  # the default draft is part of the source
    # The canary stood in every place from which the build could have taken it (docker_project.PRIVATE).
    search = (
        f"grep -rlsF {CANARY} /opt/treespec /opt/venv/lib/python3*/site-packages/[st]* /etc /home /root /tmp"
    )
    found = docker.run(IMAGE, "sh", "-c", f"{search} || true", options=(*outside, "--user", "0")).stdout
    assert found == ""
    assert CANARY not in docker("history", "--no-trunc", IMAGE).stdout


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
    docker("run", "-d", "--label", LABEL, "--name", name, "--network", "none", IMAGE, "bash", "-c", script)
    while docker("logs", name).stdout.count("ready") < 2:
        assert docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"
    docker("stop", "-t", "30", name)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "3"
    assert {"parent", "child"} <= set(docker("logs", name).stdout.split())
    docker("rm", "-v", name)


@slow
def test_empty_folder_is_filled_and_own_params_are_kept(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    give_to(tmp_path)
    docker.run(IMAGE, "true", options=(*SOMEBODY, *mounted(tmp_path)))
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    assert (tmp_path / "stages/common/params.py").stat().st_uid == UID
    assert (tmp_path / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


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
@pytest.mark.skipif(VARIANT != "cpu", reason="engine.device: cpu is for the CPU image")
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

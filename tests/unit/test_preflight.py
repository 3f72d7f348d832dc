"""What the image's entrypoint decides before it becomes the command; the image itself: tests/pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.errors import UserError
from stages.common.params import Params, load_params

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docker"))  # as in the image, where the entrypoint is run as a script

import entrypoint  # noqa: E402
import verify  # noqa: E402
from gpus import Gpus, driver_of, find_gpus  # noqa: E402

MIB = 1 << 20
H200 = Gpus(("NVIDIA H200 140 GiB",) * 2, (12, 8), "570.86.15")
PLENTY = 64 << 30


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(ROOT)
    return load_params()


def with_engine(params: Params, **values: object) -> Params:
    return params.model_copy(update={"engine": params.engine.model_copy(update=values)})


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["dvc", "repro"], True),
        (["dvc", "repro", "-f", "report"], True),
        (["dvc", "exp", "run"], True),
        (["python", "-m", "stages.baseline", "--num-prompts", "4"], True),
        (["python", "-m", "stages.baseline", "--help"], False),
        (["python", "-m", "pip"], False),
        (["python"], False),
        (["dvc", "exp", "show"], False),
        (["dvc", "metrics", "show"], False),
        (["bash"], False),
    ],
)
def test_only_commands_that_measure_are_checked(command: list[str], expected: bool) -> None:
    assert entrypoint.starts_engine(command) is expected


def test_default_params_need_no_gpu(default: Params) -> None:
    entrypoint.check_machine(default, Gpus(failure="no libcuda.so.1"), "cpu", 64 * MIB)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (Gpus(driver="570.86.15", failure="no libcuda.so.1"), "docker run --gpus all"),
        (Gpus((), (12, 8), "570.86.15", "CUDA_ERROR_NO_DEVICE, 100"), "docker run --gpus all"),
        (Gpus((), (11, 4), "470.57.02", "CUDA_ERROR_X, 35"), "'470.57.02'; expected 525.60.13 or newer"),
        (Gpus(("A100",), (11, 4)), "'one for CUDA 11.4'; expected 525.60.13 or newer"),
        (
            Gpus((), (12, 9), "580.65", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803"),
            "803'; expected a libcuda.so.1",
        ),
    ],
)
def test_cuda_profile_without_a_fit_gpu_is_refused(default: Params, gpus: Gpus, message: str) -> None:
    with pytest.raises(UserError, match=message):
        entrypoint.check_machine(with_engine(default, device="cuda"), gpus, "cuda", PLENTY)


def test_cuda_profile_wants_the_cuda_image_and_enough_gpus(default: Params) -> None:
    params = with_engine(default, device="cuda", tensor_parallel_size=4)
    entrypoint.check_machine(with_engine(params, tensor_parallel_size=2), H200, "cuda", PLENTY)
    with pytest.raises(UserError, match="2; expected 4: tensor_parallel_size"):
        entrypoint.check_machine(params, H200, "cuda", PLENTY)
    with pytest.raises(UserError, match=r"engine\.device: 'cuda'; expected cpu in the cpu image"):
        entrypoint.check_machine(params, H200, "cpu", PLENTY)
    on_a_cluster = with_engine(params, distributed_executor_backend="ray")
    entrypoint.check_machine(on_a_cluster, H200, "cuda", PLENTY)


def test_shared_memory_is_for_several_workers(default: Params) -> None:
    assert entrypoint.shm_needed(1) == 0
    with pytest.raises(UserError, match="'64 MiB'; expected 640 MiB for 2 workers: --ipc=host"):
        entrypoint.check_machine(with_engine(default, tensor_parallel_size=2), Gpus(), "cpu", 64 * MIB)


def test_params_are_those_that_the_command_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    other = tmp_path / "other.yaml"
    other.write_text(Path("params.yaml").read_text().replace("num_prompts: 8", "num_prompts: 3"))
    command = ["python", "-m", "stages.baseline"]
    assert entrypoint.params_of(command).dataset.num_prompts == 8
    assert entrypoint.params_of([*command, "--params", str(other)]).dataset.num_prompts == 3
    assert entrypoint.params_of([*command, "--tensor-parallel-size", "2"]).engine.tensor_parallel_size == 2
    with pytest.raises(UserError, match="nowhere"):
        entrypoint.params_of([*command, "--params", "nowhere.yaml"])


def test_empty_folder_is_filled_and_others_are_left_alone(tmp_path: Path) -> None:
    source, empty, foreign = tmp_path / "source", tmp_path / "empty", tmp_path / "foreign"
    (source / "stages").mkdir(parents=True)
    (source / "stages/one.py").write_text("1")
    (source / "params.yaml").write_text("default")
    for folder in (empty, foreign):
        folder.mkdir()
        (folder / "params.yaml").write_text("mine")
    (foreign / "notes.txt").write_text("")
    assert entrypoint.fill(empty, source)
    assert (empty / "stages/one.py").read_text() == "1"
    assert (empty / "params.yaml").read_text() == "mine"
    assert not entrypoint.fill(foreign, source)
    assert not (foreign / "stages").exists()


def test_folder_without_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        entrypoint.check_folders(tmp_path)


def test_container_is_known_by_its_mounts() -> None:
    path = f"/var/lib/docker/containers/{'0123456789ab' + 'c' * 52}/hostname"
    mount = f"812 799 254:0 {path} /etc/hostname rw - ext4 /dev/vda rw"
    assert entrypoint.container_of(mount) == "0123456789ab"
    assert entrypoint.container_of("") == "CONTAINER"


def test_gpus_are_named_once_with_their_number() -> None:
    assert str(H200) == "2 GPU (NVIDIA H200 140 GiB), driver 570.86.15 (CUDA 12.8)"
    assert str(Gpus(failure="no libcuda.so.1")) == "no GPU (no libcuda.so.1), driver none"
    found = find_gpus()
    assert bool(found.names) != bool(found.failure)


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)", "580.159.04"),
        ("NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021", "470.57.02"),
        ("something else", None),
    ],
)
def test_driver_is_read_from_either_kernel_module(text: str, driver: str | None) -> None:
    assert driver_of(f"NVRM version: {text}\nGCC version:  gcc version 15.3.0 (GCC)\n") == driver


def test_versions_are_compared_without_their_local_part() -> None:
    wanted = {"torch": "2.9.1", "vllm": "0.15.0"}
    assert verify.differences(wanted, {"torch": "2.9.1+cu128", "vllm": "0.15.0"}) == []
    wrong = verify.differences(wanted, {"torch": "2.9.1", "vllm": "0.15.1"})
    assert wrong == ["vllm 0.15.1 where 0.15.0 was to be"]


def test_command_replaces_the_entrypoint(tmp_path: Path) -> None:
    """The real script: three lines on stderr, then the command's own output and exit status."""
    script = "import os, sys; print(os.environ['DVC_GLOBAL_CONFIG_DIR'], os.getpid()); sys.exit(7)"
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "docker/entrypoint.py"), sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 7
    assert stdout.split() == ["/opt/treespec/docker/without_git", str(started.pid)]
    assert [line[:10] for line in stderr.splitlines()] == ["preflight:"] * 3
    assert "HF_TOKEN given" in stderr
    assert "secret" not in stderr

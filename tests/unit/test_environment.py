"""The machine's identity stays the same between runs and holds nothing that moves; the probe is quick."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.environment import describe_machine
from stages.common.errors import UserError
from stages.common.files import read_json, write_json
from stages.common.probe import measure_probe

ROOT = Path(__file__).resolve().parents[2]


def test_another_process_writes_the_same_bytes(tmp_path):
    flags = ["--out", str(tmp_path / "environment.json"), "--probe", str(tmp_path / "probe.json")]
    command = [sys.executable, "-m", "stages.environment", "--device", "cpu", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    write_json(tmp_path / "here.json", describe_machine("cpu"))
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "environment.json").read_bytes()
    probe = read_json(tmp_path / "probe.json")
    assert list(probe) == ["memory_bandwidth_gb_per_s", "matmul_tflop_per_s", "when"]


def test_the_identity_names_what_changes_a_timing():
    identity = describe_machine("cpu", {})
    assert list(identity) == [
        "device",
        "device_name",
        "device_count",
        "driver",
        "cpu_model",
        "cpu_count",
        "memory_gib",
        "versions",
        "image_digest",
        "platform",
    ]
    assert identity["device"] == "cpu"
    assert 1 <= identity["cpu_count"] <= (os.cpu_count() or 1)
    assert identity["memory_gib"] >= 1
    assert identity["versions"]["torch"]
    assert identity["versions"]["vllm"].startswith("0.15.0")
    assert identity["image_digest"] is None
    assert describe_machine("cpu", {"TREESPEC_IMAGE_DIGEST": "sha256:1"})["image_digest"] == "sha256:1"


def test_a_gpu_that_is_not_there_is_a_users_mistake():
    import torch

    if torch.cuda.is_available():
        assert describe_machine("cuda", {})["driver"]
    else:
        with pytest.raises(UserError, match=r"engine\.device: 'cuda'; expected cpu"):
            describe_machine("cuda", {})


def test_the_probe_is_quick_and_plausible():
    started = time.monotonic()
    probe = measure_probe("cpu", seconds=0.1)
    assert time.monotonic() - started < 15
    assert 0.5 < probe["memory_bandwidth_gb_per_s"] < 5000
    assert set(probe["matmul_tflop_per_s"]) == {"bfloat16", "float32"}
    assert all(0 < rate < 100 for rate in probe["matmul_tflop_per_s"].values())

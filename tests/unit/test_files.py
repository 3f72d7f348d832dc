"""Whatever goes wrong while writing, users find the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os

import pytest

from stages.common.errors import UserError, run_cli
from stages.common.files import atomic_folder, atomic_path, read_json, sha256_of, write_json, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"old": True})

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_json(path) == {"old": True}
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.json"]


def test_a_failed_folder_keeps_the_old_one(tmp_path):
    folder = tmp_path / "models/tiny"
    with atomic_folder(folder) as temporary:
        (temporary / "config.json").write_text("old")

    def broken():
        with atomic_folder(folder) as temporary:
            (temporary / "config.json").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        broken()
    assert (folder / "config.json").read_text() == "old"
    assert [one.name for one in folder.parent.iterdir()] == ["tiny"]


def test_a_finished_folder_replaces_the_old_one_wholly(tmp_path):
    folder = tmp_path / "tiny"
    for name in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / name).touch()
    assert [one.name for one in folder.iterdir()] == ["second"]


def test_json_is_strict(tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"speedup": float("nan")})
    assert not path.exists()
    write_json(path, {"text": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é"}


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "x")
        with atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_sha256_is_the_files_own(tmp_path):
    write_text(tmp_path / "empty", "")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_a_users_mistake_is_one_line_on_stderr(capsys):
    def main():
        raise UserError("engine.dtype", "in\nt8", "bfloat16")

    with pytest.raises(SystemExit) as exit_info:
        run_cli(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: engine.dtype: 'in\\nt8'; expected bfloat16\n"

"""Stage fetch_gsm8k: the GSM8K test split from the first of `dataset.sources` that answers.

    python -m stages.fetch_gsm8k
    python -m stages.fetch_gsm8k --source path:/data/gsm8k --source synthetic

Sources: path:DIR (DIR/main/test-00000-of-00001.parquet), hf:OWNER/NAME@REVISION (HF_ENDPOINT and HF_TOKEN are
respected), url:URL of JSON lines, and synthetic: questions of our own, loudly named, because nothing measured
on them is a GSM8K result. A folder that is missing or a network that fails moves on to the next source; a
folder that holds something else is an error.

Writes data/gsm8k/main/test-00000-of-00001.parquet and data/gsm8k/source.json
{"source", "reference", "rows", "sha256" of the parquet, "fingerprint" of its texts}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.common.download import DownloadError, Limits, download, is_offline
from stages.common.errors import Parser, UserError, run_cli
from stages.common.files import atomic_folder, sha256_of, write_json
from stages.common.gsm8k import (
    OFFICIAL_FINGERPRINT,
    PARQUET_FILE,
    SOURCE_FILE,
    Row,
    check_rows,
    fingerprint,
    read_parquet,
)
from stages.common.params import PARAMS_FILE, load_params, override

DATA_FOLDER = Path("data/gsm8k")
SYNTHETIC = "synthetic, not GSM8K"


class Unavailable(Exception):
    """A source that cannot be had here, and why in one line; the next one is tried."""


def fetch(
    sources: Sequence[str],
    out: Path = DATA_FOLDER,
    limits: Limits | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str | int]:
    """Write the folder `out` from the first source that can be had; returns what source.json holds.

    Raises UserError for a local folder with wrong contents and when no source is left.
    """
    reasons = []
    for source in sources:
        try:
            with atomic_folder(out) as folder:
                return _write(source, folder, limits or Limits(), environment)
        except Unavailable as error:
            reasons.append(f"{source}: {error}")
            print(reasons[-1], file=sys.stderr)
    raise UserError("dataset.sources", "; ".join(reasons), "at least one source that can be had")


def _write(source: str, folder: Path, limits: Limits, environment: Mapping[str, str]) -> dict[str, str | int]:
    kind, _, rest = source.partition(":")
    parquet = folder / PARQUET_FILE
    parquet.parent.mkdir()
    try:
        rows = _READERS[kind](rest, parquet, limits, environment)
        check_rows(rows, source)
        _check_fingerprint(rows, source)
    except (DownloadError, UserError) as error:
        if kind == "path":
            raise
        raise Unavailable(str(error)) from error
    record = {
        "source": SYNTHETIC if kind == "synthetic" else kind,
        "reference": source,
        "rows": len(rows),
        "sha256": sha256_of(parquet),
        "fingerprint": fingerprint(rows),
    }
    write_json(folder / SOURCE_FILE, record)
    return record


def _check_fingerprint(rows: Sequence[Row], source: str) -> None:
    if source != "synthetic" and (found := fingerprint(rows)) != OFFICIAL_FINGERPRINT:
        expected = f"{OFFICIAL_FINGERPRINT[:12]}..., the texts of the official test split"
        raise UserError(f"{source}: fingerprint", f"{found[:12]}...", expected)


def _from_folder(name: str, parquet: Path, limits: Limits, environment: Mapping[str, str]) -> list[Row]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise Unavailable("no such folder")
    if not (folder / PARQUET_FILE).is_file():
        raise UserError("dataset.sources", f"path:{folder}", f"a folder that holds {PARQUET_FILE}")
    rows = read_parquet(folder / PARQUET_FILE)
    shutil.copyfile(folder / PARQUET_FILE, parquet)
    return rows


def _from_hub(rest: str, parquet: Path, limits: Limits, environment: Mapping[str, str]) -> list[Row]:
    _refuse_offline(environment)
    name, _, revision = rest.partition("@")
    endpoint = (environment.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = environment.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{endpoint}/datasets/{name}/resolve/{revision}/{PARQUET_FILE.as_posix()}"
    try:
        download(url, parquet, limits, headers)
    except DownloadError as error:
        hint = "; HF_TOKEN is not set" if error.status in (401, 403) and not token else ""
        raise Unavailable(f"{error}{hint}") from error
    return read_parquet(parquet)


def _refuse_offline(environment: Mapping[str, str]) -> None:
    if is_offline(environment):
        raise Unavailable("HF_HUB_OFFLINE is set")


def _from_url(url: str, parquet: Path, limits: Limits, environment: Mapping[str, str]) -> list[Row]:
    _refuse_offline(environment)
    lines = parquet.with_name("lines.jsonl")
    download(url, lines, limits)
    rows = _read_json_lines(lines)
    lines.unlink()
    _write_parquet(rows, parquet)
    return rows


def _synthetic(_: str, parquet: Path, limits: Limits, environment: Mapping[str, str]) -> list[Row]:
    from stages.common.synthetic import synthetic_rows

    rows = synthetic_rows()
    _write_parquet(rows, parquet)
    return rows


_READERS = {"path": _from_folder, "hf": _from_hub, "url": _from_url, "synthetic": _synthetic}


def _read_json_lines(path: Path) -> list[Row]:
    rows = []
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                entry = json.loads(line)
                row = Row(entry["question"], entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                expected = f"a JSON object with question and answer ({error})"
                raise UserError(f"line {number}", line[:40].strip(), expected) from error
            rows.append(row)
    return rows


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    check_rows(rows, path.name)  # before pyarrow meets a value that is no text
    columns = {name: [getattr(row, name) for row in rows] for name in Row._fields}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def main() -> None:
    parser = Parser(
        prog="python -m stages.fetch_gsm8k",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    parser.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="instead of dataset.sources; once for each source",
    )
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    params = override(load_params(arguments.params), {"dataset.sources": arguments.source})
    record = fetch(params.dataset.sources, arguments.out)
    if record["source"] == SYNTHETIC:
        print("WARNING: GSM8K could not be had. The questions are SYNTHETIC, NOT GSM8K.", file=sys.stderr)
    print(f"{record['rows']} questions from {record['reference']} ({record['source']}) in {arguments.out}")


if __name__ == "__main__":
    run_cli(main)

"""Compare every arm with its baseline and say what to do, in a page, a table and a JSON file.

    python -m stages.report                          # results/ by params.yaml -> report/
    python -m stages.report --compare main           # results/summary.json against a git revision's

Reads results/<arm>/<key>/ for every arm that params lists, results/baseline_again where it is, interleaved,
peer_transformers and calibration as far as params ask for them, environment.json and models.json. Writes
results/summary.json, results/plots/*.csv, report/index.html (one self-contained page), report/report.md,
report/main.svg and, where an arm is recommended, the params file that adopts it, profiles/recommended.yaml.
A missing or partial arm is an error and nothing is written; an arm that failed (failed.json) is named in the
report, which is still written, and the exit status is 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from stages.common.errors import Parser, UserError, run_cli
from stages.common.files import write_json
from stages.common.params import PARAMS_FILE, Params, load_params
from stages.reporting.analysis import analyse
from stages.reporting.compare import compare
from stages.reporting.facts import context_of
from stages.reporting.figures import draw
from stages.reporting.load import load_run
from stages.reporting.page import write_pages
from stages.reporting.prediction import predict_arms
from stages.reporting.recommended import write_recommended
from stages.reporting.summary import summarise
from stages.reporting.tables import tables, write_tables
from stages.reporting.terminal import print_summary
from stages.reporting.verdict import judge


def build(params: Params, results: Path, report: Path, recommended: Path, console: Console) -> None:
    """Write the whole report. Raises UserError: a partial folder before, a failed arm after writing."""
    run = load_run(params, results)
    predictions = predict_arms(params, results, [arm.name for arm in run.arms.values()])
    analysis = analyse(run, results, predictions)
    verdict = judge(analysis)
    frames = tables(analysis)
    context = context_of(analysis)
    write_pages(report, analysis, verdict, draw(frames, context))
    write_tables(results / "plots", frames)
    write_json(results / "summary.json", summarise(analysis, verdict))
    print_summary(console, analysis, verdict, context)
    written = [report / "index.html", report / "report.md", results / "summary.json"]
    if write_recommended(params, verdict.best.name if verdict.best else None, recommended):
        written.append(recommended)
    console.print(f"written: {', '.join(map(str, written))}", style="dim", soft_wrap=True)
    if run.failed:
        raise UserError("failed arms", ", ".join(run.failed), "every arm to finish; the report names them")


def main() -> None:
    parser = Parser(
        prog="python -m stages.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--params", type=Path, default=PARAMS_FILE, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="what the stages wrote; default: %(default)s",
    )
    parser.add_argument(
        "--report", type=Path, default=Path("report"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--recommended",
        type=Path,
        default=Path("profiles/recommended.yaml"),
        metavar="FILE",
        help="params that adopt the winner; default: %(default)s",
    )
    parser.add_argument(
        "--compare",
        metavar="REV",
        help="print how results/summary.json differs from this git revision's, and stop",
    )
    arguments = parser.parse_args()
    console = Console()
    if arguments.compare:
        compare(console, arguments.results, arguments.compare)
    else:
        params = load_params(arguments.params)
        build(params, arguments.results, arguments.report, arguments.recommended, console)


if __name__ == "__main__":
    run_cli(main)

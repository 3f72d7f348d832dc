"""The page a person decides from: whole, self-contained, safe, and honest on edge data."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from report_factory import render
from results_factory import Flip, Scenario, write_results
from rich.console import Console

from stages.common.errors import UserError, run_cli
from stages.common.params import load_params
from stages.report import build, main
from stages.reporting.analysis import analyse
from stages.reporting.decode import token_decoder
from stages.reporting.evidence import divergences
from stages.reporting.load import load_run
from stages.reporting.panels import bounded
from stages.reporting.tables import tables

EVIL = "<script>alert(1)</script> | `x` [y](javascript:z) [/x] \"quoted\" & 'single'"


class Page(HTMLParser):
    """Tags, references to other files and visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._hidden = tag in ("script", "style")
        self.references += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value
        ]

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """Hostile names, a changed output and a failed arm at once."""
    folder = tmp_path_factory.mktemp("bad")
    scenario = Scenario(
        batches=(1,),
        device_name=EVIL,
        text=EVIL,
        target=f"path:{EVIL}",
        source="synthetic",
        diverge={"chain-k1-b1": Flip(2, gap=2.0)},
        failed={"tree-small-b1": EVIL},
    )
    with pytest.raises(UserError, match="tree-small-b1"):
        render(folder, scenario)
    return folder


def test_the_page_refers_to_nothing_outside_itself(good):
    html = (good / "report/index.html").read_text()
    page = Page(html)
    assert [link for link in page.references if not link.startswith("#")] == []
    assert "url(http" not in html
    assert not {"link", "img", "iframe"} & set(page.tags)


def test_the_first_words_answer_the_question(good):
    first = Page((good / "report/index.html").read_text()).text[:1400]
    summary = json.loads((good / "results/summary.json").read_text())
    assert f"{summary['best']['speedup']:.2f}× as fast" in first
    assert summary["recommendation"] in first
    for question in ("Is it faster here?", "Is the output unchanged?", "Up to which batch?", "Why?"):
        assert question in first


def test_every_figure_has_a_text_and_says_device_batch_and_n(good):
    html = (good / "report/index.html").read_text()
    labels = re.findall(r'<div class="(?:wide|narrow)" role="img" aria-label="([^"]+)"', html)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(labels) == 14
    assert len(captions) == 7
    for text in labels + captions:
        assert "Synthetic CPU, bfloat16, batch 1, 4, n = 6 prompts × 3 repeats" in text


def test_ids_of_the_pictures_do_not_collide(good):
    ids = re.findall(r'\bid="([^"]+)"', (good / "report/index.html").read_text())
    assert len(ids) == len(set(ids))


def test_dark_and_light_phone_and_print_are_styled(good):
    html = (good / "report/index.html").read_text()
    for query in ("prefers-color-scheme: dark", "max-width: 620px", "@media print", 'name="viewport"'):
        assert query in html


def test_no_nan_reaches_a_reader(good, bad):
    for folder in (good, bad):
        for path in [
            *folder.glob("report/*"),
            *folder.glob("results/plots/*"),
            folder / "results/summary.json",
        ]:
            assert not re.search(r"\b(nan|NaN|None|undefined|inf)\b", _without_script(path.read_text())), path


def _without_script(text: str) -> str:
    return re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)


def test_the_picture_for_the_readme_is_an_image_of_its_own(good):
    root = ElementTree.fromstring((good / "report/main.svg").read_text())
    assert root.tag.endswith("svg")
    assert float(root.get("width")) > 300


def test_the_tidy_tables_feed_the_plots(good):
    found = {path.stem: pd.read_csv(path) for path in (good / "results/plots").glob("*.csv")}
    assert set(found) == {"speedup", "acceptance", "time_per_token", "step_cost"}
    for table in found.values():
        assert {"name", "arm", "setting", "max_num_seqs"} <= set(table)
        assert len(table)
    assert found["acceptance"]["acceptance_rate"].between(0, 1).all()
    totals = found["step_cost"].groupby("name")["ms_per_token"].sum()
    measured = found["time_per_token"].set_index("name")["time_per_token_ms"]
    assert totals.to_dict() == pytest.approx(measured.to_dict(), rel=1e-4)


def test_the_terminal_shows_the_table_and_the_recommendation(good):
    shown = (good / "terminal.txt").read_text()
    assert "near-ties (3 of 18)" in shown
    hot = shown[shown.index("temperature 1") :]
    assert shown.index("greedy") < shown.index("temperature 1")
    assert len(re.findall(r"^chain k=3 ", hot, re.MULTILINE)) == 2
    assert "1.50× (1.50 to 1.50) over its own plain generation" in shown
    summary = json.loads((good / "results/summary.json").read_text())
    assert summary["recommendation"] in " ".join(shown.split())


def test_markdown_tables_are_whole(good):
    lines = (good / "report/report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 30
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert _bars(above) == _bars(below)


def _bars(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_changed_output_and_a_failed_arm_are_the_first_things_seen(bad):
    first = Page((bad / "report/index.html").read_text()).text[:700]
    assert "NOT LOSSLESS: the output has changed" in first
    assert "FAILED: tree-small-b1" in first
    assert "Synthetic questions, not GSM8K" in first
    assert "> **NOT LOSSLESS" in (bad / "report/report.md").read_text()
    assert "NOT LOSSLESS" in (bad / "report/main.svg").read_text()


def test_hostile_text_stays_text(bad):
    html = (bad / "report/index.html").read_text()
    assert "<script>alert" not in html
    assert Page(html).tags.count("script") == 1
    assert "alert(1)" in Page(html).text
    markdown = re.sub(r"`[^`\n]*`", "", (bad / "report/report.md").read_text())  # code is shown as it is
    assert "<script" not in markdown
    assert "[y](" not in markdown
    ElementTree.fromstring((bad / "report/main.svg").read_text())


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(batches=(1,), ks=(1,), trees={}, prompts=1, repeats=1, tokens=1, drafts=False),
        Scenario(
            batches=(1,),
            ks=(1,),
            prompts=1,
            repeats=1,
            tokens=1,
            temperatures=(0.0, 1.0),
            interleaved_speedup=1.0,
            peer=True,
        ),
        Scenario(batches=(2,), ks=(2,), trees={}, prompts=2, acceptance=0.0, temperatures=(0.7,)),
    ],
    ids=["one of everything, no draft", "one of everything, measured every way", "nothing accepted, sampled"],
)
def test_edge_data_still_makes_a_page(tmp_path, scenario):
    render(tmp_path, scenario)
    html = _without_script((tmp_path / "report/index.html").read_text())
    drawn = "Share of drafted tokens accepted" in html
    assert drawn is scenario.drafts
    assert ("Nothing was drafted" in html) is not scenario.drafts
    assert not re.search(r"\b(nan|NaN|None|undefined|Infinity)\b", html)
    assert "One batch size was measured" in html
    json.loads((tmp_path / "results/summary.json").read_text())


def test_an_interval_wider_than_any_axis_leaves_the_bars_readable(tmp_path):
    scenario = Scenario(batches=(1,), ks=(3,), trees={}, controls=(5.0,), again=None)
    render(tmp_path, scenario)
    analysis = analyse(load_run(load_params(tmp_path / "params.yaml"), tmp_path / "results"), tmp_path)
    (arm,) = analysis.compared
    assert arm.speedup.high > 100
    shown = bounded(tables(analysis)["speedup"])
    assert shown["end"].max() < 3 * arm.speedup.value
    assert f"{arm.speedup.high:.2f}" in (tmp_path / "report/main.svg").read_text()


def test_a_partial_folder_writes_nothing(tmp_path):
    params = load_params(write_results(tmp_path, Scenario()))
    shutil.rmtree(tmp_path / "results/chain/k1-b1")
    with pytest.raises(UserError, match="k1-b1"):
        build(
            params,
            tmp_path / "results",
            tmp_path / "report",
            tmp_path / "recommended.yaml",
            Console(file=io.StringIO()),
        )
    assert not (tmp_path / "report").exists()
    assert not (tmp_path / "results/summary.json").exists()


def test_the_command_ends_with_one_line_and_a_status(tmp_path, monkeypatch, capsys):
    params = write_results(tmp_path, Scenario())
    (tmp_path / "results/models.json").unlink()
    paths = [
        "--params",
        str(params),
        "--results",
        str(tmp_path / "results"),
        "--report",
        str(tmp_path / "report"),
    ]
    monkeypatch.setattr(sys, "argv", ["report", *paths])
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "models.json" in line


def test_a_failed_arm_is_named_at_the_command_s_end_too(tmp_path, monkeypatch, capsys):
    params = write_results(tmp_path, Scenario(failed={"chain-k3-b1": "killed by the kernel"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["report", "--params", str(params), "--recommended", str(tmp_path / "best.yaml")]
    )
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "FAILED chain-k3-b1: killed by the kernel" in " ".join(captured.out.split())
    (line,) = captured.err.splitlines()
    assert line.startswith("error: failed arms: 'chain-k3-b1'")
    assert "FAILED: chain-k3-b1" in (tmp_path / "report/index.html").read_text()


def test_every_way_of_measuring_is_on_the_page(good):
    text = Page((good / "report/index.html").read_text()).text
    for words in (
        "At each temperature",
        "p = 0.",
        "Measured a second way",
        "HF assisted peer",
        "stock baseline's",
    ):
        assert words in text
    markdown = (good / "report/report.md").read_text()
    for words in ("## At each temperature", "Measured a second way", "HF assisted"):
        assert words in markdown


def test_a_peer_s_ratio_stands_in_no_column_of_speedups_over_vllm(good):
    html = (good / "report/index.html").read_text()
    speed = html[html.index('id="speed"') : html.index("Beside another program")]
    rows = re.findall(r'<tr class="peer">(.*?)</tr>', speed, flags=re.DOTALL)
    assert len(rows) == 2
    assert not any("×" in row for row in rows)
    assert all(" over its own plain generation" in line for line in _peer_ratios(good))


def _peer_ratios(folder: Path) -> list[str]:
    shown = (folder / "terminal.txt").read_text().splitlines()
    return [line for line in shown if line.startswith("transformers") and "×" in line]


def test_repeats_that_part_alike_share_a_row_and_tokens_are_read(good):
    analysis = analyse(load_run(load_params(good / "params.yaml"), good / "results"), good / "results")
    (row,) = divergences(analysis, {}.get).rows
    assert row.cells[3].text == "0, 1, 2"
    baseline, arm = row.cells[5].text, row.cells[6].text
    (read,) = divergences(analysis, {int(baseline): " the"}.get).rows
    assert (read.cells[5].text, read.cells[5].small, read.cells[6].text) == ("“ the”", baseline, arm)


def test_without_a_tokenizer_ids_are_shown(tmp_path):
    assert token_decoder(None)(5) is None
    assert token_decoder(str(tmp_path))(5) is None

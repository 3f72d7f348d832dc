"""A run that dies goes on after what it finished, and never after somebody else's work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from test_params import ROOT, changed

from stages.common import measured
from stages.common.counters import Counters
from stages.common.errors import UserError
from stages.common.fingerprint import code_digest, marks_of
from stages.common.gsm8k import Row
from stages.common.inputs import Inputs
from stages.common.journal import Journal, journal_of
from stages.common.params import parse_params
from stages.common.passes import Pass

MARKS = {"params": "1", "code": "2"}


def run(results, keys, marks=MARKS, die_at=None, why_not=None):
    """What each key gave and which were made now; `die_at` is made but never returns."""
    made = []

    def make(key):
        if key == die_at:
            raise KeyboardInterrupt
        made.append(key)
        return {"key": key, "ms": 0.1 + len(key), "ids": [1, 2]}

    try:
        with journal_of(results, "arm", marks, why_not) as journal:
            found = [journal.once(key, lambda key=key: make(key)) for key in keys]
            return found, made, journal.resumed
    except KeyboardInterrupt:
        return None, made, None


def test_what_was_finished_is_read_back_and_the_rest_made(tmp_path):
    undisturbed, _, resumed = run(tmp_path, "abcd")
    assert resumed is None
    assert run(tmp_path, "abcd", die_at="c") == (None, ["a", "b"], None)
    found, made, resumed = run(tmp_path, "abcd")
    assert (found, made, resumed) == (undisturbed, ["c", "d"], {"pieces": 4, "from_journal": 2})
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_anywhere_costs_that_line_only(tmp_path, capsys):
    run(tmp_path, "abc", die_at="c")
    path = tmp_path / ".journal/arm.jsonl"
    whole = path.read_bytes()
    second_ends, last_begins = len(whole), whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last_begins, second_ends):
        path.write_bytes(whole[:cut])
        assert run(tmp_path, "abc", die_at="c") == (None, ["b"], None)
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 100)  # a page that was allocated and never written
    assert run(tmp_path, "abc")[1] == ["c"]


def test_the_journal_of_another_experiment_is_ignored_in_one_line(tmp_path, capsys):
    run(tmp_path, "ab", die_at="b")
    capsys.readouterr()
    _, made, resumed = run(tmp_path, "ab", marks={"params": "1", "code": "3"})
    assert (made, resumed) == (["a", "b"], None)
    assert capsys.readouterr().err == f"{tmp_path}/.journal/arm.jsonl is ignored: it is of other code\n"


def test_no_journal_where_there_is_a_reason(tmp_path):
    run(tmp_path, "ab", die_at="b")
    assert run(tmp_path, "ab", die_at="b", why_not="prefix caching")[1] == ["a"]
    assert run(tmp_path, "ab")[1] == ["a", "b"]


def test_one_run_at_a_time(tmp_path):
    code = "import sys; from pathlib import Path; from stages.common.journal import journal_of\n"
    code += f"with journal_of(Path({str(tmp_path)!r}), 'arm', {{}}): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="being measured by another process"):
            run(tmp_path, "ab")
        other.stdin.close()


class Engine:
    """A stand-in for vllm.LLM that counts a step a token, and for the plugin's statistics."""

    def __init__(self):
        self.steps = self.since_reset = 0

    def get_metrics(self):
        return [SimpleNamespace(name="vllm:iteration_tokens_total", count=self.steps)]

    def collective_rpc(self, name, args=()):
        stats = {"num_steps": self.since_reset, "total_ms": {"verify": self.since_reset / 2}}
        if args:
            self.since_reset = 0
        return [stats]


class Runner:
    """A stand-in for passes.Runner: answers of so many tokens as the prompt's number; may die."""

    def __init__(self, num_prompts: int, die_after: int | None = None):
        self.llm, self.prompts, self.die_after = Engine(), list(range(num_prompts)), die_after
        self.params = SimpleNamespace(measure=SimpleNamespace(repeats=2))

    def run(self, repeat, title, *, temperature, indices, tree):
        for index in indices:
            self.llm.steps += index
            self.llm.since_reset += index
            if self.llm.steps == self.die_after:
                raise KeyboardInterrupt
        rows = [{"prompt_index": index, "repeat": repeat, "num_output_tokens": index} for index in indices]
        return Pass(repeat, float(sum(indices)), rows)


def measure(runner: Runner, journal: Journal) -> measured.Measured:
    return measured.measure(runner, journal, "x", temperature=0.0, max_num_seqs=2, uses_plugin=True)


def deaths() -> Iterator[int]:
    """The steps after each prompt of two passes over 5."""
    steps = 0
    for index in (*range(5), *range(5)):
        steps += index
        yield steps


def test_counters_and_times_of_a_resumed_arm_are_those_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "PART_DEPTH", 1)
    undisturbed = measure(Runner(5), Journal())
    assert [len(one.requests) for one in undisturbed.passes] == [5, 5]
    assert undisturbed.counters.num_steps == 20
    assert undisturbed.stats == {"num_steps": 20, "total_ms": {"verify": 10.0}}
    for die_after in {*deaths()} - {0}:
        results = tmp_path / str(die_after)
        with pytest.raises(KeyboardInterrupt), journal_of(results, "arm", {}) as journal:
            measure(Runner(5, die_after), journal)
        with journal_of(results, "arm", {}) as journal:
            assert measure(Runner(5), journal) == undisturbed
            assert journal.resumed is None or journal.resumed["pieces"] == 6
    assert [len(part) for part in measured.parts_of(5, 2)] == [2, 2, 1]


def test_counters_of_parts_add_up():
    first, second = Counters(1, 2, 3, 4, (5, 6)), Counters(1, 0, 0, 0, ())
    assert first.plus(second) == Counters(2, 2, 3, 4, (5, 6))
    assert Counters.from_dict(json.loads(json.dumps(asdict(first)))) == first


@pytest.fixture
def marks(monkeypatch):
    """Marks of the project's params, machine and data, with changes."""
    monkeypatch.chdir(ROOT)

    def of(setting=None, value=None, engine=None, environment=None, **inputs):
        plain = Inputs({"target": {"revision": "1"}}, {"driver": "1"}, [Row("q", "a")], "synthetic")
        raw = changed(setting or "report.seed", 1 if value is None else value)
        return marks_of(parse_params(raw), replace(plain, **inputs), engine, environment or {})

    return of


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"setting": "sampling.max_tokens", "value": 9}, {"params"}),
        ({"setting": "measure.repeats", "value": 9}, {"params"}),
        ({"setting": "report.confidence", "value": 0.9}, set()),
        ({"setting": "speculation.chain.num_speculative_tokens", "value": [9]}, set()),  # another arm's
        ({"manifest": {"target": {"revision": "2"}}}, {"models"}),
        ({"environment": {"VLLM_CPU_KVCACHE_SPACE": "9", "HOME": "there"}}, {"machine"}),
        ({"rows": [Row("q", "b")]}, {"questions"}),
        ({"dataset_source": "GSM8K"}, {"questions"}),
        ({"engine": [{"speculative_token_tree": "[(0,)]"}]}, {"engine"}),
    ],
)
def test_what_changes_a_number_changes_a_mark(marks, change, differs):
    before, after = marks(), marks(**change)
    assert {name for name in before if before[name] != after[name]} == differs


def test_the_code_is_that_of_the_packages(tmp_path, monkeypatch):
    import treespec

    before = code_digest()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(treespec, "__file__", str(tmp_path / "__init__.py"))
    other = code_digest()
    (tmp_path / "more.py").write_text("")
    assert len({before, other, code_digest()}) == 3

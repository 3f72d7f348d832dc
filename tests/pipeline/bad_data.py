"""Rows of the table of bad input: trees and questions."""

from __future__ import annotations

from pathlib import Path

from mistake import BASELINE, GROW, PARQUET, TREE, Mistake, cut, write

NAMES = "speculation.tree.names"
A_TREE = "expected a token tree of 1 to 512 nodes"


def _literal(line: str, *paths) -> Mistake:
    return Mistake(
        TREE, line, {"speculation.tree": {"names": ["a"], "literals": {"a": [list(path) for path in paths]}}}
    )


def _tree_file(line: str, content: str | bytes) -> Mistake:
    return Mistake(
        (*TREE, "--tree", "bad.json"), f"{NAMES}: bad.json: ...{line}", spoil=write("bad.json", content)
    )


def _loop(project: Path) -> None:
    (project / "trees").mkdir()
    (project / "trees/a.json").symlink_to("b.json")
    (project / "trees/b.json").symlink_to("a.json")


TREES = {
    "no parent": _literal(f"{NAMES}: a: 'node [1, 0]: its parent [1] is missing'; {A_TREE}", [0], [1, 0]),
    "no elder sibling": _literal(
        f"{NAMES}: a: 'node [2]: its elder sibling of rank 1 is...'; {A_TREE}", [0], [2]
    ),
    "a node twice": _literal(f"{NAMES}: a: 'node [0] stands there twice; expected each path once'", [0], [0]),
    "the root as a node": _literal(
        f"{NAMES}: a: 'node []; expected a non-empty path of ranks from 0'", [0], []
    ),
    "a rank below 0": _literal("speculation.tree.literals.a.1.0: -1; expected at least 0", [0], [-1]),
    "a rank in words": _literal("speculation.tree.literals.a.0.0: 'left'; expected a whole number", ["left"]),
    "no nodes": Mistake(
        TREE,
        "speculation.tree.literals.a: []; expected a list that is not empty",
        {"speculation.tree": {"names": ["a"], "literals": {"a": []}}},
    ),
    "too many nodes": _literal(f"{NAMES}: a: '513 nodes; expected at most 512'", *([n] for n in range(513))),
    "too deep for the context": Mistake(
        (*TREE, "--max-tokens", "4"),
        "levels of the tree: 64; expected fewer than engine.max_model_len - 1 (63)",
        {
            "engine.max_model_len": 64,
            "speculation.tree": {"names": ["a"], "literals": {"a": [[0] * n for n in range(1, 65)]}},
        },
    ),
    "no such name": Mistake(
        (*TREE, "--tree", "oak"), f"{NAMES}: 'oak'; expected a name under literals or an"
    ),
    "names that name each other": Mistake(
        (*TREE, "--tree", "a"), f"{NAMES}: 'a'; expected a name under literals or an existing", spoil=_loop
    ),
    "a path for a name": Mistake(
        TREE, f"{NAMES}.0: '../a'; expected letters, digits", {"speculation.tree.names": ["../a"]}
    ),
    "several names": Mistake(
        TREE,
        "--tree: '(absent)'; expected one of ['a', 'b']",
        {"speculation.tree": {"names": ["a", "b"], "literals": {"a": [[0]], "b": [[0], [1]]}}},
    ),
    "grown without calibration": Mistake(
        (*TREE, "--tree", "grown_4"), "tree: 'grown_4'; expected results/trees/grown_4-b2.json: run"
    ),
    "growing without calibration": Mistake(
        (*GROW, "--tree", "grown_4"),
        "calibration: 'results/calibration/ranks.json'; expected a calibration; run",
    ),
    "grown of too many": Mistake(
        (*GROW, "--tree", "grown_9999"), f"{NAMES}: 'grown_9999'; expected grown_auto, or grown_N with N"
    ),
    "a parent that comes later": _tree_file(
        "node 1: parent 2; expected an earlier node (0..0)'", '{"parents": [-1, 2, 1]}'
    ),
    "out of order": _tree_file("node 3: parent 1; expected depth-first", '{"parents": [-1, 0, 0, 1]}'),
    "no root": _tree_file("node 0: the root must come first, with parent -1'", '{"parents": [0, 0]}'),
    "only a root": _tree_file("the tree has no drafted node", '{"parents": [-1]}'),
    "fractions": _tree_file(
        "bad.json has no tree; expected 'parents', a list of whole", '{"parents": [-1, 0.5]}'
    ),
    "no parents": _tree_file("bad.json has no tree; expected", "[[0], [1]]"),
    "torn": _tree_file("Expecting ',' delimiter", '{"parents": [-1, 0'),
    "not UTF-8": _tree_file("'utf-8' codec can't decode", b'{"parents": "\xff"}'),
    "nested beyond sense": _tree_file("maximum recursion", "[" * 100_000),
}


def _rows(line: str, **columns) -> Mistake:
    """A parquet file of these columns."""

    def spoil(project: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), project / PARQUET)

    return Mistake(BASELINE, f"{PARQUET}{line}", spoil=spoil)


def _no_rows(project: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.parquet.read_table(project / PARQUET).slice(0, 0), project / PARQUET)


def _not_utf8(project: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"\xff\xfe", b"How many?"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"question": raw, "answer": ["#### 1", "#### 2"]})
    pyarrow.parquet.write_table(table, project / PARQUET)


QUESTIONS = {
    "no folder": Mistake(
        (*BASELINE, "--gsm8k", "no"), "GSM8K folder: 'no'; expected a folder that holds main/test"
    ),
    "no file": Mistake(
        BASELINE,
        "GSM8K folder: 'gsm8k'; expected a folder that holds main/test",
        spoil=lambda project: (project / PARQUET).unlink(),
    ),
    "no column": _rows(
        ": '...answer...'; expected a whole parquet file with question and answer", question=["?"]
    ),
    "no rows": Mistake(
        BASELINE,
        f"dataset.num_prompts: 2; expected at most the 0 rows of {PARQUET}",
        spoil=_no_rows,
    ),
    "numbers": _rows(": 'int64'; expected columns of type string", question=[1, 2], answer=["#### 1"] * 2),
    "an empty question": _rows(
        ": row 1: (None, '#### 1'); expected a question", question=["?", None], answer=["#### 1"] * 2
    ),
    "no ####": _rows(
        ": row 1: 'seven'; expected an answer that ends in", question=["?"] * 2, answer=["#### 1", "seven"]
    ),
    "no number": _rows(
        ": row 0: '#### x'; expected an answer that ends", question=["?"] * 2, answer=["#### x"] * 2
    ),
    "cut short": Mistake(
        BASELINE, f"{PARQUET}: ...; expected a whole parquet file", spoil=cut(PARQUET, 1000)
    ),
    "no parquet": Mistake(
        BASELINE, f"{PARQUET}: ...; expected a whole parquet", spoil=write(PARQUET, "question,answer\n")
    ),
    "not UTF-8": Mistake(
        BASELINE, f"{PARQUET}: '...UTF8...'; expected a whole parquet file", spoil=_not_utf8
    ),
    "source torn": Mistake(
        BASELINE,
        "gsm8k/source.json: '...'; expected what stages.fetch_gsm8k writes",
        spoil=write("gsm8k/source.json", "{"),
    ),
    "source unnamed": Mistake(
        BASELINE,
        "gsm8k/source.json: source: None; expected what stages.fetch",
        spoil=write("gsm8k/source.json", "{}"),
    ),
    "too long": Mistake(
        BASELINE, "engine.max_model_len: 64; expected at least", {"engine.max_model_len": 64}
    ),
    "fetched from a wrong folder": Mistake(
        ("fetch_gsm8k", "--source", "path:local"),
        "dataset.sources: 'path:local'; expected a folder that holds main/",
    ),
}
BAD_DATA = {
    f"{kind}: {name}": mistake
    for kind, rows in {"tree": TREES, "questions": QUESTIONS}.items()
    for name, mistake in rows.items()
}

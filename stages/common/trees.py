"""Where the stage grow_tree leaves each arm's token tree, and how the arms find it.

tree_file(results, "grown_auto", 4)     # results/trees/grown_auto-b4.json
tree_file(results, "k3", 1)             # a chain's name is k<length>
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.common.errors import UserError
from stages.common.params import AUTO, Params, is_grown
from treespec.tree import TokenTree


def chain_name(length: int | str) -> str:
    return f"k{length}"


def chain_length(text: str) -> int | str:
    """A command line's K: a whole number or auto."""
    try:
        return text if text == AUTO else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number or {AUTO}") from error


def tree_file(results: Path, name: str, max_num_seqs: int) -> Path:
    return results / "trees" / f"{name}-b{max_num_seqs}.json"


def chain_of(length: int | str, max_num_seqs: int, results: Path) -> TokenTree:
    """The chain of `length`; UserError where `auto` has not been chosen yet."""
    if length != AUTO:
        return TokenTree.chain(length)
    flags = f"--num-speculative-tokens {AUTO} --max-num-seqs {max_num_seqs}"
    return _chosen("num_speculative_tokens", AUTO, tree_file(results, chain_name(AUTO), max_num_seqs), flags)


def tree_of(params: Params, name: str, max_num_seqs: int, results: Path) -> TokenTree:
    """The tree called `name`, a file among them; UserError where a grown one has not been grown yet."""
    if not is_grown(name):
        return params.tree(name)
    flags = f"--tree {name} --max-num-seqs {max_num_seqs}"
    return _chosen("tree", name, tree_file(results, name, max_num_seqs), flags)


def _chosen(field: str, name: str, file: Path, flags: str) -> TokenTree:
    if not file.is_file():
        raise UserError(field, name, f"{file}: run `python -m stages.grow_tree {flags}` first")
    try:
        return TokenTree.from_file(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(str(file), str(error), "what stages.grow_tree writes") from error

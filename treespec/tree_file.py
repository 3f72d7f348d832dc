"""Tree files: grown by one command, read by people and by `TokenTree.from_file`.

A file says what the tree is, how it was grown (method, seed, paths, the very command), from which acceptance
profile and where that came from, what it should yield, and its `parents`: the parent of every node in
depth-first pre-order, the root first. Running its `command` again writes the same file.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.common.errors import Parser, UserError
from stages.common.files import read_json, write_text
from treespec.acceptance import RankAcceptance, expected_tokens
from treespec.cost import CostModel
from treespec.growth import grow_fastest, grow_tree
from treespec.simulate import grow_by_simulation
from treespec.tree import TokenTree

METHODS = {
    "dp": "the most expected tokens, by Sequoia's dynamic programme (2402.12374)",
    "simulate": "the most visited nodes of simulated acceptance paths (Monte Carlo)",
    "fastest": "the least expected time per token under the measured costs of --cost",
}


def tree_fields(name: str, tree: TokenTree, acceptance: RankAcceptance, **more: Any) -> dict[str, Any]:
    """What a tree file holds, in reading order; `more` stands after the name."""
    return {
        "name": name,
        **more,
        "num_nodes": tree.num_nodes,
        "depth": tree.depth,
        "expected_tokens_per_step": round(expected_tokens(tree, acceptance), 4),
        "level_widths": [len(level) for level in tree.levels()],
        "acceptance": acceptance.to_dict(),
        "parents": list(tree.parents),
    }


def write_tree(path: Path, fields: dict[str, Any]) -> None:
    """Indented JSON with lists of numbers filled to lines instead of one number a line."""

    def fill(match: re.Match[str]) -> str:
        indent = match["indent"] + "  "
        lines = textwrap.fill(
            " ".join(match["numbers"].split()), 100, initial_indent=indent, subsequent_indent=indent
        )
        if "\n" in lines:
            return f"{match['indent']}{match['key']}[\n{lines}\n{match['indent']}]"
        return f"{match['indent']}{match['key']}[{lines.strip()}]"

    text = json.dumps(fields, indent=2, allow_nan=False, ensure_ascii=False)
    pattern = r'(?m)^(?P<indent> *)(?P<key>(?:"[^"]*": )?)\[\n(?P<numbers>[-+.\deE,\s]+?)\n *\]'
    write_text(path, re.sub(pattern, fill, text) + "\n")


def read_acceptance(text: str, source: str | None) -> RankAcceptance:
    """A profile from numbers ("0.8,0.4,0.2", rows by depth parted by ";") or a file of one or of a tree."""
    try:
        if re.fullmatch(r"[-+.\deE,;\s]+", text):
            rows = [row.split(",") for row in text.split(";")]
            return RankAcceptance.from_dict({"conditional": rows, "source": source or "given by hand"})
        fields = read_json(Path(text))
        fields = fields.get("acceptance", fields)
        return RankAcceptance.from_dict(fields | ({"source": source} if source else {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _user_error(
            f"--acceptance {text}", error, "probabilities, or a file that holds them"
        ) from error


def read_cost(path: str | None) -> CostModel:
    """The cost model of a JSON file, as `CostModel.to_dict` writes it."""
    if path is None:
        raise UserError("--cost", None, "a file of measured costs, since --method is fastest")
    try:
        return CostModel.from_dict(read_json(Path(path)))
    except (OSError, ValueError) as error:
        raise _user_error(f"--cost {path}", error, "a readable JSON file of measured costs") from error


def _user_error(field: str, error: Exception, expected: str) -> UserError:
    """The library says 'what; expected what': one line for the user, with `expected` where it does not."""
    problem, _, expectation = str(error).partition("; expected ")
    return UserError(field, problem, expectation or expected)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    methods = "\n".join(f"  {name:9} {meaning}" for name, meaning in METHODS.items())
    parser = Parser(
        prog="python -m treespec.growth",
        description=f"Grow a token tree and write it to a file.\n\nmethods:\n{methods}",
        epilog="example:\n  python -m treespec.growth --method simulate --nodes 31 --max-depth 12 \\\n"
        "      --acceptance 0.82,0.45,0.3 --output trees/my_tree.json\n"
        "then name it in params.yaml: speculation.tree.names: [my_tree]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", choices=METHODS, default="dp", help="default: dp")
    parser.add_argument(
        "--nodes", type=int, required=True, metavar="N", help="nodes; fastest: at most so many"
    )
    parser.add_argument("--max-depth", type=int, required=True, metavar="D", help="levels below the root")
    parser.add_argument(
        "--acceptance",
        required=True,
        metavar="P,P,...|FILE",
        help="by rank, the probability that this child is accepted, its elder siblings being rejected; "
        "rows by depth are parted by ';', the last holds for all deeper levels; or a JSON file "
        "with {source, conditional}, or a tree file, whose profile is taken",
    )
    parser.add_argument("--source", help="a sentence: where the acceptance profile comes from")
    parser.add_argument("--about", help="a sentence: what the tree is for")
    parser.add_argument("--seed", type=int, default=0, help="of simulate; default: 0")
    parser.add_argument("--num-paths", type=int, default=1_000_000, help="of simulate; default: 1000000")
    parser.add_argument("--cost", metavar="FILE", help="of fastest: measured costs as JSON")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="of fastest: sequences in a step; default: 1"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="trees/NAME.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `python -m treespec.growth`. Raises UserError before anything is written."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    acceptance = read_acceptance(args.acceptance, args.source)
    details: dict[str, Any] = {"about": args.about} if args.about else {}
    details["method"] = f"{args.method}: {METHODS[args.method]}"
    try:
        if args.method == "dp":
            tree = grow_tree(acceptance, args.nodes, args.max_depth)
        elif args.method == "simulate":
            details |= {"seed": args.seed, "num_paths": args.num_paths}
            tree = grow_by_simulation(
                acceptance, args.nodes, args.max_depth, num_paths=args.num_paths, seed=args.seed
            )
        else:
            cost = read_cost(args.cost)
            tree = grow_fastest(acceptance, cost, args.nodes, args.max_depth, args.batch_size)
            time = cost.ms_per_token(tree, expected_tokens(tree, acceptance), args.batch_size)
            details |= {"batch_size": args.batch_size, "expected_time_per_token_ms": round(time, 4)}
            details["cost"] = cost.to_dict()
    except ValueError as error:
        raise _user_error(f"--method {args.method}", error, "other arguments") from error
    details["command"] = shlex.join(["python", "-m", "treespec.growth", *arguments])
    fields = tree_fields(args.output.stem, tree, acceptance, **details)
    write_tree(args.output, fields)
    print(
        f"{args.output}: {tree.num_nodes} nodes, {tree.depth} levels, "
        f"{fields['expected_tokens_per_step']:.2f} tokens a step expected; levels {fields['level_widths']}"
    )

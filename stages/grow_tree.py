"""Stage grow_tree: the token tree of one name, written down as its arms will draft it.

    python -m stages.grow_tree --tree mc_sim_8b_12

The name is a literal of params.yaml or a file in trees/. Writes results/trees/<name>.json: name, nodes,
depth, level widths and `parents` (treespec.tree.TokenTree). The tree's arms depend on that file alone, so
editing one tree measures that tree anew and no other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.common.errors import run_cli
from stages.common.files import write_json
from stages.common.params import PARAMS_FILE, load_params


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m stages.grow_tree",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--params", type=Path, default=PARAMS_FILE, help="params file (default: %(default)s)")
    flags.add_argument(
        "--tree", required=True, metavar="NAME", help="a literal of params.yaml or a tree file"
    )
    flags.add_argument("--results", type=Path, default=Path("results"), help="where to write")
    arguments = flags.parse_args()
    tree = load_params(arguments.params).tree(arguments.tree)
    fields = {
        "name": arguments.tree,
        "nodes": tree.num_nodes,
        "depth": tree.depth,
        "level_widths": [len(level) for level in tree.levels()[1:]],
        "parents": list(tree.parents),
    }
    write_json(arguments.results / "trees" / f"{arguments.tree}.json", fields)
    print(f"{arguments.tree}: {tree.num_nodes} nodes in {tree.depth} levels, widths {fields['level_widths']}")


if __name__ == "__main__":
    run_cli(main)

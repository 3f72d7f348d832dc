"""Stage grow_tree: one arm's token tree, written down as the arm will draft it.

    python -m stages.grow_tree --tree mc_sim_8b_12 --max-num-seqs 1
    python -m stages.grow_tree --tree grown_auto --max-num-seqs 4
    python -m stages.grow_tree --num-speculative-tokens auto --max-num-seqs 1

A tree's name is a literal of params.yaml, a file in trees/, grown_N (of N nodes the one with the most
accepted tokens a step) or grown_auto (the least expected time per token); a chain's length is a number or
auto. What is grown needs results/calibration. Writes results/trees/<name>-b<max_num_seqs>.json, a chain's
name being k<length>: name, nodes, depth, level widths and `parents` (treespec.tree.TokenTree). Its arm
depends on that file alone, so a new calibration measures those arms anew whose trees it changed.
"""

from __future__ import annotations

from stages.calibration.choice import chain_of, tree_of
from stages.common.errors import UserError, run_cli
from stages.common.files import write_json
from stages.common.options import plain_parser
from stages.common.params import load_params, override
from stages.common.trees import chain_length, chain_name, tree_file


def main() -> None:
    flags = plain_parser("stages.grow_tree", __doc__)
    flags.add_argument("--max-num-seqs", type=int, required=True, metavar="N", help="sequences at once")
    kind = flags.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tree", metavar="NAME", help="a literal, a tree file's name, grown_N or grown_auto")
    kind.add_argument("--num-speculative-tokens", type=chain_length, metavar="K", help="a number, or auto")
    arguments = flags.parse_args()
    size, length = arguments.max_num_seqs, arguments.num_speculative_tokens
    if size < 1:
        raise UserError("--max-num-seqs", size, "at least 1")
    params = load_params(arguments.params)
    if length is None:
        name = arguments.tree
        params = override(params, {"speculation.tree.names": [name]})
        tree = tree_of(params, name, size, arguments.results)
    else:
        name = chain_name(length)
        params = override(params, {"speculation.chain.num_speculative_tokens": [length]})
        tree = chain_of(params, length, size, arguments.results)
    widths = [len(level) for level in tree.levels()[1:]]
    fields = {
        "name": name,
        "nodes": tree.num_nodes,
        "depth": tree.depth,
        "level_widths": widths,
        "parents": list(tree.parents),
    }
    write_json(tree_file(arguments.results, name, size), fields)
    print(f"{name} at batch {size}: {tree.num_nodes} nodes in {tree.depth} levels, widths {widths}")


if __name__ == "__main__":
    run_cli(main)

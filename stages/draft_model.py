"""Stages chain and tree: speculation with a draft model, along one path or over a token tree.

    python -m stages.draft_model --num-speculative-tokens 3 --max-num-seqs 1
    python -m stages.draft_model --use-tree --tree mc_sim_8b_12 --max-num-seqs 1
    python -m stages.draft_model --target-model M --draft-model D --tensor-parallel-size 4 \\
        --draft-tensor-parallel-size 1 --use-tree --num-speculative-tokens 24 --max-num-seqs 96 --gsm8k DIR

Writes results/chain/k<k>-b<max_num_seqs>/ or results/tree/<tree>-b<max_num_seqs>/ (metrics.json and
requests.parquet), and prints a summary with the acceptance at every position.
"""

from __future__ import annotations

from pathlib import Path

from stages.common import options, summary
from stages.common.arm import Arm, run_arm
from stages.common.errors import UserError, run_cli
from stages.common.params import AUTO, Params
from stages.common.trees import chain_length, chain_name, chain_of, tree_of


def main() -> None:
    flags = options.parser("stages.draft_model", __doc__)
    options.add_draft_flags(flags)
    flags.add_argument(
        "--num-speculative-tokens",
        type=chain_length,
        metavar="K",
        help="length of the chain, or most levels of the tree; auto: as stages.grow_tree chose",
    )
    flags.add_argument("--use-tree", action="store_true", help="draft a token tree instead of a chain")
    flags.add_argument(
        "--tree", metavar="NAME|FILE", help="a literal of params.yaml, trees/NAME.json or a .json file"
    )
    flags.add_argument(
        "--implementation", choices=["treespec", "stock"], help="stock: vLLM's own chain, on cuda only"
    )
    arguments = flags.parse_args()
    depth, uses_tree = arguments.num_speculative_tokens, arguments.use_tree or arguments.tree is not None
    params = options.read_params(
        arguments,
        {
            **options.draft_values(arguments),
            "speculation.implementation": arguments.implementation,
            "speculation.chain.num_speculative_tokens": None if uses_tree or depth is None else [depth],
        },
    )
    size = options.only_batch_size(params)
    results = arguments.results
    if uses_tree:
        arm = tree_arm(params, arguments.tree, depth, size, results)
    else:
        arm = chain_arm(params, size, results)
    plan = arm.plan(params)
    inputs = options.read_inputs(arguments, params, plan)
    summary.show(run_arm(params, arm, plan, inputs, results))


def chain_arm(params: Params, max_num_seqs: int, results: Path) -> Arm:
    """The one chain of a command line run. UserError where params.yaml names several."""
    lengths = params.speculation.chain.num_speculative_tokens
    if len(lengths) > 1:
        raise UserError(
            "--num-speculative-tokens", "(absent)", f"one of {list(lengths)}: params.yaml names several"
        )
    chain = chain_of(lengths[0], max_num_seqs, results)
    return Arm.of_chain(chain_name(lengths[0]), chain, max_num_seqs)


def tree_arm(
    params: Params, name: str | None, depth: int | str | None, max_num_seqs: int, results: Path
) -> Arm:
    """The tree `name`, or the one that params.yaml names, of at most `depth` levels."""
    names = params.speculation.tree.names
    if name is None and len(names) != 1:
        raise UserError("--tree", "(absent)", f"one of {list(names)}: params.yaml does not name just one")
    name = name or names[0]
    tree = tree_of(params, name, max_num_seqs, results)
    if depth is not None and (depth == AUTO or depth < 1):
        raise UserError("--num-speculative-tokens", depth, "at least 1: the most levels of the tree")
    if depth is None or depth >= tree.depth:
        return Arm.of_tree(name, tree, max_num_seqs)
    return Arm.of_tree(f"{name.removesuffix('.json')}-depth{depth}", tree.truncated(depth), max_num_seqs)


if __name__ == "__main__":
    run_cli(main)

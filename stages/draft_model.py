"""Stages chain and tree: speculation with a draft model, along one path or over a token tree.

    python -m stages.draft_model --num-speculative-tokens 3 --max-num-seqs 1
    python -m stages.draft_model --use-tree --tree mc_sim_8b_12 --max-num-seqs 1
    python -m stages.draft_model --target-model M --draft-model D --tensor-parallel-size 4 \\
        --draft-tensor-parallel-size 1 --use-tree --num-speculative-tokens 24 --max-num-seqs 96 --gsm8k DIR

Writes results/chain/k<k>-b<max_num_seqs>/ or results/tree/<tree>-b<max_num_seqs>/ (metrics.json and
requests.parquet), and prints a summary with the acceptance at every position.
"""

from __future__ import annotations

from stages.common import options, summary
from stages.common.arm import Arm, run_arm
from stages.common.errors import UserError, run_cli
from stages.common.params import Params


def main() -> None:
    flags = options.parser("stages.draft_model", __doc__)
    flags.add_argument(
        "--draft-model",
        metavar="D",
        help="like --target-model, or made of the target: prune:0,1,... (its layers) or distilled:DIR",
    )
    flags.add_argument(
        "--draft-tensor-parallel-size", type=int, metavar="N", help="1 or --tensor-parallel-size"
    )
    flags.add_argument(
        "--num-speculative-tokens",
        type=int,
        metavar="K",
        help="length of the chain, or most levels of the tree",
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
            "models.draft": options.as_reference(arguments.draft_model),
            "engine.draft_tensor_parallel_size": arguments.draft_tensor_parallel_size,
            "speculation.implementation": arguments.implementation,
            "speculation.chain.num_speculative_tokens": None if uses_tree or depth is None else [depth],
        },
    )
    size = options.only_batch_size(params)
    arm = tree_arm(params, arguments.tree, depth, size) if uses_tree else chain_arm(params, size)
    plan = arm.plan(params)
    inputs = options.read_inputs(arguments, params)
    summary.show(run_arm(params, arm, plan, inputs, arguments.results))


def chain_arm(params: Params, max_num_seqs: int) -> Arm:
    """The one chain of a command line run. UserError where params.yaml names several."""
    lengths = params.speculation.chain.num_speculative_tokens
    if len(lengths) > 1:
        raise UserError(
            "--num-speculative-tokens", "(absent)", f"one of {list(lengths)}: params.yaml names several"
        )
    return Arm.chain(lengths[0], max_num_seqs)


def tree_arm(params: Params, name: str | None, depth: int | None, max_num_seqs: int) -> Arm:
    """The tree `name`, or the one that params.yaml names, of at most `depth` levels."""
    names = params.speculation.tree.names
    if name is None and len(names) != 1:
        raise UserError("--tree", "(absent)", f"one of {list(names)}: params.yaml does not name just one")
    name = name or names[0]
    tree = params.tree(name)
    if depth is not None and depth < 1:
        raise UserError("--num-speculative-tokens", depth, "at least 1")
    if depth is None or depth >= tree.depth:
        return Arm.of_tree(name, tree, max_num_seqs)
    return Arm.of_tree(f"{name.removesuffix('.json')}-depth{depth}", tree.truncated(depth), max_num_seqs)


if __name__ == "__main__":
    run_cli(main)

"""Which tree an arm drafts: as named, or grown from the calibration.

    tree_of(params, "mc_sim_8b_12", 1, results)     # by params alone
    tree_of(params, "grown_8", 1, results)          # eight nodes, the most accepted tokens a step
    tree_of(params, "grown_auto", 4, results)       # the least expected time per token of four sequences
    chain_of(params, "auto", 4, results)            # the same among chains

What is grown comes from results/calibration; UserError where there is none. A choice is made by replaying
every candidate along the recorded answers.
"""

from __future__ import annotations

from pathlib import Path

from stages.calibration.model import Calibration
from stages.common.errors import UserError
from stages.common.params import AUTO, GROWN_AUTO, Params, grown_nodes, is_grown
from treespec.growth import fast_candidates, grow_likeliest, grow_tree
from treespec.tree import TokenTree

MAX_CHAIN = 16


def tree_of(params: Params, name: str, max_num_seqs: int, results: Path) -> TokenTree:
    """The tree called `name`. UserError as `Params.tree`, and where it is to be grown without calibration."""
    if not is_grown(name):
        return params.tree(name)
    return grow(params, name, max_num_seqs, Calibration.read(results))


def chain_of(params: Params, length: int | str, max_num_seqs: int, results: Path) -> TokenTree:
    """The chain of `length`, `auto` being the fastest."""
    if length != AUTO:
        return TokenTree.chain(int(length))
    return fastest_chain(params, max_num_seqs, Calibration.read(results))


def grow(params: Params, name: str, max_num_seqs: int, calibration: Calibration) -> TokenTree:
    """The tree that `grown_auto` or `grown_N` stands for."""
    if name == GROWN_AUTO:
        return fastest_tree(params, max_num_seqs, calibration)
    return most_accepted(grown_nodes(name), params.calibration.max_depth, calibration)


def fastest_chain(params: Params, max_num_seqs: int, calibration: Calibration) -> TokenTree:
    """The least expected time per token of all chains; the shortest of equals."""
    return _fastest(chains(params), max_num_seqs, calibration)


def fastest_tree(params: Params, max_num_seqs: int, calibration: Calibration) -> TokenTree:
    """The least expected time per token of all grown candidates and of all chains."""
    limits = (params.calibration.max_nodes, params.calibration.max_depth, max_num_seqs)
    cost = calibration.costs[max_num_seqs].tree if max_num_seqs in calibration.costs else None
    if cost is None:
        raise UserError(
            "engine.max_num_seqs", max_num_seqs, f"a calibrated batch size ({list(calibration.costs)})"
        )
    grown = [tree for _, tree in fast_candidates(calibration.recording, cost, *limits)]
    return _fastest([*chains(params), *dict.fromkeys(grown)], max_num_seqs, calibration)


def chains(params: Params) -> list[TokenTree]:
    longest = min(MAX_CHAIN, params.calibration.max_nodes)
    return [TokenTree.chain(length) for length in range(1, longest + 1)]


def most_accepted(num_nodes: int, max_depth: int, calibration: Calibration) -> TokenTree:
    """Of so many nodes the tree with the most tokens a step: by the paths recorded, or by the rank table."""
    recording = calibration.recording
    try:
        grown = [
            grow_likeliest(recording, num_nodes, max_depth),
            grow_tree(recording.table, num_nodes, max_depth),
        ]
    except ValueError as error:
        raise UserError(
            f"grown_{num_nodes}", str(error), "fewer nodes or a larger calibration.max_depth"
        ) from error
    return max(grown, key=recording.tokens_per_step)


def _fastest(trees: list[TokenTree], max_num_seqs: int, calibration: Calibration) -> TokenTree:
    return min(trees, key=lambda tree: calibration.ms_per_token(tree, max_num_seqs))

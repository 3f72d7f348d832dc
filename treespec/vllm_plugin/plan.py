"""How a token tree is drafted: level by level, each level's inner nodes in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from treespec.tree import TokenTree


@dataclass(frozen=True)
class Level:
    """One draft pass: run the `inner` nodes of one depth, choose their children.

    Child `children[j]` is the `rank[j]`-th best token after `inner[parent[j]]`.
    """

    inner: Tensor  # int64 [num_inner]
    children: Tensor  # int64 [num_children]
    parent: Tensor  # int64 [num_children]; index into inner
    rank: Tensor  # int64 [num_children]
    max_children: int
    last_inner: int  # the greatest of inner, known without asking the device


@dataclass(frozen=True)
class DraftPlan:
    tree: TokenTree
    levels: tuple[Level, ...]  # depth 0 (the root) first
    is_inner: tuple[bool, ...]  # [num_nodes + 1]
    children: Tensor  # TokenTree.children on the device
    inner_row: Tensor  # int64 [num_nodes + 1]; an inner node's place among the inner ones, level by level


@lru_cache(maxsize=256)
def draft_plan(tree: TokenTree, device: torch.device) -> DraftPlan:
    num_children = tree.num_children
    levels = []
    inner_row = [0] * len(tree.parents)
    num_inner = 0
    for nodes in tree.levels():
        inner = [int(node) for node in nodes if num_children[node]]
        if not inner:
            break
        column = {node: index for index, node in enumerate(inner)}
        for node in inner:
            inner_row[node] = num_inner + column[node]
        num_inner += len(inner)
        children = [node for node, parent in enumerate(tree.parents) if parent in column]
        levels.append(
            Level(
                inner=torch.tensor(inner, device=device),
                children=torch.tensor(children, device=device),
                parent=torch.tensor([column[tree.parents[node]] for node in children], device=device),
                rank=torch.tensor([tree.ranks[node] for node in children], device=device),
                max_children=max(num_children[node] for node in inner),
                last_inner=inner[-1],
            )
        )
    return DraftPlan(
        tree=tree,
        levels=tuple(levels),
        is_inner=tuple(count > 0 for count in num_children),
        children=torch.from_numpy(tree.children).to(device),
        inner_row=torch.tensor(inner_row, device=device),
    )

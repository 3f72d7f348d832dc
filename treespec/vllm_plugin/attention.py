"""Which rows of a batch attend along a token tree, in tensors that both devices understand.

A tree's tokens lie in the cache one after another, in node order, behind the root; a row may see all
tokens before the root, and inside the tree its ancestors and itself. Rows of the batch that no tree
names attend causally, as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from treespec.tree import TokenTree


@dataclass(frozen=True)
class TreeQueries:
    """The tree rows of one forward pass. Trees may differ from request to request.

    Padding of ragged requests repeats a valid row with node -1; its result is dropped.
    """

    rows: Tensor  # int64 [batch, width]; row of the query tensor
    nodes: Tensor  # int64 [batch, width]; tree node in that row, -1: padding
    context_lens: Tensor  # int64 [batch]; tokens in the cache before the root
    trees: tuple[TokenTree, ...]  # one a request
    block_table: Tensor  # int32 [batch, max_num_blocks]
    max_kv_len: int  # upper bound of context + tree nodes in the cache
    covers_all: bool  # no row of this forward pass attends causally

    def visible(self, num_kv: int) -> Tensor:
        """True where a row may see a cached token. bool [batch, width, num_kv]"""
        device = self.rows.device
        unique = list(dict.fromkeys(self.trees))
        size = max(len(tree.parents) for tree in unique)
        table = torch.stack([ancestors(tree, size, device) for tree in unique])
        which = torch.tensor([unique.index(tree) for tree in self.trees], device=device)
        rows = table[which[:, None], self.nodes.clamp(min=0)]  # [batch, width, size]
        relative = torch.arange(num_kv, device=device) - self.context_lens[:, None]  # [batch, num_kv]
        inside = (relative >= 0) & (relative < size)
        index = relative.clamp(0, size - 1)[:, None, :].expand(-1, rows.shape[1], -1)
        return (rows.gather(2, index) & inside[:, None, :]) | (relative < 0)[:, None, :]


@lru_cache(maxsize=256)
def ancestors(tree: TokenTree, size: int, device: torch.device) -> Tensor:
    """The tree's ancestor mask, padded with False. bool [size, size]"""
    mask = torch.zeros(size, size, dtype=torch.bool)
    count = len(tree.parents)
    mask[:count, :count] = torch.from_numpy(tree.ancestor_mask)
    return mask.to(device)

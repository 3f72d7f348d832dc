"""What is remembered of a request between two steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from treespec.tree import TokenTree


@dataclass
class DraftState:
    """One request's draft.

    `num_computed` counts the leading tokens whose draft keys and values are in the cache. `token_ids` are
    those of the drafted nodes 1..n as handed to the scheduler, which may schedule a prefix of them; `root`
    is the root's position in the sequence, -1 while no draft is out.
    """

    tree: TokenTree | None  # None: this request is never drafted for
    is_plain: bool = True  # greedy, and nothing edits its logits
    num_computed: int = 0
    root: int = -1
    last_slot: int = 0  # the last node with a cache slot when it was drafted
    token_ids: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)  # nodes whose token could not be drawn
    probs: Tensor | None = None  # float32 [num_inner, columns]; what the children were drawn from

    def propose(
        self, root: int, token_ids: list[int], last_slot: int, probs: Tensor | None = None
    ) -> list[int]:
        """Note a draft; returns its tokens for the scheduler, which wants a valid id at absent nodes too."""
        self.root, self.last_slot, self.probs = root, last_slot, probs
        self.absent = [node for node, token_id in enumerate(token_ids, start=1) if token_id < 0]
        self.token_ids = [max(token_id, 0) for token_id in token_ids] if self.absent else token_ids
        return self.token_ids

    def restart(self, num_computed: int) -> None:
        """After preemption the cache holds `num_computed` tokens and no draft."""
        self.num_computed = num_computed
        self.root = -1
        self.token_ids = []
        self.absent = []
        self.probs = None

    def settle(self, path: list[int], is_inner: tuple[bool, ...]) -> None:
        """Take the draft back in, of which verification accepted the nodes of `path`.

        Cached are those the draft was run on, the inner ones, while there were slots. Only the path's last
        node can be a leaf or behind the slots, so the cached ones are a prefix of the path.
        """
        self.restart(self.root + 1 + sum(is_inner[node] and node <= self.last_slot for node in path))

"""Drafting as one CUDA graph: from the unseen tokens through every level to the last children.

A draft is small: launched pass by pass it is bound by the host, several times as long as its arithmetic. The
shape of drafting depends on the tree and the number of requests alone, so it is captured once for both and
replayed by one launch. Batches are filled up to the next captured size with rows that write nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import graph_capture
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.platform_utils import is_pin_memory_available
from vllm.v1.sample.metadata import SamplingMetadata

from treespec.tree import TokenTree
from treespec.vllm_plugin.cuda.attention import tree_bias
from treespec.vllm_plugin.levels import Draws, Group, LevelDrafter
from treespec.vllm_plugin.plan import DraftPlan, draft_plan

logger = init_logger(__name__)

MAX_BATCH = 128  # above it the device is busy for longer than the host needs to launch
MAX_TREES = 16  # graphs hold memory: trees that come later are drafted eagerly


def batch_sizes(max_num_seqs: int) -> list[int]:
    """Captured batch sizes: the powers of two up to the largest batch, and that one."""
    largest = min(max_num_seqs, MAX_BATCH)
    sizes = [1 << power for power in range(largest.bit_length())]
    return sizes if sizes[-1] == largest else [*sizes, largest]


PIN_MEMORY = is_pin_memory_available()


class DraftGraphs:
    """Steady drafting of whole batches along one tree, captured."""

    def __init__(self, levels: LevelDrafter, config: VllmConfig):
        self._levels = levels
        self._sizes = batch_sizes(config.scheduler_config.max_num_seqs)
        self._max_tokens = config.scheduler_config.max_num_batched_tokens
        self._graphs: dict[tuple[TokenTree, bool], dict[int, CapturedDraft]] = {}

    def capture(self, tree: TokenTree, num_blocks: int, metadata: SamplingMetadata | None = None) -> None:
        """Capture drafting along `tree` for every batch size; `metadata`: of a batch that draws children.

        num_blocks: columns of the block table.
        """
        plan = draft_plan(tree, self._levels.model.device)
        widest = max(len(level.inner) for level in plan.levels)
        self._graphs[tree, metadata is not None] = {
            size: CapturedDraft(self._levels, plan, size, num_blocks, metadata)
            for size in reversed(self._sizes)  # the largest first: smaller ones fit into its memory
            if size * max(2, widest) <= self._max_tokens
        }

    def serves(self, tree: TokenTree, batch: int, num_blocks: int, metadata: SamplingMetadata | None) -> bool:
        """Whether such a batch is captured; one along a tree that is new here is captured now.

        metadata: of a batch whose children are drawn, None where they are the likeliest.
        """
        if metadata is not None and not (metadata.top_k is None and metadata.top_p is None):
            return False  # vLLM's filters look at k from the host
        key = tree, metadata is not None
        if key not in self._graphs:
            if len(self._graphs) == MAX_TREES:
                return False
            logger.info("treespec: capturing the drafting of a tree of %d nodes", tree.num_nodes)
            self.capture(tree, num_blocks, metadata)
        return batch <= max(self._graphs[key], default=0)

    def draft(
        self,
        tree: TokenTree,
        token_ids: np.ndarray,  # int [batch, 2]; the token before the root, the root
        roots: np.ndarray,  # int64 [batch]
        slots: np.ndarray,  # int64 [batch, num_nodes + 2]; of the token before the root, the root, the nodes
        block_table: Tensor,  # int32 [batch, max_num_blocks]
        draws: Draws | None,
    ) -> Group:
        """The drafted group of a batch that is served; it may have more rows than the batch."""
        captured = self._graphs[tree, draws is not None]
        size = min(size for size in captured if size >= len(roots))
        return captured[size].replay(token_ids, roots, slots, block_table, draws)


class CapturedDraft:
    """One graph, and the tensors it reads and writes."""

    def __init__(
        self,
        levels: LevelDrafter,
        plan: DraftPlan,
        batch: int,
        num_blocks: int,
        metadata: SamplingMetadata | None,
    ):
        device, num_nodes = levels.model.device, plan.tree.num_nodes
        self._clock = levels.model.clock
        self._kept = tree_bias(plan.tree, device)  # the graph reads it, whatever its cache forgets
        # A row: both tokens, the root's position, the slots of the token before, the root and the nodes.
        self._staged = torch.zeros(batch, 3 + num_nodes + 2, dtype=torch.int64, pin_memory=PIN_MEMORY)
        self._rows = self._staged.numpy()
        self._clear(0)
        self._inputs = self._staged.to(device)
        token_ids, self._slots = self._inputs[:, :2], self._inputs[:, 3:]
        draws = None
        if metadata is not None:
            temperature = torch.ones(batch, device=device)
            draws = Draws(
                metadata=replace(metadata, temperature=temperature, all_random=False, all_greedy=False),
                request=torch.arange(batch, device=device),
                uniforms=torch.zeros(batch, num_nodes, dtype=torch.float64, device=device),
            )
        self._group = Group(
            plan=plan,
            roots=self._inputs[:, 2],
            slots=self._slots[:, 1:],
            block_table=torch.zeros(batch, num_blocks, dtype=torch.int32, device=device),
            max_root=levels.model.max_model_len - 1,
            draws=draws,
        )

        def run() -> None:
            if draws is not None:
                draws.probs.clear()
            levels.draft_steady(self._group, token_ids, self._slots[:, 0])

        with self._clock.paused():
            self._run = self._captured(run, device)

    @staticmethod
    def _captured(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        graph, pool = torch.cuda.CUDAGraph(), current_platform.get_global_graph_pool()
        with graph_capture(device) as context:
            run()  # compiles kernels, fills caches of constants
            with torch.cuda.graph(graph, pool=pool, stream=context.stream):
                run()
        return graph.replay

    def replay(self, token_ids, roots, slots, block_table: Tensor, draws: Draws | None) -> Group:
        started = self._clock.start()
        batch, own = len(roots), self._group
        self._rows[:batch, :2] = token_ids
        self._rows[:batch, 2] = roots
        self._rows[:batch, 3:] = slots
        self._clear(batch)
        self._inputs.copy_(self._staged, non_blocking=True)
        own.block_table[:batch].copy_(block_table)
        if draws is not None:
            own.draws.metadata.temperature[:batch].copy_(draws.metadata.temperature[draws.request])
            own.draws.uniforms[:batch].copy_(draws.uniforms)
        self._run()
        self._clock.stop("draft_forward", started)
        return own

    def _clear(self, batch: int) -> None:
        """Rows from `batch` on: a request of two tokens that is written nowhere."""
        self._rows[batch:] = -1
        self._rows[batch:, :2] = 0
        self._rows[batch:, 2] = 1

"""The runner's half of token-tree speculation, shared by CPU and GPU.

One step: the scheduler hands back (a prefix of) each request's drafted nodes; positions and attention are
bent along the trees; the target runs once over all nodes; verification picks a path and its bonus token;
the path's cache entries are moved to the front; the next trees are drafted. A chain is a tree of width
one and takes the same way, without the bending and the moving.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.worker import gpu_model_runner

from treespec.verify import Verified
from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.device import Device
from treespec.vllm_plugin.kv_cache import StackedCaches
from treespec.vllm_plugin.parallel import RankCheck
from treespec.vllm_plugin.plan import draft_plan
from treespec.vllm_plugin.proposer import TreeProposer, Wanted
from treespec.vllm_plugin.requests import is_plain, is_stop, tree_of
from treespec.vllm_plugin.state import DraftState
from treespec.vllm_plugin.timing import StepClock
from treespec.vllm_plugin.verification import Round, Verifier

NO_LIMIT = 1 << 30


@contextmanager
def tree_proposer() -> Iterator[None]:
    """Let `GPUModelRunner.__init__` build our proposer where it names stock's (gpu_model_runner.py:448)."""
    stock = gpu_model_runner.DraftModelProposer
    gpu_model_runner.DraftModelProposer = TreeProposer
    try:
        yield
    finally:
        gpu_model_runner.DraftModelProposer = stock


class TreeRunnerMixin(StackedCaches):
    """Goes before GPUModelRunner or its CPU child; `tree_device` is set before their `__init__` runs."""

    tree_device: Device

    def init_trees(self) -> None:
        """After stock's `__init__`."""
        # Only now, its constructor refuses it: drafts are then proposed after bookkeeping, from lists.
        self.speculative_config.disable_padded_drafter_batch = True
        self.effective_drafter_max_model_len = NO_LIMIT  # each request is limited on its own
        self.drafter.clock = self.clock = StepClock(self.tree_device)
        self.verifier = Verifier(self)
        self.rank_check = RankCheck.of(self.vllm_config)
        self.states: dict[str, DraftState] = {}
        self.round: Round | None = None
        self.off_chain = torch.zeros((), dtype=torch.int64, device=self.device)
        self.num_rounds = 0

    def update_max_model_len(self, max_model_len: int) -> None:
        super().update_max_model_len(max_model_len)
        self.effective_drafter_max_model_len = NO_LIMIT
        self.drafter.max_model_len = max_model_len

    # ---- requests come and go

    def _update_states(self, scheduler_output) -> None:
        for req_id in scheduler_output.finished_req_ids:
            self.states.pop(req_id, None)
        super()._update_states(scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            self.states[new.req_id] = DraftState(
                tree=tree_of(new.sampling_params, self.drafter.tree),
                is_plain=is_plain(new.sampling_params),
                num_computed=new.num_computed_tokens,
            )
        for req_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self.states[req_id].restart(self.requests[req_id].num_computed_tokens)

    # ---- the target's inputs

    def _prepare_inputs(self, scheduler_output, num_scheduled_tokens):
        logits_indices, metadata = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self.round = None
        if metadata is not None:
            self.round = self._start_round(scheduler_output, metadata.num_draft_tokens)
        return logits_indices, metadata

    def _start_round(self, scheduler_output, num_draft_tokens: list[int]) -> Round:
        scheduled = scheduler_output.scheduled_spec_decode_tokens
        context = self.input_batch.num_computed_tokens_cpu
        ends = self.query_start_loc.np[1:]
        states = [self.states[req_id] for req_id in self.input_batch.req_ids]
        first_row = np.zeros(len(num_draft_tokens), dtype=np.int64)
        bent: list[int] = []
        for index, (req_id, count) in enumerate(zip(self.input_batch.req_ids, num_draft_tokens, strict=True)):
            first_row[index] = ends[index] - count - 1
            if not count:
                continue
            state = states[index]
            if scheduled[req_id] != state.token_ids[:count] or context[index] != state.root:
                raise RuntimeError(f"request {req_id}: the scheduled draft is not the one that was proposed")
            if count > state.tree.trunk:
                bent.append(index)
                first = first_row[index]
                depths = np.asarray(state.tree.depths[: count + 1])
                self.positions.np[first : first + count + 1] = state.root + depths
        if bent:
            self.positions.copy_to_gpu(scheduler_output.total_num_scheduled_tokens)
        num_nodes = np.asarray(num_draft_tokens, dtype=np.int64)
        queries = self._tree_queries(bent, num_nodes, states, first_row, scheduler_output) if bent else None
        return Round(num_nodes, states, first_row, queries)

    def _tree_queries(self, bent, num_nodes, states, first_row, scheduler_output) -> TreeQueries:
        chosen = np.asarray(bent)
        counts = num_nodes[chosen, None] + 1
        nodes = np.arange(int(counts.max()))[None, :].repeat(len(bent), axis=0)  # [batch, width]
        inside = nodes < counts
        rows = first_row[chosen, None] + np.where(inside, nodes, 0)
        context = self.input_batch.num_computed_tokens_cpu[chosen].astype(np.int64)
        table = self.input_batch.block_table[0].get_device_tensor(self.input_batch.num_reqs)
        return TreeQueries(
            rows=self._to_device(rows),
            nodes=self._to_device(np.where(inside, nodes, -1)),
            context_lens=self._to_device(context),
            trees=tuple(states[index].tree for index in bent),
            block_table=table if len(bent) == len(table) else table[self._to_device(chosen)],
            max_kv_len=int((context + counts[:, 0]).max()),
            covers_all=int(counts.sum()) == scheduler_output.total_num_scheduled_tokens,
        )

    def _build_attention_metadata(self, *args, **kwargs):
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        queries = self.round.queries if self.round else None
        if queries is not None and not kwargs.get("for_cudagraph_capture"):
            draft_layers = set(self.drafter.attn_layer_names)
            for group in self.attn_groups[0]:
                layer = group.layer_names[0]
                if layer not in draft_layers:
                    self.tree_device.attend_along(group.get_metadata_builder(), metadata[layer], queries)
        return metadata, common

    # ---- the target's pass and its verification

    def _model_forward(self, *args, **kwargs):
        self._target_started = self.clock.start()
        return super()._model_forward(*args, **kwargs)

    def _sample(self, logits, spec_decode_metadata) -> SamplerOutput:
        started = self.clock.stop("target_forward", self._target_started)
        self.clock.num_steps += 1
        if self.round is None:
            output = self.verifier.sample_stock(logits)
            self.clock.stop("verify", started)
            return output
        output = self._verify(logits, spec_decode_metadata.bonus_logits_indices)
        started = self.clock.stop("verify", started)
        self._compact(self.round)
        self.clock.stop("compact", started)
        return output

    def _verify(self, logits: Tensor, last_rows: Tensor) -> SamplerOutput:
        round = self.round
        round.verified, rows = self.verifier.verify(logits, round, last_rows)
        self.num_rounds += int(np.count_nonzero(round.num_nodes))
        return SamplerOutput(
            sampled_token_ids=round.verified.token_ids.int(),
            logprobs_tensors=self._logprobs(logits, rows, round.verified),
        )

    def _compact(self, round: Round) -> None:
        """Move the accepted path's keys and values, target's and draft's, to the places behind the root."""
        path = round.verified.path  # [num_reqs, max_depth]
        in_order = torch.arange(1, path.shape[1] + 1, device=self.device)
        moves = (path >= 0) & (path != in_order)
        if round.queries is None or not self.tree_device.any(moves):
            return
        self.off_chain += moves.sum()
        slot_mapping = self.input_batch.block_table[0].slot_mapping.gpu
        first = self._to_device(round.first_row)[:, None]
        sources = slot_mapping[(first + path.clamp(min=0)).flatten()]
        last = len(slot_mapping) - 1  # a short request's padding may point behind the batch
        targets = slot_mapping[(first + in_order).clamp(max=last).flatten()]
        targets = targets.masked_fill(~moves.flatten(), -1)
        self.move_kv(sources, targets)

    def _logprobs(self, logits: Tensor, logit_rows: Tensor, verified: Verified):
        """Log-probabilities of the output tokens, in the shape RejectionSampler.parse_output expects."""
        count = self.input_batch.sampling_metadata.max_num_logprobs
        if count is None:
            return None
        nodes = torch.nn.functional.pad(verified.path.clamp(min=0), (1, 0))  # [num_reqs, max_depth + 1]
        rows = logit_rows.gather(1, nodes).flatten()
        logprobs = self.sampler.compute_logprobs(logits[rows])
        return self.sampler.gather_logprobs(logprobs, count, verified.token_ids.clamp(min=0).flatten())

    # ---- the next drafts

    def propose_draft_token_ids(
        self, scheduler_output, sampled_token_ids, *args, **kwargs
    ) -> list[list[int]]:
        """Draft for every request of the batch; [] where nothing is drafted."""
        batch = self.input_batch
        self._settle_states()
        index, start, end, trees = [], [], [], []
        for i, req_id in enumerate(batch.req_ids):
            state = self.states[req_id]
            if state.tree is None:
                continue
            if sampled_token_ids[i]:
                stop, wanted = int(batch.num_tokens_no_spec[i]), self._is_wanted(req_id, sampled_token_ids[i])
            else:  # a prompt not yet whole: stay in step, draft nothing
                stop, wanted = int(self.seq_lens.np[i]), False
            stop, fits = self._within_blocks(i, stop)
            if stop > state.num_computed:
                index.append(i)
                start.append(state.num_computed)
                end.append(stop)
                trees.append(state.tree if wanted and fits else None)
        drafts: list[list[int]] = [[] for _ in batch.req_ids]
        if index:
            with self.drafter.in_draft_group():
                drafted = self.drafter.draft(
                    Wanted(np.asarray(index), np.asarray(start), np.asarray(end), trees)
                )
            for i, stop, draft in zip(index, end, drafted, strict=True):
                state = self.states[batch.req_ids[i]]
                state.num_computed = stop
                if draft is not None and draft.token_ids:
                    drafts[i] = state.propose(stop - 1, draft.token_ids, draft.last_slot, draft.probs)
        if self.rank_check is not None:
            self.rank_check(sampled_token_ids, drafts)
        return drafts

    def _settle_states(self) -> None:
        """Bring every state that had a draft in line with what verification kept of it."""
        paths = None
        if self.round is not None:
            paths = self.round.verified.path.cpu().numpy()
        for i, req_id in enumerate(self.input_batch.req_ids):
            state = self.states[req_id]
            if state.root < 0:
                continue
            path = paths[i][paths[i] >= 0].tolist() if paths is not None and self.round.num_nodes[i] else []
            state.settle(path, draft_plan(state.tree, self.device).is_inner)

    def _is_wanted(self, req_id: str, new_token_ids: list[int]) -> bool:
        """Whether the request can use at least one drafted token.

        Where decoding steps are captured it gets a draft for its last token as well: a batch stays of one
        shape so, which a graph needs.
        """
        request = self.requests[req_id]
        if is_stop(request.sampling_params, new_token_ids[-1]):
            return False
        longest = request.sampling_params.max_tokens
        spare = 0 if self.drafter.steady is not None else 1
        return longest is None or len(request.output_token_ids) + spare < longest

    def _within_blocks(self, i: int, stop: int) -> tuple[int, bool]:
        """Tokens up to `stop` that have a cache slot, and whether there is room for the root."""
        table = self.input_batch.block_table[0]
        allocated = min(int(table.num_blocks_per_row[i]) * table.block_size, self.max_model_len)
        return min(stop, allocated), stop <= allocated

    # ---- what the plugin did

    def treespec_stats(self, reset: bool = False) -> dict:
        """Counters since the last reset; `total_ms` sums the parts of all steps."""
        stats = {
            "num_steps": self.clock.num_steps,
            "num_draft_passes": self.clock.num_draft_passes,
            "num_verified_trees": self.num_rounds,
            "off_chain_accepted_tokens": int(self.off_chain),
            "total_ms": self.clock.total_ms(),
        }
        if reset:
            self.clock.reset()
            self.off_chain.zero_()
            self.num_rounds = 0
        return stats

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

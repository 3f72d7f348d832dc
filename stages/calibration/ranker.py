"""Notes, while answers are drafted one token at a time, which rank the draft gave the target's tokens.

A chain of one is the draft teacher-forced: its catch-up passes (treespec/vllm_plugin/proposer.py) run over
every token of the target's own text exactly once, in the very model, head and attention that the arms use.
Mixed into the worker by vLLM's `worker_extension_cls`, reached by `LLM.collective_rpc`:

    llm.collective_rpc("start_ranking")
    llm.generate(prompts, ...)                       # under the chain of one
    texts = llm.collective_rpc("stop_ranking")[0]    # [(prompt ids, answer ids, ranks), ...]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Noted:
    """One request's answer so far; `last` is the draft's hidden state at its newest token, [1, hidden]."""

    prompt_ids: list[int]
    answer_ids: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    last: Any = None


class DraftRanker:
    def start_ranking(self) -> None:
        drafter = self.model_runner.drafter
        catch_up = drafter._catch_up
        self._noted: dict[str, Noted] = {}

        def noting(table, rows, wanted):
            hidden, last = catch_up(table, rows, wanted)
            self._note(hidden, wanted.index.tolist(), wanted.start.tolist(), wanted.end.tolist())
            return hidden, last

        drafter._catch_up = noting
        self._steady, drafter.steady = drafter.steady, None  # a captured graph catches up on its own

    def stop_ranking(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, answer and ranks of every request since the start, in order of arrival.

        A rank is the number of candidates the draft preferred; -1: the token is not in the draft's
        vocabulary. The tokens of a request's last step are missing: nothing was drafted behind them.
        """
        drafter = self.model_runner.drafter
        del drafter._catch_up
        drafter.steady = self._steady
        return [(one.prompt_ids, one.answer_ids, one.ranks) for one in self._noted.values()]

    def _note(self, hidden, index: list[int], start: list[int], end: list[int]) -> None:
        import torch

        batch, first = self.model_runner.input_batch, 0
        for place, begin, stop in zip(index, start, end, strict=True):
            rows = hidden[first : first + stop - begin]  # one a token of begin..stop
            first += stop - begin
            num_prompt, token_ids = int(batch.num_prompt_tokens[place]), batch.token_ids_cpu[place]
            noted = self._noted.setdefault(batch.req_ids[place], Noted(token_ids[:num_prompt].tolist()))
            known = num_prompt + len(noted.ranks)  # the first token without a rank
            if known < stop:
                before = rows[:-1] if known > begin else torch.cat([noted.last, rows[:-1]])
                new_ids = token_ids[known:stop].tolist()
                noted.ranks += self._ranks(before[len(before) - len(new_ids) :], new_ids)
                noted.answer_ids += new_ids
            noted.last = rows[-1:].clone()

    def _ranks(self, hidden, token_ids: list[int]) -> list[int]:
        """Ranks of `token_ids` [n] after the hidden states [n, hidden]; of equals the first column leads."""
        import torch

        head = self.model_runner.drafter.head
        logits = head.logits(hidden)
        columns = torch.tensor(token_ids, device=logits.device)
        known = torch.ones_like(columns, dtype=torch.bool)
        if head.token_ids is not None:
            matches = head.token_ids[None, :] == columns[:, None]
            known, columns = matches.any(dim=1), matches.byte().argmax(dim=1)
        own = logits.gather(1, columns[:, None])
        earlier = torch.arange(logits.shape[1], device=logits.device) < columns[:, None]
        ranks = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
        return torch.where(known, ranks, -1).tolist()

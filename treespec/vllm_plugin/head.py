"""The draft's last matrix: from hidden states to candidates, over the whole vocabulary or a part of it.

A draft may propose from fewer tokens than its target knows (`draft_vocabulary.json` beside its weights):
a step then reads fewer rows of the largest matrix. Verification is lossless whatever is proposed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

VOCABULARY_FILE = "draft_vocabulary.json"


class DraftHead:
    def __init__(self, model, folder: Path, vocab_size: int, tensor_parallel_size: int):
        """Raises ValueError where a reduced vocabulary is given but cannot be used."""
        self._model = model
        self.vocab_size = vocab_size
        self.token_ids: Tensor | None = None  # int64 [rows]; the token of each row of the reduced matrix
        file = folder / VOCABULARY_FILE
        if not file.is_file():
            return
        chosen = json.loads(file.read_text())
        if "rows" not in chosen:
            return
        if tensor_parallel_size > 1:
            raise ValueError(
                f"treespec: {file}; expected none with draft_tensor_parallel_size {tensor_parallel_size}"
            )
        weight = model.lm_head.weight
        self.token_ids = torch.tensor(chosen["ids"][: chosen["rows"]], device=weight.device)
        self._rows = weight[self.token_ids].contiguous()  # [rows, hidden_size]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [num_tokens, hidden_size] -> [num_tokens, vocab, or rows of the reduced vocabulary]"""
        if self.token_ids is None:
            return self._model.compute_logits(hidden)
        return linear(hidden, self._rows)

    def to_tokens(self, columns: Tensor) -> Tensor:
        """Columns of `logits` as token ids; -1 stays -1."""
        if self.token_ids is None:
            return columns
        return torch.where(columns >= 0, self.token_ids[columns.clamp(min=0)], -1)

    def to_vocab(self, probs: Tensor) -> Tensor:
        """Probabilities over `logits`' columns, [..., rows], spread over the vocabulary: [..., vocab]"""
        if self.token_ids is None:
            return probs
        whole = probs.new_zeros(*probs.shape[:-1], self.vocab_size)
        whole[..., self.token_ids] = probs
        return whole

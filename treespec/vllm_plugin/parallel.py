"""A draft beside a tensor-parallel target: whole on every rank, or split like the target.

With draft tensor parallel size 1 every rank loads and runs the whole draft in a group of one, so that
drafting needs no all-reduce. All ranks then draft the same tokens, because they do the same arithmetic on
the same weights, and draw from generators in the same state. `RankCheck` holds them to it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from itertools import chain

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import (
    get_tp_group,
    get_world_group,
    init_model_parallel_group,
    patch_tensor_parallel_group,
)
from vllm.v1.spec_decode.draft_model import create_vllm_config_for_draft_model


def draft_group(config: VllmConfig) -> Callable[[], AbstractContextManager]:
    """Context in which the draft is loaded and run. All ranks call this together, and once."""
    speculative = config.speculative_config
    sizes = {
        each.tensor_parallel_size
        for each in (speculative.draft_parallel_config, speculative.target_parallel_config)
    }
    if len(sizes) == 1:
        return nullcontext
    world = get_world_group()
    alone = init_model_parallel_group(
        [[rank] for rank in range(world.world_size)],
        world.local_rank,
        torch.distributed.get_backend(world.device_group),
        group_name="draft_tp",
        use_device_communicator=False,  # there is nobody to talk to
    )
    return lambda: patch_tensor_parallel_group(alone)


def draft_config(config: VllmConfig) -> VllmConfig:
    """vLLM's configuration for loading the draft, with a torch.compile cache of the draft's own.

    Stock keeps the draft's compiled graphs in the target's folder, whose name tells neither which draft
    they are of nor over how many ranks it is split.
    """
    own = create_vllm_config_for_draft_model(config)
    compilation = copy(config.compilation_config)  # shallow: the layers' registry stays shared
    compilation.traced_files = set()
    if not config.compilation_config.cache_dir:  # vLLM names the folder by the config's hash
        compilation.cache_dir = ""
    elif own.parallel_config.tensor_parallel_size != config.parallel_config.tensor_parallel_size:
        compilation.cache_dir += f"/draft_tp{own.parallel_config.tensor_parallel_size}"
    own.compilation_config = compilation
    return own


class RankCheck:
    """Raises on every rank, in the same step, if the ranks' tokens differ.

    A rank that drafts or samples on its own would otherwise be found out when it refuses the scheduled
    draft, alone: the others would wait for it in their next all-reduce.
    """

    def __init__(self):
        self._group = get_tp_group()
        self._checksum = 0

    @classmethod
    def of(cls, config: VllmConfig) -> RankCheck | None:
        """None for a single rank, or with additional_config {"treespec": {"check_ranks": False}}."""
        options = (config.additional_config or {}).get("treespec", {})
        if config.parallel_config.tensor_parallel_size == 1 or not options.get("check_ranks", True):
            return None
        return cls()

    def __call__(self, sampled: list[list[int]], drafted: list[list[int]]) -> None:
        """Compare one step's tokens, a list a request, and with them all earlier steps'."""
        lengths = [len(token_ids) for token_ids in (*sampled, *drafted)]
        numbers = np.fromiter(chain(lengths, *sampled, *drafted), dtype=np.int64)
        self._checksum = zlib.crc32(numbers.tobytes(), self._checksum)
        bounds = torch.tensor([self._checksum, -self._checksum])  # on the host: no device is waited for
        torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX, group=self._group.cpu_group)
        highest, lowest = bounds.tolist()
        if highest != -lowest:
            raise RuntimeError(
                f"treespec: rank {self._group.rank_in_group} of {self._group.world_size}: the ranks' drafted "
                "or sampled tokens differ; expected the same weights, seed and kernels on every rank"
            )

"""Distributions and random numbers of a batch whose requests sample, each in its own way.

The target's and the draft's logits go through what vLLM's own sampler does (temperature, top-k, top-p), so
verification restores exactly the distribution that plain decoding draws from. A request with a seed draws
from its own generator, as many numbers as its own tree needs: its output does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

_GREEDY_BELOW = 1e-5  # vllm/v1/sample/sampler.py: _SAMPLING_EPS


def greedy_requests(metadata: SamplingMetadata) -> Tensor:
    """Requests at temperature 0, in a batch that has others. bool [num_reqs]"""
    return metadata.temperature < _GREEDY_BELOW


def processed_probs(logits: Tensor, metadata: SamplingMetadata, request: Tensor) -> Tensor:
    """What vLLM's sampler draws from. logits [rows, vocab], request int64 [rows] -> float32 [rows, vocab]

    Rows of greedy requests are one-hot.
    """
    temperature = metadata.temperature[request]
    is_greedy = temperature < _GREEDY_BELOW
    scaled = logits.float() / temperature.masked_fill(is_greedy, 1.0)[:, None]
    top_k = None if metadata.top_k is None else metadata.top_k[request]
    top_p = None if metadata.top_p is None else metadata.top_p[request]
    probs = apply_top_k_top_p(scaled, top_k, top_p).softmax(dim=-1)
    if metadata.all_random:
        return probs
    best = torch.zeros_like(probs).scatter_(1, logits.max(-1, keepdim=True).indices, 1.0)
    return torch.where(is_greedy[:, None], best, probs)


def request_uniforms(
    generators: dict[int, torch.Generator], index: list[int], counts: list[int], device: torch.device
) -> Tensor:
    """Uniform numbers for requests `index` of the batch, `counts[i]` of them each.

    float64 [len(index), max(counts)]; what is beyond a seeded request's count is not its generator's.
    """
    uniforms = torch.rand(len(index), max(counts), dtype=torch.float64, device=device)
    for row, (request, count) in enumerate(zip(index, counts, strict=True)):
        generator = generators.get(request)
        if generator is not None:
            uniforms[row, :count] = torch.rand(count, dtype=torch.float64, device=device, generator=generator)
    return uniforms


def stock_metadata(
    metadata: SamplingMetadata, num_reqs: int, spare: torch.Generator, among: set[int] | None = None
) -> SamplingMetadata:
    """The metadata for vLLM's own sampler, with a generator for every request if any has a seed.

    Its CPU path ignores all seeds as soon as one request has none (topk_topp_sampler.py: forward_cpu).
    Requests outside `among` lend no generator: the sampler's numbers for them are thrown away.
    """
    if not metadata.generators:
        return metadata
    own = {i: g for i, g in metadata.generators.items() if among is None or i in among}
    return replace(metadata, generators={i: own.get(i, spare) for i in range(num_reqs)})

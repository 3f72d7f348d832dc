"""What of the CUDA room needs no GPU: slot arithmetic, biases, choices; the kernel, interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treespec.tree import TokenTree

pytest.importorskip("vllm")

from treespec.vllm_plugin.attention import TreeQueries
from treespec.vllm_plugin.cuda.attention import (
    MAX_QUERIES_PER_BLOCK,
    DraftTritonBackend,
    TreeTritonBackend,
    spread,
    tree_bias,
)
from treespec.vllm_plugin.cuda.device import CUDADevice
from treespec.vllm_plugin.cuda.worker import CUDATreeRunner, check_cuda_config

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
WIDE = TokenTree.from_paths([[0], [0, 0], [0, 1], [1], [1, 0], [2]])
DEEP = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [1], [1, 0]])


@st.composite
def trees(draw, max_nodes: int = 12) -> TokenTree:
    """Any tree in pre-order: each node hangs off the open path of the node before."""
    parents, path = [-1], [0]
    for node in range(1, draw(st.integers(1, max_nodes)) + 1):
        del path[draw(st.integers(1, len(path))) :]
        parents.append(path[-1])
        path.append(node)
    return TokenTree(tuple(parents))


# ---- the bias


@given(trees())
def test_bias_shows_a_node_its_ancestors_and_has_spare_rows(tree):
    bias = tree_bias(tree, CPU)
    size = len(tree.parents)
    assert bias.shape == (size + MAX_QUERIES_PER_BLOCK, size)
    assert bias.dtype == torch.float32
    assert bias.stride() == (size, 1)  # the kernel bounds keys by the first stride
    assert torch.equal(bias[:size] == 0, torch.from_numpy(tree.ancestor_mask))
    assert torch.isneginf(bias[:size][~torch.from_numpy(tree.ancestor_mask)]).all()


@given(trees(), st.data())
def test_the_corner_of_a_bias_is_the_bias_of_the_tree_cut_short(tree, data):
    kept = data.draw(st.integers(1, tree.num_nodes))
    corner = tree_bias(tree, CPU)[: kept + 1, : kept + 1]
    assert torch.equal(corner, tree_bias(tree.prefix(kept), CPU)[: kept + 1])


# ---- rows spread over the kernel's buffer


def level_of(requests, block_size=16, columns=8) -> TreeQueries:
    """requests: (context, tree, nodes); rows follow one another, padding repeats the pass's first row."""
    width = max(len(nodes) for _, _, nodes in requests)
    rows = torch.zeros(len(requests), width, dtype=torch.int64)
    nodes = torch.full((len(requests), width), -1)
    first = 0
    for i, (_, _, own) in enumerate(requests):
        rows[i, : len(own)] = torch.arange(len(own)) + first
        nodes[i, : len(own)] = torch.tensor(own)
        first += len(own)
    return TreeQueries(
        rows=rows,
        nodes=nodes,
        context_lens=torch.tensor([context for context, _, _ in requests]),
        trees=tuple(tree for _, tree, _ in requests),
        block_table=torch.arange(len(requests) * columns, dtype=torch.int32).view(len(requests), columns),
        max_kv_len=max(context + own[-1] + 1 for context, _, own in requests),
        covers_all=True,
    )


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.sampled_from([WIDE, DEEP]), st.data()), min_size=1, max_size=4)
)
def test_every_row_gets_the_place_of_its_node(drawn):
    requests = []
    for context, tree, data in drawn:
        nodes = data.draw(st.sets(st.integers(0, tree.num_nodes), min_size=1))
        requests.append((context, tree, sorted(nodes)))
    queries = level_of(requests)
    first_rows = np.cumsum([0, *(len(nodes) for _, _, nodes in requests)])
    for tree in dict.fromkeys(queries.trees):
        call = spread(queries, tree, block_size=16)
        own = [
            (row, *request) for row, request in zip(first_rows, requests, strict=False) if request[1] == tree
        ]
        lens = [nodes[-1] + 1 for *_, nodes in own]
        starts = np.cumsum([0, *lens]).tolist()
        assert call.query_start_loc.dtype == torch.int32
        assert call.query_start_loc.tolist() == starts
        assert call.seq_lens.tolist() == [context + n for (_, context, *_), n in zip(own, lens, strict=True)]
        assert call.num_places >= starts[-1]
        assert call.max_query_len >= max(lens)
        # A dict: padding repeats a row, with that row's own place.
        assert dict(zip(call.rows.tolist(), call.places.tolist(), strict=True)) == {
            row + i: start + node
            for (row, _, _, nodes), start in zip(own, starts, strict=False)
            for i, node in enumerate(nodes)
        }


def test_a_level_in_order_needs_no_row_index_and_a_short_table_is_widened():
    queries = level_of([(120, DEEP, [1, 4]), (30, DEEP, [1, 4])], columns=8)
    call = spread(queries, DEEP, block_size=16, in_order=True)
    assert call.rows is None
    assert call.places.tolist() == [1, 4, 6, 9]
    assert call.block_table.shape == (2, 8)  # 125 keys in 8 blocks of 16
    beyond = level_of([(126, DEEP, [1, 4])], columns=8)
    assert spread(beyond, DEEP, block_size=16, in_order=True).block_table.shape == (1, 9)


# ---- moving slots


@pytest.mark.parametrize("seed", range(4))
def test_slots_move_in_every_layer_as_if_read_before_written(seed):
    draw = np.random.default_rng(seed)
    layers, blocks, block_size, heads, head_size = 3, 6, 4, 2, 5
    caches = torch.randn(layers, blocks, 2, block_size, heads, head_size)
    slots = draw.permutation(np.arange(block_size, blocks * block_size))  # block 0 is vLLM's null block
    sources, targets = torch.from_numpy(slots[:8].copy()), torch.from_numpy(slots[4:12].copy())
    targets[draw.random(8) < 0.4] = -1  # sources overlap the targets of others: a chain of moves
    expected = caches.clone()
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        if target >= 0:
            expected[:, target // block_size, :, target % block_size] = caches[
                :, source // block_size, :, source % block_size
            ]
    CUDADevice().move_kv(caches, sources, targets)
    torch.testing.assert_close(caches, expected, atol=0, rtol=0)


# ---- what a captured graph may serve


def runner_of(engine_tree: TokenTree, queries=None) -> CUDATreeRunner:
    runner = object.__new__(CUDATreeRunner)  # its constructor wants a GPU
    runner.drafter = SimpleNamespace(tree=engine_tree)
    runner.round = SimpleNamespace(queries=queries)
    return runner


def test_a_graph_serves_batches_of_one_tree_only():
    def step(requests, covers_all=True):
        queries = level_of(requests)
        return SimpleNamespace(trees=queries.trees, covers_all=covers_all)

    one = step([(5, WIDE, [0, 1]), (9, WIDE, [0])])
    several = step([(5, WIDE, [0, 1]), (9, DEEP, [0])])
    assert runner_of(WIDE, one)._common_tree() == WIDE
    assert runner_of(WIDE, several)._common_tree() is None
    assert runner_of(WIDE, step([(5, WIDE, [0])], covers_all=False))._common_tree() is None
    assert runner_of(WIDE)._common_tree() == TokenTree.chain(WIDE.num_nodes)  # causal rows only


# ---- names and refusals


def test_backends_answer_to_the_name_they_are_registered_under():
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    for backend in (TreeTritonBackend, DraftTritonBackend):
        assert AttentionBackendEnum[backend.get_name()] is AttentionBackendEnum.CUSTOM
    assert TreeTritonBackend.full_cls_name() != DraftTritonBackend.full_cls_name()


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("attention_config", "backend", "FLASH_ATTN", "attention_config.backend FLASH_ATTN"),
        ("compilation_config", "cudagraph_mode", "FULL", "cudagraph_mode FULL"),
        ("parallel_config", "use_ubatching", True, "dual batch overlap"),
    ],
)
def test_what_the_room_cannot_do_is_refused_in_one_line(section, field, value, message):
    from vllm.config import CUDAGraphMode
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    enums = {"backend": AttentionBackendEnum, "cudagraph_mode": CUDAGraphMode}
    config = SimpleNamespace(
        attention_config=SimpleNamespace(backend=None),
        compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE),
        parallel_config=SimpleNamespace(use_ubatching=False),
    )
    check_cuda_config(config)
    setattr(getattr(config, section), field, enums[field][value] if field in enums else value)
    with pytest.raises(ValueError, match=message) as caught:
        check_cuda_config(config)
    assert "\n" not in str(caught.value)


# ---- the kernel itself


def test_interpreted_kernel_attends_along_trees():
    """tests/gpu/test_attention.py in Triton's interpreter, which must be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_attention.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout

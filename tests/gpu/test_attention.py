"""The tree attention against masked attention in plain torch, on a GPU or in Triton's interpreter.

python -m pytest tests/gpu/test_attention.py
TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= python -m pytest tests/gpu/test_attention.py
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from treespec.tree import TokenTree

os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # products as exact as the oracle's
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("gpu: no CUDA device, and TRITON_INTERPRET is not 1", allow_module_level=True)

from vllm.v1.attention.backends import triton_attn  # noqa: E402
from vllm.v1.attention.ops import triton_unified_attention  # noqa: E402

from treespec.vllm_plugin.attention import TreeQueries  # noqa: E402
from treespec.vllm_plugin.cuda import attention  # noqa: E402
from treespec.vllm_plugin.cuda.attention import TreeTritonBuilder, TreeTritonImpl  # noqa: E402

pytestmark = pytest.mark.gpu
BLOCK, KV_HEADS, HEAD_SIZE, NUM_BLOCKS, TABLE = 16, 2, 32, 64, 6
SMALL = TokenTree.from_paths([[0], [0, 0], [0, 1], [1], [1, 0], [2]])
DEEP = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 1], [0, 1, 0], [1], [1, 0], [1, 1], [1, 1, 0]])
WIDE = TokenTree((-1, *([0] * 7), *([7] * 9), *([16] * 8)))


def store(key, value, key_cache, value_cache, slots, *_):
    """What vLLM's kernel does, whose launcher asks CUDA for the device's generation."""
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key_cache[slot // BLOCK, slot % BLOCK] = key[row]
            value_cache[slot // BLOCK, slot % BLOCK] = value[row]


@pytest.fixture(scope="session")
def interpretable(tmp_path_factory):
    """vLLM's kernel with `and` between tensors, which the interpreter takes for Python's, spelled &."""
    source = Path(triton_unified_attention.__file__).read_text()
    condition = "key_rel_pos >= 0 and key_rel_pos < qq_bias_stride_0"
    assert source.count(condition) == 2
    source = source.replace(condition, "(key_rel_pos >= 0) & (key_rel_pos < qq_bias_stride_0)")
    path = tmp_path_factory.mktemp("kernel") / "interpretable.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("interpretable", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.unified_attention


@pytest.fixture(autouse=True)
def kernels(monkeypatch, request):
    if INTERPRETED:
        unified_attention = request.getfixturevalue("interpretable")
        for module in (attention, triton_attn):
            monkeypatch.setattr(module, "triton_reshape_and_cache_flash", store)
            monkeypatch.setattr(module, "unified_attention", unified_attention)


class Pass:
    """One forward pass over requests of which some rows attend along trees; its oracle beside it.

    requests: (tokens in the cache before, tree or None, nodes of the pass in row order or number of tokens).
    """

    def __init__(self, requests, heads=4, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.requests, self.heads = requests, heads
        self.cache = torch.randn(NUM_BLOCKS, 2, BLOCK, KV_HEADS, HEAD_SIZE, generator=draw).to(DEVICE)
        order = 1 + torch.randperm(NUM_BLOCKS - 1, generator=draw)
        self.table = order[: len(requests) * TABLE].view(-1, TABLE).int().to(DEVICE)
        self.places = [  # positions in the sequence whose keys the pass writes
            [context + int(node) for node in (nodes if tree else range(nodes))]
            for context, tree, nodes in requests
        ]
        total = sum(map(len, self.places))
        self.query, self.key, self.value = (
            torch.randn(total, n, HEAD_SIZE, generator=draw).to(DEVICE) for n in (heads, KV_HEADS, KV_HEADS)
        )
        lens = [len(places) for places in self.places]
        self.starts = [0, *torch.tensor(lens).cumsum(0).tolist()]
        slots = [
            int(self.table[i, place // BLOCK]) * BLOCK + place % BLOCK
            for i, places in enumerate(self.places)
            for place in places
        ]
        self.metadata = triton_attn.TritonAttentionMetadata(
            num_actual_tokens=total,
            max_query_len=max(2, *lens),
            query_start_loc=torch.tensor(self.starts, dtype=torch.int32, device=DEVICE),
            max_seq_len=TABLE * BLOCK,
            seq_lens=torch.tensor([p[-1] + 1 for p in self.places], dtype=torch.int32, device=DEVICE),
            block_table=self.table,
            slot_mapping=torch.tensor(slots, device=DEVICE),
            seq_threshold_3D=0,
            num_par_softmax_segments=None,
            softmax_segm_output=None,
            softmax_segm_max=None,
            softmax_segm_expsum=None,
            use_cascade=False,
            common_prefix_len=0,
            cu_prefix_query_lens=None,
            prefix_kv_lens=None,
            suffix_kv_lens=None,
        )

    def queries(self) -> TreeQueries:
        """As the runner and the proposer name the tree rows, padded with the first row."""
        bent = [i for i, (_, tree, _) in enumerate(self.requests) if tree]
        width = max(len(self.requests[i][2]) for i in bent)
        rows = torch.full((len(bent), width), self.starts[bent[0]])
        nodes = torch.full((len(bent), width), -1)
        for at, i in enumerate(bent):
            count = len(self.requests[i][2])
            rows[at, :count] = torch.arange(count) + self.starts[i]
            nodes[at, :count] = torch.tensor(self.requests[i][2])
            rows[at, count:] = self.starts[i]
        return TreeQueries(
            rows=rows.to(DEVICE),
            nodes=nodes.to(DEVICE),
            context_lens=torch.tensor([self.requests[i][0] for i in bent], device=DEVICE),
            trees=tuple(self.requests[i][1] for i in bent),
            block_table=self.table[bent],
            max_kv_len=max(self.places[i][-1] + 1 for i in bent),
            covers_all=len(bent) == len(self.requests),
        )

    def run(self):
        impl = TreeTritonImpl(self.heads, HEAD_SIZE, HEAD_SIZE**-0.5, KV_HEADS, None, None, "auto")
        layer = SimpleNamespace(
            _k_scale=torch.ones(1, device=DEVICE), _v_scale=torch.ones(1, device=DEVICE), _q_scale_float=1.0
        )
        output = torch.full_like(self.query, torch.nan)
        impl.forward(layer, self.query, self.key, self.value, self.cache, self.metadata, output)
        return output

    def expected(self):
        """Request by request, from the cache as it is after `run`."""
        results = []
        group = self.heads // KV_HEADS
        for i, (context, tree, nodes) in enumerate(self.requests):
            num_kv = self.places[i][-1] + 1
            mask = torch.zeros(len(self.places[i]), num_kv, dtype=torch.bool)
            mask[:, :context] = True
            if tree:
                inside = torch.from_numpy(tree.ancestor_mask)[nodes]
                mask[:, context:] = inside[:, : num_kv - context]
            else:
                mask[:, context:] = torch.ones(nodes, nodes).tril().bool()
            cached = self.cache[self.table[i].long()].transpose(0, 1).reshape(2, -1, KV_HEADS, HEAD_SIZE)
            keys, values = cached[:, :num_kv].repeat_interleave(group, dim=2).transpose(1, 2)
            rows = self.query[self.starts[i] : self.starts[i + 1]].transpose(0, 1)
            mask = mask.to(DEVICE)
            results.append(scaled_dot_product_attention(rows, keys, values, attn_mask=mask).transpose(0, 1))
        return torch.cat(results)


def builder() -> TreeTritonBuilder:
    made = object.__new__(TreeTritonBuilder)  # its constructor wants a whole engine's config
    made.device, made.block_size = DEVICE, BLOCK
    return made


def whole(tree: TokenTree, cut: int | None = None) -> list[int]:
    return list(range(tree.num_nodes + 1 if cut is None else cut + 1))


def check(step: Pass, tolerance: float = 1e-5 if INTERPRETED else 2e-3):
    torch.testing.assert_close(step.run(), step.expected(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("heads", [2, 4, 16], ids=lambda heads: f"{heads // KV_HEADS} queries a key head")
@pytest.mark.parametrize(
    "requests",
    [
        [(0, SMALL, whole(SMALL))],
        [(33, WIDE, whole(WIDE))],
        [(20, SMALL, whole(SMALL)), (7, SMALL, whole(SMALL, 3)), (41, SMALL, whole(SMALL, 1))],
        [(15, SMALL, whole(SMALL)), (16, DEEP, whole(DEEP)), (30, SMALL, whole(SMALL, 4))],
        [(12, None, 5), (9, DEEP, whole(DEEP, 6)), (31, None, 1), (3, SMALL, whole(SMALL))],
    ],
    ids=["from the first token", "tiles masked whole", "cut short", "two trees", "mixed with prompts"],
)
def test_verification(requests, heads):
    step = Pass(requests, heads)
    builder().attend_along(step.metadata, step.queries())
    check(step)


@pytest.mark.parametrize(
    "requests",
    [
        [(18, DEEP, [2, 4, 6])],
        [(18, DEEP, [3, 5]), (40, DEEP, [3, 5]), (0, DEEP, [3, 5])],
        [(18, DEEP, [1, 6]), (14, SMALL, [1, 4]), (25, DEEP, [1, 6])],
        [(18, DEEP, [2, 4, 8]), (14, SMALL, [1])],
    ],
    ids=["one request", "one tree", "two trees", "two widths"],
)
def test_drafted_level(requests):
    step = Pass(requests)
    builder().attend_level(step.metadata, step.queries())
    check(step)


def test_level_past_the_last_block_leaves_the_rest_right():
    context = TABLE * BLOCK - 4
    step = Pass([(context, DEEP, [1, 3])])
    wanted = Pass([(context, DEEP, [1, 3])])
    builder().attend_level(wanted.metadata, wanted.queries())
    beyond = [1, 3, 6]  # node 6 has no block
    step.query = torch.cat([step.query, step.query[:1]])
    step.key, step.value = (torch.cat([each, each[:1]]) for each in (step.key, step.value))
    slots = step.metadata.slot_mapping
    step.metadata.slot_mapping = torch.cat([slots, slots.new_full((1,), -1)])
    step.metadata.num_actual_tokens = 3
    queries = TreeQueries(
        rows=torch.arange(3, device=DEVICE)[None],
        nodes=torch.tensor([beyond], device=DEVICE),
        context_lens=torch.tensor([context], device=DEVICE),
        trees=(DEEP,),
        block_table=step.table,
        max_kv_len=context + 7,
        covers_all=True,
    )
    builder().attend_level(step.metadata, queries)
    torch.testing.assert_close(step.run()[:2], wanted.run())


def test_captured_bias_serves_every_tree_of_its_size():
    made = builder()
    chain = TokenTree.chain(SMALL.num_nodes)
    step = Pass([(20, SMALL, whole(SMALL)), (31, SMALL, whole(SMALL))])
    made.attend_graph_tree(step.metadata, SMALL.num_nodes)
    for tree in (SMALL, chain, SMALL):
        made.show(tree)
        step.requests = [(context, tree, nodes) for context, _, nodes in step.requests]
        check(step)

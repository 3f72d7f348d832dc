"""The largest tree that there may be, 512 nodes, on the real engine: the target's own text, within bounds."""

from __future__ import annotations

from pathlib import Path

from conftest import Client, running_engine
from on_ranks import peak_memory_mib
from tiny_models import make_llama

from treespec.tree import TokenTree

LARGEST = TokenTree.from_file(Path(__file__).resolve().parents[2] / "trees/mc_sim_8b_512.json")
MORE_MIB = 512  # a step's masks, gathered keys and logits; the models themselves are far below


def test_512_nodes_in_24_levels(tmp_path, monkeypatch):
    """Two sequences, each verifying its tree next to the other's; near max_model_len the trees are cut."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # to run a function in the engine's process
    config = {"head_dim": 32, "initializer_range": 0.25, "tie_word_embeddings": False}
    make_llama(tmp_path, seed=3, max_position_embeddings=1024, **config)
    prompts = [[5, 6, 7, 8], list(range(2, 120)) * 4]
    with running_engine(
        tmp_path,
        tmp_path,  # a draft that is the target: whole paths of 24 are accepted
        LARGEST,
        max_model_len=600,
        max_num_seqs=2,
        max_num_batched_tokens=2 * (LARGEST.num_nodes + 1),
    ) as llm:
        client = Client(llm)
        assert (LARGEST.num_nodes, LARGEST.depth) == (512, 24)
        plain = client.generate(prompts, "none", max_tokens=120)
        before, peak = client.counters(), llm.collective_rpc(peak_memory_mib)[0]
        assert client.generate(prompts, max_tokens=120) == plain
        counted = client.counters().since(before)
        assert counted.num_draft_tokens > 4 * LARGEST.num_nodes
        assert counted.num_accepted_tokens_per_pos[LARGEST.depth - 1] >= 2
        assert llm.collective_rpc(peak_memory_mib)[0] < peak + MORE_MIB

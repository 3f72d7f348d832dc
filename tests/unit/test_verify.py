"""The tensor verifier against the oracle and against the rules it must reduce to."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from treespec import verify
from treespec.drawing import draw_children, sample_from
from treespec.tree import TokenTree
from treespec.verify import residual, verify_matching, verify_rejection, verify_sampling

torch.set_num_threads(1)
BATCH, NUM_NODES, VOCAB = 40, 9, 6


def random_tree(rng: random.Random, num_nodes: int = NUM_NODES) -> TokenTree:
    parents, open_path = [-1], [0]
    for node in range(1, num_nodes + 1):
        open_path = open_path[: rng.randint(1, len(open_path))]
        parents.append(open_path[-1])
        open_path.append(node)
    return TokenTree(tuple(parents))


def random_probs(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Distributions in which about a third of the tokens have probability zero."""
    weights = torch.rand(*shape, generator=rng, dtype=torch.float64)
    weights *= torch.rand(*shape, generator=rng) > 0.3
    weights[..., 0] += 1e-3
    return weights / weights.sum(-1, keepdim=True)


def after(target_probs: torch.Tensor) -> verify.TargetProbs:
    """[batch, num_nodes + 1, vocab], looked up node by node."""
    return lambda node: verify.at_node(target_probs, node)


class Step:
    """A batch of requests, each with a tree of its own, cut somewhere, drawn from its draft."""

    def __init__(self, seed: int, trees: list[TokenTree] | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        rng = random.Random(seed)
        self.trees = trees or [random_tree(rng) for _ in range(BATCH)]
        batch, size = len(self.trees), self.trees[0].num_nodes + 1
        self.max_depth = max(tree.depth for tree in self.trees)
        self.children = torch.full((batch, size, max(tree.max_children for tree in self.trees)), -1)
        for row, tree in enumerate(self.trees):
            self.children[row, :, : tree.max_children] = torch.from_numpy(tree.children)
        self.num_nodes = torch.tensor([rng.choice([size - 1, rng.randrange(size)]) for _ in self.trees])
        self.target_probs = random_probs(self.generator, batch, size, VOCAB)
        self.draft_probs = random_probs(self.generator, batch, size, VOCAB)
        self.draft_row = torch.stack([torch.randperm(size, generator=self.generator) for _ in self.trees])
        self.tokens = torch.zeros(batch, size, dtype=torch.int64)
        for row, tree in enumerate(self.trees):
            for node, count in enumerate(tree.num_children):
                probs = self.draft_probs[row, self.draft_row[row, node]][None]
                drawn = draw_children(probs, self.uniform(1, max(count, 1)))
                self.tokens[row, tree.children[node, :count]] = drawn[0, :count]
        self.uniforms = self.uniform(batch, self.max_depth, self.children.shape[2])
        self.bonus_uniform = self.uniform(batch)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def arguments(self) -> dict[str, torch.Tensor]:
        return {
            "draft_token_ids": self.tokens,
            "children": self.children,
            "num_nodes": self.num_nodes,
            "target_probs": self.target_probs,
            "draft_probs": self.draft_probs,
            "draft_row": self.draft_row,
            "uniforms": self.uniforms,
            "bonus_uniform": self.bonus_uniform,
        }

    def verify_rejection(self, **changes):
        arguments = self.arguments() | {"max_depth": self.max_depth} | changes
        return verify_rejection(**arguments | {"target_probs": after(arguments["target_probs"])})

    def verify_sampling(self, uniforms, target_probs=None):
        target_probs = after(self.target_probs if target_probs is None else target_probs)
        return verify_sampling(
            self.tokens, self.children, self.num_nodes, target_probs, uniforms, self.max_depth
        )

    def verify_matching(self, target_token_ids):
        return verify_matching(self.tokens, self.children, self.num_nodes, target_token_ids, self.max_depth)


def rows(verified) -> list[tuple[list[int], list[int]]]:
    """(accepted nodes, output tokens) of each request, and a check that all else is padding."""
    unpadded = []
    for token_ids, path, count in zip(*map(torch.Tensor.tolist, vars(verified).values()), strict=True):
        assert set(path[count:]) <= {-1}
        assert set(token_ids[count + 1 :]) <= {-1}
        unpadded.append((path[:count], token_ids[: count + 1]))
    return unpadded


def same(one, other) -> bool:
    return rows(one) == rows(other)


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_the_oracle(seed):
    step = Step(seed)
    target_token_ids = torch.randint(0, VOCAB, step.tokens.shape, generator=step.generator)
    expected = [
        oracle.verify_matching(tree.parents, int(cut), tokens, target)
        for tree, cut, tokens, target in zip(
            step.trees, step.num_nodes, step.tokens.tolist(), target_token_ids.tolist(), strict=True
        )
    ]
    assert rows(step.verify_matching(target_token_ids)) == expected
    assert max(len(path) for path, _ in expected) > 1


@pytest.mark.parametrize("seed", range(5))
def test_sampling_matches_what_was_sampled_at_all_nodes(seed):
    step = Step(seed)
    uniforms = step.uniform(*step.tokens.shape)
    chosen = sample_from(step.target_probs.flatten(0, 1), uniforms.flatten()).view_as(step.tokens)
    assert same(step.verify_sampling(uniforms), step.verify_matching(chosen))


@pytest.mark.parametrize("seed", range(5))
def test_rejection_equals_the_oracle_given_the_same_uniforms(seed):
    step = Step(seed)
    expected = []
    for row, tree in enumerate(step.trees):
        draft_probs = step.draft_probs[row, step.draft_row[row]].tolist()
        numbers = step.target_probs[row].tolist(), draft_probs, step.uniforms[row].tolist()
        tokens, bonus_uniform = step.tokens[row].tolist(), float(step.bonus_uniform[row])
        cut = int(step.num_nodes[row])
        expected.append(oracle.verify_rejection(tree.parents, cut, tokens, *numbers, bonus_uniform))
    assert rows(step.verify_rejection()) == expected
    assert max(len(path) for path, _ in expected) > 1
    assert any(tokens < 0 for tokens in step.tokens.flatten().tolist())  # drafts that ran out took part


def test_float32_decides_like_float64():
    step = Step(7)
    single = {"target_probs": step.target_probs.float(), "draft_probs": step.draft_probs.float()}
    assert same(step.verify_rejection(**single), step.verify_rejection())


def test_one_tree_for_all_needs_one_table():
    step = Step(3, trees=[TokenTree.from_paths([[0], [1], [0, 0], [0, 1], [1, 0]])] * BATCH)
    shared = {"children": step.children[:1], "draft_row": step.draft_row[:1]}
    repeated = {"children": step.children, "draft_row": step.draft_row[:1].expand(BATCH, -1)}
    assert same(step.verify_rejection(**shared), step.verify_rejection(**repeated))


def test_ranks_that_no_node_of_a_level_has_may_be_left_out():
    tree = TokenTree.from_paths([[0], [1], [2], [0, 0], [1, 0], [0, 0, 0]])
    step = Step(4, trees=[tree] * BATCH)
    assert same(step.verify_rejection(children_per_level=[3, 1, 1]), step.verify_rejection())


def test_a_chain_is_the_algorithm_of_chen_et_al():
    step = Step(5, trees=[TokenTree.chain(4)] * BATCH)
    expected = []
    for row in range(BATCH):
        cut, output = int(step.num_nodes[row]), []
        target, draft = step.target_probs[row], step.draft_probs[row, step.draft_row[row]]
        drawn = step.tokens[row, 1 : cut + 1].tolist()
        for i, token in enumerate(drawn):
            if token < 0 or step.uniforms[row, i, 0] >= (target[i, token] / draft[i, token]).clamp(max=1):
                break
            output.append(token)
        rejected = len(output) < len(drawn) and drawn[len(output)] >= 0
        last = target[len(output)][None]
        bonus = sample_from(
            residual(last, draft[len(output)][None]) if rejected else last, step.bonus_uniform[row, None]
        )
        expected.append((list(range(1, len(output) + 1)), [*output, int(bonus)]))
    assert rows(step.verify_rejection()) == expected


def test_equal_distributions_keep_a_whole_chain():
    step = Step(6, trees=[TokenTree.chain(5)] * BATCH)
    draft_probs = step.draft_probs.gather(1, step.draft_row[:, :, None].expand_as(step.draft_probs))
    same_probs = {"target_probs": draft_probs, "uniforms": torch.full_like(step.uniforms, 1 - 2**-53)}
    assert torch.equal(step.verify_rejection(**same_probs).num_accepted, step.num_nodes)


@pytest.mark.parametrize("mask", [True, False], ids=["children chosen in any way", "children drawn"])
def test_temperature_zero_is_greedy_whatever_the_draft(mask):
    """With the mask the draft's distribution may be missing; without it, it must be the one drawn from."""
    step = Step(8)
    argmax = step.target_probs.argmax(-1)
    one_hot = torch.nn.functional.one_hot(argmax, VOCAB).double()
    changes = {"target_probs": one_hot, "is_greedy": torch.full((BATCH,), mask)}
    if mask:
        step.tokens.random_(VOCAB, generator=step.generator)
        changes["draft_probs"] = torch.zeros_like(step.draft_probs)
    assert same(step.verify_rejection(**changes), step.verify_matching(argmax))


def test_a_token_that_the_target_excludes_is_never_put_out():
    """Not even by the smallest uniforms, which accept whatever can be accepted."""
    step = Step(14)
    lowest = {"uniforms": torch.zeros_like(step.uniforms), "bonus_uniform": torch.zeros(BATCH)}
    for row, (path, token_ids) in enumerate(rows(step.verify_rejection(**lowest))):
        for node, token in zip([0, *path], token_ids, strict=True):
            assert step.target_probs[row, node, token] > 0


def test_greedy_and_sampled_requests_do_not_disturb_each_other():
    step = Step(9)
    is_greedy = torch.arange(BATCH) % 3 == 0
    argmax = step.target_probs.argmax(-1)
    one_hot = torch.nn.functional.one_hot(argmax, VOCAB).double()
    target_probs = torch.where(is_greedy[:, None, None], one_hot, step.target_probs)
    mixed = rows(step.verify_rejection(target_probs=target_probs, is_greedy=is_greedy))
    greedy, sampled = rows(step.verify_matching(argmax)), rows(step.verify_rejection())
    assert mixed == [greedy[i] if is_greedy[i] else sampled[i] for i in range(BATCH)]


def test_a_request_without_nodes_is_sampled_from_the_target():
    step = Step(10)
    verified = step.verify_rejection(num_nodes=torch.zeros_like(step.num_nodes))
    assert not verified.num_accepted.any()
    assert torch.equal(verified.token_ids[:, 0], sample_from(step.target_probs[:, 0], step.bonus_uniform))


def test_a_request_does_not_depend_on_its_neighbours():
    step = Step(11)
    together = rows(step.verify_rejection())
    for row in range(0, BATCH, 7):
        alone = {name: value[row : row + 1] for name, value in step.arguments().items()}
        assert rows(step.verify_rejection(**alone)) == together[row : row + 1]


def test_an_absent_node_hides_what_is_below_it():
    tree = TokenTree.from_paths([[0], [1], [1, 0]])
    children, num_nodes = torch.from_numpy(tree.children)[None], torch.tensor([3])
    tokens = torch.tensor([[0, 4, -1, 5]])  # node 2 was not drawn, node 3 is below it
    verified = verify_matching(tokens, children, num_nodes, torch.tensor([[-1, 5, 5, 5]]), 2)
    assert verified.path.tolist() == [[-1, -1]]


class OperatorNames(TorchDispatchMode):
    """Names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_without_the_cpus_short_cuts_nothing_waits_for_the_device(monkeypatch):
    """What CUDA runs outputs the same and has no operator whose result the host must look at."""
    step, expected = Step(12), rows(Step(12).verify_rejection())
    monkeypatch.setattr(verify, "surely_none", lambda mask: False)
    with OperatorNames() as operators:
        verified = step.verify_rejection()
        step.verify_matching(step.tokens)
        step.verify_sampling(step.uniform(*step.tokens.shape))
        draw_children(step.draft_probs[:, 0], step.uniforms[:, 0])
    assert rows(verified) == expected
    assert "searchsorted" in operators.seen
    assert not operators.seen & {"_local_scalar_dense", "nonzero", "masked_select", "equal"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_outputs_the_same_and_never_synchronises():
    step = Step(12)
    on_gpu = {name: value.cuda() for name, value in step.arguments().items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        verified = step.verify_rejection(**on_gpu)
        draw_children(on_gpu["draft_probs"][:, 0], on_gpu["uniforms"][:, 0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(verified, step.verify_rejection())


def test_residual_of_equal_distributions_is_the_target():
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    left = residual(probs, torch.tensor([[0.25, 0.75], [0.25, 0.75]]))
    assert left.tolist() == [[0.25, 0.75], [1.0, 0.0]]


@pytest.mark.parametrize("name", ["uniforms", "bonus_uniform"])
def test_uniforms_that_would_serve_twice_are_refused(name):
    step = Step(13)
    with pytest.raises(ValueError, match="uniforms: shape"):
        step.verify_rejection(**{name: getattr(step, name)[:1]})

"""The verifier once more, in plain Python, one request at a time, to be read against the papers.

It works on lists of floats or of fractions. With fractions `output_distribution` is exact: what verification
puts out over all draft draws and all acceptances, without a single random number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

Context = tuple[int, ...]
Probs = Sequence[Fraction]
Conditional = Callable[[Context], Probs]  # the next token's distribution after a context
Distribution = dict[Context, Fraction]


def children(parents: Sequence[int], num_nodes: int, node: int) -> list[int]:
    return [child for child in range(1, num_nodes + 1) if parents[child] == node]


def normalise(weights: Probs) -> Probs:
    total = sum(weights)
    return [weight / total for weight in weights] if total else list(weights)


def residual(target_probs: Probs, draft_probs: Probs) -> Probs:
    excess = [max(target - draft, 0) for target, draft in zip(target_probs, draft_probs, strict=True)]
    return normalise(excess) if sum(excess) else target_probs


def without(draft_probs: Probs, token: int) -> Probs:
    return normalise([0 if other == token else prob for other, prob in enumerate(draft_probs)])


def sample(probs: Probs, uniform: float) -> int:
    cumulated = 0
    for token, prob in enumerate(probs):
        cumulated += prob
        if uniform < cumulated:
            return token
    return max(token for token, prob in enumerate(probs) if prob > 0)


def verify_matching(parents, num_nodes, draft_tokens, target_tokens) -> tuple[list[int], list[int]]:
    """Accepted nodes and output tokens."""
    path, output = [0], []
    while True:
        output.append(target_tokens[path[-1]])
        matching = [c for c in children(parents, num_nodes, path[-1]) if draft_tokens[c] == output[-1]]
        if not matching:
            return path[1:], output
        path.append(matching[0])


def verify_rejection(
    parents, num_nodes, draft_tokens, target_probs, draft_probs, uniforms, bonus_uniform
) -> tuple[list[int], list[int]]:
    """Accepted nodes and output tokens; probs are indexed by node, uniforms by depth and rank."""
    path, output = [0], []
    while True:
        target, draft = target_probs[path[-1]], draft_probs[path[-1]]
        accepted = None
        for rank, child in enumerate(children(parents, num_nodes, path[-1])):
            token = draft_tokens[child]
            if token < 0:
                break
            if uniforms[len(output)][rank] < min(1, target[token] / draft[token]):
                accepted = child
                break
            target, draft = residual(target, draft), without(draft, token)
        if accepted is None:
            return path[1:], [*output, sample(target, bonus_uniform)]
        path.append(accepted)
        output.append(draft_tokens[accepted])


def output_distribution(
    parents: Sequence[int], num_nodes: int, target: Conditional, draft: Conditional
) -> Distribution:
    """Probability of every output of one step. Nodes are drawn when looked at: the law is the same."""
    outputs: Distribution = {}

    def add(output: Context, prob: Fraction) -> None:
        outputs[output] = outputs.get(output, 0) + prob

    def walk(node: int, output: Context, reached: Fraction) -> None:
        target_rest, draft_rest = target(output), draft(output)
        test(children(parents, num_nodes, node), target_rest, draft_rest, output, reached)

    def test(untested, target_rest, draft_rest, output: Context, reached: Fraction) -> None:
        if not untested or not any(draft_rest):
            for token, prob in enumerate(target_rest):
                add((*output, token), reached * prob)
            return
        for token, draft_prob in enumerate(draft_rest):
            if draft_prob == 0:
                continue
            drawn = reached * draft_prob
            acceptance = min(Fraction(1), target_rest[token] / draft_prob)
            if acceptance > 0:
                walk(untested[0], (*output, token), drawn * acceptance)
            if acceptance < 1:
                rest = residual(target_rest, draft_rest), without(draft_rest, token)
                test(untested[1:], *rest, output, drawn * (1 - acceptance))

    walk(0, (), Fraction(1))
    return outputs


def draft_draws(
    parents: Sequence[int], num_nodes: int, draft: Conditional
) -> Iterator[tuple[Context, Fraction]]:
    """Every possible drawing of the nodes 1..num_nodes with its probability; -1 is a node left undrawn."""

    def draw(tokens: Context, contexts: tuple[Context | None, ...], prob: Fraction):
        node = len(contexts)
        if node > num_nodes:
            yield tokens, prob
            return
        context = contexts[parents[node]]
        rest = draft(context) if context is not None else []
        for elder in children(parents, node - 1, parents[node]):
            rest = without(rest, tokens[elder - 1]) if tokens[elder - 1] >= 0 else rest
        if not any(rest):
            yield from draw((*tokens, -1), (*contexts, None), prob)
        for token, token_prob in enumerate(rest):
            if token_prob:
                yield from draw((*tokens, token), (*contexts, (*context, token)), prob * token_prob)

    yield from draw((), ((),), Fraction(1))


def continued(outputs: Distribution, target: Conditional, length: int) -> Distribution:
    """The outputs, each continued by the target alone to `length` tokens, as later steps would do it."""
    sequences: Distribution = {}
    unfinished = list(outputs.items())
    while unfinished:
        output, prob = unfinished.pop()
        if len(output) >= length:
            sequences[output] = sequences.get(output, 0) + prob
        else:
            unfinished += [((*output, t), prob * p) for t, p in enumerate(target(output)) if prob * p]
    return {sequence: prob for sequence, prob in sequences.items() if prob}

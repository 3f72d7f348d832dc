"""What a request asks for: its tree, and whether verification gives exactly its sampling."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vllm import SamplingParams
from vllm.logger import init_logger

from treespec.tree import TokenTree

logger = init_logger(__name__)

NO_DRAFT = "none"


def tree_of(params: SamplingParams | None, default: TokenTree) -> TokenTree | None:
    """The tree to draft for a request: its own, the engine's, or None for no drafting.

    A request names its own by `extra_args={"treespec": {"tree": "none" | [-1, 0, ...]}}` (parents of
    the nodes, TokenTree). One that is no tree, or larger than the engine's num_speculative_tokens, is
    not drafted: a request must not bring the engine down.
    """
    if params is None or not is_verifiable(params):
        return None
    asked = ((params.extra_args or {}).get("treespec") or {}).get("tree")
    if asked is None:
        return default
    if asked == NO_DRAFT:
        return None
    try:
        tree = _tree(tuple(asked))
    except (TypeError, ValueError) as error:
        logger.warning("extra_args.treespec.tree: %s; the request is not drafted for", error)
        return None
    if tree.num_nodes > default.num_nodes:
        logger.warning(
            "extra_args.treespec.tree: %d nodes; expected at most %d; the request is not drafted for",
            tree.num_nodes,
            default.num_nodes,
        )
        return None
    return tree


@lru_cache(maxsize=256)
def _tree(parents: tuple[int, ...]) -> TokenTree:
    return TokenTree(parents)


def is_verifiable(params: SamplingParams) -> bool:
    """Temperature, top-k, top-p and seeds are covered; nothing else may edit the logits.

    Any other request runs undrafted through vLLM's own sampler: a penalty at a node depends on the path that
    leads there. vLLM itself refuses min_p, min_tokens and logit_bias beside speculation.
    """
    return not _edits_logits(params)


def is_plain(params: SamplingParams | None) -> bool:
    """Whether the request's next token is the argmax of the logits."""
    return params is not None and params.temperature == 0 and not _edits_logits(params)


def is_stop(params: SamplingParams, token_id: int) -> bool:
    """Whether the request ends with this token. vLLM lists the model's own as a stop even where ignored."""
    return token_id in (params.stop_token_ids or ()) or (
        not params.ignore_eos and token_id in params.all_stop_token_ids
    )


def _edits_logits(params: Any) -> bool:
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or params.min_tokens
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words
        or params.structured_outputs
    )

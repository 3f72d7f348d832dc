"""What tests run inside the worker of every rank: a module that a worker can import by name."""

from __future__ import annotations


def draft_shapes(worker) -> tuple[int, int, int]:
    """KV heads of the target's and the draft's layers on this rank, and the rows of the draft's head."""
    runner = worker.model_runner
    layers = runner.vllm_config.compilation_config.static_forward_context
    draft = set(runner.drafter.attn_layer_names)
    target = next(name for name in layers if name not in draft)
    heads = [layers[name].num_kv_heads for name in (target, min(draft))]
    return *heads, len(runner.drafter.model.lm_head.weight)


def disturb_one_rank(worker) -> None:
    if worker.rank == 1:
        worker.model_runner.drafter.model.lm_head.weight.data.neg_()


def tokens_gathered_while_drafting(worker) -> None:
    """From now on a collective operation of the target's group fails while a draft is made."""
    from vllm.distributed.parallel_state import get_tp_group

    drafter, group = worker.model_runner.drafter, get_tp_group()
    draft = drafter.draft

    def refuse(*args, **kwargs):
        raise AssertionError("a collective operation while drafting")

    def guarded(*args):
        names = ("all_reduce", "all_gather", "gather")
        for name in names:
            setattr(group, name, refuse)
        try:
            return draft(*args)
        finally:
            for name in names:
                delattr(group, name)

    drafter.draft = guarded


def peak_memory_mib(worker) -> float:
    """The most resident memory that the worker's process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def requests_remembered(worker) -> dict[str, int]:
    """How many requests this rank remembers anything of, by what it remembers."""
    runner = worker.model_runner
    return {
        "drafts": len(runner.states),
        "requests": len(runner.requests),
        "batch": len(runner.input_batch.req_ids),
    }

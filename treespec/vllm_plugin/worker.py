"""What both workers share: refusals before anything is loaded, and counters for whoever measures."""

from __future__ import annotations

from vllm.config import VllmConfig

from treespec.vllm_plugin import require_vllm


def check_config(config: VllmConfig) -> None:
    """Raise ValueError with one line for what token-tree speculation does not do."""
    require_vllm()
    speculative = config.speculative_config
    if speculative is None or not speculative.uses_draft_model():
        raise ValueError("treespec: speculative_config.method; expected 'draft_model'")
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            f"treespec: pipeline_parallel_size {config.parallel_config.pipeline_parallel_size}; expected 1, "
            "the accepted path is known on the last stage only"
        )
    if config.scheduler_config.async_scheduling:
        raise ValueError(
            "treespec: async_scheduling True; expected False, drafts follow the host's bookkeeping"
        )
    if config.cache_config.cache_dtype not in ("auto", "bfloat16", "float16"):
        raise ValueError(
            f"treespec: kv_cache_dtype {config.cache_config.cache_dtype!r}; expected 'auto', "
            "a quantised cache would make drafted and plain decoding differ"
        )
    if config.parallel_config.decode_context_parallel_size > 1:
        raise ValueError(
            f"treespec: decode_context_parallel_size {config.parallel_config.decode_context_parallel_size}; "
            "expected 1, a rank must hold the whole of a tree's cache"
        )
    for role, model in (("model", config.model_config), ("draft", speculative.draft_model_config)):
        kinds = {
            "multimodal": model.is_multimodal_model,
            "M-RoPE": model.uses_mrope,
            "encoder-decoder": model.is_encoder_decoder,
            "state-space layers": model.is_hybrid or model.is_attention_free,
        }
        for kind, is_so in kinds.items():
            if is_so:
                raise ValueError(f"treespec: {role} {model.model}: {kind}; expected a text-only decoder")
        if model.get_sliding_window() is not None:
            raise ValueError(
                f"treespec: {role} {model.model}: sliding window {model.get_sliding_window()}; expected none"
            )
    draft, longest = speculative.draft_model_config, config.model_config.max_model_len
    if draft.max_model_len < longest:
        raise ValueError(
            f"treespec: draft {draft.model}: {draft.max_model_len} positions; "
            f"expected at least the target's {longest}"
        )
    if config.lora_config is not None:
        raise ValueError("treespec: lora_config; expected none")


class TreeWorkerMixin:
    """Goes before a vLLM worker; `LLM.collective_rpc("treespec_stats")` reaches the method."""

    def treespec_stats(self, reset: bool = False) -> dict:
        return self.model_runner.treespec_stats(reset)
